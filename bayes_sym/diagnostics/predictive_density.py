"""The log predictive density of data from the likelihood of every draw at every row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, OptionError, ShapeError
from . import two_way


__all__ = ["PredictiveDensity", "log_predictive_density"]


class PredictiveDensity(NamedTuple):
    """The log predictive density of rows, in nats per row.

    Attributes:
        mean: the mean over rows of log mean_t p(y | x, theta_t).
        se: its standard error over rows and draws; nan with one row.
        of_rows: the log density of every row, (num_rows,).
        bias: the jackknife's estimate of the bias of `mean` from the number of draws, below 0 on average; it is not taken away.
        num_draws: draws used.
    """

    mean: float
    se: float
    of_rows: np.ndarray
    bias: float
    num_draws: int


def log_predictive_density(log_likelihood: ArrayLike) -> PredictiveDensity:
    """The log predictive density from pointwise log-likelihoods, in the sense of Gelman, Hwang and Vehtari (2014), eq. 5.

        mean = mean_i log( mean_t exp(log_likelihood[t, i]) )

    An estimate of how well new data are predicted only if the rows were not used to fit. By Jensen's inequality it is too small on
    average with few draws; `bias` says by how much. Sums are in float64 and shifted by the largest term of every row.

    Args:
        log_likelihood: (num_draws, num_rows), log p(y_i | x_i, theta_t).

    Raises:
        ShapeError: the array does not have these axes.
        DataError: an entry is NaN or plus infinity, or a row has no likelihood under any draw.
        OptionError: there are two draws, too few for a jackknife.
    """
    values = np.asarray(log_likelihood, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ShapeError(
            f"log_likelihood must be (num_draws, num_rows), got shape {values.shape}: sum over further axes of a row"
        )
    if not (values < np.inf).all():
        raise DataError("the log-likelihoods hold NaN or plus infinity: look at the weights, or at a scale that has become 0")
    top = values.max(axis=0)
    if not np.isfinite(top).all():
        rows = np.flatnonzero(~np.isfinite(top))
        raise DataError(f"{len(rows)} rows have likelihood 0 under every draw, the first is row {rows[0]}: is it in the support?")
    draws = len(values)
    if draws == 2:
        raise OptionError("two draws are too few for a jackknife over draws: give at least 3, or 1 for a point estimate")
    scaled = np.exp(values - top)
    total = scaled.sum(axis=0)
    of_rows = top + np.log(total / draws)
    parts, bias = [two_way.over_examples(of_rows)], 0.0
    if draws > 1:
        left = total - scaled
        without = top + np.log(np.where(left > 0, left, 1))
        # Where one draw has nearly all the likelihood, a difference loses the others: they are summed anew.
        for t, i in zip(*np.nonzero(left < 1e-8 * total), strict=True):
            others = np.delete(values[:, i], t)
            without[t, i] = others.max() + np.log(np.exp(others - others.max()).sum())
        without -= np.log(draws - 1)
        of_draws = without.mean(axis=1)
        parts.append(two_way.jackknife(of_draws))
        bias = (draws - 1) * float(of_draws.mean() - of_rows.mean())
    se, _ = two_way.standard_error(parts)
    return PredictiveDensity(float(of_rows.mean()), se, of_rows, bias, draws)
