"""Square roots of the Fisher information of NumPyro distributions, in the parametrisation in which they were given.

A root S has F = S S'. Its columns are used as cotangents of the distribution's parameters: S' J gives the rows whose
Gram matrix is the generalised Gauss-Newton matrix J' F J. Columns of labels drawn at random would give biased
gradients of the evidence; these are exact and differentiable.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.discrete import BernoulliLogits, BernoulliProbs, CategoricalLogits, CategoricalProbs
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from bayes_sym.errors import CurvatureError


__all__ = ["Root", "fisher_roots", "supported"]

Shape = tuple[int, ...]


class Root(NamedTuple):
    """The Fisher root for one parameter of a distribution.

    Attributes:
        parameter: its value, (rows, ...).
        columns: the columns of S, (K, rows, ...): column k of every row at once, since rows are independent.
    """

    parameter: jax.Array
    columns: jax.Array


def fisher_roots(site: dict[str, Any]) -> dict[str, Root]:
    """The Fisher roots of an observed site of shape (rows, ...), one per parameter of its distribution.

    The site's scale (of minibatches and plates) multiplies the Fisher information, so its square root the columns.

    Raises:
        CurvatureError: the distribution has no root here.
    """
    fn, scale = site["fn"], site["scale"]
    roots = _roots(fn, tuple(fn.batch_shape))
    if scale is None:
        return roots
    weight = jnp.sqrt(jnp.asarray(scale, jnp.result_type(float)))
    return {name: Root(root.parameter, _times(root.columns, weight, len(fn.batch_shape))) for name, root in roots.items()}


def _times(columns: jax.Array, weight: jax.Array, batch_ndim: int) -> jax.Array:
    """Columns (K, *batch, ...) times a weight that broadcasts against the batch."""
    leading, trailing = 1 + batch_ndim - weight.ndim, columns.ndim - 1 - batch_ndim
    return columns * weight.reshape((1,) * leading + weight.shape + (1,) * trailing)


@singledispatch
def _roots(fn: dist.Distribution, shape: Shape) -> dict[str, Root]:
    raise CurvatureError(
        f"no Fisher root for {type(fn).__name__}: the curvature knows {', '.join(supported())}. Use one of these as the likelihood, or a "
        "scheme without curvature (MAP, Variational, NUTS)"
    )


def supported() -> list[str]:
    """The names of the distributions with a Fisher root."""
    wrappers = {Independent, ExpandedDistribution, MaskedDistribution, object}
    return sorted(cls.__name__ for cls in _roots.registry if cls not in wrappers)


@_roots.register
def _independent(fn: Independent, shape: Shape) -> dict[str, Root]:
    return _roots(fn.base_dist, shape + tuple(fn.event_shape[: fn.reinterpreted_batch_ndims]))


@_roots.register
def _expanded(fn: ExpandedDistribution, shape: Shape) -> dict[str, Root]:
    return _roots(fn.base_dist, shape)


@_roots.register
def _masked(fn: MaskedDistribution, shape: Shape) -> dict[str, Root]:
    mask = jnp.asarray(fn._mask, jnp.result_type(float))
    roots = _roots(fn.base_dist, shape)
    return {name: Root(root.parameter, _times(root.columns, mask, len(shape))) for name, root in roots.items()}


def _elementwise(parameter: jax.Array, coefficient: jax.Array, shape: Shape) -> Root:
    """A diagonal Fisher information with square root `coefficient`: one column per element of a row."""
    parameter = jnp.broadcast_to(parameter, shape)
    coefficient = jnp.broadcast_to(coefficient, shape)
    elements = math.prod(shape[1:])
    basis = jnp.eye(elements, dtype=parameter.dtype).reshape(elements, 1, *shape[1:])
    return Root(parameter, basis * coefficient[None])


@_roots.register
def _normal(fn: dist.Normal, shape: Shape) -> dict[str, Root]:
    return {
        "loc": _elementwise(fn.loc, 1 / fn.scale, shape),
        "scale": _elementwise(fn.scale, math.sqrt(2) / fn.scale, shape),
    }


@_roots.register
def _poisson(fn: dist.Poisson, shape: Shape) -> dict[str, Root]:
    return {"rate": _elementwise(fn.rate, 1 / jnp.sqrt(fn.rate), shape)}


@_roots.register
def _bernoulli_logits(fn: BernoulliLogits, shape: Shape) -> dict[str, Root]:
    # sqrt(p (1 - p)) = exp((log p + log(1 - p)) / 2), which does not vanish early in float32
    half = (jax.nn.log_sigmoid(fn.logits) + jax.nn.log_sigmoid(-fn.logits)) / 2
    return {"logits": _elementwise(fn.logits, jnp.exp(half), shape)}


@_roots.register
def _bernoulli_probs(fn: BernoulliProbs, shape: Shape) -> dict[str, Root]:
    return {"probs": _elementwise(fn.probs, 1 / jnp.sqrt(fn.probs * (1 - fn.probs)), shape)}


@_roots.register
def _categorical_logits(fn: CategoricalLogits, shape: Shape) -> dict[str, Root]:
    # F = diag(p) - p p' = S S' with S = diag(sqrt p) - p sqrt(p)'
    logits = jnp.broadcast_to(fn.logits, shape + fn.logits.shape[-1:])
    p, root = jax.nn.softmax(logits), jnp.exp(jax.nn.log_softmax(logits) / 2)
    matrix = _identity(logits) * root[..., None] - p[..., :, None] * root[..., None, :]
    return {"logits": Root(logits, _per_element(matrix, shape))}


@_roots.register
def _categorical_probs(fn: CategoricalProbs, shape: Shape) -> dict[str, Root]:
    probs = jnp.broadcast_to(fn.probs, shape + fn.probs.shape[-1:])
    matrix = _identity(probs) / jnp.sqrt(probs)[..., None]
    return {"probs": Root(probs, _per_element(matrix, shape))}


def _identity(like: jax.Array) -> jax.Array:
    """The identity on the last axis of `like`, with its number of axes and one more."""
    return jnp.expand_dims(jnp.eye(like.shape[-1], dtype=like.dtype), tuple(range(like.ndim - 1)))


def _per_element(matrix: jax.Array, shape: Shape) -> jax.Array:
    """Columns (elements * C, rows, *inner, C) from one C x C root per element, (rows, *inner, C, C)."""
    elements, classes = math.prod(shape[1:]), matrix.shape[-1]
    which = jnp.eye(elements, dtype=matrix.dtype).reshape(elements, 1, 1, *shape[1:], 1)
    columns = jnp.moveaxis(matrix, -1, 0)[None] * which
    return columns.reshape(elements * classes, *shape, classes)
