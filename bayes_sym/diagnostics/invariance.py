"""How invariant a classifier's outputs are to a transform of its inputs, by three measures that fail in different ways."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, ShapeError


__all__ = ["Invariance", "invariance"]


class Invariance(NamedTuple):
    """Means over examples and versions, and standard errors over examples (nan with one example).

    Attributes:
        total_variation: between the predictive distributions, in 0..1; 0 if invariant.
        total_variation_se: its standard error.
        agreement: how often the predicted label is the same, in 0..1.
        agreement_se: its standard error.
        median: the papers' score, 1 if invariant, 0 if a transformed example is as far away as another example. It may be negative,
            and it is 0 where all outputs are the same. A median over examples hides the few that move.
    """

    total_variation: float
    total_variation_se: float
    agreement: float
    agreement_se: float
    median: float


def invariance(logits: ArrayLike, moved: ArrayLike) -> Invariance:
    """Compares a classifier's outputs with those on transformed versions of the same inputs.

    With d = 1 - cosine of two vectors of logits less their mean over classes (a constant added to all logits means nothing), and
    d_other the mean of d between an example and all others, the papers' score of an example is (d_other - d_moved) / (d_other + 1e-8),
    averaged over versions here. They take one other example, drawn at random, and mean log-probabilities in place of logits for
    some methods and not for others, so that scores of methods could not be compared (Rommel et al. 2022, released code).

    Give both runs the same noise if the classifier draws any (`layers.Augment.shared`); otherwise that noise counts as well.

    Args:
        logits: (num_examples, classes), or log-probabilities.
        moved: (versions, num_examples, classes), on as many transformed versions of the inputs.

    Raises:
        ShapeError: the outputs do not have these axes.
        DataError: an output is not finite.
    """
    first, others = np.asarray(logits, float), np.asarray(moved, float)
    if first.ndim != 2 or others.ndim != 3 or others.shape[1:] != first.shape or min(others.shape) < 1 or first.shape[1] < 2:
        raise ShapeError(
            "invariance takes logits (num_examples, classes) and moved (versions, num_examples, classes), with two classes or more, got "
            f"{first.shape} and {others.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(others).all()):
        raise DataError("invariance got outputs that are not finite: look at the net's weights, or scale the inputs")
    distance = 0.5 * np.abs(_softmax(others) - _softmax(first)).sum(axis=-1).mean(axis=0)
    same = (others.argmax(axis=-1) == first.argmax(axis=-1)).mean(axis=0)
    unit, moved_unit = _unit(first), _unit(others)
    count = len(first)
    others_apart = 1 - (unit @ unit.sum(axis=0) - (unit * unit).sum(axis=1)) / max(1, count - 1)
    apart = 1 - (moved_unit * unit).sum(axis=-1).mean(axis=0)
    constant = np.ptp(first, axis=0).max() == 0
    score = np.zeros(count) if constant else (others_apart - apart) / (others_apart + 1e-8)
    return Invariance(float(distance.mean()), _se(distance), float(same.mean()), _se(same), float(np.median(score)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _unit(logits: np.ndarray) -> np.ndarray:
    """Less their mean over classes, of length 1, or 0 where all are equal."""
    centred = logits - logits.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    return centred / np.where(length > 0, length, 1)


def _se(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
