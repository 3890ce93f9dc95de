"""Leave-one-out predictive density of the rows that were fitted, by Pareto-smoothed importance sampling."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from bayes_sym.errors import OptionError, ParetoWarning

from .arviz import to_arviz
from .fit import Fit
from .posterior import PointPosterior
from .problem import Problem


__all__ = ["LeaveOneOut", "leave_one_out"]

_THRESHOLD = 0.7


class LeaveOneOut(NamedTuple):
    """The expected log predictive density of new rows, estimated from the rows that were fitted.

    Attributes:
        elpd: the sum over rows, in nats; larger is better.
        se: its standard error over rows.
        parameters: the effective number of parameters, the log density of the fitted rows less `elpd`.
        elpd_of: the term of every row, (rows, ...).
        k: the shape of the Pareto tail of every row's weights, of the same shape: above 0.7 that row's term cannot be trusted.
        num_draws: draws used.
    """

    elpd: float
    se: float
    parameters: float
    elpd_of: np.ndarray
    k: np.ndarray
    num_draws: int


def leave_one_out(
    fit: Fit,
    problem: Problem,
    key: jax.Array,
    *data: Any,
    num_draws: int = 1000,
    site: str | None = None,
    linearise: bool | None = None,
) -> LeaveOneOut:
    """PSIS-LOO (Vehtari, Gelman and Gabry 2017) by ArviZ, on the draws of a fit.

    The draws are taken as the posterior's own; those of an approximation give the leave-one-out density of that approximation. Nets that
    fit every row closely have heavy tails (k above 0.7) at many rows: `held_out_density` has no such limit.

    Args:
        fit: what `fit` returned, by a scheme with a distribution.
        problem: the problem that was fitted.
        key: the random key of the draws.
        data: the arguments of the model, with the observations that were fitted.
        num_draws: draws of an approximate posterior; a sampler's are all used.
        site: the observed site; None if the model has one.
        linearise: as in `predict`.

    Warns:
        ParetoWarning: k is above 0.7 at some rows.

    Raises:
        OptionError: the fit is a point, has failed, or is of another problem, or the site is ambiguous.
    """
    if isinstance(fit.posterior, PointPosterior):
        raise OptionError(
            "a point estimate has no draws to reweight: use Laplace(), Variational() or NUTS(), or held_out_density"
        )
    import arviz

    tree = to_arviz(fit, problem, key, *data, num_draws=num_draws, linearise=linearise)
    likelihood = tree["log_likelihood"]
    names = list(likelihood.data_vars)
    if site is None and len(names) == 1:
        site = names[0]
    if site not in names:
        raise OptionError(f"leave_one_out needs one observed site, got site={site!r} of {names}: pass site='...'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ; ours says which rows
        found = arviz.loo(tree, pointwise=True, var_name=site)
    k = np.asarray(found.pareto_k)
    if hasattr(found, "elpd_i"):  # ArviZ 1.x
        elpd, parameters, of = found.elpd, found.p, np.asarray(found.elpd_i)
    else:
        elpd, parameters, of = found.elpd_loo, found.p_loo, np.asarray(found.loo_i)
    bad = np.argwhere(~(k <= _THRESHOLD))
    if len(bad):
        worst = np.unravel_index(int(np.argmax(np.where(np.isnan(k), np.inf, k))), k.shape)
        warnings.warn(
            f"leave-one-out terms of {len(bad)} of {k.size} rows cannot be trusted: the weights have Pareto k above {_THRESHOLD}, the "
            f"largest {k[worst]:.2f} at row {int(worst[0])}. Use held_out_density on rows that were not fitted, or refit without them",
            ParetoWarning,
            stacklevel=2,
        )
    draws = likelihood[site].shape[0] * likelihood[site].shape[1]
    return LeaveOneOut(float(elpd), float(found.se), float(parameters), of, k, int(draws))
