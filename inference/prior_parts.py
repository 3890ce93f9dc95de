"""What curvature needs of the priors: means, square roots of covariances, and where a Hessian must stand in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.distribution import ExpandedDistribution, Independent

from bayes_sym.priors import SoftEquivariantNormal
from bayes_sym.priors.nested import NestedEquivariantNormal


__all__ = ["Component", "PriorPart", "dense_part", "gaussian_part"]

Shape = tuple[int, ...]
Map = Callable[[jax.Array], jax.Array]


class Component(NamedTuple):
    """One term of a root of the covariance, L' v = sum_c sqrt(variance_c) part_c(v), which prior strengths only rescale.

    The terms are orthogonal to each other: L' L = sum_c variance_c part_c part_c'. A curvature that is measured through
    the parts serves every value of the variances.

    Attributes:
        variance: a scalar.
        part: a linear map on the last axis; None for the identity.
    """

    variance: jax.Array
    part: Map | None

    def apply(self, v: jax.Array) -> jax.Array:
        """The part of v."""
        return v if self.part is None else self.part(v)


@dataclass(frozen=True)
class PriorPart:
    """The prior of one flat vector as curvature sees it: covariance L L'.

    Attributes:
        size: the length of the vector.
        mean: (size,).
        root: v -> L v on the last axis.
        root_transposed: v -> L' v on the last axis.
        whiten: v -> L^-1 (v - mean) on the last axis.
        log_det_root: log |L|.
        variance: the scalar variance where the covariance is a multiple of the identity, else None.
        variances: the variances where it is diagonal (a scalar counts), else None.
        components: L' as a sum of terms; None for L' as a whole.
        fn: the distribution, of a part that is one site's.
    """

    size: int
    mean: jax.Array
    root: Map
    root_transposed: Map
    whiten: Map
    log_det_root: jax.Array
    variance: jax.Array | None = None
    variances: jax.Array | None = None
    components: tuple[Component, ...] | None = None
    fn: Any = None

    def scatter(self, vector: jax.Array) -> jax.Array:
        """(v - mean)' D (v - mean), with D the precision."""
        if self.variance is not None:  # the sum does not depend on the strength, so it is hoisted out of loops over it
            return ((vector - self.mean) ** 2).sum() / self.variance
        return (self.whiten(vector) ** 2).sum()

    def scaled(self, factor: jax.Array) -> PriorPart:
        """The part whose covariance is `factor` times as large."""
        scale = jnp.sqrt(factor)
        return replace(
            self,
            root=lambda v: scale * self.root(v),
            root_transposed=lambda v: scale * self.root_transposed(v),
            whiten=lambda v: self.whiten(v) / scale,
            log_det_root=self.log_det_root + self.size * jnp.log(scale),
            variance=None if self.variance is None else self.variance * factor,
            variances=None if self.variances is None else self.variances * factor,
            components=None
            if self.components is None
            else tuple(term._replace(variance=term.variance * factor) for term in self.components),
        )

    def terms(self) -> tuple[Component, ...]:
        """The components of L', or L' itself as the only one."""
        if self.components is not None:
            return self.components
        if self.variance is not None:
            return (Component(self.variance, None),)
        return (Component(jnp.ones((), self.mean.dtype), self.root_transposed),)


@singledispatch
def gaussian_part(fn: dist.Distribution, shape: Shape) -> PriorPart | None:
    """The part of a Gaussian prior on a site of this shape; None for other distributions."""
    return None


@gaussian_part.register
def _independent(fn: Independent, shape: Shape) -> PriorPart | None:
    return gaussian_part(fn.base_dist, shape)


@gaussian_part.register
def _expanded(fn: ExpandedDistribution, shape: Shape) -> PriorPart | None:
    return gaussian_part(fn.base_dist, shape) if isinstance(fn.base_dist, dist.Normal) else None


