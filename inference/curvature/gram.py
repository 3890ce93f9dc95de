"""Dense curvature: a matrix, its few rows (the dual form), or kernels of blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

from bayes_sym.errors import CurvatureError

from ..blocks import Block, DenseBlock, Layout
from ..prior_parts import PriorPart
from .eigen import eigh
from .pieces import Piece
from .spectrum import Spectrum


__all__ = ["DataSide", "Dual", "Gram", "Rows"]


def _weighted(weights: jax.Array, grams: jax.Array) -> jax.Array:
    """sum_c weights[c] grams[c]. As the product of a vector and a matrix: its gradient copies nothing."""
    return (weights @ grams.reshape(len(grams), -1)).reshape(grams.shape[1:])


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

    def settled(self, prior: PriorPart) -> Piece:
        """With its eigenvalues, where the prior is a multiple of the identity."""
        if prior.variance is None:
            return self
        values, vectors = eigh(self.matrix)
        return Spectrum(self.layout, jnp.clip(values, 0)[None, :, None], vectors, None, False)

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


@partial(jax.tree_util.register_dataclass, data_fields=["grams", "multiplier"], meta_fields=["layout"])
@dataclass(frozen=True)
class DataSide(Piece):
    """A bound from the data's side: blocks of square-root Fisher rows R, priced one by one (Immer et al. 2023).

    By Fischer's inequality log|I + R L L' R'| is at most the sum over any partition of the rows. With the rows'
    kernels per component c of the prior, the sum is ``multiplier * sum_b log|I + sum_c variance_c grams[c, b]|``.

    Attributes:
        layout: all sites.
        grams: (components, blocks, m, m).
        multiplier: the number of blocks over the number that is here.
    """

    layout: Layout
    grams: jax.Array
    multiplier: jax.Array

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """An upper bound; of blocks drawn at random, an unbiased estimate of it."""
        variances = jnp.stack([term.variance for term in prior.terms()])
        kernels = _weighted(variances, self.grams)
        whole = jnp.eye(kernels.shape[-1], dtype=kernels.dtype)[None] + (kernels + jnp.swapaxes(kernels, -1, -2)) / 2
        return self.multiplier * jax.lax.map(lambda block: _cholesky_log_det(block)[1], whole).sum()

    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """gradient' D^-1 gradient, an upper bound: rows in blocks imply no curvature of the parameters."""
        return (prior.root_transposed(gradient) ** 2).sum()

    def posterior(self, prior: PriorPart, mean: jax.Array) -> Block:
        """There is none."""
        raise CurvatureError(
            "curvature='ntk' bounds the evidence from the data's side and gives no posterior over the weights: use it as "
            "Laplace(objective='ntk') beside a curvature of the weights"
        )


@partial(jax.tree_util.register_dataclass, data_fields=["grams", "response", "residual", "values"], meta_fields=["layout"])
@dataclass(frozen=True)
class Dual(Piece):
    """The exact curvature R' R of all sites by the kernels of its rows R, with what a linear regression on them needs.

    At a point theta the linearised model has the rows R, unit noise, and targets t = R (theta - mean) + e with e the
    whitened residuals: R' e is the gradient of the log likelihood, or what the chosen rows tell of it.

    Attributes:
        layout: all sites.
        grams: (components, m, m) of the prior's components.
        response: t, (m,).
        residual: e, (m,).
        values: theta, (size,).
    """

    layout: Layout
    grams: jax.Array
    response: jax.Array
    residual: jax.Array
    values: jax.Array

    def _whole(self, prior: PriorPart) -> jax.Array:
        kernel = _weighted(jnp.stack([term.variance for term in prior.terms()]), self.grams)
        return jnp.eye(len(kernel), dtype=kernel.dtype) + (kernel + kernel.T) / 2

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """log|I + R L L' R'|."""
        return _cholesky_log_det(self._whole(prior))[1]

    def decrement(self, prior: PriorPart, gradient: jax.Array | None = None) -> jax.Array:
        """Of the gradient R' e - D (theta - mean) of its own rows: scatter + e'e - t' (I + R L L' R')^-1 t."""
        lower = jnp.linalg.cholesky(self._whole(prior))
        fit = (solve_triangular(lower, self.response, lower=True) ** 2).sum()
        return prior.scatter(self.values) + (self.residual**2).sum() - fit

    def seen(self, prior: PriorPart) -> jax.Array:
        """The scatter that the rows see, u' (I + R L L' R')^-1 u with u = R (theta - mean).

        Along the eigenvectors of L' G L it weighs the scatter by l / (1 + l), l being the eigenvalue: weights that the data
        do not determine do not count, whether or not training has brought them to their prior mean.
        """
        lower = jnp.linalg.cholesky(self._whole(prior))
        return (solve_triangular(lower, self.response - self.residual, lower=True) ** 2).sum()

    def posterior(self, prior: PriorPart, mean: jax.Array) -> Block:
        """None is kept: the rows themselves are not."""
        raise CurvatureError(
            "curvature='dual' keeps kernels of rows and gives no posterior over the weights: use it as Laplace(objective='dual') "
            "beside another curvature, or 'full'"
        )
