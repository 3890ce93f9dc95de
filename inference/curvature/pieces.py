"""Pieces of curvature: each prices a prior (log-determinants), measures a Newton decrement, and gives a posterior block.

With a prior covariance L L' and a curvature G, everything is computed from I + L' G L, which is never smaller than
the identity: the log-determinant ratio log|G + D| - log|D| is stable in float32 for every strength of the prior.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from bayes_sym.errors import PriorError

from ..blocks import Block, DenseBlock, DiagonalBlock, KroneckerBlock, Layout
from .prior_parts import PriorPart


__all__ = ["Diagonal", "Gram", "Kronecker", "Piece", "Rows"]


class Piece(abc.ABC):
    """The curvature of the sites in `layout`."""

    layout: Layout

    @abc.abstractmethod
    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """log|G + D| - log|D|, with D the prior precision."""

    @abc.abstractmethod
    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """gradient' (G + D)^-1 gradient."""

    @abc.abstractmethod
    def posterior(self, prior: PriorPart, mean: jax.Array) -> Block:
        """N(mean, (G + D)^-1)."""


def _cholesky_log_det(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    lower = jnp.linalg.cholesky(matrix)
    return lower, 2 * jnp.log(jnp.diagonal(lower)).sum()


@partial(jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=["layout"])
@dataclass(frozen=True)
class Gram(Piece):
    """A dense curvature `matrix` (size, size)."""

    layout: Layout
    matrix: jax.Array

    def _whitened(self, prior: PriorPart) -> jax.Array:
        inner = prior.root_transposed(prior.root_transposed(self.matrix).T)
        return jnp.eye(prior.size, dtype=inner.dtype) + (inner + inner.T) / 2

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """log|I + L' G L|."""
        return _cholesky_log_det(self._whitened(prior))[1]

    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """By one Cholesky factorisation."""
        h = prior.root_transposed(gradient)
        return h @ cho_solve((jnp.linalg.cholesky(self._whitened(prior)), True), h)

    def posterior(self, prior: PriorPart, mean: jax.Array) -> DenseBlock:
        """Covariance L (I + L' G L)^-1 L'."""
        lower = jnp.linalg.cholesky(self._whitened(prior))
        inverse = solve_triangular(lower, jnp.eye(prior.size, dtype=lower.dtype), lower=True)
        return DenseBlock(self.layout, mean, prior.root(inverse).T)


@partial(jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=["layout"])
@dataclass(frozen=True)
class Rows(Piece):
    """A curvature R' R held by its few rows R (rows, size): the dual form, exact like `Gram`."""

    layout: Layout
    matrix: jax.Array

    def _dual(self, prior: PriorPart) -> tuple[jax.Array, jax.Array]:
        whitened = prior.root_transposed(self.matrix)
        return whitened, jnp.eye(len(whitened), dtype=whitened.dtype) + whitened @ whitened.T

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """log|I + R L L' R'|."""
        return _cholesky_log_det(self._dual(prior)[1])[1]

    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """By the Woodbury identity."""
        whitened, dual = self._dual(prior)
        h = prior.root_transposed(gradient)
        seen = whitened @ h
        return h @ h - seen @ cho_solve((jnp.linalg.cholesky(dual), True), seen)

    def posterior(self, prior: PriorPart, mean: jax.Array) -> DenseBlock:
        """As `Gram` does."""
        return Gram(self.layout, self.matrix.T @ self.matrix).posterior(prior, mean)


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["layout"])
@dataclass(frozen=True)
class Diagonal(Piece):
    """A diagonal curvature, (size,)."""

    layout: Layout
    values: jax.Array

    def _variances(self, prior: PriorPart) -> jax.Array:
        if prior.variances is None:
            raise PriorError(
                f"a diagonal curvature prices independent priors only, and that of {list(self.layout.names)} is correlated: use "
                "curvature='full' or 'block'"
            )
        return prior.variances

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """sum log(1 + values * variances)."""
        return jnp.log1p(self.values * self._variances(prior)).sum()

    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """sum gradient^2 / (values + 1/variances)."""
        return (gradient**2 / (self.values + 1 / self._variances(prior))).sum()

    def posterior(self, prior: PriorPart, mean: jax.Array) -> DiagonalBlock:
        """Independent coordinates."""
        return DiagonalBlock(self.layout, mean, 1 / jnp.sqrt(self.values + 1 / self._variances(prior)))


@partial(jax.tree_util.register_dataclass, data_fields=["inputs", "outputs"], meta_fields=["layout", "transposed"])
@dataclass(frozen=True)
class Kronecker(Piece):
    """The curvature inputs (x) outputs of one weight (inputs, outputs), or (outputs, inputs) if `transposed`."""

    layout: Layout
    inputs: jax.Array
    outputs: jax.Array
    transposed: bool

    def _variance(self, prior: PriorPart) -> jax.Array:
        if prior.variance is not None:
            return prior.variance
        if prior.variances is not None and not isinstance(prior.variances, jax.core.Tracer):
            values = np.asarray(prior.variances)
            if (values == values[0]).all():
                return prior.variances[0]
        raise PriorError(
            f"Kronecker curvature prices one scalar variance per site, and the prior of {list(self.layout.names)} is not of that kind: "
            "give it a scalar scale, as in dist.Normal(0, scale).expand(shape).to_event(), split it into pathways with a scale each, or "
            "use curvature='full' or 'block'"
        )

    def _matrix(self, vector: jax.Array) -> jax.Array:
        shape = (self.inputs.shape[0], self.outputs.shape[0])
        return vector.reshape(shape[::-1]).T if self.transposed else vector.reshape(shape)

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """From eigenvalues only: their gradient is exact even where factors are rank-deficient."""
        a, b = (jnp.clip(jnp.linalg.eigvalsh(factor), 0) for factor in (self.inputs, self.outputs))
        return jnp.log1p(jnp.outer(a, b) * self._variance(prior)).sum()

    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """By an implicit solve of A X B + X / variance = gradient, whose derivative needs no eigenvectors."""
        matrix, precision = self._matrix(gradient), 1 / self._variance(prior)
        a, left = jnp.linalg.eigh(jax.lax.stop_gradient(self.inputs))
        b, right = jnp.linalg.eigh(jax.lax.stop_gradient(self.outputs))
        spectrum = jnp.outer(jnp.clip(a, 0), jnp.clip(b, 0)) + jax.lax.stop_gradient(precision)
        solution = jax.lax.custom_linear_solve(
            lambda x: self.inputs @ x @ self.outputs + precision * x,
            matrix,
            lambda _, right_side: left @ ((left.T @ right_side @ right) / spectrum) @ right.T,
            symmetric=True,
        )
        return (matrix * solution).sum()

    def posterior(self, prior: PriorPart, mean: jax.Array) -> KroneckerBlock:
        """Independent in the basis of the factors' eigenvectors."""
        a, left = jnp.linalg.eigh(self.inputs)
        b, right = jnp.linalg.eigh(self.outputs)
        scale = 1 / jnp.sqrt(jnp.outer(jnp.clip(a, 0), jnp.clip(b, 0)) + 1 / self._variance(prior))
        return KroneckerBlock(self.layout, self._matrix(mean), left, right, scale, self.transposed)
