"""Orbit expansion: a wider net that carries one transformed copy of a small net per group element, or per coset.

In the `diag` arrangement (the layer-wise Reynolds operator) the hidden channels are g-major blocks, and block g holds
the small net's weights moved by g:

    lift     W1[(g, c), :]          = rho(g) W1                          input representation, spatial rotation
    hidden   Wl[(g, c), (h, c')]    = rho(g) Wl  if g = h, else 0
    readout  WL[:, (g, c)]          = rho_out(g) WL / |G|

so the mean network is exactly the group average of the small one, 1/|G| sum_g rho_out(g) f(g^-1 x). `arrangements.py` has others.

With a subgroup H, blocks belong to the cosets gH and hold the mean of rho(gh) W over H: n blocks instead of n! for the symmetric
group on n letters with H the stabiliser of one of them. That net is equivariant too, but not the group average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import representations
from bayes_sym.errors import GroupActionError, OptionError
from bayes_sym.groups import FiniteGroup, Subgroup
from bayes_sym.layers.layer import Field, Layer, Role
from bayes_sym.representations import Representation

from .arrangements import Arrangement
from .arrangements import arrangement as arrange
from .families import Family, MeanField, PerSite
from .families.family import Reps
from .families.laplace import MeanFieldLaplace
from .problem import Problem, Values
from .rows import Data
from .structure import Structure
from .symmetrisation import At, Symmetrisation, check_at, check_hold, check_monomial
from .weight_action import input_field, target_module, weight_representations


__all__ = ["OrbitExpansion", "expand", "expand_spec", "expand_weights"]


@dataclass(frozen=True)
class OrbitExpansion(Symmetrisation):
    """Expand a module's net once, on the way: see `expand`."""

    action: Representation
    output: Representation | None
    at: At
    module: str | None
    off_scale: float
    arrangement: str = "diag"
    share: float = 0.5
    cosets: Subgroup | None = None
    hold: str = "none"

    @property
    def copies(self) -> int:
        """The number of blocks: the order of the group, or the number of cosets."""
        order = self.action.group.order
        return order if self.cosets is None else order // len(self.cosets.elements)

    def target(self, structure: Structure) -> tuple[str, Layer]:
        """The module to expand: its name and specification."""
        return target_module(structure, self.module, "expand")

    def problem(self, problem: Problem, data: Data) -> Problem:
        """The problem on the expanded net."""
        name, spec = self.target(problem.structure(*data))
        return problem.with_modules({name: expand_spec(spec, self.copies)})

    def reps(self, problem: Problem, data: Data) -> Reps:
        """On the expanded net: regular (or quotient) representations on hidden channels."""
        name, spec = self.target(problem.structure(*data))
        group = self.action.group
        base = representations.regular(group) if self.cosets is None else representations.quotient(group, self.cosets)
        hidden = tuple(
            (base * representations.trivial(group, stage.width // self.copies)).reshape(stage.width)
            for stage in spec.stages()[:-1]
        )
        own = weight_representations(spec, input_field(self.action, data), self.output, hidden)
        return {f"{name}.{site}": rep for site, rep in own.items()}

    def check(self, family: Family, params: Any, problem: Problem, data: Data) -> None:
        """Refuses families without means and scales, and nets or priors that cannot be expanded."""
        self._owner(family, problem, data)
        jax.eval_shape(lambda params: self.apply(family, params, problem, data), params)
        after = self.problem(problem, data)
        after.structure(*data)
        if self.hold != "none":
            if not arrange(self.arrangement, self.action.group).is_equivariant:
                raise OptionError(
                    f"expand(arrangement={self.arrangement!r}) is not invariant under regular hidden representations, so there is "
                    "nothing to hold: use hold='none', or the arrangement 'diag'"
                )
            self.reps(after, data)

    def _owner(self, family: Family, problem: Problem, data: Data) -> str | None:
        """Of a `PerSite` family, the member that has the module's sites; None for a family that has all sites."""
        prefix = self.target(problem.structure(*data))[0] + "."
        member: Family = family
        found = None
        if isinstance(family, PerSite):
            names = [name for name in problem.structure(*data).latent if name.startswith(prefix)]
            indices = {i for i, own in enumerate(family.assign(names)) if own}
            if len(indices) != 1:
                raise OptionError(
                    f"expand needs one family for all sites of module {prefix[:-1]!r}, got {len(indices)} in {family!r}"
                )
            found = str(indices.pop())
            member = family.families()[int(found)]
        if not isinstance(member, MeanField | MeanFieldLaplace):
            raise OptionError(
                f"expand takes q apart into means and scales: it needs MeanField() or MeanFieldLaplace(), got {type(member).__name__}"
            )
        return found

    def apply(self, family: Family, params: Any, problem: Problem, data: Data) -> Any:
        """The expanded parameters."""
        owner = self._owner(family, problem, data)
        if owner is not None:
            return {**params, owner: self._expanded(params[owner], problem, data)}
        return self._expanded(params, problem, data)

    def _expanded(self, params: Any, problem: Problem, data: Data) -> Any:
        name, spec = self.target(problem.structure(*data))
        prefix = name + "."
        center, log_scale = params

        def within(values: Values) -> Values:
            return {site.removeprefix(prefix): value for site, value in values.items() if site.startswith(prefix)}

        scales = {site: jnp.exp(value) for site, value in within(log_scale).items()}
        means, scales = expand_weights(
            spec,
            input_field(self.action, data),
            self.output,
            within(center),
            scales,
            self.off_scale,
            arrangement=self.arrangement,
            share=self.share,
            cosets=self.cosets,
        )
        return type(params)(
            {**center, **{prefix + site: value for site, value in means.items()}},
            {**log_scale, **{prefix + site: jnp.log(value) for site, value in scales.items()}},
        )


def expand(
    action: Representation,
    output: Representation | None = None,
    *,
    at: At = 0.2,
    module: str | None = None,
    off_scale: float = 0.02,
    arrangement: str = "diag",
    share: float = 0.5,
    cosets: Subgroup | None = None,
    hold: str = "none",
) -> OrbitExpansion:
    """Orbit expansion of a net's variational parameters.

    Args:
        action: how the group acts on one input, e.g. ``representations.image(cyclic(4), (8, 8))``. Must be a (signed)
            permutation, since a factorised Gaussian is closed under these only.
        output: how it acts on one output; None for invariant outputs.
        at: when: a fraction of all steps (a float below 1), a step (an integer), or a `TrainingAccuracy`.
        module: which `random_module` to expand; None if the model has one.
        off_scale: standard deviation of the weights between different copies that start at mean 0 (arrangement ``"diag"``).
        arrangement: how hidden blocks are filled: see `arrangements.arrangement`. ``"diag"`` is the group average of the small net
            and the recommendation; others are for ablations.
        share: of the arrangement ``"mix"``.
        cosets: a subgroup H; blocks then belong to its cosets, with arrangement ``"diag"``. For large groups.
        hold: how q is kept invariant afterwards: see `Symmetrisation`.
    """
    check_at(at, "expand")
    check_hold(hold, "expand")
    check_monomial(action, output, "expand")
    if not off_scale > 0:
        raise OptionError(f"expand(off_scale={off_scale}) must be positive: it is a standard deviation")
    arrange(arrangement, action.group, share)
    if cosets is not None:
        if cosets.parent != action.group:
            raise GroupActionError(f"cosets= must be a subgroup of {action.group.name}, got one of {cosets.parent.name}")
        if arrangement != "diag":
            raise OptionError(f"expand(cosets=...) has blocks for cosets in the arrangement 'diag' only, got {arrangement!r}")
    return OrbitExpansion(action, output, at, module, off_scale, arrangement, share, cosets, hold)


def expand_spec(spec: Layer, order: int) -> Layer:
    """The specification with `order` times as many hidden channels."""
    count = len(spec.stages())
    return spec.expand(order, iter(Role(i == 0, i == count - 1) for i in range(count)))


def expand_weights(
    spec: Layer,
    field: Field,
    output: Representation | None,
    means: Mapping[str, jax.Array],
    scales: Mapping[str, jax.Array],
    off_scale: float,
    *,
    arrangement: str = "diag",
    share: float = 0.5,
    cosets: Subgroup | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Means and standard deviations of the expanded net's weights, from those of the small net.

    Lifted standard deviations are copied, hidden ones scaled as their means are; the readout's are divided by sqrt(|G|), which
    keeps the noise of the outputs, and matches the prior of the wider fan-in.

    Args:
        spec: the small net.
        field: the action on its inputs.
        output: the representation on its outputs, or None for invariant ones.
        means, scales: by site name within the module.
        off_scale: standard deviation between different copies, where the arrangement leaves them at mean 0.
        arrangement, share, cosets: see `expand`.
    """
    stages = spec.stages()
    group = field.group
    last = len(stages) - 1
    hidden = [representations.trivial(group, stage.width) for stage in stages[:-1]]
    final = representations.trivial(group, stages[-1].width) if output is None else output
    reps, _ = spec.representations(field, iter([*hidden, final]))
    kinds = {site.name: site.kind for site in spec.sites()}
    filling = arrange(arrangement, group, share)
    members = _by_coset(group, cosets)
    count = len(members)
    if cosets is not None:  # one block per coset, none between them
        diagonal = np.eye(count)
        filling = Arrangement(np.broadcast_to(np.arange(count)[:, None], (count, count)), diagonal, diagonal, True)
    new_means, new_scales = {}, {}
    for i, stage in enumerate(stages):
        channels = field.channels.dim if i == 0 else stages[i - 1].width
        for name in stage.sites:
            axes = tuple(range(means[name].ndim))
            mean = reps[name].orbit(means[name], axes)[members].mean(axis=1)
            scale = jnp.abs(reps[name].orbit(scales[name], axes))[members].mean(axis=1)
            place = _Place(channels, i == 0, i == last)
            fill = _bias if kinds[name] == "bias" else _weight
            new_means[name] = fill(mean, place, 1 / count, filling.element, filling.mean, 0.0)
            new_scales[name] = fill(scale, place, 1 / math.sqrt(count), filling.element, filling.scale, off_scale)
    return new_means, new_scales


def _by_coset(group: FiniteGroup, cosets: Subgroup | None) -> np.ndarray:
    """The elements of every block, (blocks, elements): one each, or those of a left coset."""
    return np.arange(group.order)[:, None] if cosets is None else np.array(cosets.cosets)


@dataclass(frozen=True)
class _Place:
    """Where a site stands: its input channels, and whether it lifts or reads out."""

    channels: int
    first: bool
    last: bool


def _weight(orbit: jax.Array, place: _Place, readout: float, element: np.ndarray, factor: np.ndarray, off: float) -> jax.Array:
    """From one weight per copy, (copies, ..., inputs, outputs), to the expanded weight (..., [copies] inputs, [copies] outputs)."""
    count, *lead, outputs = orbit.shape
    blocks = orbit.reshape(count, -1, place.channels, outputs)  # inputs = (whatever comes first) x channels
    if place.first and place.last:
        return blocks.mean(axis=0).reshape(*lead, outputs)
    if place.first:
        wide = jnp.moveaxis(blocks, 0, 2)
    elif place.last:
        wide = jnp.moveaxis(blocks, 0, 1) * readout
    else:
        filled = blocks[element]  # to copy g, from copy h, rest, channels, outputs
        factors = jnp.asarray(factor, orbit.dtype)[:, :, None, None, None]
        filled = jnp.where(jnp.broadcast_to(factors == 0, filled.shape), jnp.asarray(off, orbit.dtype), filled * factors)
        wide = filled.transpose(2, 1, 3, 0, 4)
    inputs = lead[-1] * (1 if place.first else count)
    return wide.reshape(*lead[:-1], inputs, outputs * (1 if place.last else count))


def _bias(orbit: jax.Array, place: _Place, readout: float, element: np.ndarray, factor: np.ndarray, off: float) -> jax.Array:
    """From one bias per copy, (copies, outputs), to the expanded bias ([copies] outputs,)."""
    return orbit.mean(axis=0) if place.last else orbit.reshape(-1)
