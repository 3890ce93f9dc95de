"""How uncertain predictions are, and why: entropy that all draws agree on, and entropy from their disagreement."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, OptionError, ShapeError
from . import two_way


__all__ = ["EntropyDecomposition", "entropy_decomposition"]


class EntropyDecomposition(NamedTuple):
    """Predictive entropy in nats: total = aleatoric + epistemic. Means over examples; each ``_se`` is over examples and draws.

    Attributes:
        total: the entropy of the mean prediction.
        total_se: its standard error; nan with one example.
        aleatoric: the mean entropy of single draws: what knowing the weights would leave.
        aleatoric_se: its standard error.
        epistemic: the mutual information of label and weights.
        epistemic_se: its standard error.
        total_of: the total of every example, (num_examples,).
        aleatoric_of: its aleatoric part.
        epistemic_of: its epistemic part; may fall below 0 by noise, since it is corrected for bias.
        num_draws: draws used.
    """

    total: float
    total_se: float
    aleatoric: float
    aleatoric_se: float
    epistemic: float
    epistemic_se: float
    total_of: np.ndarray
    aleatoric_of: np.ndarray
    epistemic_of: np.ndarray
    num_draws: int


def entropy_decomposition(draws: ArrayLike, *, correct: bool = True) -> EntropyDecomposition:
    """Splits the entropy of predictive probabilities p_t(c | x) into what is in the data and what is in the weights.

        total = H(mean_t p_t),    aleatoric = mean_t H(p_t),    epistemic = total - aleatoric.

    With T draws the total is too small by about sum_c Var(p_c) / (2 T p_c), and with it the epistemic part. The jackknife takes that
    away, T H(all) - (T - 1) mean_t H(all but t), and leaves a bias of order 1/T^2. The aleatoric part has none. The draws are
    shared by all examples, so variances are crossed: of the examples' values over n, plus the jackknife over draws.

    Args:
        draws: class probabilities (num_draws, num_examples, classes), as `predict` gives them.
        correct: whether to correct the bias; it needs three draws. A single draw has no epistemic part.

    Raises:
        ShapeError: the draws do not have these axes.
        DataError: a row is not a distribution.
        OptionError: there are two draws, too few for a jackknife.
    """
    p = np.asarray(draws)
    if p.ndim != 3 or 0 in p.shape:
        raise ShapeError(f"draws must be (num_draws, num_examples, classes), got shape {p.shape}")
    wrong = ~((np.abs(p.sum(axis=-1, dtype=np.float64) - 1) <= 1e-3) & (p >= 0).all(axis=-1))
    if wrong.any():
        t, i = (int(index[0]) for index in np.nonzero(wrong))
        raise DataError(
            f"{int(wrong.sum())} of the predictions are not distributions, the first that of draw {t} at example {i}, which sums to "
            f"{float(p[t, i].sum()):.6g}: apply a softmax to logits"
        )
    count, examples = p.shape[:2]
    if count == 2:
        raise OptionError("two draws are too few for a jackknife over draws: give at least 3, or 1 for a point estimate")
    mean = p.mean(axis=0, dtype=np.float64)
    total_of, singles, without = _entropy(mean), np.empty((count, examples)), np.empty((count, examples))
    for t in range(count):
        one = p[t].astype(np.float64)
        singles[t] = _entropy(one)
        if count > 1:
            without[t] = _entropy((count * mean - one) / (count - 1))
    aleatoric_of = singles.mean(axis=0)
    if count == 1:
        se, _ = two_way.standard_error([two_way.over_examples(total_of)])
        value = float(total_of.mean())
        return EntropyDecomposition(value, se, value, se, 0.0, 0.0, total_of, aleatoric_of, np.zeros(examples), 1)
    if correct:
        total_of = count * total_of - (count - 1) * without.mean(axis=0)
    left_out = (count * aleatoric_of - singles) / (count - 1)
    total, total_se = _mean(total_of, without)
    aleatoric, aleatoric_se = _mean(aleatoric_of, left_out)
    epistemic_of = total_of - aleatoric_of
    epistemic, epistemic_se = _mean(epistemic_of, without - left_out)
    return EntropyDecomposition(
        total, total_se, aleatoric, aleatoric_se, epistemic, epistemic_se, total_of, aleatoric_of, epistemic_of, count
    )


def _mean(of_examples: np.ndarray, without: np.ndarray) -> tuple[float, float]:
    """The mean over examples, and its standard error with the values (draws, examples) without one draw each."""
    se, _ = two_way.standard_error([two_way.over_examples(of_examples), two_way.jackknife(without.mean(axis=1))])
    return float(of_examples.mean()), se


def _entropy(p: np.ndarray) -> np.ndarray:
    """-sum_c p log p over the last axis, with 0 log 0 = 0; round-off below 0 counts as 0."""
    p = np.maximum(p, 0)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
