"""Digits as they are, and the same digits turned: the data on which a symmetry under rotations can be learned."""

from __future__ import annotations

import jax
import numpy as np

from ..errors import OptionError
from ..transforms import affine_warp
from .digits import Digits, Images, grey_digits


__all__ = ["rotated_digits"]


def rotated_digits(
    num_train: int = 1000,
    num_validation: int = 300,
    num_test: int | None = None,
    *,
    seed: int = 0,
    rotate: bool = True,
    angle: str = "quarter",
    canvas: int = 8,
) -> Digits:
    """The split of `digits`, every image turned about its centre by an angle of its own: (N, canvas, canvas, 1).

    Angles are drawn from the seed, for each of the three sets by itself; labels stay. Pixels are standardised as
    ``(x - mean) / sd`` with the mean and the standard deviation of all training images as they are given.

    Args:
        num_train: images in ``train``, at least 1.
        num_validation: images in ``validation``.
        num_test: images in ``test``; None takes all that are left.
        seed: chooses the split and the angles.
        rotate: False for the upright twin, with the same images in the same order.
        angle: ``"quarter"`` for exact multiples of 90 degrees, or ``"any"`` for all angles, by bilinear interpolation with
            zeros outside; corners that turn out of the canvas are lost.
        canvas: 8, or 16 for digits in the middle of zeros, where nothing is lost.

    Raises:
        DataError: the sizes are out of range.
        OptionError: an unknown angle or canvas.
    """
    if angle not in ("quarter", "any"):
        raise OptionError(f"angle must be 'quarter' or 'any', got {angle!r}")
    if canvas not in (8, 16):
        raise OptionError(f"canvas must be 8 or 16, got {canvas!r}: the digits have 8x8 pixels")
    margin = (canvas - 8) // 2
    parts = []
    for i, (x, y) in enumerate(grey_digits(num_train, num_validation, num_test, seed)):
        x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        generator = np.random.default_rng([seed, 1 + i])
        if rotate and angle == "quarter":
            turns = generator.integers(0, 4, len(y))
            x = np.stack([np.rot90(x, k, axes=(1, 2)) for k in range(4)])[turns, np.arange(len(y))]
        elif rotate:
            x = _turned(x, generator.uniform(0, 2 * np.pi, len(y)))
        parts.append(Images(x, y))
    mean, sd = parts[0].x.mean(), parts[0].x.std()
    return Digits(*(Images(((x - mean) / sd).astype(np.float32), y) for x, y in parts))


def _turned(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Images (N, n, n, 1) turned anticlockwise by `angles` (N,) in radians, bilinear, zeros outside."""
    if not len(x):
        return x
    matrix = np.zeros((len(x), 3, 3), np.float32)
    matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(angles)
    matrix[:, 1, 0] = np.sin(angles)
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    return np.asarray(jax.jit(affine_warp)(x.astype(np.float32), matrix)).astype(np.float64)
