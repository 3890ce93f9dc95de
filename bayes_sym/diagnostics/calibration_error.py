"""The expected calibration error with an interval that holds for calibrated predictions too, and what it would be for them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError
from .calibration import Bins, bin_members, checked_labels


__all__ = ["CalibrationError", "calibration_error"]

_SIMULATIONS = 10_000


class CalibrationError(NamedTuple):
    """The expected calibration error of predictive probabilities.

    Attributes:
        ece: sum_b w_b |accuracy of b - mean confidence of b|, with w_b the share of the examples in bin b: in 0..1, biased upwards.
        low: the lower end of its interval; 0 where the predictions may be calibrated.
        high: the upper end.
        level: the coverage of the interval.
        if_calibrated: what `ece` would be on average if every bin were calibrated: that much is noise.
        num_bins: bins that hold examples.
    """

    ece: float
    low: float
    high: float
    level: float
    if_calibrated: float
    num_bins: int


def calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, level: float = 0.95, num_bins: int = 15, bins: Bins = "equal-mass"
) -> CalibrationError:
    """The expected calibration error with a confidence interval over the labels, given the bins.

    With gap a_b of bin b, its estimate e_b, and its standard error s_b, the estimate sum_b w_b |e_b| exceeds the truth even on average,
    so a bootstrap of it never covers 0. The two ends are found apart:

    - Since |e| >= sign(a) e, the estimate falls short of the truth by more than z sqrt(sum_b w_b^2 s_b^2) with a chance of at most
      (1 - level)/2: that gives the upper end.
    - Since |e| - |a| <= |e - a|, it exceeds the truth by at most sum_b w_b s_b |z_b| with standard Gaussian z_b. Where |e_b| is above
      s_b sqrt(2 log N) its sign is known, and the term is w_b s_b z_b: generalised moment selection (Andrews and Soares 2010). The
      quantile of that sum gives the lower end. It is exact for predictions that are calibrated in every bin.

    Standard errors are binomial, s_b^2 = r_b (1 - r_b)/n_b, with Jeffreys' estimate r_b = (hits + 1/2)/(n_b + 1), so that a bin with
    hits only is not taken as certain. The quantile is from 10,000 simulated sums with a fixed seed.

    Args:
        probabilities: (num_examples, classes), rows that sum to 1 (to 1e-3).
        labels: whole numbers (num_examples,) in 0..classes-1.
        level: the coverage of the interval.
        num_bins: as in `calibration`; with few examples per bin the interval is wide.
        bins: as in `calibration`.

    Raises:
        ShapeError: the axes are not these, or do not match.
        DataError: a row is not a distribution, or a label is not one of the classes.
        OptionError: an option is out of range.
    """
    from scipy.special import ndtri

    if not 0 < level < 1:
        raise OptionError(f"level is the coverage of an interval, between 0 and 1, got {level!r}: use 0.95 for 95%")
    p, y = checked_labels(probabilities, labels)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    members = bin_members(confidence, num_bins, bins)
    counts = np.array([len(b) for b in members])
    weights = counts / len(y)
    gaps = np.array([right[b].mean() - confidence[b].mean() for b in members])
    rates = np.array([(right[b].sum() + 0.5) / (len(b) + 1) for b in members])
    errors = weights * np.sqrt(rates * (1 - rates) / counts)
    ece = float(weights @ np.abs(gaps))
    known = weights * np.abs(gaps) > errors * math.sqrt(2 * math.log(max(len(y), 2)))
    noise = np.random.default_rng(0).standard_normal((_SIMULATIONS, len(members)))
    excess = np.where(known, noise, np.abs(noise)) @ errors
    low = ece - float(np.quantile(excess, (1 + level) / 2))
    high = ece + float(ndtri((1 + level) / 2)) * math.sqrt(float(errors @ errors))
    return CalibrationError(ece, max(low, 0.0), min(high, 1.0), level, float(errors.sum()) * math.sqrt(2 / math.pi), len(members))
