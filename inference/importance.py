"""Importance-sampled evidence: log p(data) with the posterior as proposal, its standard error, and a tail diagnostic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from bayes_sym import _numpyro
from bayes_sym._precision import full_precision
from bayes_sym.errors import ModelError, OptionError

from . import rows
from .arviz import pareto_k
from .fit import Fit
from .posterior import GaussianPosterior, Posterior, fitted_problem
from .problem import Problem, Values
from .rows import Data


__all__ = ["ImportanceEvidence", "importance_evidence"]

_FEWEST_DRAWS = 25  # a fifth of them are the tail, and a tail needs five
_EQUAL = 1e-3  # log weights of a tail that are closer than this have no shape to fit


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "standard_error", "k_hat", "effective_draws"],
    meta_fields=["num_draws", "kind"],
)
@dataclass(frozen=True)
class ImportanceEvidence:
    """An importance-sampled estimate of log p(data), in nats; what `importance_evidence` returns.

    Attributes:
        value: log of the mean weight. The mean weight is unbiased for p(data); its log is too low by about
            standard_error^2 / 2.
        standard_error: of `value`, by the delta method: sd(w) / (mean(w) sqrt(num_draws)).
        k_hat: shape of the generalised Pareto distribution fitted to the largest weights (Vehtari et al. 2024, "Pareto
            smoothed importance sampling", JMLR 25). Weights have finite variance below 0.5. Up to
            min(1 - 1 / log10(num_draws), 0.7) the estimate can be used; above 0.7 neither it nor its standard error can:
            the proposal misses mass, and the value is most likely too low. -inf where the largest weights are equal.
        effective_draws: (sum w)^2 / sum w^2.
        num_draws: how many draws were made.
        kind: ``"importance-sampled"``.
    """

    value: jax.Array
    standard_error: jax.Array
    k_hat: jax.Array
    effective_draws: jax.Array
    num_draws: int
    kind: str = "importance-sampled"


@full_precision
def importance_evidence(
    problem: Problem,
    fit: Fit | Posterior,
    key: jax.Array,
    *data: Any,
    num_draws: int = 1000,
    draw_batch: int = 32,
    degrees: float | None = None,
) -> ImportanceEvidence:
    """The evidence by importance sampling, with the posterior as proposal.

        log p(data) ~ log 1/T sum_t w_t,    log w_t = log p(data, z_t) - log q(z_t),    z_t ~ q,

    in unconstrained coordinates z, so the log joint has the log-determinants of the maps to the supports. It corrects
    the shape of q, within the mode that q describes: a net has many equivalent modes (permuted and sign-flipped units),
    which q misses and the evidence counts. Sites that were optimised are conditioned on, at their point: their prior
    does not count, as in the Laplace evidence with `optimise`.

    Args:
        problem: the model.
        fit: a fit, or a posterior, with a density: of `Laplace` or `Variational`.
        key: the random key of the draws.
        data: the arguments of the model, with the observations.
        num_draws: T.
        draw_batch: draws evaluated at once; the draws do not depend on it.
        degrees: draw from a multivariate t with this many degrees of freedom instead, at the location and with the scale
            matrix of a Gaussian posterior. Its heavy tails bound weights that a Gaussian's would not, at the price of
            fewer effective draws in many dimensions. None for the posterior itself.

    Returns:
        The estimate; look at its `k_hat` before you use it.

    Raises:
        OptionError: the posterior has no density or belongs to another problem, or an option is out of range.
        DataError: the data hold NaN or infinite values.
        ModelError: the log joint density is NaN or infinite where the posterior draws.
    """
    if num_draws < _FEWEST_DRAWS or draw_batch < 1:
        raise OptionError(
            f"num_draws must be at least {_FEWEST_DRAWS}, since k_hat is fitted to the largest fifth, and draw_batch at least 1, got "
            f"{num_draws} and {draw_batch}"
        )
    posterior = fit.posterior if isinstance(fit, Fit) else fit
    if not isinstance(posterior, Posterior):
        raise OptionError(
            f"importance_evidence needs a posterior with a density, got {type(posterior).__name__}: fit with Laplace() or Variational()"
        )
    if degrees is not None and not (degrees > 0 and isinstance(posterior, GaussianPosterior)):
        raise OptionError(
            f"degrees={degrees} makes a multivariate t of a Gaussian posterior: it needs a positive number, and the posterior of Laplace() "
            f"or Variational(), got {type(posterior).__name__}"
        )
    problem = fitted_problem(posterior, problem)
    data = rows.as_arrays(data)
    rows.check_finite(data)
    problem.structure(*data)
    heavy = None if degrees is None else jnp.asarray(degrees, jnp.result_type(float))
    log_weights = _log_weights(problem, posterior, key, heavy, data, num_draws=num_draws, draw_batch=draw_batch)
    return _estimate(np.asarray(log_weights, np.float64))


@partial(jax.jit, static_argnames=("problem", "num_draws", "draw_batch"))
def _log_weights(
    problem: Problem,
    posterior: Posterior,
    key: jax.Array,
    degrees: jax.Array | None,
    data: Data,
    *,
    num_draws: int,
    draw_batch: int,
) -> jax.Array:
    """(num_draws,); every draw has a key of its own, so that no more than a batch is held at once."""
    held = frozenset(getattr(posterior, "point", {}))

    def log_joint(z: Values) -> jax.Array:
        sites, at = problem.trace(data, unconstrained=z)
        terms = [_numpyro.log_prob_of(site) for name, site in sites.items() if site["type"] == "sample" and name not in held]
        return sum(terms, sum((value for name, value in at.log_det.items() if name not in held), jnp.zeros(())))

    def one(key: jax.Array, stretch: jax.Array | None) -> jax.Array:
        z = {name: value[0] for name, value in posterior.sample_unconstrained(key, 1).items()}
        if stretch is None or degrees is None:
            return log_joint(z) - posterior.log_prob(z)
        z, log_q = _heavier(posterior, z, stretch, degrees)
        return log_joint(z) - log_q

    key, key_tail = jax.random.split(key)
    keys, stretches = jax.random.split(key, num_draws), None
    if degrees is not None:
        # Gamma(d / 2) / (d / 2) is chi-square(d) / d
        chi_square = jax.random.gamma(key_tail, degrees / 2, (num_draws,), degrees.dtype) / (degrees / 2)
        stretches = 1 / jnp.sqrt(chi_square)
    # A last batch that would be short is filled up with the last draw: a remainder would be compiled by itself.
    size = min(draw_batch, num_draws)
    chunks = -(-num_draws // size)
    index = jnp.minimum(jnp.arange(chunks * size), num_draws - 1).reshape(chunks, size)

    def of_chunk(index: jax.Array) -> jax.Array:
        return jax.vmap(one)(keys[index], None if stretches is None else stretches[index])

    return jax.lax.map(of_chunk, index).reshape(-1)[:num_draws]


def _heavier(posterior: Posterior, z: Values, stretch: jax.Array, degrees: jax.Array) -> tuple[Values, jax.Array]:
    """A Gaussian draw `z`, stretched into one of the multivariate t with these degrees of freedom, and its log-density."""
    assert isinstance(posterior, GaussianPosterior)
    center = posterior.mean
    at_center = posterior.log_prob(center)
    # Mahalanobis distance squared, off the Gaussian's own density: log q(m) - log q(z) = distance^2 / 2
    squared = 2 * (at_center - posterior.log_prob(z)) * stretch**2
    size = sum(block.layout.size for block in posterior.blocks)
    # log t - log q at the centre: Gamma((d + P) / 2) / (Gamma(d / 2) (d / 2)^(P / 2))
    constant = gammaln((degrees + size) / 2) - gammaln(degrees / 2) - size / 2 * jnp.log(degrees / 2)
    log_q = at_center + constant - (degrees + size) / 2 * jnp.log1p(squared / degrees)
    return {name: center[name] + stretch * (value - center[name]) for name, value in z.items()}, log_q


def _estimate(log_weights: np.ndarray) -> ImportanceEvidence:
    count = log_weights.size
    bad = int(np.isnan(log_weights).sum() + np.isposinf(log_weights).sum())
    largest = np.max(log_weights)
    if bad or not np.isfinite(largest):
        raise ModelError(
            f"the log weights of {bad or count} of {count} draws are NaN or infinite: the model's log joint density is not finite where "
            "the posterior draws. Look at problem.log_density(z, data) for z of posterior.sample_unconstrained(key, n); float64 may help"
        )
    weights = np.exp(log_weights - largest)
    mean = weights.mean()

    def number(value: float) -> jax.Array:
        return jnp.asarray(value, jnp.result_type(float))

    return ImportanceEvidence(
        value=number(largest + math.log(mean)),
        standard_error=number(weights.std(ddof=1) / mean / math.sqrt(count)),
        k_hat=number(_k_hat(log_weights - largest)),
        effective_draws=number(weights.sum() ** 2 / (weights**2).sum()),
        num_draws=count,
    )


def _k_hat(log_weights: np.ndarray) -> float:
    """Pareto k of log weights whose largest is 0, by the ArviZ that is installed."""
    count = log_weights.size
    tail = min(math.ceil(count / 5), math.ceil(3 * math.sqrt(count)))
    # Libraries divide by the spread of a tail, or refuse one whose weights are equal.
    if -np.sort(log_weights)[-tail - 1] < _EQUAL:
        return -math.inf
    return pareto_k(log_weights)
