"""Gaussians with dense covariance: over all sites together, or site by site."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym._precision import full_precision
from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from ..blocks import DenseBlock, Layout
from ..prior_parts import PriorPart
from .family import Closedness, ExponentialFamily, Moments, Reps, Values, group_of
from .mean_field import check_scale, flat_normals


__all__ = ["BlockGaussian", "DenseParams", "FullGaussian", "triangle_of", "triangular"]

_LARGEST = 4096


@partial(jax.tree_util.register_dataclass, data_fields=["mean", "triangle"], meta_fields=["layouts"])
@dataclass(frozen=True)
class DenseParams:
    """N(mean, L L') for each block of sites.

    Attributes:
        mean: by site.
        triangle: per block, (size, size): L below the diagonal, log of the diagonal of L on it; ignored above.
        layouts: the sites of each block.
    """

    mean: Values
    triangle: tuple[jax.Array, ...]
    layouts: tuple[Layout, ...]

    @property
    def roots(self) -> tuple[jax.Array, ...]:
        """L of every block."""
        return tuple(triangular(triangle) for triangle in self.triangle)


def triangular(triangle: jax.Array) -> jax.Array:
    """L from its triangle with a logarithmic diagonal."""
    return jnp.tril(triangle, -1) + jnp.diag(jnp.exp(jnp.diagonal(triangle)))


def triangle_of(root: jax.Array) -> jax.Array:
    """The triangle of the L with L L' = root root', for a root with at least as many columns as rows."""
    upper = jnp.linalg.qr(root.T, mode="r")
    lower = upper.T * jnp.where(jnp.diagonal(upper) < 0, -1.0, 1.0)[None].astype(root.dtype)
    return jnp.tril(lower, -1) + jnp.diag(jnp.log(jnp.diagonal(lower)))


class _DenseGaussian(ExponentialFamily):
    """T = (theta, theta theta'), eta = (D mean, -D/2) with D the precision of a block."""

    init_scale: float

    @abc.abstractmethod
    def _layouts(self, z: Values) -> tuple[Layout, ...]:
        """The sites of each block; in the order of their names, which is the order in which a dict comes out of a jitted function."""

    def init(self, z: Values) -> DenseParams:
        """Centred at `z`, with independent coordinates."""
        layouts = self._layouts(z)
        for layout in layouts:
            if layout.size > _LARGEST:
                raise OptionError(
                    f"{type(self).__name__} would hold a covariance of {layout.size} x {layout.size} for {list(layout.names)}: use "
                    "MatrixNormal(), LowRankGaussian() or MeanField() for so many weights"
                )
        dtype = jnp.result_type(*z.values())
        triangles = tuple(math.log(self.init_scale) * jnp.eye(layout.size, dtype=dtype) for layout in layouts)
        return DenseParams(dict(z), triangles, layouts)

    def noise(self, key: jax.Array, params: DenseParams, n: int) -> Values:
        """Standard normals."""
        return flat_normals(key, params.mean, n)

    def sample(self, params: DenseParams, noise: Values) -> Values:
        """mean + L noise."""
        values: Values = {}
        for layout, root in zip(params.layouts, params.roots, strict=True):
            values |= layout.unflatten(layout.flatten(params.mean) + root @ layout.flatten(noise))
        return {name: values[name] for name in params.mean}

    @full_precision
    def log_prob(self, params: DenseParams, values: Values) -> jax.Array:
        """By a triangular solve per block."""
        total = jnp.zeros(())
        for layout, root in zip(params.layouts, params.roots, strict=True):
            centred = layout.flatten(values) - layout.flatten(params.mean)
            white = jax.scipy.linalg.solve_triangular(root, centred, lower=True)
            total = total - 0.5 * (white**2).sum() - 0.5 * layout.size * math.log(2 * math.pi)
        return total - _log_det(params)

    def entropy(self, params: DenseParams) -> jax.Array:
        """log|L| + d log(2 pi e)/2 per block."""
        sizes = sum(layout.size for layout in params.layouts)
        return _log_det(params) + 0.5 * sizes * (1 + math.log(2 * math.pi))

    @full_precision
    def kl(self, params: DenseParams, other: DenseParams) -> jax.Array:
        """log|L'|/|L| + (tr(D' S) + (m - m')' D' (m - m') - d)/2 per block."""
        total = _log_det(other) - _log_det(params)
        for layout, root, root_ in zip(params.layouts, params.roots, other.roots, strict=True):
            gap = layout.flatten(params.mean) - layout.flatten(other.mean)
            white = jax.scipy.linalg.solve_triangular(root_, jnp.column_stack([root, gap]), lower=True)
            total = total + 0.5 * ((white**2).sum() - layout.size)
        return total

    def moments(self, params: DenseParams) -> Moments:
        """The means and the diagonal of L L'."""
        variance: Values = {}
        for layout, root in zip(params.layouts, params.roots, strict=True):
            variance |= layout.unflatten((root**2).sum(axis=1))
        return Moments(params.mean, {name: variance[name] for name in params.mean})

    def scatter(self, params: DenseParams, name: str, part: PriorPart) -> jax.Array | None:
        """Of correlated priors too: the prior's whitening of the rows of L that belong to the site."""
        if part.variances is not None:
            return super().scatter(params, name, part)
        for layout, root in zip(params.layouts, params.roots, strict=True):
            if name in layout.names:
                ends = np.cumsum([0, *(math.prod(shape) for shape in layout.shapes)])
                at = layout.names.index(name)
                rows = root[ends[at] : ends[at + 1]]
                spread = jax.vmap(part.whiten)(rows.T + part.mean[None])
                return part.scatter(params.mean[name].reshape(-1)) + (spread**2).sum()
        return None

    def blocks(self, params: DenseParams) -> tuple[DenseBlock, ...]:
        """One dense block each."""
        pairs = zip(params.layouts, params.roots, strict=True)
        return tuple(DenseBlock(layout, layout.flatten(params.mean), root) for layout, root in pairs)

    def natural(self, params: DenseParams) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """(D mean, -D/2) per block."""
        parts = []
        for layout, root in zip(params.layouts, params.roots, strict=True):
            inverse = jax.scipy.linalg.solve_triangular(root, jnp.eye(layout.size, dtype=root.dtype), lower=True)
            precision = inverse.T @ inverse
            parts.append((precision @ layout.flatten(params.mean), -0.5 * precision))
        return tuple(parts)

    def sufficient(self, values: Values) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """(theta, theta theta') per block."""
        vectors = [layout.flatten(values) for layout in self._layouts(values)]
        return tuple((vector, jnp.outer(vector, vector)) for vector in vectors)

    def expectation(self, params: DenseParams) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """(mean, L L' + mean mean') per block."""
        parts = []
        for layout, root in zip(params.layouts, params.roots, strict=True):
            mean = layout.flatten(params.mean)
            parts.append((mean, root @ root.T + jnp.outer(mean, mean)))
        return tuple(parts)

    def log_partition(self, params: DenseParams) -> jax.Array:
        """mean' D mean / 2 + log|L| per block."""
        total = jnp.zeros(())
        for layout, root in zip(params.layouts, params.roots, strict=True):
            white = jax.scipy.linalg.solve_triangular(root, layout.flatten(params.mean), lower=True)
            total = total + 0.5 * (white**2).sum()
        return total + _log_det(params)

    def log_base(self, statistics: Any) -> jax.Array:
        """-d log(2 pi)/2."""
        return jnp.asarray(-0.5 * math.log(2 * math.pi) * sum(first.size for first, _ in statistics))

    def from_natural(self, eta: Any, like: DenseParams) -> DenseParams:
        """By a Cholesky factorisation of the precision per block."""
        means: Values = {}
        triangles = []
        for layout, (first, second) in zip(like.layouts, eta, strict=True):
            lower = jnp.linalg.cholesky(-2 * second)
            solve = partial(jax.scipy.linalg.solve_triangular, lower, lower=True)
            means |= layout.unflatten(solve(solve(first), trans=1))
            triangles.append(triangle_of(solve(jnp.eye(layout.size, dtype=lower.dtype)).T))
        return DenseParams({name: means[name] for name in like.mean}, tuple(triangles), like.layouts)

    def from_expectation(self, mean: Any, like: DenseParams) -> DenseParams:
        """By a Cholesky factorisation of the covariance per block."""
        means: Values = {}
        triangles = []
        for layout, (first, second) in zip(like.layouts, mean, strict=True):
            means |= layout.unflatten(first)
            lower = jnp.linalg.cholesky(second - jnp.outer(first, first))
            triangles.append(jnp.tril(lower, -1) + jnp.diag(jnp.log(jnp.diagonal(lower))))
        return DenseParams({name: means[name] for name in like.mean}, tuple(triangles), like.layouts)

    def closedness(self, rep: Representation) -> Closedness:
        """Under every linear action."""
        return Closedness(True, True, True)

    def push(self, params: DenseParams, reps: Reps, g: int | jax.Array) -> DenseParams:
        """mean -> rho mean, L -> the triangle of rho L."""
        means: Values = {}
        triangles = []
        for layout, root in zip(params.layouts, params.roots, strict=True):
            columns = jax.vmap(layout.unflatten, in_axes=1)(root)  # by site, (size, *shape)
            turned = {name: _act(reps[name], g, value, 1) if name in reps else value for name, value in columns.items()}
            triangles.append(triangle_of(jax.vmap(layout.flatten)(turned).T))
            for name in layout.names:
                means[name] = _act(reps[name], g, params.mean[name], 0) if name in reps else params.mean[name]
        return DenseParams({name: means[name] for name in params.mean}, tuple(triangles), params.layouts)

    def project(self, params: DenseParams, reps: Reps) -> DenseParams:
        """The mean projected, and the covariance averaged over the group."""
        return self._mixed(params, reps, spread=False)

    def averaged(self, params: DenseParams, reps: Reps, kind: str) -> DenseParams:
        """The arithmetic mean adds the covariance of the means over the group to that of `project`."""
        return super().averaged(params, reps, kind) if kind == "geometric" else self._mixed(params, reps, spread=True)

    def _mixed(self, params: DenseParams, reps: Reps, *, spread: bool) -> DenseParams:
        """The mean and the covariance of the mixture of the transforms, with or without the covariance of their means.

        By stacking square roots: second moments less the product of means would cancel in float32.
        """
        order = group_of(reps).order
        mean = {
            name: reps[name].project(value, tuple(range(value.ndim))) if name in reps else value
            for name, value in params.mean.items()
        }

        def columns(g: jax.Array) -> tuple[jax.Array, ...]:
            moved = self.push(params, reps, g)
            if not spread:
                return moved.roots
            gap = jax.tree.map(jnp.subtract, moved.mean, mean)
            pairs = zip(params.layouts, moved.roots, strict=True)
            return tuple(jnp.column_stack([root, layout.flatten(gap)]) for layout, root in pairs)

        several = jax.lax.map(columns, jnp.arange(order))  # per block, (order, size, columns)
        wide = (jnp.moveaxis(block, 0, 1).reshape(block.shape[1], -1) / math.sqrt(order) for block in several)
        return DenseParams(mean, tuple(triangle_of(root) for root in wide), params.layouts)


def _act(rep: Representation, g: int | jax.Array, value: jax.Array, first: int) -> jax.Array:
    return rep.act(g, value, tuple(range(first, value.ndim)))


def _log_det(params: DenseParams) -> jax.Array:
    """log|L| of all blocks together."""
    return sum((jnp.trace(triangle) for triangle in params.triangle), jnp.zeros(()))


@dataclass(frozen=True)
class FullGaussian(_DenseGaussian):
    """One Gaussian with dense covariance over all sites.

    Attributes:
        init_scale: standard deviation at the start.
    """

    init_scale: float = 0.05

    def __post_init__(self) -> None:
        check_scale(self.init_scale)

    def _layouts(self, z: Values) -> tuple[Layout, ...]:
        return (Layout.of(z, tuple(sorted(z))),)


@dataclass(frozen=True)
class BlockGaussian(_DenseGaussian):
    """A Gaussian with dense covariance for every site, independent of the others.

    Attributes:
        init_scale: standard deviation at the start.
    """

    init_scale: float = 0.05

    def __post_init__(self) -> None:
        check_scale(self.init_scale)

    def _layouts(self, z: Values) -> tuple[Layout, ...]:
        return tuple(Layout.of(z, (name,)) for name in sorted(z))
