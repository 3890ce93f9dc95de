"""The log predictive density of held-out rows."""

from __future__ import annotations

from typing import Any

import jax

from bayes_sym._precision import full_precision
from bayes_sym.diagnostics import PredictiveDensity, log_predictive_density
from bayes_sym.errors import OptionError

from . import rows
from .fit import Fit
from .pointwise import pointwise_log_likelihood
from .posterior import PointPosterior, Posterior, center_of, fitted_problem
from .problem import Problem


__all__ = ["held_out_density"]


@full_precision
def held_out_density(
    problem: Problem,
    fit: Fit | Posterior,
    key: jax.Array,
    *data: Any,
    num_draws: int = 200,
    draw_batch: int = 16,
    data_batch: int = 128,
    linearise: bool | None = None,
) -> PredictiveDensity:
    """The log predictive density of rows that were not fitted, in nats per row, for any likelihood.

    Args:
        problem: the problem that was fitted.
        fit: a fit, or its posterior.
        key: the random key of the draws; the same draws as ``posterior.sample(key, num_draws)``.
        data: the arguments of the model for the held-out rows, with the observations.
        num_draws: posterior draws; a point is one draw.
        draw_batch: draws per block.
        data_batch: rows per block.
        linearise: as in `predict`.

    Raises:
        OptionError: an option is out of range, there are two draws, or the posterior is of another problem.
        ModelError: nothing is observed.
        DataError: the data or a likelihood are not finite.
    """
    if min(num_draws, draw_batch, data_batch) < 1:
        raise OptionError(f"num_draws, draw_batch and data_batch must be at least 1, got {num_draws}, {draw_batch}, {data_batch}")
    posterior = fit.posterior if isinstance(fit, Fit) else fit
    problem = fitted_problem(posterior, problem)
    given = rows.as_arrays(data)
    rows.check_finite(given)
    center = center_of(posterior, linearise)
    z = posterior.sample_unconstrained(key, 1 if isinstance(posterior, PointPosterior) else num_draws)
    return log_predictive_density(
        pointwise_log_likelihood(problem, z, center, given, draw_batch=draw_batch, data_batch=data_batch)
    )
