"""The factorised Laplace distribution: heavier tails, sharper peak; closed under permutations, but no exponential family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym.representations import Representation

from ..blocks import Layout
from .factorised import Factorised, by_site, total, unsigned
from .family import Closedness, Moments, Reps, Values
from .mean_field import check_scale


__all__ = ["MeanFieldLaplace", "MeanFieldLaplaceParams"]


class MeanFieldLaplaceParams(NamedTuple):
    """Locations and log scales b by site; the standard deviation is sqrt(2) b."""

    loc: Values
    log_scale: Values


@dataclass(frozen=True)
class MeanFieldLaplace(Factorised):
    """Independent coordinates with density exp(-|theta - loc| / b) / (2 b).

    Attributes:
        init_scale: standard deviation at the start.
    """

    init_scale: float = 0.05
    signed = (True, False)

    def __post_init__(self) -> None:
        check_scale(self.init_scale)

    def init(self, z: Values) -> MeanFieldLaplaceParams:
        """Centred at `z`."""
        start = math.log(self.init_scale / math.sqrt(2))
        return MeanFieldLaplaceParams(dict(z), {name: jnp.full_like(value, start) for name, value in z.items()})

    def noise(self, key: jax.Array, params: MeanFieldLaplaceParams, n: int) -> Values:
        """Standard Laplace draws, in antithetic pairs if `n` is even."""
        layout = Layout.of(params.loc)
        dtype = jnp.result_type(*params.loc.values())
        draws = jax.random.laplace(key, (n if n % 2 else n // 2, layout.size), dtype)
        return layout.unflatten(draws if n % 2 else jnp.concatenate([draws, -draws]))

    def sample(self, params: MeanFieldLaplaceParams, noise: Values) -> Values:
        """loc + b * noise."""
        return by_site(lambda m, s, e: m + jnp.exp(s) * e, *params, noise)

    def log_prob(self, params: MeanFieldLaplaceParams, values: Values) -> jax.Array:
        """-|theta - loc| / b - log(2 b)."""
        return total(by_site(lambda m, s, v: -jnp.abs(v - m) * jnp.exp(-s) - s - math.log(2), *params, values))

    def entropy(self, params: MeanFieldLaplaceParams) -> jax.Array:
        """The sum of 1 + log(2 b)."""
        return total(by_site(lambda s: s + 1 + math.log(2), params.log_scale))

    def kl(self, params: MeanFieldLaplaceParams, other: MeanFieldLaplaceParams) -> jax.Array:
        """The sum of log(b'/b) + E|theta - loc'| / b' - 1."""

        def one(m: jax.Array, s: jax.Array, m_: jax.Array, s_: jax.Array) -> jax.Array:
            return s_ - s + mean_distance(m - m_, jnp.exp(s)) * jnp.exp(-s_) - 1

        return total(by_site(one, *params, *other))

    def moments(self, params: MeanFieldLaplaceParams) -> Moments:
        """The locations and 2 b^2."""
        return Moments(params.loc, by_site(lambda s: 2 * jnp.exp(2 * s), params.log_scale))

    @property
    def closed_under_permutations(self) -> Closedness:
        """All levels but the log-affine one."""
        reason = "the geometric mean of Laplace densities with different locations has a kink at each of them"
        return Closedness(True, False, True, reason)

    def averaged(self, params: MeanFieldLaplaceParams, reps: Reps, kind: str) -> MeanFieldLaplaceParams:
        """The arithmetic mean, which is the member closest to the mixture of the transforms: medians and mean distances to them."""
        if kind == "geometric":
            return super().averaged(params, reps, kind)
        loc, log_scale = dict(params.loc), dict(params.log_scale)
        for name, rep in reps.items():
            loc[name], log_scale[name] = _orbit_medians(rep, loc[name], log_scale[name])
        # equal on orbits up to rounding so far, and exactly from here on
        return self.project(MeanFieldLaplaceParams(loc, log_scale), reps)


def mean_distance(gap: jax.Array, scale: jax.Array) -> jax.Array:
    """E|theta - c| for theta ~ Laplace(m, b), with gap = m - c: |gap| + b exp(-|gap|/b)."""
    return jnp.abs(gap) + scale * jnp.exp(-jnp.abs(gap) / scale)


def _orbit_medians(rep: Representation, loc: jax.Array, log_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per coordinate, the median and the log mean distance to it of the mixture of the transforms' Laplace densities."""
    axes = tuple(range(loc.ndim))
    locs = rep.orbit(loc, axes)
    scales = jnp.exp(unsigned(rep).orbit(log_scale, axes))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        gap = (middle[None] - locs) / scales
        below = jnp.where(gap < 0, 0.5 * jnp.exp(-jnp.abs(gap)), 1 - 0.5 * jnp.exp(-jnp.abs(gap))).mean(axis=0)
        return jnp.where(below < 0.5, middle, low), jnp.where(below < 0.5, high, middle)

    # The median lies between the smallest and the largest location; 60 halvings reach the precision of float64.
    low, high = jax.lax.fori_loop(0, 60, halve, (locs.min(axis=0), locs.max(axis=0)))
    median = (low + high) / 2
    return median, jnp.log(mean_distance(locs - median[None], scales).mean(axis=0))
