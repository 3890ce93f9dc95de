"""The model linearised at the posterior mean: a Gaussian over the parameters of the observations at new inputs."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.discrete import BernoulliLogits, BernoulliProbs, CategoricalLogits, CategoricalProbs
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from bayes_sym import _numpyro
from bayes_sym._precision import full_precision
from bayes_sym.errors import ModelError, OptionError

from . import rows
from .curvature.dependence import dependent_outputs
from .fit import Fit
from .functional import Linearised
from .posterior import GaussianPosterior, Posterior, fitted_problem
from .problem import Problem, Values
from .rows import Data


__all__ = ["linearised"]

_BLOCK_ENTRIES = 2**23  # entries of Jacobians that are held at once
_LARGEST_ENTRIES = 2**29  # entries of a covariance, or of the Jacobian of one row


@full_precision
def linearised(
    problem: Problem,
    fit: Fit | Posterior,
    *inputs: Any,
    joint: bool = False,
    site: str | None = None,
    data_batch: int | None = None,
) -> Linearised:
    """The Gaussian over the observations' parameter at new inputs, from the model linearised at the posterior mean.

        f(x) ~ N(f(x; m), sum_b J_b S_b J_b'),    J_b = d f(x; z) / d z_b at the posterior mean m,

    with S_b the covariance of block b of the posterior, in unconstrained coordinates. A Gauss-Newton curvature is exact
    for this model (Immer, Korzepa and Bauer 2021, "Improving predictions of Bayesian neural nets via local
    linearization", section 3). Sites that were optimised stay at their point. The parameter is that on the real line:

    - Normal, StudentT, Laplace, Logistic, MultivariateNormal: the location;
    - Categorical and Bernoulli, given by logits or by probabilities: the logits;
    - Poisson: the log rate;
    - others: all parameters that move with the weights, as they were given.

    Jacobians are held for a few rows at a time. A joint covariance goes over all pairs of such batches.

    Args:
        problem: the model.
        fit: a fit, or a posterior, that is Gaussian: of `Laplace` or `Variational`.
        inputs: the arguments of the model without the observations.
        joint: whether to return the covariance between rows too.
        site: the site under the data plate; None if the model has one.
        data_batch: rows at once; None for as many as keep their Jacobians below 2^23 entries.

    Returns:
        The Gaussian. A second call on inputs of the same shapes compiles nothing.

    Raises:
        OptionError: the posterior is not Gaussian or belongs to another problem, or the covariance would be too large.
        ModelError: the site is ambiguous, or no parameter of it moves with the weights.
    """
    if data_batch is not None and data_batch < 1:
        raise OptionError(f"data_batch must be at least 1, got {data_batch}: leave it out to have it chosen")
    posterior = fit.posterior if isinstance(fit, Fit) else fit
    if not isinstance(posterior, GaussianPosterior):
        raise OptionError(
            f"linearised needs a Gaussian posterior, with a mean and a covariance, got {type(posterior).__name__}: fit with Laplace() or "
            "Variational(), or average predict(...) over the draws"
        )
    problem = fitted_problem(posterior, problem)
    data = rows.as_arrays(inputs)
    rows.check_finite(data)
    return _linearised(problem, site, posterior, data, joint=joint, data_batch=data_batch)


class _Parameter(NamedTuple):
    """The parameter of one data row, on the real line and without the axis of rows, and what is static about it."""

    value: jax.Array
    noise: jax.Array | None
    name: str
    inverse_link: str


_LOCATIONS = (dist.Normal, dist.StudentT, dist.Laplace, dist.Logistic, dist.MultivariateNormal)


@partial(jax.jit, static_argnames=("problem", "site", "joint", "data_batch"))
def _linearised(
    problem: Problem, site: str | None, posterior: GaussianPosterior, data: Data, *, joint: bool, data_batch: int | None
) -> Linearised:
    total = rows.num_rows(data)
    center = posterior.mean
    free = {name: center[name] for block in posterior.blocks for name in block.layout.names}
    names = _moving(problem, site, center, free, problem.take(data, slice(0, 1)))
    static: list[tuple[tuple[int, ...], str, str]] = []

    def of_row(i: jax.Array) -> tuple[jax.Array, jax.Array | None, tuple[jax.Array, ...]]:
        """The parameter (C,), its noise, and per block the Jacobian times a root of the covariance (C, size)."""
        row = problem.take(data, i[None])

        def parameter(free: Values) -> tuple[jax.Array, jax.Array | None]:
            found = _parameter(problem, site, {**center, **free}, row, names)
            static[:] = [(found.value.shape, found.name, found.inverse_link)]
            return found.value.reshape(-1), None if found.noise is None else found.noise.reshape(-1)

        value, pull, noise = jax.vjp(parameter, free, has_aux=True)
        jacobian = jax.vmap(pull)(jnp.eye(value.size, dtype=value.dtype))[0]
        return value, noise, tuple(block.half(block.layout.flatten(jacobian)) for block in posterior.blocks)

    count = jax.eval_shape(of_row, jax.ShapeDtypeStruct((), jnp.int32))[0].shape[0]
    ((shape, name, inverse_link),) = static
    size = _batch_size(total, count, sum(block.layout.size for block in posterior.blocks), joint, data_batch)
    chunks = -(-total // size)
    # A last batch that would be short is filled up with the last row.
    index = jnp.minimum(jnp.arange(chunks * size), total - 1).reshape(chunks, size)
    of_rows = jax.vmap(of_row)

    def by_row(index: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        mean, noise, halves = of_rows(index)
        return mean, noise, sum((jnp.einsum("ncp,nmp->ncm", half, half) for half in halves), jnp.zeros((), mean.dtype))

    def by_pair(index_left: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        mean, noise, left = of_rows(index_left)

        def against(right: tuple[jax.Array, ...]) -> jax.Array:
            products = (jnp.einsum("ncp,kmp->nckm", a, b) for a, b in zip(left, right, strict=True))
            return sum(products, jnp.zeros((), mean.dtype))

        if chunks == 1:
            return mean, noise, against(left)[None]
        return mean, noise, jax.lax.map(lambda other: against(of_rows(other)[2]), index)

    mean, noise, covariance = jax.lax.map(by_pair if joint else by_row, index)
    if joint:
        # (chunks, chunks, size, C, size, C) to (rows, C, rows, C)
        covariance = jnp.moveaxis(covariance, 1, 3).reshape(chunks * size, count, chunks * size, count)
        covariance = covariance[:total, :, :total].reshape(total * count, total * count)
    else:
        covariance = covariance.reshape(chunks * size, count, count)[:total]
    mean, noise = jax.tree.map(lambda leaf: leaf.reshape(chunks * size, count)[:total], (mean, noise))
    return Linearised(mean, covariance, noise, shape, joint, name, inverse_link)


def _batch_size(total: int, count: int, parameters: int, joint: bool, data_batch: int | None) -> int:
    """How many rows to treat at once; refuses what is too large before anything is allocated."""
    width = jnp.dtype(jnp.result_type(float)).itemsize
    entries = (total * count) ** 2 if joint else total * count**2
    if entries > _LARGEST_ENTRIES:
        shape = f"({total * count}, {total * count})" if joint else f"({total}, {count}, {count})"
        raise OptionError(
            f"the covariance of {total} rows with {count} numbers each, {shape}, would take {entries * width / 2**30:.1f} GiB (at most "
            f"{_LARGEST_ENTRIES * width / 2**30:.0f} GiB are allowed): pass fewer rows at a time"
            + (", or joint=False" if joint else "")
        )
    per_row = count * parameters
    if per_row > _LARGEST_ENTRIES:
        raise OptionError(
            f"the Jacobian of one row, ({count}, {parameters}), would take {per_row * width / 2**30:.1f} GiB (at most "
            f"{_LARGEST_ENTRIES * width / 2**30:.0f} GiB are allowed): average predict(..., linearise=True) over draws instead"
        )
    size = max(1, _BLOCK_ENTRIES // max(1, per_row)) if data_batch is None else data_batch
    chunks = -(-total // min(size, total))
    return -(-total // chunks)


def _distribution(problem: Problem, site: str | None, z: Values, data: Data) -> tuple[Any, int]:
    """The distribution of the observation, and the axis of its batch that counts rows, from the right."""
    sites, _ = problem.trace(data, unconstrained=z)
    under = {
        name: found
        for name, found in sites.items()
        if found["type"] == "sample" and name not in z and _numpyro.in_plate(found, problem.data_plate)
    }
    if site is None and len(under) == 1:
        site = next(iter(under))
    if site not in under:
        raise ModelError(
            f"linearised needs one site under the data plate {problem.data_plate!r}, got site={site!r} of {list(under)}: name one of them "
            "with site='...'"
        )
    (axis,) = [frame.dim for frame in under[site]["cond_indep_stack"] if frame.name == problem.data_plate]
    return under[site]["fn"], axis


def _base(fn: Any) -> Any:
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


def _moving(problem: Problem, site: str | None, center: Values, free: Values, row: Data) -> tuple[str, ...]:
    """The parameters of the observation's distribution that depend on the sites in `free`."""

    kinds: list[str] = []

    def parameters(free: Values) -> dict[str, jax.Array]:
        base = _base(_distribution(problem, site, {**center, **free}, row)[0])
        kinds.append(type(base).__name__)
        given = {name: vars(base).get(name) for name in base.arg_constraints}
        return {name: jnp.asarray(value) for name, value in given.items() if value is not None}

    names = tuple(name for name, depends in dependent_outputs(parameters, free).items() if depends)
    if not names:
        raise ModelError(
            f"{kinds[0]} names no parameter that moves with the sites {list(free)}, over which the posterior is: there is nothing to "
            "linearise. Pass site='...' if the model has several outputs, or average predict(...) over draws"
        )
    return names


def _parameter(problem: Problem, site: str | None, z: Values, row: Data, moving: tuple[str, ...]) -> _Parameter:
    fn, axis = _distribution(problem, site, z, row)
    base = _base(fn)
    outer = fn.shape()
    lead = outer[: len(outer) - base.event_dim]
    where = len(fn.batch_shape) + axis

    def of_row(name: str) -> jax.Array:
        """A parameter at the shape of the observation, without the axis of rows."""
        value = jnp.asarray(getattr(base, name))
        inner = value.shape[value.ndim - base.arg_constraints[name].event_dim :]
        return jnp.squeeze(jnp.broadcast_to(value, lead + inner), where)

    if isinstance(base, _LOCATIONS):
        noise = jnp.squeeze(jnp.broadcast_to(base.variance, outer), where)
        return _Parameter(of_row("loc"), noise, "loc", "identity")
    if isinstance(base, CategoricalLogits):
        return _Parameter(of_row("logits"), None, "logits", "softmax")
    if isinstance(base, CategoricalProbs):
        return _Parameter(_log(of_row("probs")), None, "logits", "softmax")
    if isinstance(base, BernoulliLogits):
        return _Parameter(of_row("logits"), None, "logits", "sigmoid")
    if isinstance(base, BernoulliProbs):
        probability = of_row("probs")
        return _Parameter(_log(probability) - _log(1 - probability), None, "logits", "sigmoid")
    if isinstance(base, dist.Poisson):
        return _Parameter(_log(of_row("rate")), None, "log rate", "exp")
    values = [of_row(name) for name in moving]
    value = values[0] if len(values) == 1 else jnp.concatenate([value.reshape(-1) for value in values])
    return _Parameter(value, None, ", ".join(moving), "unknown")


def _log(value: jax.Array) -> jax.Array:
    """The logarithm, finite where a probability or a rate has underflowed."""
    return jnp.log(jnp.maximum(value, jnp.finfo(value.dtype).tiny))
