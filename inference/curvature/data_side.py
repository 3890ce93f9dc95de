"""The bound from the data's side: kernels between square-root Fisher rows, in blocks of data rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import rows
from ..blocks import Layout
from ..prior_parts import PriorPart
from .gram import DataSide
from .rowwise import moving_roots, row_count, rows_of
from .tapped import Uses, gradients_of, together
from .view import Probes, View, summed


__all__ = ["data_side", "one_position"]


def data_side(view: View, uses: Uses, priors: Mapping[str, PriorPart], probes: Probes, block_size: int) -> DataSide:
    """Kernels of blocks of `block_size` data rows, by component of the prior.

    With all columns, a block holds its rows' K square-root Fisher rows each, and every block is here: the bound. With
    `probes.count`, that many cells (one block of rows drawn at random, one column of the Fisher root) are drawn, from
    which the bound of single columns is estimated without bias.
    """
    layout = Layout.of(view.z)
    count = rows.num_rows(view.data)
    size = min(block_size, count)
    blocks = -(-count // size)
    factor = 1.0 if view.factor is None else view.factor
    view = view._replace(factor=None)  # a batch of rows stands for more blocks, not for heavier rows
    names = moving_roots(view, layout)
    columns = row_count(view, layout)

    def kernels(index: jax.Array, which: jax.Array | None) -> jax.Array:
        return _kernels(view, uses, priors, names, index, which)

    if probes.count is None:
        index = jnp.arange(blocks * size).reshape(blocks, size)
        grams = _each(lambda index: kernels(index, None), index)
        return DataSide(layout, jnp.swapaxes(grams, 0, 1), jnp.asarray(1.0 * factor))
    assert probes.key is not None
    key_rows, key_blocks, key_columns = jax.random.split(probes.key, 3)
    order = jnp.concatenate([jax.random.permutation(key_rows, count), jnp.full(blocks * size - count, count)])
    chosen = jax.random.randint(key_blocks, (probes.count,), 0, blocks)
    which = jax.random.randint(key_columns, (probes.count,), 0, columns)
    grams = _each(lambda cell: kernels(*cell), (order.reshape(blocks, size)[chosen], which))
    return DataSide(layout, jnp.swapaxes(grams, 0, 1), jnp.asarray(blocks * columns * factor / probes.count))


def _each(fn: Callable[[Any], jax.Array], over: Any) -> jax.Array:
    """fn of every entry, one at a time."""
    if len(jax.tree.leaves(over)[0]) == 1:
        return fn(jax.tree.map(lambda leaf: leaf[0], over))[None]
    return jax.lax.map(jax.checkpoint(fn), over)


def _kernels(
    view: View, uses: Uses, priors: Mapping[str, PriorPart], names: list[str], index: jax.Array, which: jax.Array | None
) -> jax.Array:
    """(components, m, m) for the data rows in `index` (padding beyond their number), and one column or all of them."""
    count = rows.num_rows(view.data)
    some = view._replace(data=view.problem.take(view.data, jnp.minimum(index, count - 1)))
    present = (index < count).astype(jnp.result_type(float))
    gradients: dict[str, jax.Array] = {}
    inputs: dict[str, jax.Array] = {}
    if uses.weights or uses.biases:
        back = gradients_of(some, Probes(), present, names)
        visits = back.visits if which is None else which[None]
        gradients, inputs = jax.vmap(back.gradients)(visits), back.inputs  # gradients (columns, rows, positions, out)

    found = []
    for name in view.z:
        terms = priors[name].terms()
        if name in uses.weights:
            use = uses.weights[name]
            g = together(use.taps, gradients, axis=2)
            a = together(use.taps, inputs)
            if g.shape[2] == 1 and len(terms) == 1 and terms[0].part is None:
                found.append(one_position(a[:, 0], g[:, :, 0]))
                continue
            whole = use.vector(jnp.einsum("nr...a,knr...b->kn...ab", a, g))
        elif name in uses.biases:
            g = together(uses.biases[name], gradients, axis=2)
            whole = g.reshape(*g.shape[:2], -1, g.shape[-1]).sum(axis=2)
        else:
            whole = jnp.swapaxes(rows_of(some, Layout.of(view.z, (name,)), Probes(), present, names), 0, 1)
            whole = whole if which is None else whole[which][None]
        flat = whole.reshape(-1, whole.shape[-1])
        for term in terms:
            part = term.apply(flat)
            found.append(part @ part.T)
    return jnp.stack(found)


def one_position(a: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel of gradients a g': the product of those of a (rows, *stack, in) and of g (columns, rows, *stack, out)."""
    columns = g.shape[0]
    flat = g.reshape(-1, *g.shape[2:])

    def product(a: jax.Array, flat: jax.Array) -> jax.Array:
        return jnp.tile(a @ a.T, (columns, columns)) * (flat @ flat.T)

    if a.ndim == 2:
        return product(a, flat)
    return summed(lambda i: product(a[:, i], flat[:, i]), jnp.arange(a.shape[1]))
