"""How equivariant every layer of a net is: under declared representations, and under those that its units show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from .. import representations
from .._precision import full_precision
from ..errors import DataError, GroupActionError, OptionError
from ..groups import FiniteGroup
from ..layers.layer import Layer, join, under
from ..representations import Representation
from .activations import activations
from .declared import channel_representations, declared_actions, input_field
from .matching import homomorphism_defect, matched_units
from .orbits import mapped


__all__ = ["LayerEquivariance", "LayerError", "layer_equivariance"]


class LayerError(NamedTuple):
    """The equivariance error of one layer's outputs phi, relative to their size.

    Attributes:
        layer: its name in the net; ``"1.conv"`` for a pathway.
        kind: its class.
        declared: E |phi(g x) - rho(g) phi(x)|^2 / E |phi|^2 for the declared rho; nan where the group is refused.
        declared_se: its standard error over examples.
        matched: the same for the best permutations of units; about 2 - 2/order for units that have nothing to do with each other.
        matched_se: its standard error over examples.
        homomorphism: the share of products of two elements other than the identity, unit by unit, at which the matched permutations
            do not multiply as the group does. Near 0 they are a representation; else `matched` is a fit of noise.
        refusal: why the group cannot act here; empty otherwise.
    """

    layer: str
    kind: str
    declared: float
    declared_se: float
    matched: float
    matched_se: float
    homomorphism: float
    refusal: str


@dataclass(frozen=True)
class LayerEquivariance:
    """The layers of a net, in order.

    Attributes:
        rows: one per layer and pathway.
        num_examples: examples used; half of them, rounded up, match units, and the others measure the matched error.
    """

    rows: tuple[LayerError, ...]
    num_examples: int

    def of(self, what: str = "declared") -> dict[str, float]:
        """One number by layer."""
        return {row.layer: float(getattr(row, what)) for row in self.rows}


@full_precision
def layer_equivariance(
    spec: Layer,
    params: Mapping[str, jax.Array],
    x: ArrayLike,
    action: Representation,
    *,
    module: str = "net",
    channels: int | Representation | None = None,
    hidden: Sequence[Representation] | None = None,
    output: Representation | None = None,
) -> LayerEquivariance:
    """The equivariance error of every layer of a net with given weights, the mean over the group with its identity.

    A representation on hidden channels is a free choice, and a net that was trained freely makes its own: its error under declared
    ones can be large although its function is invariant. So units are matched as well: for every g, the permutation of channels (of
    all entries, where there is no pixel grid that the group acts on) that correlates phi(g x), pixels moved back, most with phi(x)
    over one half of the examples; its error is measured on the other half.

    Args:
        spec: the net.
        params: one value of every site, named ``module.site``.
        x: inputs (num_examples, *action.shape, ...), at least 4.
        action: the representation on them.
        module: the name that `random_module` was given; ``""`` if the sites have their own names.
        channels: how many channels come after the axes of `action`, or the representation on them. None: one for images,
            and no channel axis otherwise.
        hidden: the representations on the output channels of the weighted layers but the last; None: all trivial.
        output: that of the last weighted layer; None: trivial.

    Raises:
        OptionError: there are fewer than 4 examples, or `hidden` or `output` do not fit the net.
        GroupActionError: a representation is of another group.
        ShapeError: the inputs do not have the shape that they should.
        DataError: an activation is not finite.
    """
    x = jax.numpy.asarray(x)
    group = action.group
    if x.shape[0] < 4:
        raise OptionError(
            f"units are matched on one half of the examples and measured on the other: give at least 4, got {len(x)}"
        )
    others = {"channels": channels, "output": output} | {f"hidden[{i}]": rep for i, rep in enumerate(hidden or ())}
    for name, rep in others.items():
        if isinstance(rep, Representation) and rep.group != group:
            raise GroupActionError(f"{name} must be a representation of {group.name}, got one of {rep.group.name}")
    outputs = channel_representations(spec, group, hidden, output)
    declared = declared_actions(spec, input_field(action, channels), iter(outputs))
    weights = under(params, module) if module else dict(params)
    lacking = [site.name for site in spec.sites() if site.name not in weights]
    if lacking:
        raise OptionError(f"params lacks the sites {[join(module, name) for name in lacking[:3]]}; it has {list(params)[:5]}...")
    orbit = [_compiled(spec, weights, action.transform(g, x)) for g in range(group.order)]
    rows = []
    for name, (kind, rep, refusal) in declared.items():
        phi = np.stack([np.asarray(found[name], np.float64) for found in orbit])
        if not np.isfinite(phi).all():
            raise DataError(f"the outputs of layer {name!r} are not all finite: look at the weights and the inputs")
        error, se = (math.nan, math.nan) if rep is None else _declared_error(phi, rep)
        rows.append(LayerError(name, kind, error, se, *_matched_error(phi, group), refusal))
    return LayerEquivariance(tuple(rows), len(x))


@partial(jax.jit, static_argnames=("spec",))
def _compiled(spec: Layer, weights: Mapping[str, jax.Array], x: jax.Array) -> dict[str, jax.Array]:
    return activations(spec, weights, x)


def _declared_error(phi: np.ndarray, rep: Representation) -> tuple[float, float]:
    """The error of activations (group, num_examples, ...) under `rep`, and its standard error."""
    flat = phi.reshape(*phi.shape[:2], -1)
    expected = np.concatenate([mapped(rep.reshape(rep.dim), g, flat[:1]) for g in range(len(flat))])
    return _relative(((flat - expected) ** 2).sum(axis=-1).mean(axis=0), (flat**2).sum(axis=-1).mean(axis=0))


def _matched_error(phi: np.ndarray, group: FiniteGroup) -> tuple[float, float, float]:
    """The error under matched permutations, its standard error, and the share of products that they miss."""
    here = _moved_pixels(phi[0], group)  # (group, num_examples, pixels, units)
    there = phi.reshape(here.shape)
    units = here.shape[-1]
    fit, test = slice(0, None, 2), slice(1, None, 2)
    sources = np.stack(
        [matched_units(a[fit].reshape(-1, units), b[fit].reshape(-1, units)) for a, b in zip(there, here, strict=True)]
    )
    expected = np.stack([b[test][..., source] for b, source in zip(here, sources, strict=True)])
    error, se = _relative(
        ((there[:, test] - expected) ** 2).sum(axis=(2, 3)).mean(axis=0), (there[:, test] ** 2).sum(axis=(2, 3)).mean(axis=0)
    )
    alive = there[0, fit].reshape(-1, units).std(axis=0) > 0
    return error, se, homomorphism_defect(group, sources, alive)


def _moved_pixels(phi: np.ndarray, group: FiniteGroup) -> np.ndarray:
    """phi(x) with its pixels moved by every g: (group, num_examples, pixels, channels), or one pixel where there is no grid."""
    if phi.ndim == 4:
        try:
            grid = representations.image(group, (phi.shape[1], phi.shape[2]))
        except GroupActionError:
            pass
        else:
            flat = phi.reshape(len(phi), grid.dim, -1)
            return np.stack([flat[:, source] for source in np.asarray(grid.source)])
    return np.broadcast_to(phi.reshape(1, len(phi), 1, -1), (group.order, len(phi), 1, phi[0].size))


def _relative(errors: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """The ratio of two means over examples, and its standard error by linearisation; 0 where both are 0."""
    total = float(squares.sum())
    if total == 0:
        return 0.0, 0.0
    ratio = float(errors.sum()) / total
    count = len(errors)
    residuals = errors - ratio * squares
    return ratio, math.sqrt(count / (count - 1) * float((residuals**2).sum())) / total if count > 1 else math.nan
