"""The model linearised at the posterior mean: a Gaussian over the parameters of the observations at new inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.discrete import BernoulliLogits, BernoulliProbs, CategoricalLogits, CategoricalProbs
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from bayes_sym import _numpyro
from bayes_sym.errors import ModelError, OptionError

from . import rows
from .curvature.dependence import dependent_outputs
from .fit import Fit
from .posterior import GaussianPosterior, Posterior
from .problem import Problem, Values
from .rows import Data


__all__ = ["Linearised", "linearised"]

_BLOCK_ENTRIES = 2**23  # entries of Jacobians that are held at once
_LARGEST_ENTRIES = 2**29  # entries of a covariance, or of the Jacobian of one row
_DRAWS_AT_ONCE = 32


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mean", "covariance", "noise"],
    meta_fields=["shape", "joint", "parameter", "inverse_link"],
)
@dataclass(frozen=True)
class Linearised:
    """N(mean, covariance) over a parameter of the observations' distribution; what `linearised` returns.

    A row has C = prod(shape) numbers. `mean`, `covariance` and `noise` are over that flat vector; what the methods
    return has the parameter's own axes, (rows, *shape), like the blocks of `predict`.

    Attributes:
        mean: the parameter at the posterior mean, (rows, C).
        covariance: (rows, C, C), each row by itself; or (rows * C, rows * C), all rows together, if `joint`.
        noise: variance of an observation around a location, (rows, C), at the posterior mean (its own uncertainty is not
            in it); None for other parameters.
        shape: of the parameter of one row: (classes,), or () for one number.
        joint: whether the covariance is that of all rows together.
        parameter: what it is: ``"loc"``, ``"logits"`` or ``"log rate"``; for other distributions, the names of all
            parameters that move with the weights, as they were given, one after the other.
        inverse_link: how the mean of an observation follows from it: ``"identity"``, ``"softmax"``, ``"sigmoid"``,
            ``"exp"`` or ``"unknown"``.
    """

    mean: jax.Array
    covariance: jax.Array
    noise: jax.Array | None
    shape: tuple[int, ...]
    joint: bool
    parameter: str
    inverse_link: str

    @property
    def variance(self) -> jax.Array:
        """The variance of the parameter, (rows, *shape)."""
        diagonal = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        return diagonal.reshape(-1, *self.shape)

    @property
    def predictive_variance(self) -> jax.Array:
        """The variance of a new observation, (rows, *shape): that of its location plus the noise.

        Raises:
            OptionError: the parameter is not a location.
        """
        if self.noise is None:
            raise OptionError(
                f"predictive_variance is for locations with noise around them (Normal and its like), and this is {self.parameter!r}: "
                "use variance for the parameter, and monte_carlo(key, n) for the mean of the observation"
            )
        return self.variance + self.noise.reshape(-1, *self.shape)

    def probit(self) -> jax.Array:
        """Probabilities (rows, *shape) by the probit approximation; no randomness.

            sigmoid(f / sqrt(1 + pi/8 v))                      of success, for a Bernoulli
            softmax_k(f_k / sqrt(1 + pi/8 V_kk))               for a Categorical

        The sigmoid: MacKay 1992, "The evidence framework applied to classification networks"; Bishop 2006, "Pattern
        recognition and machine learning", eq. (4.153) and (4.154). It is within 0.02 of the integral for every mean and
        variance. The softmax is its extension class by class (Gibbs 1997), which ignores covariances between classes:
        a shared uncertainty of all logits, which changes no probability, flattens this approximation.

        Raises:
            OptionError: the observation is neither Bernoulli nor Categorical.
        """
        if self.inverse_link not in ("sigmoid", "softmax"):
            raise OptionError(
                f"probit() is for the logits of a Bernoulli or a Categorical, and this is {self.parameter!r} with the inverse link "
                f"{self.inverse_link!r}: use mean and covariance, or monte_carlo(key, n)"
            )
        return self._link(self._center() / jnp.sqrt(1 + math.pi / 8 * self.variance))

    def bridge(self, *, normalise: bool = False) -> jax.Array:
        """Probabilities (rows, *shape) by the Laplace bridge: the means of the Dirichlets of `concentration`.

        Here to compare with published results, and for the Dirichlet. As a mean it is rough: on random means and
        covariances of 3 and 10 logits its total variation distance from the integral averages 0.3, that of `probit`
        0.01 to 0.17 and that of the softmax of the mean 0.01 to 0.34, growing with the variance from 0.1 to 16.
        Where a variance is zero it returns the softmax of the mean.

        Args:
            normalise: see `concentration`.
        """
        log_alpha = self._log_concentration(normalise)
        certain = ~jnp.isfinite(log_alpha).all(axis=-1, keepdims=True)
        return jax.nn.softmax(jnp.where(certain, self._center(), log_alpha))

    def concentration(self, *, normalise: bool = False) -> jax.Array:
        """The Dirichlet that the Laplace bridge puts in place of the softmax of a Gaussian, (rows, *shape).

        For K classes, first the Gaussian given that its logits sum to zero,

            f' = f - V 1 (1'f) / (1'V1),    V' = V - V 1 1' V / (1'V1),

        then, with f' / sqrt(c) and V' / c in their place if `normalise`, c = mean_k V'_kk / sqrt(K / 2),

            alpha_k = (1 - 2/K + exp(f'_k) / K^2 sum_l exp(-f'_l)) / V'_kk.

        Hobbhahn, Kristiadi and Hennig 2022 (UAI), "Fast predictive uncertainty for classification with Bayesian deep
        networks", arXiv:2003.01227: the map from (mean, covariance) to alpha, and both corrections. Where the logits have
        no common uncertainty (1'V1 = 0) their mean is subtracted instead. The first correction depends on a shift of all
        logits, which no probability does, so it is at its best where they sum to about zero.

        Args:
            normalise: whether to rescale to the variances at which the bridge is accurate.

        Raises:
            OptionError: the observation is not Categorical.
        """
        return jnp.exp(self._log_concentration(normalise))

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """`n` draws of the parameter, (n, rows, *shape): of all rows together if `joint`, else of every row by itself."""
        _check_draws(n)
        return _sample(self, key, n)

    def monte_carlo(self, key: jax.Array, n: int) -> jax.Array:
        """The mean of the observation over `n` draws of the parameter, (rows, *shape): probabilities, rates, locations.

        Unbiased for the linearised model. The standard error of a probability is at most 1 / (2 sqrt(n)).

        Raises:
            OptionError: the mean of the observation is not known as a function of the parameter.
        """
        _check_draws(n)
        if self.inverse_link == "unknown":
            raise OptionError(
                f"monte_carlo() does not know the mean of the observation given {self.parameter!r}: put sample(key, n) into the "
                "distribution yourself, or use predict(...)"
            )
        return _monte_carlo(self, key, n)

    def _center(self) -> jax.Array:
        return self.mean.reshape(-1, *self.shape)

    def _link(self, parameter: jax.Array) -> jax.Array:
        """The mean of the observation."""
        links: dict[str, Callable[[jax.Array], jax.Array]] = {
            "softmax": jax.nn.softmax,
            "sigmoid": jax.nn.sigmoid,
            "exp": jnp.exp,
        }
        return links[self.inverse_link](parameter) if self.inverse_link in links else parameter

    def _by_row(self) -> jax.Array:
        """(rows, C, C)."""
        if not self.joint:
            return self.covariance
        size, count = self.mean.shape[-1], self.mean.shape[0]
        return jnp.einsum("ncnm->ncm", self.covariance.reshape(count, size, count, size))

    def _log_concentration(self, normalise: bool) -> jax.Array:
        if self.inverse_link != "softmax":
            binary = (
                "with two classes its mean is the sigmoid of the mean, whatever the variance; use probit() or monte_carlo(key, n)"
            )
            raise OptionError(
                f"the Laplace bridge is for the logits of a Categorical, and this is {self.parameter!r} with the inverse link "
                f"{self.inverse_link!r}: "
                + (binary if self.inverse_link == "sigmoid" else "use mean, covariance and sample(key, n)")
            )
        return _log_concentration(self, normalise)


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
    - Poisson: the log rate (`predict` linearises a rate as it is given, which can turn negative);
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
    fitted = posterior.problem
    if (fitted.model, fitted.data_plate) != (problem.model, problem.data_plate):
        raise OptionError(
            f"the posterior is of the model {fitted.model!r} with data plate {fitted.data_plate!r}, but the problem is {problem.model!r} "
            f"with {problem.data_plate!r}: pass the problem that was fitted"
        )
    data = rows.as_arrays(inputs)
    rows.check_finite(data)
    # after an expansion the posterior's modules are the expanded ones
    problem = replace(problem, modules=fitted.modules)
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


@partial(jax.jit, static_argnames=("normalise",))
def _log_concentration(found: Linearised, normalise: bool) -> jax.Array:
    classes = found.shape[-1]
    elements = found.mean.shape[-1] // classes
    several = found._by_row().reshape(-1, elements, classes, elements, classes)
    covariance = jnp.einsum("nikil->nikl", several).reshape(-1, classes, classes)
    log_alpha = jax.vmap(partial(_log_bridge, normalise=normalise))(found.mean.reshape(-1, classes), covariance)
    return log_alpha.reshape(-1, *found.shape)


def _log_bridge(mean: jax.Array, covariance: jax.Array, *, normalise: bool) -> jax.Array:
    """log alpha (K,) of one Gaussian over K logits."""
    classes = mean.size
    against_all, variances = covariance.sum(axis=-1), jnp.diagonal(covariance)
    common = against_all.sum()
    # Without common uncertainty 1'V1 is rounding, and so is V1.
    has_common = common > 10 * classes * jnp.finfo(mean.dtype).eps * variances.sum()
    safe = jnp.where(has_common, common, 1.0)
    mean = jnp.where(has_common, mean - against_all * mean.sum() / safe, mean - mean.mean())
    variances = jnp.where(has_common, variances - against_all**2 / safe, variances)
    if normalise:
        c = variances.mean() / math.sqrt(classes / 2)
        mean, variances = mean / jnp.sqrt(c), variances / c
    # in logarithms, because exp(f_k - f_l) overflows in float32 from 89 on
    constant = math.log(1 - 2 / classes) if classes > 2 else -math.inf
    spread = mean + jax.nn.logsumexp(-mean) - 2 * math.log(classes)
    return jnp.logaddexp(jnp.asarray(constant, mean.dtype), spread) - jnp.log(variances)


def _check_draws(n: int) -> None:
    if n < 1:
        raise OptionError(f"the number of draws must be at least 1, got {n}")


def _root(covariance: jax.Array) -> jax.Array:
    """A square root; by eigenvalues, since the covariance is singular where there are fewer weights than outputs."""
    values, vectors = jnp.linalg.eigh(covariance)
    return vectors * jnp.sqrt(jnp.clip(values, 0))[..., None, :]


@partial(jax.jit, static_argnames=("n",))
def _sample(found: Linearised, key: jax.Array, n: int) -> jax.Array:
    root = _root(found.covariance)
    noise = jax.random.normal(key, (n, *found.mean.shape), found.mean.dtype)
    steps = noise.reshape(n, -1) @ root.T if found.joint else jnp.einsum("ncm,tnm->tnc", root, noise)
    return (found.mean[None] + steps.reshape(noise.shape)).reshape(n, len(found.mean), *found.shape)


@partial(jax.jit, static_argnames=("n",))
def _monte_carlo(found: Linearised, key: jax.Array, n: int) -> jax.Array:
    # Only a row's own covariance matters for its mean.
    root = _root(found._by_row())

    def total_of(key: jax.Array, count: int) -> jax.Array:
        noise = jax.random.normal(key, (count, *found.mean.shape), found.mean.dtype)
        draws = found.mean[None] + jnp.einsum("ncm,tnm->tnc", root, noise)
        return found._link(draws.reshape(count, len(found.mean), *found.shape)).sum(axis=0)

    whole, rest = divmod(n, _DRAWS_AT_ONCE)
    key_whole, key_rest = jax.random.split(key)
    total = total_of(key_rest, rest)
    if whole:
        keys = jax.random.split(key_whole, whole)
        total, _ = jax.lax.scan(lambda sum_, key: (sum_ + total_of(key, _DRAWS_AT_ONCE), None), total, keys)
    return total / n
