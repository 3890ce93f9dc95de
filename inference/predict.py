"""Predictions of a posterior, in blocks of draws and rows so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import _numpyro
from bayes_sym.errors import ModelError, OptionError

from . import rows
from .fit import Fit
from .posterior import GaussianPosterior, Posterior
from .problem import Problem, Values
from .rows import Data


__all__ = ["predict"]


def predict(
    problem: Problem,
    fit: Fit | Posterior | Mapping[str, jax.Array],
    key: jax.Array,
    *inputs: Any,
    num_draws: int = 100,
    draw_batch: int = 32,
    data_batch: int = 1024,
    site: str | None = None,
    linearise: bool | None = None,
) -> np.ndarray:
    """The mean of the observation for every posterior draw: class probabilities, rates, or locations.

    The same key gives the same draws of the weights, whatever the inputs: draw t of two calls can be compared.

    Args:
        problem: the model.
        fit: a fit, a posterior, or samples of all latent sites by name, (draws, ...).
        key: the random key of the draws.
        inputs: the arguments of the model without the observations.
        num_draws: posterior draws (ignored where samples are given: all are used).
        draw_batch: draws per block.
        data_batch: rows per block.
        site: the observed site to predict; None if the model has one.
        linearise: whether to linearise the model's distribution parameters around the posterior mean, draw by draw; None
            for what the posterior recommends (True for Laplace). The first-order expansion is what a Gauss-Newton curvature
            is exact for; sampling weights instead is noisier.

    Returns:
        float (draws, rows, ...) on the host: probabilities (draws, rows, classes) for a Categorical.
    """
    if min(num_draws, draw_batch, data_batch) < 1:
        raise OptionError(f"num_draws, draw_batch and data_batch must be at least 1, got {num_draws}, {draw_batch}, {data_batch}")
    posterior = fit.posterior if isinstance(fit, Fit) else fit
    data = rows.as_arrays(inputs)
    rows.check_finite(data)
    total = rows.num_rows(data)
    center: Values | None = None
    if isinstance(posterior, Posterior):
        if linearise is None:
            linearise = posterior.linearise
        if linearise:
            if not isinstance(posterior, GaussianPosterior):
                raise OptionError("linearise=True needs a Gaussian posterior with a mean: that of Laplace() or Variational()")
            center = posterior.mean
            draws = posterior.sample_unconstrained(key, num_draws)
        else:
            draws = posterior.sample(key, num_draws)
    else:
        if linearise:
            raise OptionError("linearise=True needs a posterior with a mean, not samples")
        draws = {name: jnp.asarray(value) for name, value in posterior.items()}
    count = len(next(iter(draws.values())))
    # Blocks that would be short are filled up with repeated rows, so that one program serves them all.
    size = min(data_batch, total)
    blocks = []
    for first in range(0, count, draw_batch):
        some = {name: value[first : first + draw_batch] for name, value in draws.items()}
        parts = []
        for start in range(0, total, size):
            index = np.minimum(np.arange(start, start + size), total - 1)
            part = np.asarray(_block(problem, site, some, center, problem.take(data, index)))
            parts.append(part[:, : min(size, total - start)])
        blocks.append(np.concatenate(parts, axis=1))
    return np.concatenate(blocks)


@partial(jax.jit, static_argnames=("problem", "site"))
def _block(problem: Problem, site: str | None, draws: Values, center: Values | None, data: Data) -> jax.Array:
    if center is None:
        return jax.vmap(lambda values: _mean(_predicted(problem, site, data, constrained=values)))(draws)

    def parameters(z: Values) -> Any:
        return _predicted(problem, site, data, unconstrained=z)

    def one(z: Values) -> jax.Array:
        step = {name: z[name] - center[name] for name in center}
        value, tangent = jax.jvp(parameters, (center,), (step,))
        return _mean(jax.tree.map(_moved, value, tangent))

    return jax.vmap(one)(draws)


def _moved(value: Any, tangent: Any) -> Any:
    return value + tangent if jnp.issubdtype(jnp.result_type(value), jnp.floating) else value


def _mean(fn: Any) -> jax.Array:
    """The mean of an observation; the probabilities of a categorical one."""
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    probabilities = base.probs if type(base).__name__.startswith("Categorical") else fn.mean
    return jnp.asarray(probabilities)


def _predicted(problem: Problem, site: str | None, data: Data, **values: Any) -> Any:
    """The distribution of the observation."""
    sites, _ = problem.trace(data, **values)
    given = {name for group in values.values() for name in group}
    open_sites = [
        name
        for name, found in sites.items()
        if found["type"] == "sample" and name not in given and _numpyro.in_plate(found, problem.data_plate)
    ]
    if site is None and len(open_sites) == 1:
        site = open_sites[0]
    if site not in open_sites:
        raise ModelError(
            f"predict needs one site under the data plate {problem.data_plate!r} to predict, got site={site!r} of {open_sites}: pass the "
            "inputs without the observations (their default in the model is None), and site='...' if there are several"
        )
    return sites[site]["fn"]
