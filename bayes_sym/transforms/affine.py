"""Affine operations on images: each is a 3x3 matrix, and any number of them in a row is one warp."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ..errors import OptionError
from .transform import Transform, check_positive, signed
from .warp import affine_warp


__all__ = ["Affine", "Rotate", "Scale", "ShearX", "ShearY", "Stretch", "TranslateX", "TranslateY", "warp_by"]


class Affine(Transform):
    """An operation that moves pixels by a matrix. Own ones give `matrix`, and are composed like the others.

    Matrices act on (row, column, 1) in pixels from the centre of the image, rows counted downwards. The amount of an
    operation is uniform on (-limit * magnitude, limit * magnitude).
    """

    kind: ClassVar[str] = "image"

    @abc.abstractmethod
    def matrix(self, magnitude: jax.Array, u: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Where pixels move, (batch, 3, 3), for magnitudes (batch,), u (batch, num_uniforms) and images (height, width)."""

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The warp by that matrix."""
        return affine_warp(x, self.matrix(magnitude, u, (x.shape[1], x.shape[2])))


def warp_by(operations: Sequence[Affine], x: jax.Array, magnitudes: Sequence[jax.Array], us: Sequence[jax.Array]) -> jax.Array:
    """Affine operations one after the other (the first one first), as one warp by the product of their matrices.

    Args:
        operations: at least one.
        x: images (batch, height, width, channels).
        magnitudes: (batch,) each.
        us: (batch, num_uniforms) each.
    """
    grid = (x.shape[1], x.shape[2])
    product: jax.Array | None = None
    for operation, magnitude, u in zip(operations, magnitudes, us, strict=True):
        matrix = operation.matrix(magnitude, u, grid)
        product = matrix if product is None else jnp.matmul(matrix, product, precision="highest")
    assert product is not None
    return affine_warp(x, product)


def _rows(*entries: jax.Array | float, like: jax.Array) -> jax.Array:
    """(batch, 3, 3) from the six entries of the first two rows."""
    full = [jnp.broadcast_to(jnp.asarray(entry, like.dtype), like.shape) for entry in (*entries, 0.0, 0.0, 1.0)]
    return jnp.stack(full, axis=-1).reshape(*like.shape, 3, 3)


@dataclass(frozen=True)
class Rotate(Affine):
    """Rotation about the centre, anticlockwise for positive angles, as ``np.rot90``.

    Attributes:
        limit: the largest angle, in degrees.
    """

    limit: float = 30.0
    unit: ClassVar[str] = "degrees"

    def matrix(self, magnitude: jax.Array, u: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """A rotation."""
        angle = signed(magnitude * (self.limit * math.pi / 180), u[:, 0])
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return _rows(cos, -sin, 0.0, sin, cos, 0.0, like=angle)


@dataclass(frozen=True)
class TranslateX(Affine):
    """A shift to the right or left.

    Attributes:
        limit: the largest shift, as a fraction of the width.
    """

    limit: float = 0.45
    unit: ClassVar[str] = "widths"

    def matrix(self, magnitude: jax.Array, u: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """A translation along columns."""
        shift = signed(magnitude * (self.limit * grid[1]), u[:, 0])
        return _rows(1.0, 0.0, 0.0, 0.0, 1.0, shift, like=shift)


@dataclass(frozen=True)
class TranslateY(Affine):
    """A shift down or up.

    Attributes:
        limit: the largest shift, as a fraction of the height.
    """

    limit: float = 0.45
    unit: ClassVar[str] = "heights"

    def matrix(self, magnitude: jax.Array, u: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """A translation along rows."""
        shift = signed(magnitude * (self.limit * grid[0]), u[:, 0])
        return _rows(1.0, 0.0, shift, 0.0, 1.0, 0.0, like=shift)


@dataclass(frozen=True)
class ShearX(Affine):
    """Columns move in proportion to their row's distance from the centre: by tan(angle) pixels per pixel.

    Attributes:
        limit: the largest such slope.
    """

    limit: float = 0.3
    unit: ClassVar[str] = "pixels per pixel"

    def matrix(self, magnitude: jax.Array, u: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """A shear along columns, about the centre (the released code of AugNet shears about the corner)."""
        slope = signed(magnitude * self.limit, u[:, 0])
        return _rows(1.0, 0.0, 0.0, slope, 1.0, 0.0, like=slope)


@dataclass(frozen=True)
class ShearY(Affine):
    """Rows move in proportion to their column's distance from the centre: by tan(angle) pixels per pixel.

    Attributes:
        limit: the largest such slope.
    """

    limit: float = 0.3
    unit: ClassVar[str] = "pixels per pixel"

    def matrix(self, magnitude: jax.Array, u: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """A shear along rows, about the centre."""
        slope = signed(magnitude * self.limit, u[:, 0])
        return _rows(1.0, slope, 0.0, 0.0, 1.0, 0.0, like=slope)


@dataclass(frozen=True)
class _Zoom(Affine):
    """A factor exp(t), with t uniform on (-log(limit) m, log(limit) m): as often smaller as larger."""

    limit: float = 2.0
    unit: ClassVar[str] = "log factor"

    def __post_init__(self) -> None:
        check_positive(self, "limit")
        if self.limit <= 1:
            raise OptionError(f"limit of {type(self).__name__} is the largest factor, so greater than 1, got {self.limit}")

    def physical(self, magnitude: jax.Array | float) -> jax.Array | float:
        """The largest log factor at this magnitude."""
        return math.log(self.limit) * magnitude

    def factor(self, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """exp(t), (batch,)."""
        return jnp.exp(signed(magnitude * math.log(self.limit), u[:, 0]))


@dataclass(frozen=True)
class Scale(_Zoom):
    """Images grow or shrink about the centre, by a factor between 1/limit and limit.

    Attributes:
        limit: the largest factor, greater than 1.
    """

    def matrix(self, magnitude: jax.Array, u: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """A multiple of the identity."""
        factor = self.factor(magnitude, u)
        return _rows(factor, 0.0, 0.0, 0.0, factor, 0.0, like=factor)


@dataclass(frozen=True)
class Stretch(_Zoom):
    """Images become wider and lower, or narrower and taller, at constant area.

    Attributes:
        limit: the largest factor of the width, greater than 1.
    """

    def matrix(self, magnitude: jax.Array, u: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Columns by the factor, rows by its inverse."""
        factor = self.factor(magnitude, u)
        return _rows(1 / factor, 0.0, 0.0, 0.0, factor, 0.0, like=factor)
