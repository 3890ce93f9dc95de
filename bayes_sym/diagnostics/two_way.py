"""Variances of means over examples and draws that are crossed: every draw is used at every example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError, ShapeError


__all__ = ["Variance", "checked_clusters", "interval", "jackknife", "over_examples", "standard_error"]


class Variance(NamedTuple):
    """The variance of an estimate from one source of chance, and the degrees of freedom of that variance."""

    variance: float
    df: float


def over_examples(values: np.ndarray, clusters: np.ndarray | None = None) -> Variance:
    """The variance of the mean of `values` over examples that are independent, or independent from cluster to cluster.

    With C clusters, n values v_i and r_c the sum of v_i - mean v within cluster c,

        variance = C / (C - 1) sum_c r_c^2 / n^2,

    which is the usual s^2 / n where every example is a cluster of its own. nan with one example or one cluster.
    """
    if clusters is None:
        variance = float(values.var(ddof=1) / len(values)) if len(values) > 1 else math.nan
        return Variance(variance, len(values) - 1)
    sums = np.bincount(clusters, values - values.mean())
    count = len(sums)
    variance = count / (count - 1) * float((sums**2).sum()) / len(values) ** 2 if count > 1 else math.nan
    return Variance(variance, count - 1)


def jackknife(without: np.ndarray) -> Variance:
    """The variance of an estimate from its values `without` one draw each: (T - 1)/T sum_t (without_t - their mean)^2."""
    draws = len(without)
    return Variance((draws - 1) / draws * float(((without - without.mean()) ** 2).sum()), draws - 1)


def standard_error(parts: Sequence[Variance]) -> tuple[float, float]:
    """The standard error from independent sources of chance, and its degrees of freedom (Welch and Satterthwaite)."""
    total = sum(part.variance for part in parts)
    if not total > 0:
        return math.sqrt(total), math.inf
    return math.sqrt(total), total**2 / sum(part.variance**2 / part.df for part in parts if part.variance > 0)


def interval(centre: float, se: float, df: float, level: float) -> tuple[float, float]:
    """centre -+ q se, with q the two-sided quantile of Student's t with `df` degrees of freedom.

    Raises:
        OptionError: the level is not between 0 and 1.
    """
    from scipy.special import ndtri, stdtrit

    if not 0 < level < 1:
        raise OptionError(f"level is the coverage of an interval, between 0 and 1, got {level!r}: use 0.95 for 95%")
    upper = (1 + level) / 2
    half = se * float(ndtri(upper) if math.isinf(df) else stdtrit(df, upper))
    return centre - half, centre + half


def checked_clusters(clusters: ArrayLike | None, examples: int) -> np.ndarray | None:
    """Clusters as numbers 0, 1, ... from any identifiers, one per example.

    Raises:
        ShapeError: there is not one identifier per example.
    """
    if clusters is None:
        return None
    given = np.asarray(clusters)
    if given.shape != (examples,):
        raise ShapeError(
            f"clusters must be ({examples},), the identifier of the original of every example, got shape {given.shape}"
        )
    return np.unique(given, return_inverse=True)[1].reshape(-1)
