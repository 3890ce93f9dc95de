"""Accuracy along orbits: its mean over the group, and the share of examples that are right everywhere."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, ShapeError
from ..representations import Representation
from .agreement import orbit_labels


__all__ = ["OrbitAccuracy", "orbit_accuracy"]


class OrbitAccuracy(NamedTuple):
    """Accuracies in 0..1; each ``_se`` is a standard error over examples (nan with one example).

    Attributes:
        plain: the share of examples that are right as they are.
        plain_se: its standard error.
        mean: the mean over the group of the share that are right at g x.
        mean_se: its standard error.
        worst: the share of examples that are right at every element of the group.
        worst_se: its standard error.
        gap: plain - worst, what an adversary gains who may choose the element.
        gap_se: its standard error.
    """

    plain: float
    plain_se: float
    mean: float
    mean_se: float
    worst: float
    worst_se: float
    gap: float
    gap_se: float


def orbit_accuracy(probabilities: ArrayLike, labels: ArrayLike, output: Representation | None = None) -> OrbitAccuracy:
    """How often predicted labels are right at x, along the orbit of x on average, and at its worst element.

    The label at g x is the argmax of the mean predictive probabilities there, mapped back by ``output``. Worst-orbit accuracy falls
    with the order of the group by noise alone, and with few posterior draws: compare it at one order and number of draws.

    Args:
        probabilities: (group, num_examples, classes): mean predictive probabilities at g x, the identity at g = 0.
        labels: whole numbers (num_examples,), the labels at x.
        output: how the group permutes the classes, for outputs that are equivariant; None for invariant outputs.

    Raises:
        ShapeError: the axes are not these, or do not match.
        DataError: a probability is not finite, or a label is not one of the classes.
        GroupActionError: `output` is not a permutation representation, so it does not act on labels.
    """
    found = orbit_labels(probabilities, output)
    y, classes = np.asarray(labels), np.shape(probabilities)[-1]
    if y.shape != found.shape[1:]:
        raise ShapeError(f"labels must be ({found.shape[1]},), one per example, got shape {y.shape}")
    if not np.issubdtype(y.dtype, np.integer) or (y < 0).any() or (y >= classes).any():
        raise DataError(f"labels must be whole numbers in 0..{classes - 1}, got {y.dtype} values from {y.min()} to {y.max()}")
    right = (found == y[None]).astype(float)
    plain, worst = right[0], right.min(axis=0)
    scores = []
    for per_example in (plain, right.mean(axis=0), worst, plain - worst):
        se = float(per_example.std(ddof=1)) / math.sqrt(len(y)) if len(y) > 1 else math.nan
        scores += [float(per_example.mean()), se]
    return OrbitAccuracy(*scores)
