"""The factorised Gamma distribution, for precisions and other positive sites."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, polygamma

from bayes_sym.errors import OptionError

from ..blocks import Layout
from .factorised import FactorisedExponential, by_site
from .family import Moments, Values
from .log_gamma import log_gamma


__all__ = ["Gamma", "GammaParams"]


class GammaParams(NamedTuple):
    """Logarithms of the shape a and the rate b by site."""

    log_shape: Values
    log_rate: Values


@dataclass(frozen=True)
class Gamma(FactorisedExponential):
    """Density b^a theta^(a-1) exp(-b theta) / Gamma(a): T = (log theta, theta), eta = (a, -b), h = 1/theta.

    Attributes:
        init_shape: a at the start; the relative standard deviation is 1/sqrt(a).
    """

    init_shape: float = 4.0
    signed = (False, False)
    support = "positive"

    def __post_init__(self) -> None:
        if not self.init_shape > 0:
            raise OptionError(f"init_shape must be positive, got {self.init_shape}")

    def init(self, z: Values) -> GammaParams:
        """With mean `z`, which is positive."""
        shape = math.log(self.init_shape)
        return GammaParams(by_site(lambda v: jnp.full_like(v, shape), z), by_site(lambda v: shape - jnp.log(v), z))

    def noise(self, key: jax.Array, params: GammaParams, n: int) -> jax.Array:
        """One key per draw: a Gamma draw depends on its shape."""
        return jax.random.split(key, n)

    def sample(self, params: GammaParams, noise: jax.Array) -> Values:
        """Differentiable in both parameters (implicit reparametrisation), and above zero also where a small shape underflows."""
        layout = Layout.of(params.log_shape)
        draws = log_gamma(noise, jnp.exp(layout.flatten(params.log_shape))) - layout.flatten(params.log_rate)
        least = math.log(2 * jnp.finfo(draws.dtype).tiny)  # what is smaller than tiny may count as zero
        return layout.unflatten(jnp.exp(jnp.maximum(draws, least)))

    def moments(self, params: GammaParams) -> Moments:
        """a/b and a/b^2."""
        mean = by_site(lambda a, b: jnp.exp(a - b), *params)
        return Moments(mean, by_site(lambda a, b: jnp.exp(a - 2 * b), *params))

    def _natural(self, *fields: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.exp(fields[0]), -jnp.exp(fields[1])

    def _sufficient(self, value: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.log(value), value

    def _expectation(self, *fields: jax.Array) -> tuple[jax.Array, ...]:
        log_shape, log_rate = fields
        return digamma(jnp.exp(log_shape)) - log_rate, jnp.exp(log_shape - log_rate)

    def _log_partition(self, *fields: jax.Array) -> jax.Array:
        log_shape, log_rate = fields
        return gammaln(jnp.exp(log_shape)) - jnp.exp(log_shape) * log_rate

    def _log_base(self, *statistics: jax.Array) -> jax.Array:
        return -statistics[0]

    def _from_natural(self, *eta: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.log(eta[0]), jnp.log(-eta[1])

    def _from_expectation(self, *mean: jax.Array) -> tuple[jax.Array, ...]:
        log_shape = _shape_with_gap(jnp.log(mean[1]) - mean[0])
        return log_shape, log_shape - jnp.log(mean[1])


def _shape_with_gap(gap: jax.Array) -> jax.Array:
    """log a with log a - digamma(a) = gap, by Newton's method on log a from Minka's approximation."""
    start = jnp.log((3 - gap + jnp.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap))

    def step(_: int, u: jax.Array) -> jax.Array:
        a = jnp.exp(u)
        return u - (u - digamma(a) - gap) / (1 - a * polygamma(1, a))

    return jax.lax.fori_loop(0, 12, step, start)
