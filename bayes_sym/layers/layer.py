"""What every layer answers: its weight sites, its map, how a group acts on its weights, and how it expands."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import numpyro.distributions as dist

from .. import representations
from ..errors import GroupActionError
from ..groups import FiniteGroup
from ..representations import Representation


__all__ = ["Field", "Layer", "Role", "Site", "Stage", "join", "next_output", "under"]

Weights = Mapping[str, jax.Array]


class Site(NamedTuple):
    """One weight site of a layer.

    Attributes:
        name: its name within the layer, e.g. ``"weight"`` or ``"0.weight"``.
        shape: the shape of its value.
        fan_in: the number of inputs that one output sums over (1 for a bias): with white inputs of variance 1 and entries
            of variance 1/fan_in, outputs have variance 1.
        kind: ``"weight"``, ``"bias"``, or ``"form"`` for what shapes the map itself (a lengthscale, positions).
        share: the exponent with which a layer's strength scales this site: 1/2 for each of two factors, so that the
            product scales like one weight.
        prior: the prior of a ``"form"`` site; priors on weights do not apply to it.
    """

    name: str
    shape: tuple[int, ...]
    fan_in: float
    kind: str
    share: float = 1.0
    prior: dist.Distribution | None = None


@dataclass(frozen=True)
class Field:
    """How a group acts on the features between two layers.

    Attributes:
        channels: the representation on the last axis; after `Flatten` its shape is (height, width, channels).
        grid: (height, width) of a feature map, on which the group acts exactly; empty for plain vectors.
    """

    channels: Representation
    grid: tuple[int, ...] = ()

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.channels.group

    @cached_property
    def representation(self) -> Representation:
        """The action on one example's features, of shape (*grid, *channels.shape)."""
        return self.on_grid(self.grid) * self.channels if self.grid else self.channels

    def on_grid(self, grid: tuple[int, ...]) -> Representation:
        """The action on a pixel grid of this size."""
        return representations.image(self.group, (grid[0], grid[1]))

    @classmethod
    def of(cls, action: Representation, channels: int | Representation) -> Field:
        """The field of inputs on which `action` moves the pixels (of shape (height, width)) or the entries of a vector."""
        if isinstance(channels, int):
            channels = representations.trivial(action.group, channels)
        channels = channels.reshape(channels.dim)  # products have several axes, data have one
        if len(action.shape) == 2:
            field = cls(channels, (action.shape[0], action.shape[1]))
            if field.on_grid(field.grid) != action:
                raise GroupActionError(
                    f"layers act on pixel grids by the exact rotations and mirrors of {action.group.name}; got another action on "
                    f"{action.shape}. Use representations.image(group, {action.shape})"
                )
            return field
        return cls(action)


class Role(NamedTuple):
    """Where a weighted layer stands in a net that is being expanded: the first one lifts, the last one reads out."""

    first: bool
    last: bool


class Stage(NamedTuple):
    """One weighted layer, or several side by side: its output width and the names of its sites."""

    width: int
    sites: tuple[str, ...]


class Layer(abc.ABC):
    """A frozen specification of a map with weights. It holds no arrays."""

    @abc.abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """The weight sites, in the order in which they are sampled."""

    @abc.abstractmethod
    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """The map: a pure function of weights (keyed by site name) and a batch of inputs.

        It reads its sizes from the weights, so an expanded net's weights work too. `path` prefixes the site names in
        taps.
        """

    @abc.abstractmethod
    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """How the group acts on the weights, so that the map commutes: f(g x; w) = g f(x; g^-1 w).

        Args:
            field: the action on the inputs.
            outputs: the representations on the output channels of the weighted layers, taken one by one.

        Returns:
            The representation of every weight site, and the action on the outputs.

        Raises:
            GroupActionError: the layer cannot commute with these actions.
        """

    @abc.abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The weighted layers, in the order in which `representations` and `expand` take their arguments."""

    @abc.abstractmethod
    def expand(self, order: int, roles: Iterator[Role]) -> Layer:
        """The same layer on `order` times as many hidden channels; weighted layers take one role each."""

    def num_weights(self) -> int:
        """The number of weights."""
        return sum(math.prod(site.shape) for site in self.sites())


def under(weights: Weights, name: str) -> dict[str, jax.Array]:
    """The weights of the member `name`: those whose names start with ``name.``, without that prefix."""
    return {key.removeprefix(name + "."): value for key, value in weights.items() if key.startswith(name + ".")}


def next_output(outputs: Iterator[Representation], field: Field, width: int, what: str) -> Representation:
    """The next output representation, checked against the width of the layer that takes it."""
    channels = next(outputs, None)
    if channels is None:
        raise GroupActionError(f"{what} has no output representation: give one per weighted layer, in order")
    if channels.group != field.group or channels.dim != width:
        raise GroupActionError(
            f"{what} has {width} outputs under {field.group.name}, got a representation of {channels.group.name} of dimension "
            f"{channels.dim}: make the width a multiple of the representation's dimension, e.g. regular(group) * trivial(group, n)"
        )
    return channels.reshape(width)


def join(path: str, name: str) -> str:
    """The site or tap name of a member."""
    return f"{path}.{name}" if path else name
