"""What the generated sets come in: rows with their labels, in three disjoint sets, and the check of their sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError, OptionError


__all__ = ["Labelled", "Sets", "between", "generated", "shuffled_labels", "whole_number"]


class Labelled(NamedTuple):
    """Inputs `x`, float32 with one row per example, and their labels `y`, int32 (N,)."""

    x: np.ndarray
    y: np.ndarray


class Sets(NamedTuple):
    """Three disjoint sets: fit on `train`, choose on `validation`, report on `test`."""

    train: Labelled
    validation: Labelled
    test: Labelled


def generated(
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]], sizes: dict[str, int], seed: int
) -> Sets:
    """Three sets of these sizes, each drawn by a generator of its own, so that the size of one does not change the others.

    Raises:
        DataError: a size is not a whole number of at least 1 (train) or 0 (the others).
    """
    for name, size in sizes.items():
        whole_number(name, size, 1 if name == "num_train" else 0)
    parts = [draw(np.random.default_rng([seed, i]), int(size)) for i, size in enumerate(sizes.values())]
    return Sets(*(Labelled(x.astype(np.float32), y.astype(np.int32)) for x, y in parts))


def shuffled_labels(generator: np.random.Generator, count: int, classes: int) -> np.ndarray:
    """Labels 0..classes-1 in random order, as evenly as `count` allows: numbers of a class differ by at most 1."""
    return generator.permutation(np.arange(count) % classes)


def whole_number(name: str, size: Any, least: int) -> None:
    """Refuses a size that is not a whole number of at least `least`."""
    if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < least:
        raise DataError(f"{name} must be a whole number of at least {least}, got {size!r}")


def between(name: str, value: float, low: float, high: float, unit: str = "", *, whole: bool = False) -> None:
    """Refuses an option outside [low, high], or with `whole` one that is not a whole number."""
    wanted = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, wanted) or not low <= value <= high:
        what = "a whole number between" if whole else "between"
        raise OptionError(f"{name} must be {what} {low:g} and {high:g}{unit and ' ' + unit}, got {value!r}")
