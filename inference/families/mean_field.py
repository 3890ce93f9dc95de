"""The factorised Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym.errors import OptionError

from ..blocks import DiagonalBlock, Layout
from .factorised import FactorisedExponential, by_site, projected, total
from .family import Moments, Reps, Values


__all__ = ["MeanField", "MeanFieldParams", "check_scale", "flat_normals", "matched"]

_LOG_2PI = math.log(2 * math.pi)


class MeanFieldParams(NamedTuple):
    """Means and log standard deviations by site, in unconstrained coordinates."""

    mean: Values
    log_scale: Values

    @property
    def scale(self) -> Values:
        """Standard deviations by site."""
        return by_site(jnp.exp, self.log_scale)


@dataclass(frozen=True)
class MeanField(FactorisedExponential):
    """The factorised Gaussian in unconstrained coordinates: T = (theta, theta^2), eta = (mean/scale^2, -1/(2 scale^2)).

    Attributes:
        init_scale: standard deviation at the start. Small, since a net with noise of prior size says nothing.
    """

    init_scale: float = 0.05
    signed = (True, False)

    def __post_init__(self) -> None:
        check_scale(self.init_scale)

    def init(self, z: Values) -> MeanFieldParams:
        """Centred at `z`."""
        return MeanFieldParams(dict(z), {name: jnp.full_like(value, math.log(self.init_scale)) for name, value in z.items()})

    def noise(self, key: jax.Array, params: MeanFieldParams, n: int) -> Values:
        """Standard normals."""
        return flat_normals(key, params.mean, n)

    def sample(self, params: MeanFieldParams, noise: Values) -> Values:
        """mean + scale * noise."""
        return by_site(lambda m, s, e: m + jnp.exp(s) * e, *params, noise)

    def log_prob(self, params: MeanFieldParams, values: Values) -> jax.Array:
        """Written with centred values: <eta, T> - A would cancel in float32 where the scale is small."""
        return total(by_site(lambda m, s, v: -0.5 * ((v - m) / jnp.exp(s)) ** 2 - s - 0.5 * _LOG_2PI, *params, values))

    def entropy(self, params: MeanFieldParams) -> jax.Array:
        """The sum of log scale + log(2 pi e)/2."""
        return total(by_site(lambda s: s + 0.5 * (1 + _LOG_2PI), params.log_scale))

    def kl(self, params: MeanFieldParams, other: MeanFieldParams) -> jax.Array:
        """The sum of log(s'/s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2."""

        def one(m: jax.Array, s: jax.Array, m_: jax.Array, s_: jax.Array) -> jax.Array:
            return s_ - s + 0.5 * (jnp.exp(2 * (s - s_)) + ((m - m_) * jnp.exp(-s_)) ** 2 - 1)

        return total(by_site(one, *params, *other))

    def moments(self, params: MeanFieldParams) -> Moments:
        """The means and the squared scales."""
        return Moments(params.mean, by_site(lambda s: jnp.exp(2 * s), params.log_scale))

    def averaged(self, params: MeanFieldParams, reps: Reps, kind: str) -> MeanFieldParams:
        """The arithmetic mean adds the spread of the means over each orbit to the variances."""
        if kind == "geometric":
            return super().averaged(params, reps, kind)
        return MeanFieldParams(*matched(params.mean, params.log_scale, reps, signed=True))

    def blocks(self, params: MeanFieldParams) -> tuple[DiagonalBlock]:
        """One diagonal block."""
        layout = Layout.of(params.mean)
        return (DiagonalBlock(layout, layout.flatten(params.mean), layout.flatten(params.scale)),)

    def _natural(self, *fields: jax.Array) -> tuple[jax.Array, ...]:
        mean, log_scale = fields
        precision = jnp.exp(-2 * log_scale)
        return mean * precision, -0.5 * precision

    def _sufficient(self, value: jax.Array) -> tuple[jax.Array, ...]:
        return value, value**2

    def _expectation(self, *fields: jax.Array) -> tuple[jax.Array, ...]:
        mean, log_scale = fields
        return mean, mean**2 + jnp.exp(2 * log_scale)

    def _log_partition(self, *fields: jax.Array) -> jax.Array:
        mean, log_scale = fields
        return 0.5 * mean**2 * jnp.exp(-2 * log_scale) + log_scale

    def _log_base(self, *statistics: jax.Array) -> jax.Array:
        return jnp.full_like(statistics[0], -0.5 * _LOG_2PI)

    def _from_natural(self, *eta: jax.Array) -> tuple[jax.Array, ...]:
        variance = -0.5 / eta[1]
        return variance * eta[0], 0.5 * jnp.log(variance)

    def _from_expectation(self, *mean: jax.Array) -> tuple[jax.Array, ...]:
        return mean[0], 0.5 * jnp.log(mean[1] - mean[0] ** 2)


def matched(mean: Values, log_scale: Values, reps: Reps, *, signed: bool) -> tuple[Values, Values]:
    """Mean and log standard deviation of the mixture of the transforms, per coordinate.

    With centred squares: E theta^2 - mean^2 would cancel in float32 where the scale is small.
    """
    middle = projected(mean, reps, signed=signed)
    spread = by_site(lambda m, s, c: jnp.exp(2 * s) + (m - c) ** 2, mean, log_scale, middle)
    return middle, by_site(lambda v: 0.5 * jnp.log(v), projected(spread, reps, signed=False))


def flat_normals(key: jax.Array, like: Values, n: int) -> Values:
    """`n` standard normals for every coordinate, in antithetic pairs if `n` is even.

    One draw for all sites: a random program per site would cost seconds of compilation.
    """
    layout = Layout.of(like)
    dtype = jnp.result_type(*like.values())
    if n % 2:
        return layout.unflatten(jax.random.normal(key, (n, layout.size), dtype))
    half = jax.random.normal(key, (n // 2, layout.size), dtype)
    return layout.unflatten(jnp.concatenate([half, -half]))


def check_scale(init_scale: float) -> None:
    """Refuses a starting scale that is none."""
    if not init_scale > 0:
        raise OptionError(f"init_scale must be positive, got {init_scale}")
