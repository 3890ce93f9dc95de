"""Mirror images, and random elements of a finite group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ..errors import OptionError
from ..representations import Representation
from .gate import Finite, Gated, gate
from .transform import beside, check_positive


__all__ = ["GroupAction", "HorizontalFlip", "VerticalFlip"]


@dataclass(frozen=True)
class HorizontalFlip(Gated):
    """Left and right change places, with probability ``limit * magnitude``; see `Gated`."""

    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "probability"

    def other(self, x: jax.Array) -> jax.Array:
        """The mirror image."""
        return x[:, :, ::-1]


@dataclass(frozen=True)
class VerticalFlip(Gated):
    """Top and bottom change places, with probability ``limit * magnitude``; see `Gated`."""

    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "probability"

    def other(self, x: jax.Array) -> jax.Array:
        """The mirror image."""
        return x[:, ::-1]


@dataclass(frozen=True)
class GroupAction(Finite):
    """A random element of a finite group acts on an example.

    With probability ``limit * magnitude * (1 - 1/order)`` an element other than the identity acts, each equally often: at
    limit and magnitude 1 all elements are equally probable, and the average over draws is exactly invariant. The
    relaxation is that of `Gated`: a blend of the example and its transform.

    Attributes:
        action: how the group acts on one example, e.g. ``representations.image(cyclic(4), (8, 8))``.
        limit: the share of that uniform mixture at magnitude 1, at most 1.
        temperature, hard: as in `Gated`.
    """

    action: Representation
    limit: float = 1.0
    temperature: float = 0.1
    hard: bool = False
    unit: ClassVar[str] = "share of the group"

    def __post_init__(self) -> None:
        check_positive(self, "limit", "temperature")
        if self.limit > 1 or self.action.group.order < 2:
            raise OptionError(
                f"GroupAction takes a group of at least 2 elements and a limit of at most 1, got {self.action} and {self.limit}"
            )

    @property
    def order(self) -> int:
        """The number of outcomes."""
        return self.action.group.order

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """Whether to act, and by which element."""
        return 2

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The blend of each example with its transform by one element."""
        act = beside(gate(self.limit * (1 - 1 / self.order) * magnitude, u[:, 0], self.temperature, hard=self.hard), x)
        element = 1 + jnp.minimum((u[:, 1] * (self.order - 1)).astype(int), self.order - 2)
        moved = jax.vmap(lambda g, row: self.action.transform(g, row[None])[0])(element, x)
        return (1 - act) * x + act * moved

    def outcomes(self, x: jax.Array) -> jax.Array:
        """The transforms by all elements."""
        return jnp.stack([self.action.transform(g, x) for g in range(self.order)])

    def probabilities(self, magnitude: jax.Array) -> jax.Array:
        """What is left for the identity, then the same for each other element."""
        other = self.limit * magnitude / self.order
        return jnp.stack([1 - (self.order - 1) * other] + [other] * (self.order - 1))
