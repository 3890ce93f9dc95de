"""Sums of products of differences along orbits: of one block of examples, and of all blocks."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.diagnostics import SampledRotations
from bayes_sym.errors import DataError
from bayes_sym.representations import Representation

from .predict import means
from .problem import Problem, Values


__all__ = ["Accumulated", "OrbitSums", "sums_of_block"]


class OrbitSums(NamedTuple):
    """The sums of one block of examples: |d_t|^2 by draw and element, and by example; d_t . sum_{s != t} d_s by draw, by example,
    and by element; and |sum_t d_t|^2 of every set of the sweep.
    """

    margins: tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
    of_sums: tuple[jax.Array, ...]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def sums_of_block(
    problem: Problem,
    site: str | None,
    action: Representation | SampledRotations,
    output: Representation | None,
    count: int,
    sets: tuple[tuple[int, int], ...],
    values: Values,
    center: Values | None,
    x: jax.Array,
    valid: jax.Array,
) -> OrbitSums:
    """Predicts a block of examples at all transforms, by all draws, and reduces the differences to sums.

    Args:
        problem: the model.
        site: the observed site.
        action: the representation on the inputs.
        output: the representation on the outputs, or None.
        count: draws, without those that fill up the last block of them.
        sets: (size, repeats) of the sweep's sets.
        values: draws of the sites, (blocks, draws per block, ...).
        center: the mean around which to linearise, or None.
        x: inputs (examples, ...).
        valid: which of them count, (examples,).
    """
    order, examples = action.group.order, len(x)
    orbit = jnp.concatenate([action.transform(g, x) for g in range(order)])
    found = jax.lax.map(lambda some: means(problem, site, some, center, (orbit,)), values)
    shape = found.shape[3:]
    found = found.reshape(-1, order, examples, *shape)[:count]
    here = found[:, :1]
    if output is not None and order > 1:
        flat = here.reshape(-1, *shape)
        here = jnp.stack([output.transform(g, flat).reshape(found[:, 0].shape) for g in range(1, order)], axis=1)
    d = jnp.where(valid.reshape(1, 1, -1, *(1 for _ in shape)), found[:, 1:] - here, 0).reshape(count, order - 1, examples, -1)
    total = d.sum(axis=0)
    squares, of_columns, of_total = (d * d).sum(axis=(2, 3)), (d * d).sum(axis=0), total * total
    # d_t . (sum of the other draws): sums of it over draws are |sum_t d_t|^2 - sum_t |d_t|^2
    with_total = jnp.einsum("tk,k->t", d.reshape(count, -1), total.reshape(-1), precision="highest")
    of_sums = []
    for size, repeats in sets:
        of_set = d[: size * repeats].reshape(repeats, size, -1).sum(axis=1)
        of_sums.append((of_set * of_set).sum(axis=1))
    margins = (
        squares,
        of_columns.sum(axis=(0, 2)),
        with_total - squares.sum(axis=1),
        (of_total - of_columns).sum(axis=(0, 2)),
        (of_total - of_columns).sum(axis=(1, 2)),
    )
    return OrbitSums(margins, tuple(of_sums))


class Accumulated(NamedTuple):
    """The sums of all blocks so far, in float64, with the (size, repeats) of the sweep's sets."""

    margins: tuple[np.ndarray, ...]
    of_sums: tuple[np.ndarray, ...]
    sets: tuple[tuple[int, int], ...]

    @classmethod
    def zeros(cls, draws: int, order: int, examples: int, sets: tuple[tuple[int, int], ...]) -> Accumulated:
        """Nothing yet."""
        shapes = ((draws, order - 1), (examples,), (draws,), (examples,), (order - 1,))
        return cls(tuple(map(np.zeros, shapes)), tuple(np.zeros(repeats) for _, repeats in sets), sets)

    def add(self, start: int, block: OrbitSums) -> int:
        """Adds the block whose first example is `start`; returns how many examples it has."""
        count = min(len(block.margins[1]), len(self.margins[1]) - start)
        for which, (sums, part) in enumerate(zip(self.margins, block.margins, strict=True)):
            values = np.asarray(part, np.float64)
            if not np.isfinite(values).all():
                raise DataError(
                    f"the predictions in the block of examples from {start} on are not finite: look at the weights for NaN or infinity"
                )
            if which in (1, 3):  # by example
                sums[start : start + count] = values[:count]
            else:
                sums += values
        for sums, part in zip(self.of_sums, block.of_sums, strict=True):
            sums += np.asarray(part, np.float64)
        return count

    def sweep(self) -> tuple[np.ndarray, np.ndarray]:
        """The unbiased and the plug-in defects (sizes, repeats), as sums over elements and examples."""
        squares = self.margins[0].sum(axis=1)
        unbiased, plug_in = [], []
        for (size, repeats), of_sum in zip(self.sets, self.of_sums, strict=True):
            of_each = squares[: size * repeats].reshape(repeats, size).sum(axis=1)
            unbiased.append((of_sum - of_each) / (size * (size - 1)))
            plug_in.append(of_sum / size**2)
        return np.stack(unbiased), np.stack(plug_in)
