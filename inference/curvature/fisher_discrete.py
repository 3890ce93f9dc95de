"""Exact Fisher roots of counts and classes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.discrete import (
    BernoulliLogits,
    BernoulliProbs,
    BinomialLogits,
    BinomialProbs,
    CategoricalLogits,
    CategoricalProbs,
    GeometricLogits,
    GeometricProbs,
    MultinomialLogits,
    MultinomialProbs,
)

from .fisher_root import Roots, Shape, broadcast, diagonal, elementwise, joint, register
from .fisher_terms import negative_binomial_root


# Counts


@register
def _poisson(fn: dist.Poisson, shape: Shape) -> Roots:
    return {"rate": elementwise(shape, (fn.rate, 1 / jnp.sqrt(fn.rate)))}


@register
def _geometric_logits(fn: GeometricLogits, shape: Shape) -> Roots:
    return {"logits": elementwise(shape, (fn.logits, jnp.exp(jax.nn.log_sigmoid(-fn.logits) / 2)))}


@register
def _geometric_probs(fn: GeometricProbs, shape: Shape) -> Roots:
    p = _inside(fn.probs)
    return {"probs": elementwise(shape, (fn.probs, 1 / (p * jnp.sqrt(1 - p))))}


# The negative binomial: its mean and its concentration c are orthogonal (Anscombe, 1950). In all other parametrisations
# the first column of L is the one for the mean, and the second remains.


@register
def _negative_binomial_mean(fn: dist.NegativeBinomial2, shape: Shape) -> Roots:
    c, rate = fn.concentration, fn.rate  # rate = c / mean, so c / (mean (mean + c)) = rate^2 / (c (1 + rate))
    return {
        "mean": elementwise(shape, (fn.mean, rate / jnp.sqrt(c * (1 + rate)))),
        "concentration": elementwise(shape, (c, negative_binomial_root(c, -jnp.log(rate)))),
    }


@register
def _gamma_poisson(fn: dist.GammaPoisson, shape: Shape) -> Roots:
    c, rate = fn.concentration, fn.rate
    return {
        "rate": elementwise(shape, (rate, jnp.sqrt(c / (1 + rate)) / rate), (c, -1 / jnp.sqrt(c * (1 + rate)))),
        "concentration": elementwise(shape, (c, negative_binomial_root(c, -jnp.log(rate)))),
    }


@register
def _negative_binomial_logits(fn: dist.NegativeBinomialLogits, shape: Shape) -> Roots:
    c, half = fn.total_count, jnp.exp(jax.nn.log_sigmoid(fn.logits) / 2)
    return {
        "logits": elementwise(shape, (fn.logits, half * jnp.sqrt(c)), (c, half / jnp.sqrt(c))),
        "total_count": elementwise(shape, (c, negative_binomial_root(c, fn.logits))),
    }


@register
def _negative_binomial_probs(fn: dist.NegativeBinomialProbs, shape: Shape) -> Roots:
    c, p = fn.total_count, _inside(fn.probs)
    logits = jnp.log(p) - jnp.log1p(-p)
    return {
        "probs": elementwise(shape, (fn.probs, jnp.sqrt(c / p) / (1 - p)), (c, jnp.sqrt(p / c))),
        "total_count": elementwise(shape, (c, negative_binomial_root(c, logits))),
    }


# Classes. sqrt(p (1 - p)) = exp((log p + log(1 - p)) / 2) does not vanish early in float32.


@register
def _bernoulli_logits(fn: BernoulliLogits, shape: Shape) -> Roots:
    return {"logits": elementwise(shape, (fn.logits, _binary_root(fn.logits)))}


@register
def _bernoulli_probs(fn: BernoulliProbs, shape: Shape) -> Roots:
    p = _inside(fn.probs)
    return {"probs": elementwise(shape, (fn.probs, 1 / jnp.sqrt(p * (1 - p))))}


@register
def _binomial_logits(fn: BinomialLogits, shape: Shape) -> Roots:
    return {"logits": elementwise(shape, (fn.logits, _binary_root(fn.logits) * _root_count(fn)))}


@register
def _binomial_probs(fn: BinomialProbs, shape: Shape) -> Roots:
    p = _inside(fn.probs)
    return {"probs": elementwise(shape, (fn.probs, _root_count(fn) / jnp.sqrt(p * (1 - p))))}


@register
def _categorical_logits(fn: CategoricalLogits, shape: Shape) -> Roots:
    return {"logits": joint(shape, fn.logits, _softmax_root(broadcast(fn.logits, shape + fn.logits.shape[-1:])))}


@register
def _categorical_probs(fn: CategoricalProbs, shape: Shape) -> Roots:
    probs = broadcast(fn.probs, shape + fn.probs.shape[-1:])
    return {"probs": joint(shape, probs, diagonal(1 / jnp.sqrt(_inside(probs))))}


@register
def _multinomial_logits(fn: MultinomialLogits, shape: Shape) -> Roots:
    root = _softmax_root(broadcast(fn.logits, shape + fn.event_shape))
    return {"logits": joint(shape, fn.logits, root * jnp.broadcast_to(_root_count(fn), shape)[..., None, None])}


@register
def _multinomial_probs(fn: MultinomialProbs, shape: Shape) -> Roots:
    probs = broadcast(fn.probs, shape + fn.event_shape)
    root = jnp.broadcast_to(_root_count(fn), shape)[..., None] / jnp.sqrt(_inside(probs))
    return {"probs": joint(shape, probs, diagonal(root))}


def _binary_root(logits: jax.Array) -> jax.Array:
    return jnp.exp((jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits)) / 2)


def _softmax_root(logits: jax.Array) -> jax.Array:
    """F = diag(p) - p p' = S S' with S = diag(sqrt p) - p sqrt(p)'."""
    p, root = jax.nn.softmax(logits), jnp.exp(jax.nn.log_softmax(logits) / 2)
    return diagonal(root) - p[..., :, None] * root[..., None, :]


def _root_count(fn: Any) -> jax.Array:
    return jnp.sqrt(jnp.asarray(fn.total_count, jnp.result_type(float)))


def _inside(probs: Any) -> jax.Array:
    """Probabilities kept off 0 and 1, where their information is infinite; NumPyro's log densities do the same."""
    limits = jnp.finfo(jnp.result_type(probs, float))
    return jnp.clip(probs, limits.tiny, 1 - limits.eps)
