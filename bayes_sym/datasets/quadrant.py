"""Digits in one of the four quadrants of a canvas, for a task that is blind to the quadrant and one that asks for it.

Van der Ouderaa et al. 2023 ("Learning layer-wise equivariances automatically using gradients") learn both from the same
images: the best layers are equivariant to translations for the first, and cannot be for the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError, OptionError, ShapeError
from .digits import Digits, Images, grey_digits
from .download import download
from .mnist import read_mnist
from .split import Split


__all__ = ["placements", "quadrant_digits", "quadrant_mnist"]

_TILE = {16: 1, 32: 2}  # side of the canvas, and how often each pixel of an 8x8 digit is repeated


def quadrant_digits(
    num_train: int = 1000,
    num_validation: int = 300,
    num_test: int | None = None,
    *,
    seed: int = 0,
    task: str = "digit",
    placements: str = "one",
    canvas: int = 16,
    shift: int = 0,
) -> Digits:
    """The split of `digits`, every digit in one quadrant of a canvas of zeros: (N, canvas, canvas, 1).

    Quadrant q = 0, 1, 2, 3 is the upper left, upper right, lower left and lower right one. It is drawn for every image
    from the seed, for each of the three sets by itself. Pixels are standardised as ``(x - mean) / sd`` with the mean and
    the standard deviation of all training canvases. Both tasks have the same images in the same order.

    Args:
        num_train: digits in ``train``, at least 1.
        num_validation: digits in ``validation``.
        num_test: digits in ``test``; None takes all that are left.
        seed: chooses the split and the quadrants.
        task: ``"digit"`` for labels 0..9, ``"quadrant"`` for digit + 10 q, 40 classes.
        placements: ``"one"``, or ``"all"`` to train on every digit in all four quadrants: 4 num_train rows, all digits in
            quadrant 0 first. Validation and test digits have one place each; see `placements`.
        canvas: 16 for the 8x8 digits, or 32 for digits enlarged to 16x16 by repeating pixels.
        shift: the most whole pixels by which a digit is moved from its place, up or down and left or right; what leaves the
            canvas comes in at the other side. Drawn for every digit from the seed. The digits of the set are well centred, so with
            0 a net that knows no translations misses little beyond the quadrants.

    Raises:
        DataError: the sizes are out of range.
        OptionError: an unknown task, placement or canvas, or a shift that leaves the quadrant undecided.
    """
    _check_task(task)
    if placements not in ("one", "all"):
        raise OptionError(f"placements must be 'one' or 'all', got {placements!r}")
    if canvas not in _TILE:
        raise OptionError(f"canvas must be 16 or 32, got {canvas!r}: the digits have 8x8 pixels, or 16x16 when enlarged")
    if not 0 <= shift < canvas // 4:
        raise OptionError(
            f"shift must be 0 to {canvas // 4 - 1} pixels on a canvas of {canvas}, got {shift}: moved farther, a digit lies as much in "
            "the next quadrant as in its own"
        )
    parts = [
        Images(x.repeat(_TILE[canvas], axis=1).repeat(_TILE[canvas], axis=2), y)
        for x, y in grey_digits(num_train, num_validation, num_test, seed)
    ]
    quadrants, shifts = _quadrants(parts, seed), _shifts(parts, shift, seed)
    if placements == "all":
        quadrants[0] = np.repeat(np.arange(4), len(parts[0].y))
        parts[0] = Images(np.tile(parts[0].x, (4, 1, 1, 1)), np.tile(parts[0].y, 4))
        shifts[0] = np.tile(shifts[0], (4, 1))
    placed = _placed(parts, quadrants, task)
    return Digits(*(Images(_rolled(x, by), y) for (x, y), by in zip(placed, shifts, strict=True)))


def quadrant_mnist(folder: str | Path | None = None, *, seed: int = 0, task: str = "digit") -> Split:
    """MNIST, every digit in one quadrant of 56x56 zeros, resized to (N, 32, 32, 1).

    The resizing is bilinear, without antialiasing. It commutes with rolls by half the canvas, because 28 pixels become
    16: so the quadrants are resized one by one. Quadrants, labels and the scaling of pixels are those of
    `quadrant_digits`.

    Args:
        folder: where the files of `mnist` lie; None to download them once.
        seed: chooses the quadrants.
        task: ``"digit"`` or ``"quadrant"``, as in `quadrant_digits`.

    Raises:
        DataError: a file is missing or damaged, or the images are not 28x28 pixels of ten classes.
        OptionError: an unknown task.
    """
    _check_task(task)
    folder = download("mnist") if folder is None else folder
    parts = []
    for x, y in read_mnist(folder):
        if x.shape[1:] != (28, 28, 1) or y.max(initial=0) > 9:
            raise DataError(
                f"the quadrants are made of 28x28 images with labels 0..9, and {folder} has images of shape {x.shape[1:]} with labels "
                f"up to {y.max(initial=0)}: use mnist(folder) for other sets"
            )
        shrink = _bilinear(28, 16)
        tiles = np.stack([shrink @ image @ shrink.T for image in x[..., 0]]) / np.float32(255)
        parts.append(Images(tiles[..., None], y))
    return Split(*_placed(parts, _quadrants(parts, seed), task))


def placements(x: np.ndarray) -> np.ndarray:
    """The same digits in all four quadrants, (4, N, height, width, channels): rolls of the canvases by half their sides.

    Entry k rolls down if k is 2 or 3, and right if k is 1 or 3, so what was in quadrant q lies in q XOR k; entry 0 is `x`.

    Args:
        x: canvases (N, height, width, channels) with even sides.
    """
    if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
        raise ShapeError(f"canvases have the shape (N, height, width, channels) with even sides, got {x.shape}")
    half = x.shape[1] // 2, x.shape[2] // 2
    return np.stack([np.roll(x, (k // 2 * half[0], k % 2 * half[1]), axis=(1, 2)) for k in range(4)])


def _check_task(task: str) -> None:
    if task not in ("digit", "quadrant"):
        raise OptionError(f"task must be 'digit' or 'quadrant', got {task!r}")


def _quadrants(parts: Sequence[Images], seed: int) -> list[np.ndarray]:
    """One quadrant per image. A set that is longer has the same ones at its start."""
    return [np.random.default_rng([seed, 1 + i]).integers(0, 4, len(part.y)) for i, part in enumerate(parts)]


def _shifts(parts: Sequence[Images], most: int, seed: int) -> list[np.ndarray]:
    """Pixels down and right per image, (N, 2). A set that is longer has the same ones at its start."""
    return [np.random.default_rng([seed, 4 + i]).integers(-most, most + 1, (len(part.y), 2)) for i, part in enumerate(parts)]


def _rolled(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Every canvas of (N, side, side, 1) rolled down and right by its own number of pixels."""
    rows, columns = ((np.arange(x.shape[1]) - by[:, [axis]]) % x.shape[1] for axis in (0, 1))
    return x[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _placed(parts: Sequence[Images], quadrants: Sequence[np.ndarray], task: str) -> list[Images]:
    """The images (N, side, side, 1) on canvases twice as wide, standardised, with the labels of the task."""
    tiles = parts[0].x.astype(np.float64)
    mean = tiles.mean() / 4  # three quadrants are zero
    sd = np.sqrt((tiles**2).mean() / 4 - mean**2)
    placed = []
    for (x, y), where in zip(parts, quadrants, strict=True):
        count, height, width, channels = x.shape
        canvas = np.full((count, 2, height, 2, width, channels), -mean / sd, np.float32)
        canvas[np.arange(count), where // 2, :, where % 2] = (x - mean) / sd
        labels = y if task == "digit" else (y + 10 * where).astype(np.int32)
        placed.append(Images(canvas.reshape(count, 2 * height, 2 * width, channels), labels))
    return placed


def _bilinear(size: int, smaller: int) -> np.ndarray:
    """The matrix (smaller, size) that interpolates `size` pixels at the centres of `smaller` pixels of the same extent."""
    place = (np.arange(smaller) + 0.5) * size / smaller - 0.5
    left = np.floor(place).astype(int)
    matrix = np.zeros((smaller, size), np.float32)
    matrix[np.arange(smaller), left] = left + 1 - place
    matrix[np.arange(smaller), left + 1] += place - left
    return matrix
