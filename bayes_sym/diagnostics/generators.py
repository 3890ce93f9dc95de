"""Generators of continuous groups: how vectors and images begin to move, and how they move by a finite amount."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import OptionError, ShapeError
from ..transforms.warp import affine_warp
from .rotations import Method, check_images, check_method, fourier_shift, relative_difference, rotated


__all__ = ["Generator", "ImageRotation", "ImageTranslation", "LinearGenerator"]


class Generator(abc.ABC):
    """One direction A of a Lie algebra, acting on a batch. Own ones give `move`."""

    @abc.abstractmethod
    def move(self, x: jax.Array, amount: Any) -> jax.Array:
        """exp(amount A) x for a batch (batch, ...); differentiable in the amount, and x itself at 0."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """A x: the derivative of `move` at amount 0, by one `jax.jvp`."""
        x = jnp.asarray(x)
        zero = jnp.zeros((), x.dtype)
        return jax.jvp(lambda amount: self.move(x, amount), (zero,), (jnp.ones_like(zero),))[1]

    def floor(self, x: jax.Array, first: float = 0.3, second: float = 0.5) -> float:
        """|R(first) R(second) x - R(first + second) x| / |x| over the batch: what interpolation alone does."""
        x = jnp.asarray(x)
        a, b, both = (jnp.asarray(amount, x.dtype) for amount in (first, second, first + second))
        return relative_difference(self.move(self.move(x, b), a), self.move(x, both), x)


@dataclass(frozen=True)
class LinearGenerator(Generator):
    """A matrix on the first axis of vectors (batch, dim, ...): exp(t A) x, without interpolation.

    Attributes:
        matrix: A, (dim, dim); any array, kept as nested tuples. For rotations of the plane [[0, -1], [1, 0]].
    """

    matrix: Any

    def __post_init__(self) -> None:
        given = np.asarray(self.matrix, float)
        if given.ndim != 2 or given.shape[0] != given.shape[1]:
            raise ShapeError(f"a generator of vectors is a square matrix (dim, dim), got shape {given.shape}")
        object.__setattr__(self, "matrix", tuple(map(tuple, given.tolist())))

    def move(self, x: jax.Array, amount: Any) -> jax.Array:
        """The matrix exponential on axis 1."""
        return self._on(x, jax.scipy.linalg.expm(amount * jnp.asarray(self.matrix, x.dtype)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The matrix on axis 1."""
        return self._on(x, jnp.asarray(self.matrix, jnp.asarray(x).dtype))

    def floor(self, x: jax.Array, first: float = 0.3, second: float = 0.5) -> float:
        """0: nothing is interpolated."""
        return 0.0

    def _on(self, x: jax.Array, matrix: jax.Array) -> jax.Array:
        if x.ndim < 2 or x.shape[1] != len(matrix):
            raise ShapeError(f"this generator acts on vectors (batch, {len(matrix)}, ...), got shape {x.shape}")
        return jnp.moveaxis(jnp.tensordot(x, matrix, axes=(1, 1)), -1, 1)


@dataclass(frozen=True)
class ImageRotation(Generator):
    """Rotation of images (batch, height, width, channels) about their centre, per radian, anticlockwise as ``np.rot90``.

    Attributes:
        method: ``"fourier"``: derivatives of the band-limited interpolant, exact for images that are smooth and fade out towards
            the border. ``"bilinear"``: central differences. Images go on as zeros.
    """

    method: Method = "fourier"

    def __post_init__(self) -> None:
        check_method(self.method)

    def move(self, x: jax.Array, amount: Any) -> jax.Array:
        """The rotation by this angle, which is meant to be up to 45 degrees for ``"fourier"``."""
        check_images(x)
        return rotated(x, amount, self.method)


@dataclass(frozen=True)
class ImageTranslation(Generator):
    """Translation of images (batch, height, width, channels), per pixel, to the right or down.

    Attributes:
        axis: ``"x"`` (columns) or ``"y"`` (rows).
        method: ``"fourier"``: periodic and exact up to the largest frequency; ``"bilinear"``: central differences, zeros outside.
    """

    axis: Literal["x", "y"] = "x"
    method: Method = "fourier"

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.axis not in ("x", "y"):
            raise OptionError(f"axis must be 'x' or 'y', got {self.axis!r}")

    def move(self, x: jax.Array, amount: Any) -> jax.Array:
        """The translation by this number of pixels."""
        check_images(x)
        if self.method == "fourier":
            return fourier_shift(x, jnp.asarray(amount, x.dtype), 2 if self.axis == "x" else 1)
        place = np.zeros((3, 3))
        place[1 if self.axis == "x" else 0, 2] = 1
        return affine_warp(x, jnp.eye(3, dtype=x.dtype) + amount * jnp.asarray(place, x.dtype))
