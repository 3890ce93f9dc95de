"""Images moved at random, each by an amount of its own that a seed fixes: sets whose symmetry has a known extent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ShapeError
from ..transforms.affine import Affine, Rotate, Scale, TranslateX, TranslateY, warp_by
from .sets import between


__all__ = ["rotated", "scaled", "translated"]

Moved = TypeVar("Moved", bound=tuple)
_ROWS = 1000  # per warp, so that large sets take little memory and compile once


def rotated(sets: Moved, degrees: float = 180.0, *, seed: int = 0, outside: float | Sequence[float] | None = None) -> Moved:
    """Every image turned about its centre, by an angle uniform on (-degrees, degrees).

    The variants of the standard sets in Immer et al. 2022 ("Invariance learning in deep neural networks with
    differentiable Laplace approximations") and van der Ouderaa et al. 2023: 180 for all angles, 90 for half of them.
    The interpolation is bilinear, `bayes_sym.transforms.affine_warp`; labels and the order of rows stay.

    Args:
        sets: what a function of this room returns, e.g. ``mnist()`` or ``digits()``: named sets of images
            (N, height, width, channels) and labels, or one such set.
        degrees: the largest angle, above 0 and at most 180.
        seed: chooses the angles, for each of the sets by itself; a set that is longer has the same ones at its start.
        outside: the level of what comes into the image, one for all channels or one each. None for the lowest level of
            every channel in the first set, which is black, however pixels were scaled.

    Returns:
        Sets of the same kind, with float32 images of the same shape.

    Raises:
        OptionError: the extent is out of range.
        ShapeError: the sets hold no images, or `outside` does not fit their channels.
    """
    between("degrees", degrees, 1e-3, 180, "degrees")
    return _moved(sets, (Rotate(float(degrees)),), seed, outside)


def translated(sets: Moved, pixels: float = 8.0, *, seed: int = 0, outside: float | Sequence[float] | None = None) -> Moved:
    """Every image shifted along both axes, each by an amount uniform on (-pixels, pixels); all else as for `rotated`.

    Args:
        sets: as for `rotated`.
        pixels: the largest shift, above 0 and less than the smaller side.
        seed: chooses the shifts.
        outside: as for `rotated`.

    Raises:
        OptionError: the extent is out of range.
        ShapeError: as for `rotated`.
    """
    side = min(_first(sets).shape[1:3])
    between("pixels", pixels, 1e-3, side - 1, f"for images of side {side}")
    height, width = _first(sets).shape[1:3]
    return _moved(sets, (TranslateY(pixels / height), TranslateX(pixels / width)), seed, outside)


def scaled(sets: Moved, factor: float = 2.0, *, seed: int = 0, outside: float | Sequence[float] | None = None) -> Moved:
    """Every image larger or smaller about its centre, by exp(t), t uniform on (-log(factor), log(factor)); as for `rotated`.

    Args:
        sets: as for `rotated`.
        factor: the largest factor, above 1 and at most 10.
        seed: chooses the factors.
        outside: as for `rotated`.

    Raises:
        OptionError: the extent is out of range.
        ShapeError: as for `rotated`.
    """
    between("factor", factor, 1.001, 10, "(a factor of 1 changes nothing)")
    return _moved(sets, (Scale(float(factor)),), seed, outside)


def _moved(sets: Any, operations: tuple[Affine, ...], seed: int, outside: float | Sequence[float] | None) -> Any:
    level = _outside(_first(sets), outside)
    parts = _parts(sets)
    moved = [
        part._replace(x=_warped(operations, part.x, np.random.default_rng([seed, 1 + i]), level)) for i, part in enumerate(parts)
    ]
    return moved[0] if hasattr(sets, "x") else type(sets)(*moved)


def _parts(sets: Any) -> tuple[Any, ...]:
    """The sets, or the one set: named tuples of images `x` and labels `y`."""
    parts = (sets,) if hasattr(sets, "x") else tuple(sets)
    if not parts or any(len(np.shape(getattr(part, "x", 0))) != 4 for part in parts):
        raise ShapeError(
            "only sets of images can be moved: named tuples of x (N, height, width, channels) and y, as mnist() or digits() return, got "
            f"{[np.shape(getattr(part, 'x', part)) for part in parts]}"
        )
    return parts


def _first(sets: Any) -> np.ndarray:
    return _parts(sets)[0].x


def _outside(first: np.ndarray, outside: float | Sequence[float] | None) -> np.ndarray:
    level = first.min(axis=(0, 1, 2)) if outside is None else np.asarray(outside)
    if level.shape not in ((), (first.shape[3],)):
        raise ShapeError(f"outside must be one level or one for each of {first.shape[3]} channels, got {outside!r}")
    return np.broadcast_to(level, (first.shape[3],)).astype(np.float32)


def _warped(operations: tuple[Affine, ...], x: np.ndarray, generator: np.random.Generator, level: np.ndarray) -> np.ndarray:
    """The images, each moved by its own amounts."""
    u = generator.uniform(size=(len(x), len(operations))).astype(np.float32)
    block = min(_ROWS, max(len(x), 1))
    found = np.empty(x.shape, np.float32)
    for start in range(0, len(x), block):
        images, amounts = x[start : start + block].astype(np.float32), u[start : start + block]
        missing = block - len(images)  # fill the last block up: another size would compile again
        images = np.concatenate([images, np.zeros((missing, *x.shape[1:]), np.float32)])
        amounts = np.concatenate([amounts, np.zeros((missing, len(operations)), np.float32)])
        found[start : start + block] = np.asarray(_warp(operations, images, amounts, level))[: block - missing]
    return found


@partial(jax.jit, static_argnums=0)
def _warp(operations: tuple[Affine, ...], x: jax.Array, u: jax.Array, level: jax.Array) -> jax.Array:
    # what the warp brings in is 0, so levels are counted from that of the outside
    level = level[None, None, None]
    full = jnp.ones(len(x), x.dtype)
    columns = [u[:, i : i + 1] for i in range(len(operations))]
    return warp_by(operations, x - level, [full] * len(operations), columns) + level
