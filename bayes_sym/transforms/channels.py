"""Operations on the channels of multichannel series: dropout, shuffling, and a symmetry of the sensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import OptionError, ShapeError
from .gate import Gated, check_probability, gate
from .transform import Transform


__all__ = ["ChannelDropout", "ChannelShuffle", "ChannelSymmetry"]


@dataclass(frozen=True)
class _PerChannel(Transform):
    """A relaxed draw for every channel of every example."""

    limit: float = 1.0
    temperature: float = 0.1
    hard: bool = False
    kind: ClassVar[str] = "series"
    unit: ClassVar[str] = "probability"

    def __post_init__(self) -> None:
        check_probability(self)

    def chosen(self, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Which channels are concerned, (batch, 1, channels), from u (batch, channels)."""
        probability = jnp.broadcast_to((self.limit * magnitude)[:, None], u.shape)
        return gate(probability, u, self.temperature, hard=self.hard)[:, None, :]


@dataclass(frozen=True)
class ChannelDropout(_PerChannel):
    """Every channel is set to zero with probability ``limit * magnitude``, by a relaxed draw (see `gate`).

    Attributes:
        limit: the probability at magnitude 1.
        temperature, hard: as in `Gated`.
    """

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """One per channel."""
        return shape[2]

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """What is kept."""
        return x * (1 - self.chosen(magnitude, u))


@dataclass(frozen=True)
class ChannelShuffle(_PerChannel):
    """Every channel is replaced, with probability ``limit * magnitude``, by the one that a random permutation puts there.

    Attributes:
        limit: the probability at magnitude 1.
        temperature, hard: as in `Gated`.
    """

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """Two per channel: whether, and the order of the permutation."""
        return 2 * shape[2]

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The blend of every channel with its replacement."""
        channels = x.shape[2]
        chosen = self.chosen(magnitude, u[:, :channels])
        order = jnp.argsort(u[:, channels:], axis=1)
        return (1 - chosen) * x + chosen * jnp.take_along_axis(x, order[:, None, :], axis=2)


@dataclass(frozen=True)
class ChannelSymmetry(Gated):
    """Channels change places by a fixed permutation, e.g. left and right sensors, with probability ``limit * magnitude``.

    Attributes:
        permutation: for every channel, the one that takes its place.
        limit: the probability at magnitude 1; 1/2 averages over an involution, see `Gated`.
    """

    permutation: tuple[int, ...] = ()
    kind: ClassVar[str] = "series"
    unit: ClassVar[str] = "probability"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "permutation", tuple(int(i) for i in self.permutation))
        if not self.permutation or sorted(self.permutation) != list(range(len(self.permutation))):
            raise OptionError(
                f"permutation of ChannelSymmetry must hold each of 0..channels-1 once, got {self.permutation}: e.g. (1, 0, 2) to swap "
                "the first two of three channels"
            )

    def other(self, x: jax.Array) -> jax.Array:
        """The permuted channels."""
        if x.shape[2] != len(self.permutation):
            raise ShapeError(
                f"ChannelSymmetry permutes {len(self.permutation)} channels, got series of shape {x.shape} (batch, time, channels)"
            )
        return jnp.take(x, np.array(self.permutation), axis=2)
