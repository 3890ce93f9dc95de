"""A Gaussian over the parameters of the observations at new inputs: its probabilities, bridges and draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from bayes_sym.errors import OptionError


__all__ = ["Linearised"]

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
