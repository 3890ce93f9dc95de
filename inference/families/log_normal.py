"""The factorised LogNormal with a fixed sign for every coordinate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import ClosednessError
from bayes_sym.representations import Representation

from .factorised import FactorisedExponential, by_site, projected, total
from .family import Closedness, Moments, Reps, Values
from .mean_field import check_scale, flat_normals, matched


__all__ = ["LogNormal", "LogNormalParams"]

_LOG_2PI = math.log(2 * math.pi)


class LogNormalParams(NamedTuple):
    """The mean and log standard deviation of log|theta|, and the sign of theta (of which the size does not matter), by site."""

    mean: Values
    log_scale: Values
    sign: Values


@dataclass(frozen=True)
class LogNormal(FactorisedExponential):
    """sign * exp(N(mean, scale^2)), with signs held as they start: T = (log|theta|, log^2|theta|), h = 1/|theta|.

    Attributes:
        init_scale: standard deviation of log|theta| at the start.
        smallest: the smallest |theta| at the start.
    """

    init_scale: float = 0.05
    smallest: float = 1e-3
    signed = (False, False, True)

    def __post_init__(self) -> None:
        check_scale(self.init_scale)
        check_scale(self.smallest)

    def init(self, z: Values) -> LogNormalParams:
        """With median `z`."""
        mean = by_site(lambda value: jnp.log(jnp.maximum(jnp.abs(value), self.smallest)), z)
        log_scale = by_site(lambda value: jnp.full_like(value, math.log(self.init_scale)), z)
        return LogNormalParams(mean, log_scale, by_site(lambda value: jnp.where(value < 0, -1.0, 1.0).astype(value.dtype), z))

    def noise(self, key: jax.Array, params: LogNormalParams, n: int) -> Values:
        """Standard normals."""
        return flat_normals(key, params.mean, n)

    def sample(self, params: LogNormalParams, noise: Values) -> Values:
        """sign exp(mean + scale * noise); signs have no gradient."""
        return by_site(lambda m, s, sign, e: _fixed(sign) * jnp.exp(m + jnp.exp(s) * e), *params, noise)

    def log_prob(self, params: LogNormalParams, values: Values) -> jax.Array:
        """That of the normal of log|theta|, less log|theta|; -inf where a sign differs."""

        def one(m: jax.Array, s: jax.Array, sign: jax.Array, v: jax.Array) -> jax.Array:
            log = jnp.log(jnp.abs(v))
            density = -0.5 * ((log - m) * jnp.exp(-s)) ** 2 - s - 0.5 * _LOG_2PI - log
            return jnp.where(v * _fixed(sign) > 0, density, -jnp.inf)

        return total(by_site(one, *params, values))

    def kl(self, params: LogNormalParams, other: LogNormalParams) -> jax.Array:
        """That of the normals of log|theta|; infinite where a sign differs."""

        def one(*fields: jax.Array) -> jax.Array:
            m, s, sign, m_, s_, sign_ = fields
            normal = s_ - s + 0.5 * (jnp.exp(2 * (s - s_)) + ((m - m_) * jnp.exp(-s_)) ** 2 - 1)
            return jnp.where(_fixed(sign) == _fixed(sign_), normal, jnp.inf)

        return total(by_site(one, *params, *other))

    def moments(self, params: LogNormalParams) -> Moments:
        """sign exp(m + s^2/2), and its square times (exp(s^2) - 1)."""
        mean = by_site(lambda m, s, sign: _fixed(sign) * jnp.exp(m + 0.5 * jnp.exp(2 * s)), *params)
        variance = by_site(lambda m, s, sign: jnp.exp(2 * m + jnp.exp(2 * s)) * jnp.expm1(jnp.exp(2 * s)), *params)
        return Moments(mean, variance)

    def closedness(self, rep: Representation) -> Closedness:
        """Under permutations, if the signs of every orbit agree: `check_signs` says so of given parameters."""
        if not rep.is_permutation:
            return Closedness(False, False, False, "a sign change or a mixture leaves the half-lines on which q lives")
        return Closedness(True, True, True)

    def project(self, params: LogNormalParams, reps: Reps) -> LogNormalParams:
        """Means and log scales averaged over orbits; NaN where the signs of an orbit differ, since no member is invariant then."""
        return super().project(_agreed(params, reps), reps)

    def averaged(self, params: LogNormalParams, reps: Reps, kind: str) -> LogNormalParams:
        """That of the normals of log|theta|; NaN where the signs of an orbit differ."""
        params = _agreed(params, reps)
        if kind == "geometric":
            return super().averaged(params, reps, kind)
        return LogNormalParams(*matched(params.mean, params.log_scale, reps, signed=False), params.sign)

    def check_signs(self, params: LogNormalParams, reps: Reps) -> None:
        """Refuses parameters whose signs differ along an orbit: no invariant member has these signs.

        Raises:
            ClosednessError: naming the site.
        """
        self.check_closed(reps)
        for name, rep in reps.items():
            assert rep.source is not None  # it is a permutation
            sign = np.sign(np.asarray(params.sign[name])).reshape(-1)
            mixed = int((sign[rep.source] != sign[None]).any(axis=0).sum())
            if mixed:
                raise ClosednessError(
                    f"LogNormal has fixed signs, and those of {mixed} of {sign.size} coordinates of site {name!r} differ along their "
                    f"orbits under {rep.group.name}: the transforms of q live on different half-lines. Start from weights that are "
                    "invariant up to their size, or use MeanField()"
                )

    def _natural(self, *fields: jax.Array) -> tuple[jax.Array, ...]:
        mean, log_scale, _ = fields
        precision = jnp.exp(-2 * log_scale)
        return mean * precision, -0.5 * precision

    def _sufficient(self, value: jax.Array) -> tuple[jax.Array, ...]:
        log = jnp.log(jnp.abs(value))
        return log, log**2

    def _expectation(self, *fields: jax.Array) -> tuple[jax.Array, ...]:
        mean, log_scale, _ = fields
        return mean, mean**2 + jnp.exp(2 * log_scale)

    def _log_partition(self, *fields: jax.Array) -> jax.Array:
        mean, log_scale, _ = fields
        return 0.5 * mean**2 * jnp.exp(-2 * log_scale) + log_scale

    def _log_base(self, *statistics: jax.Array) -> jax.Array:
        return -statistics[0] - 0.5 * _LOG_2PI

    def _from_natural(self, *eta: jax.Array) -> tuple[jax.Array, ...]:
        variance = -0.5 / eta[1]
        return variance * eta[0], 0.5 * jnp.log(variance)

    def _from_expectation(self, *mean: jax.Array) -> tuple[jax.Array, ...]:
        return mean[0], 0.5 * jnp.log(mean[1] - mean[0] ** 2)


def _fixed(sign: jax.Array) -> jax.Array:
    """+1 or -1 without a gradient, also after an optimiser has decayed the array towards zero."""
    return jnp.sign(jax.lax.stop_gradient(sign))


def _agreed(params: LogNormalParams, reps: Reps) -> LogNormalParams:
    """The parameters, with NaN for means of orbits whose signs differ: under jit no error can be raised."""
    signs = by_site(jnp.sign, params.sign)
    means = by_site(
        lambda m, sign, mean_sign: jnp.where(sign == mean_sign, m, jnp.nan),
        params.mean,
        signs,
        projected(signs, reps, signed=False),
    )
    return params._replace(mean=means)
