"""The 8x8 handwritten digits that come with scikit-learn, in a stratified split fixed by a seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import DataError
from .sets import whole_number


__all__ = ["Digits", "Images", "digits", "grey_digits"]


class Images(NamedTuple):
    """Images `x`, float32 (N, height, width, channels), and their labels `y`, int32 (N,)."""

    x: np.ndarray
    y: np.ndarray


class Digits(NamedTuple):
    """Three disjoint sets of digits: fit on `train`, choose on `validation`, report on `test`."""

    train: Images
    validation: Images
    test: Images


def digits(num_train: int = 300, num_validation: int = 300, num_test: int | None = None, *, seed: int = 0) -> Digits:
    """The 1797 embedded digits, 10 classes, as images (N, 8, 8, 1).

    Grey levels 0..16 are divided by 16, then standardised as ``(x - mean) / sd`` with one mean and one standard
    deviation of all training pixels. They are scalars because a mean per pixel would not commute with rotations.

    The split is stratified: each set's share of a class is within 2 examples of the class's share of all digits. It
    depends on `seed` and the sizes only, and with one seed a larger training set contains every smaller one.

    Args:
        num_train: examples in ``train``, at least 1.
        num_validation: examples in ``validation``, 0 or more.
        num_test: examples in ``test``, 0 or more; None takes all that are left.
        seed: chooses the split.

    Raises:
        DataError: a size is not a whole number in its range, or the sizes add up to more than 1797.
    """
    parts = grey_digits(num_train, num_validation, num_test, seed)
    mean, sd = parts.train.x.mean(), parts.train.x.std()
    return Digits(*(Images(((x - mean) / sd).astype(np.float32), y) for x, y in parts))


def grey_digits(num_train: int, num_validation: int, num_test: int | None, seed: int) -> Digits:
    """The split of `digits` with its grey levels from 0 to 1, in float64."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images / 16.0)[..., None]
    y = bunch.target.astype(np.int32)
    sizes = _sizes(len(y), num_train, num_validation, num_test)
    order = _interleaved(y, np.random.default_rng(seed))
    rows = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    return Digits(*(Images(x[chosen], y[chosen]) for chosen in rows))


def _sizes(available: int, num_train: int, num_validation: int, num_test: int | None) -> tuple[int, int, int]:
    asked = {"num_train": num_train, "num_validation": num_validation, "num_test": 0 if num_test is None else num_test}
    for name, size in asked.items():
        whole_number(name, size, 1 if name == "num_train" else 0)
    if sum(asked.values()) > available:
        sums = " + ".join(f"{name} {size}" for name, size in asked.items())
        raise DataError(f"{sums} is more than the {available} digits there are: ask for fewer")
    train, validation, test = (int(size) for size in asked.values())
    return train, validation, available - train - validation if num_test is None else test


def _interleaved(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An order of all examples in which every run of neighbours holds the classes in their overall proportions."""
    # Example j of the m of a class stands at (j + offset) / m: each class is spread evenly over [0, 1].
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + generator.uniform()) / len(members)
    return np.argsort(place, kind="stable")
