"""The factorised Beta distribution, for sites on the unit interval."""

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


__all__ = ["Beta", "BetaParams"]


class BetaParams(NamedTuple):
    """Logarithms of the two concentrations by site."""

    log_a: Values
    log_b: Values


@dataclass(frozen=True)
class Beta(FactorisedExponential):
    """Density theta^(a-1) (1-theta)^(b-1) / B(a, b): T = (log theta, log(1-theta)), eta = (a, b), h = 1/(theta (1-theta)).

    Attributes:
        init_concentration: a + b at the start.
    """

    init_concentration: float = 8.0
    signed = (False, False)
    support = "unit"

    def __post_init__(self) -> None:
        if not self.init_concentration > 0:
            raise OptionError(f"init_concentration must be positive, got {self.init_concentration}")

    def init(self, z: Values) -> BetaParams:
        """With mean `z`, which lies between 0 and 1."""
        total = math.log(self.init_concentration)
        return BetaParams(by_site(lambda v: total + jnp.log(v), z), by_site(lambda v: total + jnp.log1p(-v), z))

    def noise(self, key: jax.Array, params: BetaParams, n: int) -> jax.Array:
        """One key per draw."""
        return jax.random.split(key, n)

    def sample(self, params: BetaParams, noise: jax.Array) -> Values:
        """From two Gamma draws in log space, differentiable in both parameters; kept off 0 and 1 by the precision of the type."""
        layout = Layout.of(params.log_a)
        first, second = jax.random.split(noise)
        a = log_gamma(first, jnp.exp(layout.flatten(params.log_a)))
        b = log_gamma(second, jnp.exp(layout.flatten(params.log_b)))
        most = -math.log(jnp.finfo(a.dtype).eps)
        return layout.unflatten(jax.nn.sigmoid(jnp.clip(a - b, -most, most)))

    def moments(self, params: BetaParams) -> Moments:
        """a/(a+b), and mean (1 - mean) / (a + b + 1)."""
        mean = by_site(lambda a, b: jax.nn.sigmoid(a - b), *params)
        variance = by_site(lambda m, a, b: m * (1 - m) / (jnp.exp(a) + jnp.exp(b) + 1), mean, *params)
        return Moments(mean, variance)

    def _natural(self, *fields: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.exp(fields[0]), jnp.exp(fields[1])

    def _sufficient(self, value: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.log(value), jnp.log1p(-value)

    def _expectation(self, *fields: jax.Array) -> tuple[jax.Array, ...]:
        a, b = jnp.exp(fields[0]), jnp.exp(fields[1])
        return digamma(a) - digamma(a + b), digamma(b) - digamma(a + b)

    def _log_partition(self, *fields: jax.Array) -> jax.Array:
        a, b = jnp.exp(fields[0]), jnp.exp(fields[1])
        return gammaln(a) + gammaln(b) - gammaln(a + b)

    def _log_base(self, *statistics: jax.Array) -> jax.Array:
        return -statistics[0] - statistics[1]

    def _from_natural(self, *eta: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.log(eta[0]), jnp.log(eta[1])

    def _from_expectation(self, *mean: jax.Array) -> tuple[jax.Array, ...]:
        """Newton's method in (log a, log b), with steps of at most one unit; the function is convex in (a, b)."""

        def step(_: int, logs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            a, b = jnp.exp(logs[0]), jnp.exp(logs[1])
            both, slope = digamma(a + b), polygamma(1, a + b)
            gap_a, gap_b = digamma(a) - both - mean[0], digamma(b) - both - mean[1]
            aa, bb, off_a, off_b = a * (polygamma(1, a) - slope), b * (polygamma(1, b) - slope), -b * slope, -a * slope
            det = aa * bb - off_a * off_b
            move_a, move_b = (bb * gap_a - off_a * gap_b) / det, (aa * gap_b - off_b * gap_a) / det
            return logs[0] - jnp.clip(move_a, -1, 1), logs[1] - jnp.clip(move_b, -1, 1)

        zero = jnp.zeros_like(mean[0])
        return jax.lax.fori_loop(0, 40, step, (zero, zero))
