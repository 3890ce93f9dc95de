"""Variational families: how q is parametrised, sampled, and compared with a prior in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.distribution import ExpandedDistribution, Independent

from bayes_sym.errors import OptionError
from bayes_sym.priors import SoftEquivariantNormal

from .problem import Values


__all__ = ["MeanField", "MeanFieldParams", "kl_to_prior"]


class MeanFieldParams(NamedTuple):
    """Means and log standard deviations by site, in unconstrained coordinates."""

    mean: Values
    log_scale: Values

    @property
    def scale(self) -> Values:
        """Standard deviations by site."""
        return {name: jnp.exp(value) for name, value in self.log_scale.items()}


@dataclass(frozen=True)
class MeanField:
    """The factorised Gaussian in unconstrained coordinates.

    Attributes:
        init_scale: standard deviation at the start. Small, since a net with noise of prior size says nothing.
    """

    init_scale: float = 0.05

    def __post_init__(self) -> None:
        if not self.init_scale > 0:
            raise OptionError(f"init_scale must be positive, got {self.init_scale}")

    def init(self, z: Values) -> MeanFieldParams:
        """Centred at `z`."""
        return MeanFieldParams(dict(z), {name: jnp.full_like(value, math.log(self.init_scale)) for name, value in z.items()})

    def sample(self, params: MeanFieldParams, noise: Values) -> Values:
        """mean + scale * noise."""
        return {name: mean + jnp.exp(params.log_scale[name]) * noise[name] for name, mean in params.mean.items()}

    def log_prob(self, params: MeanFieldParams, z: Values, name: str) -> jax.Array:
        """The log-density of one site."""
        scale = jnp.exp(params.log_scale[name])
        return dist.Normal(params.mean[name], scale).log_prob(z[name]).sum()


@singledispatch
def kl_to_prior(fn: dist.Distribution, mean: jax.Array, scale: jax.Array) -> jax.Array | None:
    """KL(N(mean, diag scale^2) || fn) in nats where there is a closed form, else None."""
    return None


@kl_to_prior.register
def _independent(fn: Independent, mean: jax.Array, scale: jax.Array) -> jax.Array | None:
    return kl_to_prior(fn.base_dist, mean, scale)


@kl_to_prior.register
def _expanded(fn: ExpandedDistribution, mean: jax.Array, scale: jax.Array) -> jax.Array | None:
    return kl_to_prior(fn.base_dist, mean, scale) if isinstance(fn.base_dist, dist.Normal) else None


@kl_to_prior.register
def _normal(fn: dist.Normal, mean: jax.Array, scale: jax.Array) -> jax.Array:
    ratio = (scale / fn.scale) ** 2
    return 0.5 * (ratio + ((mean - fn.loc) / fn.scale) ** 2 - 1 - jnp.log(ratio)).sum()


@kl_to_prior.register
def _soft(fn: SoftEquivariantNormal, mean: jax.Array, scale: jax.Array) -> jax.Array:
    # E log q = -sum log scale - d/2 log(2 pi e); E log p = log p(mean) - 1/2 sum scale^2 * precision_ii
    entropy = jnp.log(scale).sum() + scale.size / 2 * math.log(2 * math.pi * math.e)
    return -entropy - fn.log_prob(mean) + 0.5 * (scale**2 * fn.precision_diagonal).sum()
