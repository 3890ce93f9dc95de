"""Rotations of images by any angle: two ways to interpolate, and finite groups of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from .. import groups
from ..errors import GroupActionError, OptionError, ShapeError
from ..groups import FiniteGroup
from ..transforms.warp import affine_warp


__all__ = ["SampledRotations", "check_images", "fourier_shift", "relative_difference", "rotated"]

Method = Literal["fourier", "bilinear"]


def rotated(x: jax.Array, angle: jax.Array, method: Method) -> jax.Array:
    """Images (batch, height, width, channels) turned about their centre, anticlockwise as ``np.rot90``.

    Args:
        x: images.
        angle: in radians; a number, which may be traced.
        method: ``"bilinear"``: one warp. ``"fourier"``: three shears by phase shifts (Unser et al. 1995), exact for smooth images, and
            meant for angles up to 45 degrees. Images go on as zeros.
    """
    if method == "bilinear":
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
        return affine_warp(x, jnp.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one]).reshape(3, 3))
    height, width = x.shape[1:3]
    # room for what the shears push out of the frame; an odd size has no frequency that cannot be shifted
    before = (height // 2, width // 2)
    after = tuple(n // 2 + (1 - n % 2) for n in (height, width))
    sheared = jnp.pad(x, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))
    rows, columns = (
        jnp.asarray(np.arange(sheared.shape[axis]) - before[axis - 1] - (x.shape[axis] - 1) / 2, x.dtype) for axis in (1, 2)
    )
    # (row, column) -> (row - tan(angle/2) column, column) -> (row, column + sin(angle) row) -> the first one again
    slope, slide = -jnp.tan(angle / 2), jnp.sin(angle)
    for axis, shift in (
        (1, (slope * columns)[None, None, :, None]),
        (2, (slide * rows)[None, :, None, None]),
        (1, (slope * columns)[None, None, :, None]),
    ):
        sheared = fourier_shift(sheared, shift, axis)
    return sheared[:, before[0] : before[0] + height, before[1] : before[1] + width]


def fourier_shift(x: jax.Array, shift: jax.Array, axis: int) -> jax.Array:
    """`x` moved along `axis` by `shift` pixels through its periodic band-limited interpolant; `shift` broadcasts against `x`."""
    size = x.shape[axis]
    frequency = np.fft.rfftfreq(size).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    angle = -2 * math.pi * jnp.asarray(frequency, x.dtype) * shift
    spectrum = jnp.fft.rfft(x, axis=axis) * jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    return jnp.fft.irfft(spectrum, n=size, axis=axis)


@dataclass(frozen=True)
class SampledRotations:
    """The rotations by multiples of 360/order degrees, as an action on square images for `equivariance_error`.

    A finite subgroup of all rotations rather than angles at random: the mean over it is a projector, up to interpolation. Right
    angles are exact; for the others see `floor`. On small images they say little: the floor of 8 x 8 digits is 0.1 by ``"fourier"`` and 0.2
    by ``"bilinear"``.

    Attributes:
        order: number of rotations.
        method: ``"fourier"`` or ``"bilinear"``.
    """

    order: int
    method: Method = "fourier"

    def __post_init__(self) -> None:
        check_method(self.method)
        groups.cyclic(self.order)

    @property
    def group(self) -> FiniteGroup:
        """The cyclic group of this order."""
        return groups.cyclic(self.order)

    def transform(self, g: int, x: jax.Array) -> jax.Array:
        """Images (batch, size, size, channels) or (batch, size, size) turned anticlockwise by g * 360/order degrees.

        Raises:
            GroupActionError: the images are not square.
            ShapeError: these are no images.
        """
        x = jnp.asarray(x)
        if x.ndim == 3:
            return self.transform(g, x[..., None])[..., 0]
        check_images(x)
        if x.shape[1] != x.shape[2]:
            raise GroupActionError(f"rotations act on square images, got {x.shape[1:3]}: crop or pad them to a square")
        quarters = round(4 * g / self.order)
        rest = 2 * math.pi * (g / self.order - quarters / 4)
        turned = jnp.rot90(x, quarters % 4, axes=(1, 2))
        # 4 g = quarters * order: nothing is left, and nothing is interpolated
        return turned if 4 * g == quarters * self.order else rotated(turned, jnp.asarray(rest, x.dtype), self.method)

    def floor(self, x: jax.Array) -> float:
        """|R(1) R(h) x - R(1 + h) x| / |x|, root mean square over h and the images: 0 for a group action."""
        x = jnp.asarray(x)
        squares = [
            relative_difference(self.transform(1, self.transform(h, x)), self.transform((h + 1) % self.order, x), x) ** 2
            for h in range(self.order)
        ]
        return math.sqrt(sum(squares) / self.order)


def relative_difference(a: jax.Array, b: jax.Array, x: jax.Array) -> float:
    """|a - b| / |x| over the whole batch; 0 where x is 0."""
    norm = float(jnp.linalg.norm(x.ravel()))
    return float(jnp.linalg.norm((a - b).ravel())) / norm if norm > 0 else 0.0


def check_method(method: str) -> None:
    """Refuses other ways to interpolate."""
    if method not in ("fourier", "bilinear"):
        raise OptionError(f"method must be 'fourier' or 'bilinear', got {method!r}")


def check_images(x: jax.Array) -> None:
    """Refuses what is not a batch of float images."""
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ShapeError(f"rotations and shifts take float images (batch, height, width, channels), got {x.dtype} {x.shape}")
