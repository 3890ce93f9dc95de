"""Sums over blocks of rows, one at a time: the same value and gradient in the memory of one block, which a CPU's caches hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym.errors import OptionError

from . import rows
from .rows import Data


__all__ = ["RowBlocks", "mean_gradient"]


class RowBlocks:
    """The data cut into blocks of `size` rows: row i is in block i modulo the number of blocks.

    Neighbours go to different blocks, so that rows spread over devices stay spread.

    Args:
        data: the arguments of the model.
        size: rows of a block.
        row_args: which arguments are rows, as in `Problem`.

    Raises:
        OptionError: `size` does not divide the number of rows.
    """

    def __init__(self, data: Data, size: int, row_args: tuple[int, ...] | None) -> None:
        total = rows.num_rows(data)
        if total % size:
            raise OptionError(f"rows_at_once={size} does not divide the {total} rows that a step sees: choose a divisor")
        leaves, self._structure = jax.tree.flatten(data)
        self._mask = rows.row_mask(data, row_args)
        self.count = total // size
        self._leaves = [
            jnp.moveaxis(leaf.reshape(size, self.count, *leaf.shape[1:]), 1, 0) if is_row else leaf
            for leaf, is_row in zip(leaves, self._mask, strict=True)
        ]

    def __getitem__(self, i: int | jax.Array) -> Data:
        """Block `i`."""
        return jax.tree.unflatten(
            self._structure,
            [leaf[i] if is_row else leaf for leaf, is_row in zip(self._leaves, self._mask, strict=True)],
        )


def mean_gradient(
    part: Callable[[Any, Any, Data, jax.Array], jax.Array], params: Any, draws: Any, blocks: RowBlocks
) -> tuple[jax.Array, Any]:
    """The mean of part(params, draw, block, i) over draws (leading axes) and blocks i, and its gradient in `params`."""
    num_draws = jax.tree.leaves(draws)[0].shape[0]

    def body(k: jax.Array, total: Any) -> Any:
        draw, i = jax.tree.map(lambda leaf: leaf[k // blocks.count], draws), k % blocks.count
        found = jax.value_and_grad(part)(params, draw, blocks[i], i)
        return jax.tree.map(jnp.add, total, found)

    shapes = jax.eval_shape(
        jax.value_and_grad(part), params, jax.tree.map(lambda leaf: leaf[0], draws), blocks[0], jnp.zeros((), int)
    )
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    count = num_draws * blocks.count
    total = jax.lax.fori_loop(0, count, body, start)
    return jax.tree.map(lambda leaf: leaf / count, total)
