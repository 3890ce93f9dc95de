"""How many posterior draws an equivariance defect needs, from a pilot."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError, ShapeError


__all__ = ["DrawsNeeded", "draws_needed"]


class DrawsNeeded(NamedTuple):
    """How the spread of the unbiased predictive defect falls with the number of draws T, for the examples of the pilot.

    The variance over draws is 4 signal / T + 2 noise / T^2.

    Attributes:
        num_draws: the smallest T that gives the precision, at least the 3 that a standard error needs.
        critical: T_c = noise / (2 signal), at which both terms are equal. The standard deviation falls as 1/T well below it
            and as 1/sqrt(T) well above it; infinite where no defect shows in the pilot.
        signal: D'VD, estimated without bias, so it may be negative.
        noise: tr V^2, likewise.
    """

    num_draws: int
    critical: float
    signal: float
    noise: float


def draws_needed(differences: Iterable[ArrayLike], precision: float) -> DrawsNeeded:
    """The number of draws at which the defect's standard deviation over draws is half of `precision`.

    That deviation is sqrt(4 D'VD / T + 2 tr V^2 / T^2), so

        num_draws = (8 D'VD + sqrt(64 (D'VD)^2 + 8 precision^2 tr V^2)) / precision^2,

    which is never less than max(16 D'VD / precision^2, sqrt(8 tr V^2) / precision). D and V are mean and covariance of d_t over
    all examples and elements together, scaled so that |d_t|^2 is a mean over them. With k_st the mean over examples and
    elements of d_s . d_t, and different letters for different draws, D'VD = E k_st k_su - E k_st k_uv and
    tr V^2 = E k_st^2 - 2 E k_st k_su + E k_st k_uv are estimated by their U-statistics, and taken as 0 where these are negative.

    More draws do not narrow the part of an interval that comes from the examples.

    Args:
        differences: as in `defect`, from a pilot of at least 4 draws.
        precision: half the width of a 95% interval that you want from draws alone, in the units of the defect.

    Raises:
        OptionError: the precision is not a positive number.
        ShapeError: there are fewer than 4 draws, or the elements differ in shape.
    """
    if not precision > 0 or math.isinf(precision):
        raise OptionError(f"precision is half the width of an interval for the defect, a positive number, got {precision!r}")
    gram, order = np.zeros((0, 0)), 0
    for difference in differences:
        d = np.asarray(difference, np.float64)
        if d.ndim < 2 or len(d) < 4 or 0 in d.shape or (order and len(d) != len(gram)):
            raise ShapeError(
                f"differences must be (num_draws, num_examples, *outputs) with at least 4 draws, got shape {d.shape}"
            )
        flat = d.reshape(len(d), -1)
        gram = (gram if order else 0) + flat @ flat.T / d.shape[1]
        order += 1
    if not order:
        raise ShapeError("differences hold no group element: give one array per element, the identity included")
    signal, noise = _moments(gram / order)
    critical = noise / (2 * signal) if signal > 0 and noise > 0 else math.inf if noise > 0 else 0.0
    linear, square = max(signal, 0.0), max(noise, 0.0)
    count = (8 * linear + math.sqrt(64 * linear**2 + 8 * precision**2 * square)) / precision**2
    return DrawsNeeded(max(math.ceil(count), 3), critical, signal, noise)


def _moments(gram: np.ndarray) -> tuple[float, float]:
    """D'VD and tr V^2 without bias from k_st, (num_draws, num_draws)."""
    count = len(gram)
    k = gram - np.diag(np.diag(gram))
    rows, squares = k.sum(axis=1), float((k**2).sum())
    shared = float((rows**2).sum()) - squares  # sum of k_st k_su over different s, t, u
    apart = float(rows.sum()) ** 2 - 4 * shared - 2 * squares  # sum of k_st k_uv over different s, t, u, v
    pairs = count * (count - 1)
    one, two, three = squares / pairs, shared / (pairs * (count - 2)), apart / (pairs * (count - 2) * (count - 3))
    return two - three, one - 2 * two + three
