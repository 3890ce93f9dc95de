"""One jitted chunk of steps, the rows that it sees, and where arrays lie on a mesh of devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from . import rows
from .problem import Problem
from .rows import Data
from .scheme import Info, Scheme


__all__ = ["RowStream", "place", "run_chunk", "start_state", "with_auto_axes"]


@partial(jax.jit, static_argnames=("scheme", "problem"))
def start_state(scheme: Scheme, problem: Problem, key: jax.Array, data: Data) -> Any:
    """The scheme's state before the first step."""
    return scheme.init(key, problem, data)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def run_chunk(
    scheme: Scheme,
    problem: Problem,
    mesh: Mesh | None,
    size: int,
    state: Any,
    *,
    key: jax.Array,
    data: Data,
    index: jax.Array | None,
    factor: jax.Array,
    start: jax.Array,
    count: jax.Array,
) -> tuple[Any, jax.Array, Any]:
    """`count` <= `size` steps; one program serves every count, so a short last chunk compiles nothing."""

    def step(i: jax.Array, state: Any) -> tuple[Any, Info]:
        batch = data
        if index is not None:
            batch = problem.take(data, index[i])
            if mesh is not None:
                spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
                mask = rows.row_mask(data, problem.row_args)
                leaves, structure = jax.tree.flatten(batch)
                leaves = [jax.lax.with_sharding_constraint(a, spread) if m else a for a, m in zip(leaves, mask, strict=True)]
                batch = jax.tree.unflatten(structure, leaves)
        return scheme.step(jax.random.fold_in(key, start + i), state, problem, batch, factor)

    _, info = jax.eval_shape(step, jnp.zeros((), int), state)
    buffers = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), info)

    def body(i: jax.Array, carry: tuple[Any, Info]) -> tuple[Any, Info]:
        state, kept = carry
        state, info = step(i, state)
        return state, jax.tree.map(lambda buffer, leaf: buffer.at[i].set(leaf), kept, info)

    state, kept = jax.lax.fori_loop(0, count, body, (state, buffers))
    return state, kept.loss, kept.record


class RowStream:
    """Batches cut from an endless stream of permutations of the rows, each epoch with a seed of its own."""

    def __init__(self, key: jax.Array, count: int, batch_size: int) -> None:
        self.seed = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        self.count, self.batch_size = count, batch_size

    def table(self, start: int, end: int, size: int) -> jax.Array:
        """Row indices (size, batch_size); the steps start..end-1 come first, the rest is padding."""
        first, last = start * self.batch_size, end * self.batch_size
        epochs = range(first // self.count, -(-last // self.count))
        order = np.concatenate([np.random.default_rng([*self.seed, epoch]).permutation(self.count) for epoch in epochs])
        skip = first - epochs[0] * self.count
        table = np.zeros((size, self.batch_size), np.int32)
        table[: end - start] = order[skip : skip + last - first].reshape(end - start, self.batch_size)
        return jnp.asarray(table)


def with_auto_axes(mesh: Mesh) -> Mesh:
    """The same devices, with axes along which the compiler chooses the shardings."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def place(mesh: Mesh | None, problem: Problem, state: Any, data: Data, batch_size: int | None) -> tuple[Any, Data]:
    """State on every device; data on every device too where batches are picked from them, else spread by rows."""
    if mesh is None:
        return state, data
    everywhere = NamedSharding(mesh, PartitionSpec())
    spread = everywhere if batch_size is not None else NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    leaves, structure = jax.tree.flatten(data)
    mask = rows.row_mask(data, problem.row_args)
    placed = [jax.device_put(leaf, spread if is_row else everywhere) for leaf, is_row in zip(leaves, mask, strict=True)]
    return jax.device_put(state, everywhere), jax.tree.unflatten(structure, placed)
