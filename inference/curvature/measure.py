"""Measuring curvature: Gram matrices, diagonals and Kronecker factors of the square-root Fisher rows of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro
from bayes_sym.errors import CurvatureError, TapError
from bayes_sym.taps import TapMeta, TapRecorder

from .. import rows
from ..blocks import Layout
from ..problem import Problem, Structure, Values
from ..rows import Data
from .dependence import dependent_outputs
from .fisher import Root, fisher_roots
from .pieces import Diagonal, Gram, Kronecker, Piece, Rows


__all__ = ["CURVATURES", "measure"]

CURVATURES = ("full", "block", "diag", "kfac", "kfac_reduce")
"""The curvatures that can be measured."""

_LARGEST_DENSE = 20_000  # parameters of one dense block
_LARGEST_FALLBACK = 1024  # parameters of a site without a tap that still gets a dense block
_BLOCK_ENTRIES = 2**23  # entries of square-root Fisher rows that are held at once


class _View(NamedTuple):
    """The model at one point: what the measurements below share."""

    problem: Problem
    z: Values
    fixed: Values
    data: Data

    def roots(self, z: Values, data: Data, recorder: TapRecorder | None = None) -> dict[str, Root]:
        """The Fisher roots of all observed sites, by site and parameter."""
        sites, _ = self.problem.trace(data, unconstrained=z, constrained=self.fixed, recorder=recorder)
        return {
            f"{name}.{parameter}": root
            for name, site in sites.items()
            if site["type"] == "sample" and site["is_observed"] and _numpyro.in_plate(site, self.problem.data_plate)
            for parameter, root in fisher_roots(site).items()
        }


def measure(problem: Problem, z: Values, fixed: Values, data: Data, curvature: str) -> tuple[Piece, ...]:
    """The curvature of the negative log likelihood (generalised Gauss-Newton) at `z`, in pieces that cover every site.

    Args:
        problem: the model.
        z: unconstrained values of the sites that the evidence integrates over.
        fixed: constrained values of the others.
        data: all rows.
        curvature: one of `CURVATURES`. ``"full"`` is the exact matrix; ``"block"`` its blocks per site; ``"diag"`` its
            diagonal; ``"kfac"`` and ``"kfac_reduce"`` Kronecker factors per tapped weight (sums over shared axes after
            or before the outer products), with dense blocks, or diagonals where large, for sites without a tap.

    Raises:
        CurvatureError: unknown or too large.
    """
    view = _View(problem, z, fixed, data)
    if curvature == "full":
        return (_full(view, Layout.of(z)),)
    if curvature == "block":
        return tuple(_gram(view, Layout.of(z, (name,))) for name in z)
    if curvature == "diag":
        return tuple(_diagonal(view, Layout.of(z, (name,))) for name in z)
    if curvature in ("kfac", "kfac_reduce"):
        return _kronecker(view, problem.structure(*data), reduce=curvature == "kfac_reduce")
    raise CurvatureError(f"unknown curvature {curvature!r}: choose one of {', '.join(CURVATURES)}")


# Square-root Fisher rows, one data row at a time. Rows are independent given the weights, so a vmap over rows of the
# model on one row gives them for any model, tapped or not.


def _row_function(view: _View, layout: Layout) -> tuple[Callable[[Data], jax.Array], int]:
    """A function from one data row to its square-root Fisher rows (K, size), and K."""
    flat = layout.flatten(view.z)
    example = view.problem.take(view.data, slice(0, 1))

    def roots(flat: jax.Array, row: Data) -> dict[str, Root]:
        return view.roots({**view.z, **layout.unflatten(flat)}, row)

    def parameters(flat: jax.Array) -> dict[str, jax.Array]:
        return {name: root.parameter for name, root in roots(flat, example).items()}

    moving = [name for name, depends in dependent_outputs(parameters, flat).items() if depends]
    shapes = jax.eval_shape(lambda: {name: root.columns for name, root in roots(flat, example).items()})
    count = sum(shapes[name].shape[0] for name in moving)

    def of_row(row: Data) -> jax.Array:
        def forward(flat: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
            found = roots(flat, row)
            return {name: found[name].parameter for name in moving}, {name: found[name].columns for name in moving}

        values, pull, columns = jax.vjp(forward, flat, has_aux=True)
        zeros = jax.tree.map(jnp.zeros_like, values)
        parts = [jax.vmap(lambda column, name=name: pull({**zeros, name: column})[0])(columns[name]) for name in moving]
        return jnp.concatenate(parts) if parts else jnp.zeros((0, layout.size), flat.dtype)

    return of_row, count


def _over_rows(view: _View, of_row: Callable[[Data], jax.Array], index: jax.Array) -> jax.Array:
    """(len(index), K, size)."""
    leaves, structure = jax.tree.flatten(view.data)
    mask = rows.row_mask(view.data, view.problem.row_args)

    def one(i: jax.Array) -> jax.Array:
        return of_row(
            jax.tree.unflatten(structure, [leaf[i][None] if is_row else leaf for leaf, is_row in zip(leaves, mask, strict=True)])
        )

    return jax.vmap(one)(index)


def _full(view: _View, layout: Layout) -> Piece:
    _, count = _row_function(view, layout)
    total = rows.num_rows(view.data) * count
    return _all_rows(view, layout) if total < layout.size else _gram(view, layout)


def _all_rows(view: _View, layout: Layout) -> Rows:
    of_row, _ = _row_function(view, layout)
    _check_dense(rows.num_rows(view.data), layout)
    everything = _over_rows(view, of_row, jnp.arange(rows.num_rows(view.data)))
    return Rows(layout, everything.reshape(-1, layout.size))


def _check_dense(size: int, layout: Layout) -> None:
    if max(size, layout.size) > _LARGEST_DENSE:
        raise CurvatureError(
            f"a dense curvature of {layout.size} parameters would take {layout.size**2 * 4 / 2**30:.1f} GiB in float32: use "
            "curvature='kfac' or 'diag'"
        )


def _accumulate(view: _View, layout: Layout, add: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The sum over data of add(rows), in chunks so that memory does not grow with N."""
    of_row, count = _row_function(view, layout)
    total = rows.num_rows(view.data)
    size = max(1, min(total, _BLOCK_ENTRIES // max(1, count * layout.size)))
    chunks = -(-total // size)
    size = -(-total // chunks)
    index = jnp.arange(chunks * size).reshape(chunks, size)

    @jax.checkpoint
    def of_chunk(index: jax.Array) -> jax.Array:
        found = _over_rows(view, of_row, jnp.minimum(index, total - 1)) * (index < total)[:, None, None]
        return add(found.reshape(-1, layout.size))

    if chunks == 1:
        return of_chunk(index[0])
    start = jax.eval_shape(of_chunk, index[0])
    return jax.lax.scan(lambda sum_, i: (sum_ + of_chunk(i), None), jnp.zeros(start.shape, start.dtype), index)[0]


def _gram(view: _View, layout: Layout) -> Gram:
    _check_dense(0, layout)
    return Gram(layout, _accumulate(view, layout, lambda found: found.T @ found))


def _diagonal(view: _View, layout: Layout) -> Diagonal:
    return Diagonal(layout, _accumulate(view, layout, lambda found: (found**2).sum(axis=0)))


# Kronecker factors from taps. With inputs a and pre-activation gradients g (columns k of the Fisher root, shared
# positions r), expand: A = mean_{n,r} a a', B = sum_{n,k,r} g g'; reduce: a = mean_r a, g = sum_r g.


def _kronecker(view: _View, structure: Structure, *, reduce: bool) -> tuple[Piece, ...]:
    taps = {name: meta for name, meta in structure.taps.items() if meta.weight in view.z or meta.bias in view.z}
    inputs, outer = _tap_factors(view, taps, reduce=reduce) if taps else ({}, {})
    pieces: dict[str, Piece] = {}
    for weight in dict.fromkeys(meta.weight for meta in taps.values()):
        uses = [name for name, meta in taps.items() if meta.weight == weight]
        # Several taps of one weight count as more positions along its shared axis.
        b = sum((outer[name] for name in uses), jnp.zeros(()))
        if weight in view.z:
            a = sum((inputs[name][0] for name in uses), jnp.zeros(())) / sum(inputs[name][1] for name in uses)
            layout = Layout.of(view.z, (weight,))
            pieces[weight] = Kronecker(layout, a, b, _transposed(weight, layout, a.shape[0], b.shape[0], taps[uses[0]]))
    for bias in dict.fromkeys(meta.bias for meta in taps.values()):
        if bias is not None and bias in view.z:
            b = sum((outer[name] for name, meta in taps.items() if meta.bias == bias), jnp.zeros(()))
            layout = Layout.of(view.z, (bias,))
            if layout.size != len(b):
                raise TapError(
                    f"a tap of bias {bias!r} has {len(b)} outputs, but the site has shape {layout.shapes[0]}: name as bias= only a site "
                    "with one entry per output, and leave others to be treated as sites without a tap"
                )
            pieces[bias] = Gram(layout, b)
    for name in view.z:
        if name not in pieces:
            layout = Layout.of(view.z, (name,))
            pieces[name] = _gram(view, layout) if layout.size <= _LARGEST_FALLBACK else _diagonal(view, layout)
    return tuple(pieces[name] for name in view.z)


def _transposed(weight: str, layout: Layout, inputs: int, outputs: int, meta: TapMeta) -> bool:
    shape = layout.shapes[0]
    if layout.size != inputs * outputs:
        raise TapError(
            f"the tap of {weight!r} has {inputs} inputs and {outputs} outputs, but the site has shape {shape} with {layout.size} entries: "
            "pass the arrays that the weight multiplies as inputs=, e.g. the patches of a convolution"
        )
    if not shape or shape[-1] == outputs:
        return False
    sizes = [math.prod(shape[:i]) for i in range(len(shape) + 1)]
    if inputs not in sizes and outputs not in sizes:
        raise TapError(
            f"the site {weight!r} of shape {shape} is neither an ({inputs}, {outputs}) nor an ({outputs}, {inputs}) matrix, as its tap "
            "says: give the site one of these shapes, or axes that can be merged into one of them"
        )
    return shape[0] == outputs or inputs not in sizes


def _tap_factors(
    view: _View, taps: dict[str, TapMeta], *, reduce: bool
) -> tuple[dict[str, tuple[jax.Array, int]], dict[str, jax.Array]]:
    """Per tap: (sum of a a', number of terms), and B = sum g g'."""

    def forward(shifts: Values) -> tuple[dict[str, jax.Array], tuple[dict[str, jax.Array], Values]]:
        recorder = TapRecorder(shifts=shifts)
        found = view.roots(view.z, view.data, recorder)
        parameters = {name: root.parameter for name, root in found.items()}
        return parameters, ({name: root.columns for name, root in found.items()}, recorder.inputs)

    shifts = {name: jnp.zeros(meta.shape, meta.dtype) for name, meta in taps.items()}
    moving = [name for name, depends in dependent_outputs(lambda s: forward(s)[0], shifts).items() if depends]
    values, pull, (columns, inputs) = jax.vjp(forward, shifts, has_aux=True)
    zeros = jax.tree.map(jnp.zeros_like, values)

    def gather(array: jax.Array, pool: Any) -> jax.Array:
        """(terms, features): every position a term of its own, or pooled over positions."""
        positions = array.reshape(array.shape[0], -1, array.shape[-1])
        return pool(positions, axis=1) if reduce else positions.reshape(-1, array.shape[-1])

    def of_column(name: str, column: jax.Array) -> dict[str, jax.Array]:
        gradients = pull({**zeros, name: column})[0]
        terms = {tap: gather(g, jnp.sum) for tap, g in gradients.items()}
        return {tap: g.T @ g for tap, g in terms.items()}

    outer = {name: jnp.zeros((meta.shape[-1], meta.shape[-1]), meta.dtype) for name, meta in taps.items()}
    for name in moving:
        step = jax.checkpoint(partial(of_column, name))

        def add(sums: Values, column: jax.Array, step: Callable[[jax.Array], Values] = step) -> tuple[Values, None]:
            return jax.tree.map(jnp.add, sums, step(column)), None

        outer, _ = jax.lax.scan(add, outer, columns[name])
    terms = {name: gather(inputs[name], jnp.mean) for name in taps}
    return {name: (a.T @ a, a.shape[0]) for name, a in terms.items()}, outer
