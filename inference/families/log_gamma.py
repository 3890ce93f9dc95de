"""Logarithms of gamma draws, with the right gradient also where the draw itself is too small for its format."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma


__all__ = ["log_gamma"]

_SMALL = -30.0  # below, theta^a / Gamma(a + 1) is the distribution function to 1e-13


@jax.custom_jvp
def log_gamma(key: jax.Array, a: jax.Array) -> jax.Array:
    """Draws log theta, theta ~ Gamma(a, 1), of the shape of `a`.

    The derivative in `a` is implicit, at a fixed value of the distribution function (Figurnov et al. 2018). jax's own passes through theta,
    which underflows for small shapes; there F = theta^a / Gamma(a + 1), so that d log theta / da = (digamma(a + 1) - log theta) / a.
    """
    return jax.random.loggamma(key, a)


@log_gamma.defjvp
def _log_gamma_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    key, a = primals
    draw = log_gamma(key, a)
    theta = jnp.exp(jnp.maximum(draw, _SMALL))
    slope = jnp.where(draw < _SMALL, (digamma(a + 1) - draw) / a, jax.lax.random_gamma_grad(a, theta) / theta)
    return draw, slope * tangents[1]
