"""How good predictive probabilities are: accuracy, negative log-likelihood, calibration error and Brier score."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, OptionError, ShapeError


__all__ = ["Bins", "Calibration", "bin_members", "calibration", "checked_labels"]

Bins = Literal["equal-mass", "equal-width"]

_SMALLEST = float(np.finfo(np.float32).tiny)


class Calibration(NamedTuple):
    """Scores of predictive probabilities; each ``_se`` is a standard error over examples (nan with one example).

    Attributes:
        accuracy: the share of examples whose most probable class is the label.
        accuracy_se: its standard error.
        nll: the mean negative log-probability of the label, in nats.
        nll_se: its standard error.
        ece: the expected calibration error, in 0..1. Biased upwards with few examples per bin; see `calibration_error`.
        brier: the mean over examples of sum_c (p_c - 1[c = label])^2, in 0..2.
        brier_se: its standard error.
    """

    accuracy: float
    accuracy_se: float
    nll: float
    nll_se: float
    ece: float
    brier: float
    brier_se: float


def calibration(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    num_bins: int = 15,
    bins: Bins = "equal-mass",
) -> Calibration:
    """Scores predictive probabilities against labels.

    With confidence the largest probability of an example, and bins b of examples of similar confidence,

        ece = sum_b |b| / num_examples * |accuracy of b - mean confidence of b|.

    ``nll`` takes probabilities below the smallest normal float32, 1.18e-38, as that number, so one example counts at
    most 87.3 nats.

    Args:
        probabilities: (num_examples, classes), rows that sum to 1 (to 1e-3).
        labels: whole numbers (num_examples,) in 0..classes-1.
        num_bins: number of bins of ``ece``; no more than there are examples are used for equal mass.
        bins: ``"equal-mass"`` sorts the examples by confidence and gives every bin the same number of them, up to one;
            ``"equal-width"`` cuts (0, 1] into intervals of the same width.

    Raises:
        ShapeError: the axes are not these, or do not match.
        DataError: a row is not a distribution, or a label is not one of the classes.
        OptionError: `num_bins` or `bins` is not one of the choices.
    """
    p, y = checked_labels(probabilities, labels)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    examples = np.arange(len(y))
    nll = -np.log(np.maximum(p[examples, y], _SMALLEST))
    brier = ((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1)
    members = bin_members(confidence, num_bins, bins)
    ece = sum(abs(float((right[b] - confidence[b]).sum())) for b in members) / len(y)
    return Calibration(
        float(right.mean()),
        _standard_error(right),
        float(nll.mean()),
        _standard_error(nll),
        ece,
        float(brier.mean()),
        _standard_error(brier),
    )


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def bin_members(confidence: np.ndarray, num_bins: int, bins: Bins) -> list[np.ndarray]:
    """The examples of every bin that has any, by rising confidence; see `calibration` for the two kinds of bins.

    Raises:
        OptionError: `num_bins` or `bins` is not one of the choices.
    """
    if not isinstance(num_bins, (int, np.integer)) or isinstance(num_bins, bool) or num_bins < 1:
        raise OptionError(f"num_bins must be a whole number of at least 1, got {num_bins!r}")
    if bins == "equal-mass":
        ordered = np.argsort(confidence, kind="stable")
        return np.array_split(ordered, min(num_bins, len(confidence)))
    if bins == "equal-width":
        which = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
        return [np.flatnonzero(which == b) for b in np.unique(which)]
    raise OptionError(f"bins must be 'equal-mass' or 'equal-width', got {bins!r}")


def checked_labels(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (num_examples, classes) in float64 and labels (num_examples,), checked.

    Raises:
        ShapeError: the axes are not these, or do not match.
        DataError: a row is not a distribution, or a label is not one of the classes.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or 0 in p.shape:
        raise ShapeError(f"probabilities must be (num_examples, classes), got shape {p.shape}; average over the draws first")
    if y.shape != p.shape[:1]:
        raise ShapeError(f"labels must be ({len(p)},), one per row of the probabilities of shape {p.shape}, got shape {y.shape}")
    if not np.issubdtype(y.dtype, np.integer) or (y < 0).any() or (y >= p.shape[1]).any():
        raise DataError(
            f"labels must be whole numbers in 0..{p.shape[1] - 1}, got {y.dtype} values from {y.min()} to {y.max()}: one-hot labels "
            "need an argmax"
        )
    # written so that NaN is refused too
    wrong = ~((np.abs(p.sum(axis=1) - 1) <= 1e-3) & (p >= 0).all(axis=1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{int(wrong.sum())} rows of the probabilities are not distributions; row {row} sums to {p[row].sum():.6g} and its "
            f"smallest entry is {p[row].min():.6g}: apply a softmax to logits"
        )
    return p, y
