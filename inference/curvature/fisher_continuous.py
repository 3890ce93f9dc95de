"""Exact Fisher roots of continuous families."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .fisher_root import Roots, Shape, broadcast, diagonal, elementwise, joint, register
from .fisher_terms import student_df_information, trigamma_excess


# Real numbers


@register
def _normal(fn: dist.Normal, shape: Shape) -> Roots:
    return {
        "loc": elementwise(shape, (fn.loc, 1 / fn.scale)),
        "scale": elementwise(shape, (fn.scale, math.sqrt(2) / fn.scale)),
    }


@register
def _student_t(fn: dist.StudentT, shape: Shape) -> Roots:
    # Lange, Little & Taylor (1989), with information 2 v / ((v + 3) s^2) of the scale and -2 / (s (v + 1) (v + 3)) with df
    df, scale = fn.df, fn.scale
    with_df = -math.sqrt(2) / ((df + 1) * jnp.sqrt(df * (df + 3)))
    return {
        "loc": elementwise(shape, (fn.loc, jnp.sqrt((df + 1) / (df + 3)) / scale)),
        "scale": elementwise(shape, (scale, jnp.sqrt(2 * df / (df + 3)) / scale), (df, with_df)),
        "df": elementwise(shape, (df, jnp.sqrt(student_df_information(df)))),
    }


@register
def _cauchy(fn: dist.Cauchy, shape: Shape) -> Roots:
    root = math.sqrt(0.5) / fn.scale
    return {"loc": elementwise(shape, (fn.loc, root)), "scale": elementwise(shape, (fn.scale, root))}


@register
def _laplace(fn: dist.Laplace, shape: Shape) -> Roots:
    return {"loc": elementwise(shape, (fn.loc, 1 / fn.scale)), "scale": elementwise(shape, (fn.scale, 1 / fn.scale))}


@register
def _logistic(fn: dist.Logistic, shape: Shape) -> Roots:
    return {
        "loc": elementwise(shape, (fn.loc, math.sqrt(1 / 3) / fn.scale)),
        "scale": elementwise(shape, (fn.scale, math.sqrt(3 + math.pi**2) / 3 / fn.scale)),
    }


@register
def _gumbel(fn: dist.Gumbel, shape: Shape) -> Roots:
    # F = [[1, g], [g, g^2 + pi^2 / 6]] / scale^2 with g = Euler's constant - 1
    return {
        "loc": elementwise(shape, (fn.loc, 1 / fn.scale), (fn.scale, (np.euler_gamma - 1) / fn.scale)),
        "scale": elementwise(shape, (fn.scale, math.pi / math.sqrt(6) / fn.scale)),
    }


# Positive numbers and proportions


@register
def _exponential(fn: dist.Exponential, shape: Shape) -> Roots:
    return {"rate": elementwise(shape, (fn.rate, 1 / fn.rate))}


@register
def _half_normal(fn: dist.HalfNormal, shape: Shape) -> Roots:
    return {"scale": elementwise(shape, (fn.scale, math.sqrt(2) / fn.scale))}


@register
def _gamma(fn: dist.Gamma, shape: Shape) -> Roots:
    # F = [[a / b^2, -1 / b], [-1 / b, trigamma(a)]]
    a, b = fn.concentration, fn.rate
    return {
        "rate": elementwise(shape, (b, jnp.sqrt(a) / b), (a, -1 / jnp.sqrt(a))),
        "concentration": elementwise(shape, (a, jnp.sqrt(trigamma_excess(a)))),
    }


@register
def _weibull(fn: dist.Weibull, shape: Shape) -> Roots:
    # The logarithm of a Weibull variable is a mirrored Gumbel variable with location log(scale) and scale 1 / k.
    k, scale = fn.concentration, fn.scale
    return {
        "scale": elementwise(shape, (scale, k / scale), (k, (np.euler_gamma - 1) / k)),
        "concentration": elementwise(shape, (k, math.pi / math.sqrt(6) / k)),
    }


@register
def _beta(fn: dist.Beta, shape: Shape) -> Roots:
    # F = diag(trigamma(a), trigamma(b)) - trigamma(s), s = a + b. With trigamma(x) = 1 / x + excess(x) the leading parts of
    # its entries and of its Schur complement cancel by hand.
    a, b = fn.concentration1, fn.concentration0
    s = a + b
    of_s = trigamma_excess(s)
    over_a, over_b = trigamma_excess(a) - of_s, trigamma_excess(b) - of_s
    of_a = b / (a * s) + over_a
    left_of_b = over_a / of_a * a / (b * s) + over_b - of_s * ((2 / s + of_s) / of_a)
    return {
        "concentration1": elementwise(shape, (a, jnp.sqrt(of_a)), (b, -(1 / s + of_s) / jnp.sqrt(of_a))),
        "concentration0": elementwise(shape, (b, jnp.sqrt(left_of_b))),
    }


@register
def _dirichlet(fn: dist.Dirichlet, shape: Shape) -> Roots:
    # F = D - c 1 1' with D = diag(trigamma(a)) and c = trigamma(sum a). S = D^(1/2) - g 1 1' D^(-1/2) has S S' = F for
    # g = c / (1 + sqrt(1 - c tr(D^-1))), where 1 - c tr(D^-1) is written so that its leading parts cancel by hand.
    a = broadcast(fn.concentration, shape + fn.event_shape)
    total, excess = a.sum(axis=-1), trigamma_excess(a)
    of_each, of_total = 1 / a + excess, trigamma_excess(total)
    short = (a * excess / of_each).sum(axis=-1)  # tr(D^-1) = total - short
    gap = short / total - total * of_total + of_total * short
    g = (1 / total + of_total) / (1 + jnp.sqrt(gap))
    matrix = diagonal(jnp.sqrt(of_each)) - (g[..., None] / jnp.sqrt(of_each))[..., None, :]
    return {"concentration": joint(shape, a, matrix)}


# Gaussian vectors


@register
def _multivariate_normal(fn: dist.MultivariateNormal, shape: Shape) -> Roots:
    # The information of the mean is (L L')^-1. That of the covariance is tr(V^-1 dV V^-1 dV) / 2; with M = L^-1 dL, lower
    # triangular, it is |M + M'|^2 / 2 = sum_i 2 M_ii^2 + sum_{i>j} M_ij^2. A covariance or a precision that was given
    # instead of L follows by the chain rule, since L is a function of it.
    tril = broadcast(fn.scale_tril, shape + fn.event_shape * 2)
    size = tril.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=tril.dtype), tril.shape)
    whiten = jax.scipy.linalg.solve_triangular(tril, identity, lower=True)
    i, j = np.tril_indices(size)
    # The cotangent of M_ij: row i of L^-1 in column j of dL, where dL is free.
    place = np.tril(np.ones((size, size)))[:, :, None] * (np.arange(size)[:, None] == j) * np.where(i == j, math.sqrt(2), 1.0)
    of_tril = jnp.swapaxes(whiten[..., i, :], -1, -2)[..., :, None, :] * jnp.asarray(place, tril.dtype)[(None,) * len(shape)]
    return {
        "loc": joint(shape, fn.loc, jnp.swapaxes(whiten, -1, -2)),
        "scale_tril": joint(shape, tril, of_tril),
    }


@register
def _low_rank_multivariate_normal(fn: dist.LowRankMultivariateNormal, shape: Shape) -> Roots:
    return _multivariate_normal(dist.MultivariateNormal(fn.loc, scale_tril=fn.scale_tril, validate_args=False), shape)