@gaussian_part.register
def _normal(fn: dist.Normal, shape: Shape) -> PriorPart:
    size = math.prod(shape)
    dtype = jnp.result_type(fn.loc, fn.scale, float)  # Normal(0, 1) is given by integers
    mean = jnp.broadcast_to(fn.loc, shape).reshape(size).astype(dtype)
    scale = jnp.broadcast_to(fn.scale, shape).reshape(size).astype(dtype)
    is_scalar = jnp.size(fn.scale) == 1
    return PriorPart(
        size,
        mean,
        root=lambda v: v * jnp.broadcast_to(scale, v.shape),
        root_transposed=lambda v: v * jnp.broadcast_to(scale, v.shape),
        whiten=lambda v: (v - mean) / scale,
        log_det_root=jnp.log(scale).sum(),
        variance=jnp.reshape(fn.scale, ()) ** 2 if is_scalar else None,
        variances=scale**2,
    )


@gaussian_part.register
def _soft(fn: SoftEquivariantNormal, shape: Shape) -> PriorPart:
    size, rank = fn.representation.dim, fn.representation.rank
    inverse = SoftEquivariantNormal(fn.representation, 1 / fn.invariant, 1 / fn.transversal)

    def along(apply: Map, v: jax.Array) -> jax.Array:
        return apply(v.reshape(*v.shape[:-1], *shape)).reshape(v.shape)

    log_det = (rank * jnp.log(fn.invariant) + (size - rank) * jnp.log(fn.transversal)) / 2
    mean = jnp.zeros(size, jnp.result_type(fn.invariant, float))
    components = (
        Component(jnp.asarray(fn.invariant), partial(along, fn.project)),
        Component(jnp.asarray(fn.transversal), lambda v: v - along(fn.project, v)),
    )
    root = partial(along, fn.root)
    return PriorPart(size, mean, root, root, partial(along, inverse.root), log_det, components=components)


@gaussian_part.register
def _nested(fn: NestedEquivariantNormal, shape: Shape) -> PriorPart:
    def along(apply: Map, v: jax.Array) -> jax.Array:
        return apply(v.reshape(*v.shape[:-1], *shape)).reshape(v.shape)

    components = tuple(
        Component(jnp.asarray(fn.variances[level]), partial(along, partial(fn.part, level)))
        for level, rank in enumerate(fn.ranks)
        if rank
    )
    root = partial(along, fn.root)
    mean = jnp.zeros(math.prod(shape), jnp.result_type(fn.variances, float))
    return PriorPart(mean.size, mean, root, root, partial(along, fn.whiten), fn.log_det / 2, components=components)


@gaussian_part.register
def _multivariate(fn: dist.MultivariateNormal, shape: Shape) -> PriorPart | None:
    if fn.batch_shape:
        return None
    tril, mean = fn.scale_tril, jnp.broadcast_to(fn.loc, shape)
    solve = partial(jax.scipy.linalg.solve_triangular, tril, lower=True)
    return PriorPart(
        shape[-1],
        mean,
        root=lambda v: v @ tril.T,
        root_transposed=lambda v: v @ tril,
        whiten=lambda v: solve((v - mean).T).T,
        log_det_root=jnp.log(jnp.diagonal(tril)).sum(),
    )


def dense_part(precision: jax.Array) -> PriorPart:
    """The part whose precision is a dense matrix: minus the Hessian of a log prior that is not Gaussian.

    The entries are NaN where the matrix is not positive definite; callers refuse that by name.
    """
    lower = jnp.linalg.cholesky(precision)  # precision = C C', so L = C^-T
    solve: Any = partial(jax.scipy.linalg.solve_triangular, lower, lower=True)
    return PriorPart(
        precision.shape[0],
        jnp.zeros(precision.shape[0], precision.dtype),
        root=lambda v: solve(v.T, trans=1).T,
        root_transposed=lambda v: solve(v.T).T,
        whiten=lambda v: v @ lower,
        log_det_root=-jnp.log(jnp.diagonal(lower)).sum(),
    )
