"""Convolutions with 3x3 filters by minimal filtering: 16 products for four outputs, where patches take 36 (Winograd's F(2x2, 3x3))."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


__all__ = ["minimal_filtering"]

_FILTERS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def minimal_filtering(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The convolution of x (batch, height + 2, width + 2, inputs) with weight (3, 3, inputs, outputs), at every place.

    Tiles of 4x4 pixels that overlap by two and the filters are taken to 16 frequencies, multiplied there, and taken back:
    y = A^T [(G w G^T) * (B^T x B)] A (Lavin and Gray 2016, equation 8).

    Returns:
        (batch, height, width, outputs).
    """
    height, width = x.shape[1] - 2, x.shape[2] - 2
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    tiles = _to_frequencies(_to_frequencies(x, 2), 2)  # (4, 4, batch, rows, columns, inputs)
    g = _FILTERS.astype(weight.dtype)
    filters = jnp.einsum("au,bv,uvio->abio", g, g, weight)
    found = tiles.reshape(16, -1, tiles.shape[-1]) @ filters.reshape(16, *filters.shape[2:])
    y = _from_frequencies(_from_frequencies(found.reshape(*tiles.shape[:-1], -1), 0), 1)
    y = y.transpose(2, 3, 0, 4, 1, 5).reshape(x.shape[0], height + height % 2, width + width % 2, -1)
    return y[:, :height, :width]


def _to_frequencies(x: jax.Array, axis: int) -> jax.Array:
    """B^T along an axis: a - c, b + c, c - b and b - d of every four pixels a b c d, as a new first axis."""
    even, odd = (jax.lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
    a, b = (jax.lax.slice_in_dim(side, 0, -1, 1, axis) for side in (even, odd))
    c, d = (jax.lax.slice_in_dim(side, 1, None, 1, axis) for side in (even, odd))
    return jnp.stack([a - c, b + c, c - b, b - d])


def _from_frequencies(y: jax.Array, axis: int) -> jax.Array:
    """A^T along an axis of four: a + b + c and b - c - d."""
    a, b, c, d = (jax.lax.index_in_dim(y, i, axis, keepdims=False) for i in range(4))
    return jnp.stack([a + b + c, b - c - d], axis)
