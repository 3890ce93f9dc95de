"""Orbit expansion: a wider net that carries one transformed copy of a small net per group element.

In the `diag` arrangement (the layer-wise Reynolds operator) the hidden channels are g-major blocks, and block g holds
the small net's weights moved by g:

    lift     W1[(g, c), :]          = rho(g) W1                          input representation, spatial rotation
    hidden   Wl[(g, c), (h, c')]    = rho(g) Wl  if g = h, else 0
    readout  WL[:, (g, c)]          = rho_out(g) WL / |G|

so the mean network is exactly the group average of the small one, 1/|G| sum_g rho_out(g) f(g^-1 x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bayes_sym import representations
from bayes_sym.errors import GroupActionError, OptionError
from bayes_sym.layers.layer import Field, Layer, Role
from bayes_sym.representations import Representation

from .problem import Problem, Structure
from .rows import Data


__all__ = ["OrbitExpansion", "expand", "expand_spec", "expand_weights"]


@dataclass(frozen=True)
class OrbitExpansion:
    """Expand a module's net once, on the way: see `expand`."""

    action: Representation
    output: Representation | None
    at: float | int
    module: str | None
    off_scale: float

    def step(self, num_steps: int) -> int:
        """The step before which the net is expanded."""
        return max(1, round(self.at * num_steps)) if isinstance(self.at, float) else self.at

    def target(self, structure: Structure) -> tuple[str, Layer]:
        """The module to expand: its name and specification."""
        modules = structure.modules
        if self.module is not None and self.module not in modules:
            raise OptionError(f"expand(module={self.module!r}): the model has the modules {list(modules)}")
        if self.module is None and len(modules) != 1:
            raise OptionError(f"expand needs to know which module to expand, of {list(modules)}: pass module='...'")
        name = next(iter(modules)) if self.module is None else self.module
        return name, modules[name]

    def field(self, data: Data) -> Field:
        """The action on the first argument of the model."""
        x = jax.tree.leaves(data)[0]
        if tuple(x.shape[1 : 1 + len(self.action.shape)]) != self.action.shape:
            raise GroupActionError(
                f"the action of {self.action.group.name} is on inputs of shape {self.action.shape}, but the data are {tuple(x.shape)}: "
                f"use representations.image(group, {tuple(x.shape[1:3])}) or another one of the data's shape"
            )
        return Field.of(self.action, int(x.shape[-1]))

    def problem(self, problem: Problem, data: Data) -> Problem:
        """The problem on the expanded net."""
        name, spec = self.target(problem.structure(*data))
        return problem.with_modules({name: expand_spec(spec, self.action.group.order)})


def expand(
    action: Representation,
    output: Representation | None = None,
    *,
    at: float | int = 0.2,
    module: str | None = None,
    off_scale: float = 0.02,
) -> OrbitExpansion:
    """Orbit expansion of a net's variational parameters, in the `diag` arrangement.

    Args:
        action: how the group acts on one input, e.g. ``representations.image(cyclic(4), (8, 8))``. Must be a (signed)
            permutation, since a factorised Gaussian is closed under these only.
        output: how it acts on one output; None for invariant outputs.
        at: when: a fraction of all steps (a float below 1), or a step (an integer).
        module: which `random_module` to expand; None if the model has one.
        off_scale: standard deviation of the weights between different copies, which start at mean 0.
    """
    fraction_ok = isinstance(at, float) and 0 < at < 1
    if not fraction_ok and not (isinstance(at, int) and at >= 1):
        raise OptionError(f"expand(at={at!r}): give a fraction of all steps, 0 < at < 1, or a step number of at least 1")
    for rep, what in ((action, "action"), (output, "output")):
        if rep is not None and not rep.is_monomial:
            raise GroupActionError(
                f"the {what} {rep} mixes coordinates, and a factorised Gaussian is not closed under that: expand needs permutation or "
                "signed representations"
            )
    return OrbitExpansion(action, output, at, module, off_scale)


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
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Means and standard deviations of the expanded net's weights, from those of the small net.

    Hidden and lifted standard deviations are copied; the readout's are divided by sqrt(|G|), which keeps the noise of
    the outputs, and matches the prior of the wider fan-in.

    Args:
        spec: the small net.
        field: the action on its inputs.
        output: the representation on its outputs, or None for invariant ones.
        means, scales: by site name within the module.
        off_scale: standard deviation between different copies.
    """
    stages = spec.stages()
    group = field.group
    last = len(stages) - 1
    hidden = [representations.trivial(group, stage.width) for stage in stages[:-1]]
    final = representations.trivial(group, stages[-1].width) if output is None else output
    reps, _ = spec.representations(field, iter([*hidden, final]))
    kinds = {site.name: site.kind for site in spec.sites()}
    new_means, new_scales = {}, {}
    for i, stage in enumerate(stages):
        channels = field.channels.dim if i == 0 else stages[i - 1].width
        for name in stage.sites:
            axes = tuple(range(means[name].ndim))
            mean = reps[name].orbit(means[name], axes)
            scale = jnp.abs(reps[name].orbit(scales[name], axes))
            arrange = _arrange_bias if kinds[name] == "bias" else _arrange_weight
            new_means[name] = arrange(mean, channels, first=i == 0, last=i == last, readout=1 / group.order, off=0.0)
            readout = 1 / math.sqrt(group.order)
            new_scales[name] = arrange(scale, channels, first=i == 0, last=i == last, readout=readout, off=off_scale)
    return new_means, new_scales


def _arrange_weight(orbit: jax.Array, channels: int, *, first: bool, last: bool, readout: float, off: float) -> jax.Array:
    """From one weight per element, (G, ..., inputs, outputs), to the expanded weight (..., [G] inputs, [G] outputs)."""
    order, *lead, outputs = orbit.shape
    blocks = orbit.reshape(order, -1, channels, outputs)  # inputs = (whatever comes first) x channels
    if first and last:
        return blocks.mean(axis=0).reshape(*lead, outputs)
    if first:
        wide = jnp.moveaxis(blocks, 0, 2)
    elif last:
        wide = jnp.moveaxis(blocks, 0, 1) * readout
    else:
        same = jnp.eye(order, dtype=bool)[None, :, None, :, None]
        diagonal = jnp.moveaxis(blocks, 0, 1)[:, :, :, None, :]
        wide = jnp.where(same, diagonal, jnp.asarray(off, orbit.dtype))
    inputs = lead[-1] * (1 if first else order)
    return wide.reshape(*lead[:-1], inputs, outputs * (1 if last else order))


def _arrange_bias(orbit: jax.Array, channels: int, *, first: bool, last: bool, readout: float, off: float) -> jax.Array:
    """From one bias per element, (G, outputs), to the expanded bias ([G] outputs,)."""
    return orbit.mean(axis=0) if last else orbit.reshape(-1)
