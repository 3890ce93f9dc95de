"""E_q log p of one site in closed form, where there is one: the part of the KL that depends on the prior."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln, gammaln

from bayes_sym import _numpyro

from ..prior_parts import gaussian_part
from .family import ExponentialFamily, Family, base_distribution
from .per_site import PerSite


__all__ = ["expected_log_prior"]


def expected_log_prior(family: Family, params: Any, name: str, fn: dist.Distribution, shape: tuple[int, ...]) -> jax.Array | None:
    """E_q log p(z) of one site in unconstrained coordinates (with its log-determinant), or None where it must be estimated.

    Closed forms: Gaussian priors, independent or correlated, under Gaussian and Laplace q; Gamma priors under Gamma q; Beta priors
    under Beta q.

    Args:
        family, params: q.
        name: the site.
        fn: its prior.
        shape: the shape of its value.
    """
    if isinstance(family, PerSite):
        family, params = family.owner(params, name)
    if family.support == "real":
        part = gaussian_part(fn, shape) if _numpyro.is_real(fn.support) else None
        if part is None:
            return None
        scatter = family.scatter(params, name, replace(part, fn=base_distribution(fn)))
        return None if scatter is None else -0.5 * scatter - part.log_det_root - 0.5 * part.size * math.log(2 * math.pi)
    if not isinstance(family, ExponentialFamily):
        return None
    return _of_statistics(base_distribution(fn), family.support, *family.expectation(params)[name])


@singledispatch
def _of_statistics(fn: Any, support: str, first: jax.Array, second: jax.Array) -> jax.Array | None:
    return None


@_of_statistics.register
def _gamma(fn: dist.Gamma, support: str, first: jax.Array, second: jax.Array) -> jax.Array | None:
    """First and second are E log theta and E theta; a log theta (not a - 1) for the coordinate log theta."""
    if support != "positive":
        return None
    a, b = jnp.broadcast_to(fn.concentration, first.shape), jnp.broadcast_to(fn.rate, first.shape)
    return (a * jnp.log(b) - gammaln(a) + a * first - b * second).sum()


@_of_statistics.register
def _beta(fn: dist.Beta, support: str, first: jax.Array, second: jax.Array) -> jax.Array | None:
    """First and second are E log theta and E log(1 - theta)."""
    if support != "unit":
        return None
    a, b = jnp.broadcast_to(fn.concentration1, first.shape), jnp.broadcast_to(fn.concentration0, first.shape)
    return (a * first + b * second - betaln(a, b)).sum()
