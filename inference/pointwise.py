"""The distributions of the observations, and their log-likelihoods row by row, for every draw of a posterior."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from bayes_sym import _numpyro
from bayes_sym._precision import full_precision
from bayes_sym.errors import ModelError

from . import rows
from .first_order import first_order
from .problem import Problem, Values
from .rows import Data


__all__ = ["distributions", "log_likelihood_of_rows", "pointwise_log_likelihood"]


def _distributions(problem: Problem, data: Data, z: Values) -> dict[str, Any]:
    """The distributions of the observations, observed or not."""
    sites, _ = problem.trace(data, unconstrained=z)
    return {
        name: site["fn"]
        for name, site in sites.items()
        if site["type"] == "sample" and name not in z and _numpyro.in_plate(site, problem.data_plate)
    }


def distributions(problem: Problem, data: Data, z: Values, center: Values | None) -> dict[str, Any]:
    """The distributions of the observations, with their parameters expanded to first order around `center` unless that is None."""
    if center is None:
        return _distributions(problem, data, z)
    step = {name: z[name] - value for name, value in center.items()}
    at_center, change = jax.jvp(partial(_distributions, problem, data), (center,), (step,))
    return {name: first_order(fn, change[name]) for name, fn in at_center.items()}


def log_likelihood_of_rows(problem: Problem, data: Data, z: Values, center: Values | None) -> jax.Array:
    """log p(observations of row i | z), (rows,): the sum over observed sites and over their further axes.

    Raises:
        ModelError: nothing is observed under the data plate.
    """
    sites, _ = problem.trace(data, unconstrained=z)
    found = []
    for name, fn in distributions(problem, data, z, center).items():
        if not sites[name]["is_observed"]:
            continue
        terms = fn.log_prob(sites[name]["value"])
        (dim,) = [frame.dim for frame in sites[name]["cond_indep_stack"] if frame.name == problem.data_plate]
        found.append(terms.sum(axis=tuple(axis for axis in range(terms.ndim) if axis != terms.ndim + dim)))
    if not found:
        raise ModelError(
            f"nothing is observed under the data plate {problem.data_plate!r}: pass the observations with the inputs, as to `fit`"
        )
    total = found[0]
    for term in found[1:]:
        total = total + term
    return total


@partial(jax.jit, static_argnames=("problem",))
def _block(problem: Problem, z: Values, center: Values | None, data: Data) -> jax.Array:
    return jax.vmap(lambda z: log_likelihood_of_rows(problem, data, z, center))(z)


@full_precision
def pointwise_log_likelihood(
    problem: Problem, z: Values, center: Values | None, data: Data, *, draw_batch: int, data_batch: int
) -> np.ndarray:
    """The log-likelihood of every row for every draw, (draws, rows) on the host, in blocks.

    Args:
        problem: the model.
        z: draws of all latent sites in unconstrained coordinates, (draws, ...).
        center: the mean around which to linearise, or None.
        data: the arguments of the model, with the observations.
        draw_batch: draws per block.
        data_batch: rows per block.
    """
    total, count = rows.num_rows(data), len(next(iter(z.values())))
    size = min(data_batch, total)
    found = np.empty((count, total))
    for start in range(0, total, size):
        some = problem.take(data, np.minimum(np.arange(start, start + size), total - 1))
        for first in range(0, count, draw_batch):
            draws = {name: value[first : first + draw_batch] for name, value in z.items()}
            part = np.asarray(_block(problem, draws, center, some))
            found[first : first + draw_batch, start : start + size] = part[:, : total - start]
    return found
