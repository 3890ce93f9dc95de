"""Curvature by its diagonal in an orthonormal basis: what EKFAC measures, and what any other piece is priced by quickly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from ..blocks import Block, DiagonalBlock, KroneckerBlock, Layout, WhitenedBlock
from ..prior_parts import PriorPart
from .pieces import Piece


__all__ = ["Spectrum", "as_matrix", "as_vector", "pair_products", "rotate"]


@partial(jax.tree_util.register_dataclass, data_fields=["products", "left", "right"], meta_fields=["layout", "transposed"])
@dataclass(frozen=True)
class Spectrum(Piece):
    """The diagonal of the whitened curvature L' G L in an orthonormal basis left (x) right (George et al. 2018, EKFAC).

    By Hadamard's inequality its log-determinant is at least the block's, in any orthonormal basis: the basis may be
    stale and is never differentiated; only how tight the bound is depends on it. With L' = sum_c sqrt(v_c) part_c,

        diagonal = sum_{c,d} sqrt(v_c v_d) products[c,d],    products[c,d] = sum_rows (u' part_c r) (u' part_d r).

    Attributes:
        layout: the one site.
        products: (pairs, *stack, inputs, outputs), for the pairs (0,0), (1,0), (1,1), (2,0), ... of components. The stack is
            () for one matrix and (groups,) for several side by side.
        left: orthonormal columns (*stack, inputs, inputs), or None for the identity.
        right: orthonormal columns (*stack, outputs, outputs), or None for the identity.
        transposed: whether the site holds (outputs, inputs).
    """

    layout: Layout
    products: jax.Array
    left: jax.Array | None
    right: jax.Array | None
    transposed: bool

    def _diagonal(self, prior: PriorPart) -> jax.Array:
        variances = [term.variance for term in prior.terms()]
        weights = [
            jnp.sqrt(variances[i] * variances[j]) * (1 if i == j else 2) for i in range(len(variances)) for j in range(i + 1)
        ]
        # a sum of squares; rounding must not make it negative
        return jnp.clip(jnp.tensordot(jnp.stack(weights), self.products, 1), 0)

    def _rotated(self, vector: jax.Array) -> jax.Array:
        return rotate(as_matrix(vector, self.products.shape[1:], self.transposed), self.left, self.right)

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """sum log(1 + diagonal)."""
        return jnp.log1p(self._diagonal(prior)).sum()

    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """By rotating L' gradient into the basis."""
        return (self._rotated(prior.root_transposed(gradient)) ** 2 / (1 + self._diagonal(prior))).sum()

    def posterior(self, prior: PriorPart, mean: jax.Array) -> Block:
        """Independent in the basis, before the root of a correlated prior is applied."""
        scale = 1 / jnp.sqrt(1 + self._diagonal(prior))
        shape = self.products.shape[1:]
        if self.left is None and self.right is None and prior.variances is not None:
            flat = as_vector(scale, self.transposed, len(shape))
            return DiagonalBlock(self.layout, mean, flat * jnp.sqrt(prior.variances))
        left = jnp.broadcast_to(jnp.eye(shape[-2]), (*shape[:-2], *[shape[-2]] * 2)) if self.left is None else self.left
        right = jnp.broadcast_to(jnp.eye(shape[-1]), (*shape[:-2], *[shape[-1]] * 2)) if self.right is None else self.right
        if prior.variance is not None:
            scale = scale * jnp.sqrt(prior.variance)
            return KroneckerBlock(self.layout, as_matrix(mean, shape, self.transposed), left, right, scale, self.transposed)
        whitened = KroneckerBlock(self.layout, jnp.zeros(shape, mean.dtype), left, right, scale, self.transposed)
        return WhitenedBlock(mean, whitened, prior.fn)


def pair_products(parts: list[jax.Array]) -> jax.Array:
    """Products of the components' rows, summed over rows, in the order of pairs in which a `Spectrum` holds them."""
    return jnp.stack([(parts[i] * parts[j]).sum(axis=0) for i in range(len(parts)) for j in range(i + 1)])


def as_matrix(vector: jax.Array, shape: tuple[int, ...], transposed: bool) -> jax.Array:
    """The flat values (..., size) of a site as matrices (..., *shape), the shape being (*stack, inputs, outputs)."""
    if transposed:
        return jnp.swapaxes(vector.reshape(*vector.shape[:-1], *shape[:-2], shape[-1], shape[-2]), -1, -2)
    return vector.reshape(*vector.shape[:-1], *shape)


def as_vector(matrix: jax.Array, transposed: bool, axes: int = 2) -> jax.Array:
    """The flat values of a site from matrices (..., *stack, inputs, outputs), whose last `axes` axes are one site's."""
    matrix = jnp.swapaxes(matrix, -1, -2) if transposed else matrix
    return matrix.reshape(*matrix.shape[:-axes], -1)


def rotate(matrix: jax.Array, left: jax.Array | None, right: jax.Array | None) -> jax.Array:
    """left' matrix right, where None is the identity."""
    if left is not None:
        matrix = jnp.einsum("...ia,...io->...ao", left, matrix)
    return matrix if right is None else jnp.einsum("...io,...ob->...ib", matrix, right)
