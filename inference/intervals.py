"""Means over seeds with t-intervals: what repeated fits say about the chance in each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


__all__ = ["Interval", "interval_over", "over_seeds"]

_LEAST = 3  # below that, a t-interval says next to nothing
_NO_SCORES = frozenset({"seed", "parameters", "steps", "num_draws", "seeds_together"})


class Interval(NamedTuple):
    """A mean, and the bounds of its confidence interval: None with fewer than three values."""

    mean: float
    low: float | None
    high: float | None


def interval_over(values: Sequence[float], level: float = 0.95) -> Interval:
    """mean +- t s / sqrt(n), with s the sample standard deviation and t the quantile of Student's t with n - 1 degrees of freedom.

    Exact for values drawn independently from one Gaussian. Bounds may lie outside the range of a score.
    """
    from scipy.special import stdtrit

    array = np.asarray(values, float)
    mean, count = float(array.mean()), len(array)
    if count < _LEAST or not np.isfinite(array).all():
        return Interval(mean, None, None)
    half = float(stdtrit(count - 1, 0.5 + level / 2) * array.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def over_seeds(rows: Sequence[Mapping[str, Any]], by: str = "method") -> list[dict[str, Any]]:
    """One row for all rows that share `by`: scores become means with ``_low`` and ``_high`` beside them.

    The interval is over seeds: it covers the chance in fits and draws (and in splits, where each seed has its own), and not
    that of a test set which all of them share; for that, see the standard errors, whose means are kept.

    Args:
        rows: flat dicts, one per method and seed.
        by: the key that names the method.
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    scores = {name for row in rows for name, value in row.items() if _is_number(value)} - _NO_SCORES
    return [
        {by: name, "seeds": len(group)} | _summary([{k: v for k, v in row.items() if k != by} for row in group], scores)
        for name, group in groups.items()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _summary(group: Sequence[Mapping[str, Any]], scores: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (name for name in group[0] if name != "seed"):
        values = [row.get(name) for row in group]
        if name not in scores:
            found[name] = values[0] if all(value == values[0] for value in values) else None
            continue
        known = all(_is_number(value) for value in values)  # a method without an evidence has none of its interval either
        mean, low, high = interval_over([float(value) for value in values]) if known else (None, None, None)  # type: ignore[arg-type]
        found[name] = mean
        if not name.endswith("_se"):
            found |= {f"{name}_low": low, f"{name}_high": high}
    return found
