"""Operations on the samples of time series: reversal, sign, noise and masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ShapeError
from .gate import Gated
from .transform import Transform, beside, check_positive


__all__ = ["GaussianNoise", "SignFlip", "TimeMask", "TimeReverse"]


@dataclass(frozen=True)
class TimeReverse(Gated):
    """Time runs backwards, with probability ``limit * magnitude``; see `Gated`."""

    kind: ClassVar[str] = "series"
    unit: ClassVar[str] = "probability"

    def other(self, x: jax.Array) -> jax.Array:
        """The reversed series."""
        return x[:, ::-1]


@dataclass(frozen=True)
class SignFlip(Gated):
    """-x, with probability ``limit * magnitude``; see `Gated`."""

    unit: ClassVar[str] = "probability"

    def other(self, x: jax.Array) -> jax.Array:
        """The negative."""
        return -x


@dataclass(frozen=True)
class GaussianNoise(Transform):
    """x + limit * m * noise, with independent standard normal noise for every entry.

    Attributes:
        limit: the standard deviation at magnitude 1, in units of the data.
    """

    limit: float = 0.2
    unit: ClassVar[str] = "standard deviation"

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """One per entry."""
        return math.prod(shape[1:])

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Normal quantiles of u."""
        noise = jax.scipy.special.ndtri(u).reshape(x.shape)
        return x + beside(self.limit * magnitude, x) * noise


@dataclass(frozen=True)
class TimeMask(Transform):
    """A stretch of a = limit * m samples is set to zero, its start uniform on (0, time - a), with smooth edges.

        x(t) [s((start - t)/softness) + s((t - start - a)/softness)],  s the logistic function

    Attributes:
        limit: the longest stretch, in samples.
        softness: of the edges, in samples.
    """

    limit: float = 100.0
    softness: float = 1.0
    kind: ClassVar[str] = "series"
    unit: ClassVar[str] = "samples"

    def __post_init__(self) -> None:
        check_positive(self, "limit", "softness")

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The masked series."""
        time = x.shape[1]
        if self.limit > time:
            raise ShapeError(f"limit of TimeMask is {self.limit} samples, but the series have {time} (shape {x.shape}): lower it")
        length = self.limit * magnitude
        start = beside(u[:, 0] * (time - length), x)
        length = beside(length, x)
        t = jnp.asarray(np.arange(time)[None, :, None], x.dtype)
        masked = jax.nn.sigmoid((t - start) / self.softness) - jax.nn.sigmoid((t - start - length) / self.softness)
        return x - x * masked
