"""Linear operations on colours: brightness, contrast, saturation, hue, inversion. Images lie in [0, 1]; nothing is clipped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ShapeError
from .gate import Gated
from .transform import Transform, beside, signed


__all__ = ["Brightness", "Contrast", "Hue", "Invert", "Saturation", "luma"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601; the released code of AugNet has .110 for blue


def luma(x: jax.Array) -> jax.Array:
    """The brightness of every pixel, (batch, height, width, 1): BT.601 for three channels, else the mean over channels."""
    if x.shape[-1] != 3:
        return x.mean(axis=-1, keepdims=True)
    return jnp.matmul(x, jnp.asarray(_LUMA, x.dtype)[:, None], precision="highest")


def _needs_colours(transform: Transform, x: jax.Array) -> None:
    if x.shape[-1] != 3:
        raise ShapeError(
            f"{type(transform).__name__} takes images with 3 channels, red, green and blue, got {x.shape[-1]} (shape {x.shape}): leave it "
            "out for grey images"
        )


@dataclass(frozen=True)
class Brightness(Transform):
    """(1 + t) x, with t uniform on (-limit m, limit m).

    Attributes:
        limit: the largest relative change.
    """

    limit: float = 1.0
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "relative change"

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Every pixel by the same factor."""
        return x * beside(1 + signed(self.limit * magnitude, u[:, 0]), x)


@dataclass(frozen=True)
class Contrast(Transform):
    """x + t (x - mean), with the mean brightness of the image and t uniform on (-limit m, limit m).

    Attributes:
        limit: the largest relative change of distances from the mean.
    """

    limit: float = 1.0
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "relative change"

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Away from the mean or towards it."""
        mean = luma(x).mean(axis=(1, 2), keepdims=True)
        return x + beside(signed(self.limit * magnitude, u[:, 0]), x) * (x - mean)


@dataclass(frozen=True)
class Saturation(Transform):
    """x + t (x - grey), with the brightness of each pixel as grey and t uniform on (-limit m, limit m).

    Attributes:
        limit: the largest relative change; at t = -1 the image is grey.
    """

    limit: float = 1.0
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "relative change"

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Away from grey or towards it."""
        _needs_colours(self, x)
        return x + beside(signed(self.limit * magnitude, u[:, 0]), x) * (x - luma(x))


@dataclass(frozen=True)
class Hue(Transform):
    """Colours turn about the grey axis (1, 1, 1), by an angle uniform on (-limit m, limit m).

    The turn is linear, keeps the mean of the channels, and at 1/3 it maps red to green, green to blue and blue to red. It is smooth where
    the hue of HSV has kinks, and agrees with it for pure colours.

    Attributes:
        limit: the largest angle, in turns; 1/2 is the farthest there is.
    """

    limit: float = 0.5
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "turns"

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The rotation of every pixel, by Rodrigues' formula: cos x + (1 - cos) mean + sin (axis x pixel)."""
        _needs_colours(self, x)
        angle = beside(signed(2 * math.pi * self.limit * magnitude, u[:, 0]), x)
        across = jnp.asarray(np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / math.sqrt(3), x.dtype)
        mean = x.mean(axis=-1, keepdims=True)
        return mean + jnp.cos(angle) * (x - mean) + jnp.sin(angle) * jnp.matmul(x, across, precision="highest")


@dataclass(frozen=True)
class Invert(Gated):
    """1 - x, with probability ``limit * magnitude``; see `Gated`."""

    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "probability"

    def other(self, x: jax.Array) -> jax.Array:
        """The negative."""
        return 1 - x
