"""The model at one point as the measurements of curvature see it: Fisher roots, random mixes of them, chunks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro
from bayes_sym.taps import TapRecorder

from .. import rows
from ..problem import Problem, Values
from ..rows import Data
from .dependence import dependent_outputs
from .fisher import Root, fisher_roots


__all__ = ["EXACT", "Probes", "View", "mixer", "moving", "num_columns", "over_chunks", "roots_of", "summed", "visit"]

Observed = dict[str, dict[str, Any]]

_CHUNK_ENTRIES = 2**22  # numbers that a chunk of rows may hold at once


@partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["count"])
@dataclass(frozen=True)
class Probes:
    """How the columns of the Fisher roots are visited: all of them, or in random mixes.

    A mix S u with independent signs u has E[S u u' S'] = S S', and unlike a Fisher information sampled through labels
    its gradient is unbiased too.

    Attributes:
        count: the number of mixes, or None for every column.
        key: the random key of the signs.
    """

    count: int | None = None
    key: jax.Array | None = None


EXACT = Probes()
"""Every column."""


class View(NamedTuple):
    """The model at one point.

    Attributes:
        problem: the model.
        z: unconstrained values of the sites that the evidence integrates over.
        fixed: constrained values of the others.
        data: the rows.
        factor: N/B where they are B of N rows.
        stream: which chunk of rows this is.
    """

    problem: Problem
    z: Values
    fixed: Values
    data: Data
    factor: Any = None
    stream: Any = 0

    def observations(self, z: Values, data: Data, recorder: TapRecorder | None = None) -> Observed:
        """The distribution and the scale of every observed site under the data plate."""
        sites, _ = self.problem.trace(data, unconstrained=z, constrained=self.fixed, factor=self.factor, recorder=recorder)
        return {
            name: {"fn": site["fn"], "scale": site["scale"]}
            for name, site in sites.items()
            if site["type"] == "sample" and site["is_observed"] and _numpyro.in_plate(site, self.problem.data_plate)
        }


def roots_of(observed: Observed, stream: int | jax.Array = 0) -> dict[str, Root]:
    """The Fisher roots of all observed sites, by site and parameter.

    `stream` tells the random labels of different rows or chunks apart, where a distribution needs them.
    """
    key = jax.random.fold_in(jax.random.key(0), stream)
    return {
        f"{name}.{parameter}": root for name, site in observed.items() for parameter, root in fisher_roots(site, key=key).items()
    }


def num_columns(columns: Any) -> int:
    """K: the columns of a root per row."""
    return int(jax.tree.leaves(columns)[0].shape[0])


def mix(columns: Any, signs: jax.Array) -> Any:
    """S u: the cotangent of a root's parameter, for u of shape (K, rows)."""
    return jax.tree.map(lambda leaf: (leaf * signs.reshape(*signs.shape, *(1,) * (leaf.ndim - 2))).sum(axis=0), columns)


def moving(parameters: Callable[[Any], dict[str, Any]], at: Any) -> list[str]:
    """The names of the distribution parameters that can depend on `at`; the others have no curvature."""
    flags = dependent_outputs(parameters, at)
    return [name for name, of_leaves in flags.items() if any(jax.tree.leaves(of_leaves))]


def mixer(roots: dict[str, Any]) -> Callable[[jax.Array], dict[str, Any]]:
    """What turns signs (columns of all roots, rows) into the cotangent of every root's parameter."""

    def of_signs(signs: jax.Array) -> dict[str, Any]:
        cotangents, start = {}, 0
        for name, columns in roots.items():
            cotangents[name] = mix(columns, signs[start : start + num_columns(columns)])
            start += num_columns(columns)
        return cotangents

    return of_signs


def visit(roots: dict[str, Any], probes: Probes, present: jax.Array) -> tuple[Callable[[jax.Array], Any], jax.Array]:
    """How to visit the columns of all roots, or random mixes of them.

    Args:
        roots: the columns of each root, which share their rows.
        probes: which columns.
        present: (rows,), 0 for rows that are padding.

    Returns:
        A function that gives the cotangent of every root's parameter, and what to call it with, one after the other.
    """
    total, size = sum(num_columns(columns) for columns in roots.values()), present.shape[0]
    of_signs = mixer(roots)

    def of_index(index: jax.Array) -> dict[str, Any]:
        return of_signs((jnp.arange(total) == index)[:, None] * present[None])

    def of_key(key: jax.Array) -> dict[str, Any]:
        return of_signs(jax.random.rademacher(key, (total, size), present.dtype) / math.sqrt(probes.count or 1) * present[None])

    if probes.count is None:
        return of_index, jnp.arange(total)
    assert probes.key is not None
    return of_key, jax.random.split(probes.key, probes.count)


def summed(fn: Callable[[Any], Any], over: jax.Array) -> Any:
    """The sum of fn over the leading axis, one at a time; a reverse pass recomputes instead of storing."""
    if len(over) == 1:
        return fn(over[0])
    fn = jax.checkpoint(fn)
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fn, over[0]))
    return jax.lax.scan(lambda sums, one: (jax.tree.map(jnp.add, sums, fn(one)), None), start, over)[0]


def over_chunks(
    view: View, probes: Probes, entries_per_row: int, of_chunk: Callable[[View, Probes, jax.Array], Any], limit: int | None = None
) -> Any:
    """The sum of `of_chunk` over chunks of rows, so that memory does not grow with their number.

    Args:
        view: the model and all rows.
        probes: how columns are visited; every chunk gets a key of its own.
        entries_per_row: the numbers held for each row, from which the size of a chunk follows.
        of_chunk: takes the view of one chunk, its probes, and which of its rows are present (1) or padding (0).
        limit: the most rows of a chunk.
    """
    total = rows.num_rows(view.data)
    size = max(1, min(total if limit is None else limit, total, _CHUNK_ENTRIES // max(1, entries_per_row)))
    chunks = -(-total // size)
    size = -(-total // chunks)
    dtype = jnp.result_type(float)
    if chunks == 1:
        return of_chunk(view, probes, jnp.ones(total, dtype))
    index = jnp.arange(chunks * size).reshape(chunks, size)

    def one(i: jax.Array) -> Any:
        key = None if probes.key is None else jax.random.fold_in(probes.key, i)
        some = view._replace(data=view.problem.take(view.data, jnp.minimum(index[i], total - 1)), stream=i)
        return of_chunk(some, replace(probes, key=key), (index[i] < total).astype(dtype))

    return summed(one, jnp.arange(chunks))
