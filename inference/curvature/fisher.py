"""Square roots of the Fisher information of observed sites, in the parametrisation in which they were given.

A root S has F = S S'. Its columns are used as cotangents of the distribution's parameters: S' J gives the rows whose
Gram matrix is the generalised Gauss-Newton matrix J' F J. They are exact and differentiable for the families known here
and for every finite support. For other distributions they are scores of labels drawn at random, with a warning: those
give biased gradients of the evidence.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.distributions.transforms import AbsTransform

from bayes_sym.errors import BiasedGradientWarning, CurvatureError

from . import fisher_continuous, fisher_discrete  # noqa: F401 (they register their families)
from .fisher_root import Root, Roots, Shape, align, diagonal, exact_roots, families, joint


__all__ = ["Root", "fisher_roots", "supported"]

_LARGEST_SUPPORT = 256  # values that are summed over
_LABELS = 16  # labels that are drawn for a row where they have to be

# Their samples do not follow their log densities, so that the mean of a score is not zero.
_NOT_SAMPLED = (
    dist.Delta,
    dist.ImproperUniform,
    dist.IntervalCensoredDistribution,
    dist.LeftCensoredDistribution,
    dist.RightCensoredDistribution,
    dist.Unit,
)


def fisher_roots(site: dict[str, Any], *, key: jax.Array | None = None, labels: int = _LABELS) -> Roots:
    """The Fisher roots of an observed site of shape (rows, ...); its information is the sum of S S' over all of them.

    The site's scale (of minibatches and plates) multiplies the information, so its square root the columns.

    Args:
        site: with the distribution as "fn" and the "scale".
        key: random key of labels, used only for a distribution without an exact root. Give chunks of rows different
            keys, so that errors of the estimate average out over rows.
        labels: how many to draw for a row.

    Warns:
        BiasedGradientWarning: labels were drawn.

    Raises:
        CurvatureError: the distribution has no root here and cannot be sampled.
    """
    fn, shape, masks = _unwrap(site["fn"])
    roots = exact_roots(fn, shape)
    if roots is None:
        with jax.numpy_rank_promotion("allow"):  # NumPyro's samplers and densities rely on it
            roots = _summed(fn, shape) or _sampled(fn, shape, jax.random.key(0) if key is None else key, labels)
    for mask in masks:
        roots = _mapped(roots, lambda columns, mask=mask: jnp.where(align(mask, columns, mask.ndim), columns, 0))
    if site["scale"] is not None:
        root_scale = jnp.sqrt(jnp.asarray(site["scale"], jnp.result_type(float)))
        ndim = len(site["fn"].batch_shape)
        roots = _mapped(roots, lambda columns: (columns * align(root_scale, columns, ndim)).astype(columns.dtype))
    return roots


def supported() -> list[str]:
    """The names of the distributions with an exact root; those with a finite support have one too."""
    return families()


def _mapped(roots: Roots, change: Any) -> Roots:
    return {name: Root(root.parameter, jax.tree.map(change, root.columns)) for name, root in roots.items()}


def _unwrap(fn: dist.Distribution) -> tuple[dist.Distribution, Shape, list[jax.Array]]:
    """The distribution inside all wrappers, the shape to which its batch is broadcast, and masks of leading axes of it."""
    shape, masks = tuple(fn.batch_shape), []
    while True:
        if isinstance(fn, Independent):
            shape += tuple(fn.event_shape[: fn.reinterpreted_batch_ndims])
        elif isinstance(fn, MaskedDistribution):
            masks.append(jnp.broadcast_to(fn._mask, shape))
        elif not isinstance(fn, ExpandedDistribution) and not _has_fixed_bijection(fn):
            return fn, shape, masks
        fn = fn.base_dist


def _has_fixed_bijection(fn: dist.Distribution) -> bool:
    """Whether it is a bijection of a distribution that does not depend on the weights, which leaves the information as it is.

    Only traced numbers can depend on the weights.
    """
    return (
        isinstance(fn, dist.TransformedDistribution)
        and type(fn).log_prob is dist.TransformedDistribution.log_prob
        and not any(isinstance(transform, AbsTransform) for transform in fn.transforms)
        and not _traced(fn.transforms)
    )


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(tree))


# Distributions of no known family. Log probabilities l_y of labels y serve as parameters: their gradients are the scores
# g_y, and F = sum_y p_y g_y g_y'. So nothing has to be known of how a distribution keeps its parameters.


def _summed(fn: dist.Distribution, shape: Shape) -> Roots | None:
    """F = sum_y p(y) g_y g_y' over a small finite support, or None: exact."""
    if not fn.has_enumerate_support:
        return None
    fn = _expanded(fn, shape)
    try:
        support = fn.enumerate_support(expand=False)
    except NotImplementedError:  # its elements differ in their supports
        return None
    if len(support) > _LARGEST_SUPPORT:
        return None
    values = jnp.broadcast_to(support, (len(support), *fn.shape()))
    log_probs = jax.vmap(fn.log_prob, out_axes=-1)(values)
    return {"log_prob": joint(shape, log_probs, diagonal(jnp.exp(log_probs / 2)))}


def _sampled(fn: dist.Distribution, shape: Shape, key: jax.Array, labels: int) -> Roots:
    """F = E[g g'] over labels drawn for a whole row: g is the sum over its elements, whose scores are uncorrelated."""
    name = type(fn).__name__
    refused = f"no Fisher root for {name}: "
    instead = (
        f"Use one of these as the likelihood: {', '.join(supported())}. Or a scheme without curvature (MAP, Variational, NUTS)"
    )
    if isinstance(fn, _NOT_SAMPLED):
        raise CurvatureError(
            f"{refused}its samples do not follow its log density, so they tell nothing of its curvature. {instead}"
        )
    if _traced(fn.support):
        raise CurvatureError(
            f"{refused}its support depends on traced numbers, and where it moves with the weights there is no Fisher information. Give "
            f"the bounds of the support as Python or numpy numbers. {instead}"
        )
    try:
        fn = _expanded(fn, shape)
        drawn = jax.lax.stop_gradient(jax.vmap(fn.sample)(jax.random.split(key, labels)))
        log_probs = jax.vmap(fn.log_prob, out_axes=-1)(drawn)
    except NotImplementedError as error:
        raise CurvatureError(f"{refused}it cannot be sampled, or has no log density. {instead}") from error
    warnings.warn(
        f"the Fisher information of {name} is not known in closed form, so it is estimated from {labels} labels drawn for each row. "
        "The estimate is unbiased (its log-determinant errs low), but gradients of the evidence with respect to anything upstream are "
        f"BIASED, by 22% where it was measured. These are exact: {', '.join(supported())}, and distributions that can enumerate at "
        f"most {_LARGEST_SUPPORT} values",
        BiasedGradientWarning,
        stacklevel=_outside(),
    )
    columns = jnp.eye(labels, dtype=log_probs.dtype).reshape(labels, *(1,) * len(shape), labels) / labels**0.5
    return {"log_prob": Root(log_probs, jnp.broadcast_to(columns, (labels, *log_probs.shape)))}


def _expanded(fn: dist.Distribution, shape: Shape) -> dist.Distribution:
    return fn if tuple(fn.batch_shape) == shape else fn.expand(shape)


def _outside() -> int:
    """The stack level, as seen by the caller, of the nearest frame outside the machinery: the user's."""
    machinery = ("bayes_sym", "contextlib", "functools", "jax", "numpyro")
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in machinery:
        frame, level = frame.f_back, level + 1
    return level
