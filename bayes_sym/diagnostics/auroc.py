"""How well a score tells two sets apart, such as uncertainty on data of another kind: the area under the ROC curve."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, ShapeError
from . import two_way


__all__ = ["Auroc", "auroc"]


class Auroc(NamedTuple):
    """The chance that a score of the first set is larger than one of the second, ties counting half.

    Attributes:
        value: in 0..1; 1/2 if the score says nothing.
        se: its standard error by DeLong, DeLong and Clarke-Pearson (1988), over both sets; nan if one of them has one member.
        num_first: members of the first set.
        num_second: members of the second set.
    """

    value: float
    se: float
    num_first: int
    num_second: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high) of a confidence interval, Gaussian on the scale of the logit, so within 0 and 1.

        Where the sets do not overlap DeLong's variance is 0. The interval is then that of a rate (Clopper and Pearson 1934) with as
        many successes as the smaller set has members: from ((1 - level)/2)^(1/members) to 1.

        Raises:
            OptionError: the level is not between 0 and 1.
        """
        low, high = two_way.interval(0.0, 1.0, math.inf, level)  # the quantiles, and a check of the level
        if self.value in (0.0, 1.0):
            edge = ((1 - level) / 2) ** (1 / min(self.num_first, self.num_second))
            return (edge, 1.0) if self.value == 1 else (0.0, 1 - edge)
        odds = self.value / (1 - self.value)
        slope = self.se / (self.value * (1 - self.value))
        return tuple(odds / (odds + math.exp(-end * slope)) for end in (low, high))  # type: ignore[return-value]


def auroc(first: ArrayLike, second: ArrayLike) -> Auroc:
    """The area under the ROC curve of a score that should be larger in the first set: P(a > b) + P(a = b) / 2.

    For out-of-distribution detection the sets are scores of inputs from elsewhere and of test inputs, for instance
    ``entropy_decomposition(draws).epistemic_of``. Exact over all pairs, by mid-ranks.

    Args:
        first: scores (num_first,).
        second: scores (num_second,).

    Raises:
        ShapeError: a set is empty or has several axes.
        DataError: a score is not finite.
    """
    a, b = (np.asarray(scores, np.float64) for scores in (first, second))
    for name, scores in (("first", a), ("second", b)):
        if scores.ndim != 1 or scores.size == 0:
            raise ShapeError(f"{name} must be scores (number,), one per input and at least one, got shape {scores.shape}")
        if not np.isfinite(scores).all():
            raise DataError(f"{int((~np.isfinite(scores)).sum())} of the scores in {name} are not finite: drop those inputs")
    m, n = len(a), len(b)
    ranks = _mid_ranks(np.concatenate([a, b]))
    # the share of the other set below each score
    below_a = (ranks[:m] - _mid_ranks(a)) / n
    above_b = 1 - (ranks[m:] - _mid_ranks(b)) / m
    variance = below_a.var(ddof=1) / m + above_b.var(ddof=1) / n if min(m, n) > 1 else math.nan
    return Auroc(float(below_a.mean()), math.sqrt(variance), m, n)


def _mid_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks 1..n; equal scores get the mean of theirs."""
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[which.reshape(-1)]
