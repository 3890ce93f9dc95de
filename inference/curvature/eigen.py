"""Eigen-decompositions that may be batched: under vmap they run one after the other.

A jitted program with a dozen independent batched eigen-decompositions hangs for ever on two cores with jaxlib 0.10.2,
and vmap over an evidence makes a batched one of every factor. One at a time they neither hang nor run slower.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap


__all__ = ["eigh", "eigvalsh"]


@sequential_vmap
def _system(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@sequential_vmap
def _values(matrix: jax.Array) -> jax.Array:
    return jnp.linalg.eigvalsh(matrix)


@jax.custom_jvp
def _differentiable(matrix: jax.Array) -> jax.Array:
    return _values(matrix)


@_differentiable.defjvp
def _eigvalsh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    values, vectors = _system(primals[0])
    return values, (vectors * (tangents[0] @ vectors)).sum(axis=0)


def eigvalsh(matrix: jax.Array) -> jax.Array:
    """Eigenvalues of a symmetric matrix (or of each in a stack), ascending.

    The first derivative of a symmetric function of them is exact, also where eigenvalues coincide.
    """
    return _differentiable(matrix) if matrix.ndim == 2 else jax.lax.map(_differentiable, matrix)


def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors of a symmetric matrix (or of each in a stack), held constant under differentiation.

    Derivatives of eigenvectors are silently wrong where eigenvalues coincide, so nothing here asks for them.
    """
    matrix = jax.lax.stop_gradient(matrix)
    return _system(matrix) if matrix.ndim == 2 else jax.lax.map(_system, matrix)
