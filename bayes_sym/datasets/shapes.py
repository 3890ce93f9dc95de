"""Two shapes, upright or inverted: labels survive rotations by up to a quarter turn less their own spread, and no more."""

from __future__ import annotations

import numpy as np

from .sets import Sets, between, generated, shuffled_labels


__all__ = ["rotated_shapes"]


def rotated_shapes(
    num_train: int = 2000,
    num_validation: int = 1000,
    num_test: int = 1000,
    *,
    seed: int = 0,
    side: int = 32,
    spread: float = 45.0,
) -> Sets:
    """Images (N, side, side, 1) of two shapes, with labels 0..3: 2 * shape + inverted.

    The task of Benton et al. 2020 ("Learning invariances in neural networks from training data") and of AugNet, whose
    two pictures are of figures from games, with shapes of our own: a hammer (0) and a key (1), both symmetric from left
    to right and not from top to bottom. Each is turned about the centre by an angle uniform on (-spread, spread) if
    upright, and by 180 degrees more if inverted. They are drawn at their angle, so nothing is interpolated. Levels run
    from 0 (outside) to 1, with edges one pixel wide.

    Labels survive further rotations by +-h exactly as long as spread + h < 90 degrees: for 45, the largest range without
    loss is 45 degrees, and wider ones mix upright and inverted shapes. Classes are equally many, to within one image.

    Args:
        num_train: images in ``train``, at least 1.
        num_validation: images in ``validation``.
        num_test: images in ``test``.
        seed: draws the images of each set by itself.
        side: pixels along each side, 12 to 256.
        spread: the largest angle of an upright shape, 0 to 90 degrees.

    Raises:
        DataError: a size is no whole number in its range.
        OptionError: an option is out of range.
    """
    between("side", side, 12, 256, "pixels", whole=True)
    between("spread", spread, 0, 90, "degrees")

    def draw(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = shuffled_labels(generator, count, 4)
        angles = np.radians(spread * generator.uniform(-1, 1, count) + 180 * (labels % 2))
        images = np.empty((count, side, side, 1), np.float32)
        for start in range(0, count, 500):
            rows = slice(start, start + 500)
            images[rows, ..., 0] = _drawn(labels[rows] // 2, angles[rows], side)
        return images, labels

    return generated(draw, {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}, seed)


def _drawn(shapes: np.ndarray, angles: np.ndarray, side: int) -> np.ndarray:
    """Shapes (N,) turned anticlockwise by `angles` (N,) in radians, (N, side, side)."""
    place = (np.arange(side) - (side - 1) / 2) * 2 / side
    up, right = np.meshgrid(-place, place, indexing="ij")
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    # where each pixel lies in the shape's own frame
    across, along = cos * right + sin * up, cos * up - sin * right
    distance = np.where(shapes[:, None, None] == 0, _hammer(across, along), _key(across, along))
    return np.clip(0.5 - distance * side / 2, 0, 1)


def _hammer(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """The signed distance from the edge of a bar on a stem, within a circle of radius 0.85."""
    return np.minimum(_box(across, along - 0.45, 0.6, 0.2), _box(across, along + 0.25, 0.14, 0.52))


def _key(across: np.ndarray, along: np.ndarray) -> np.ndarray:
    """The signed distance from the edge of a disc on a stem."""
    return np.minimum(np.hypot(across, along - 0.4) - 0.42, _box(across, along + 0.4, 0.12, 0.4))


def _box(across: np.ndarray, along: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    beyond = np.abs(across) - half_width, np.abs(along) - half_height
    return np.hypot(*(np.maximum(b, 0) for b in beyond)) + np.minimum(np.maximum(*beyond), 0)
