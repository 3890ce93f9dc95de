"""The exact evidence in its dual form: one kernel between square-root Fisher rows of all the data, site by site.

A Kronecker factor averages over rows and a block of rows forgets the others; this does neither. With the rows' kernels
per component of the prior, strengths cost only dense algebra of the size of the kernel. The linearised model is a linear
regression on these rows R with unit noise, whose targets are R theta plus the whitened residuals of the observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym.errors import CurvatureError

from .. import rows
from ..blocks import Layout
from ..prior_parts import PriorPart
from .data_side import one_position
from .gram import Dual
from .residuals import residuals_of
from .rowwise import moving_roots, rows_of
from .spectrum import as_matrix
from .tapped import Use, Uses, gradients_of, together
from .view import Probes, View


__all__ = ["dual", "heavy_columns"]

_LARGEST = 2**30  # numbers that all kernels may hold together
_CHUNK = 64  # picked columns whose gradients are worked out at once


class Picked(NamedTuple):
    """Some columns of the Fisher roots of all rows: of which row, which column, what it is multiplied by, and its residual."""

    row: jax.Array
    column: jax.Array
    scale: jax.Array
    residual: jax.Array


def dual(view: View, uses: Uses, priors: Mapping[str, PriorPart], probes: Probes) -> Dual:
    """Kernels between square-root Fisher rows, by component of the prior.

    Without a count, all N K of them. Else `probes.count` are drawn, heavy ones surely and light ones with a chance in
    proportion to their squared norm and that of their share of the score, and divided by the root of that chance: the
    curvature is without bias, and what its log-determinant lacks falls with the number of effective parameters over the
    count.
    """
    layout = Layout.of(view.z)
    names = moving_roots(view, layout)
    picked = _pick(view, names, probes)
    size = len(picked.row)
    _check_fits(size, sum(len(priors[name].terms()) for name in view.z))
    chunks = -(-size // _CHUNK)
    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, (0, chunks * _CHUNK - size)).reshape(chunks, _CHUNK), picked)
    some = jax.lax.map(jax.checkpoint(lambda part: _features(view, uses, names, Picked(*part))), tuple(padded))
    features = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], some)
    grams = []
    response = picked.residual * picked.scale
    for name in view.z:
        terms = priors[name].terms()
        found = features[name]
        response = response + _seen(found, uses.weights.get(name), view.z[name].reshape(-1) - priors[name].mean)
        if isinstance(found, tuple):
            if len(terms) == 1 and terms[0].part is None:
                grams.append(one_position(found[0], found[1][None]))
                continue
            found = uses.weights[name].vector(jnp.einsum("n...a,n...b->n...ab", *found))
        for term in terms:
            part = term.apply(found)
            grams.append(part @ part.T)
    factor = jnp.asarray(1.0 if view.factor is None else view.factor, response.dtype)
    residual = picked.residual * picked.scale
    return Dual(
        layout, jnp.stack(grams) * factor, response * jnp.sqrt(factor), residual * jnp.sqrt(factor), layout.flatten(view.z)
    )


def _check_fits(size: int, components: int) -> None:
    """Refuses kernels that would not fit, before any of them is computed."""
    if components * size**2 > _LARGEST:
        raise CurvatureError(
            f"the kernels of {size} Fisher columns for {components} components of the prior would take "
            f"{components * size**2 * 4 / 2**30:.1f} GiB in float32: pass probes=, a number of columns to draw that exceeds the "
            "effective parameters"
        )


def _seen(found: Any, use: Use | None, value: jax.Array) -> jax.Array:
    """R value of one site."""
    if not isinstance(found, tuple):
        return found @ value
    assert use is not None
    matrix = as_matrix(value, use.shape, use.transposed)
    return jnp.einsum("n...a,...ab,n...b->n", found[0], matrix, found[1])


def _pick(view: View, names: list[str], probes: Probes) -> Picked:
    """Columns of all rows together."""
    count = rows.num_rows(view.data)
    columns, residuals = residuals_of(view._replace(factor=None), names)
    squares = (columns**2).sum(axis=-1)
    if probes.count is None or probes.count >= squares.size:
        index, scale = jnp.arange(squares.size), jnp.ones(squares.size, squares.dtype)
    else:
        assert probes.key is not None
        weights = jax.lax.stop_gradient((squares * (1 + residuals**2)).reshape(-1))
        index, scale = heavy_columns(probes.key, weights, probes.count)
    return Picked(index % count, index // count, scale, residuals.reshape(-1)[index])


def heavy_columns(key: jax.Array, squares: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Draws `count` entries without replacement, entry i with the chance pi_i = min(1, c squares_i), and 1/sqrt(pi_i).

    c is such that the chances add up to `count`. Systematic sampling (Madow 1949): one uniform number for all. Where
    fewer than `count` entries are positive these are taken, and the rest has the scale 0.
    """
    chances = jnp.minimum(1.0, squares * (count / jnp.maximum(squares.sum(), jnp.finfo(squares.dtype).tiny)))
    for _ in range(12):  # those that are certain leave the others more
        sure = chances >= 1
        left = jnp.where(sure, 0.0, squares)
        more = (count - sure.sum()) / jnp.maximum(left.sum(), jnp.finfo(squares.dtype).tiny)
        chances = jnp.where(sure, 1.0, jnp.minimum(1.0, left * more))
    chances = jnp.where(squares > 0, chances, 0.0)
    ends = jnp.cumsum(chances)
    points = jnp.arange(count) + jax.random.uniform(key, (), squares.dtype)
    index = jnp.minimum(jnp.searchsorted(ends, points, side="right"), len(squares) - 1)
    scale = jnp.where((points < ends[-1]) & (chances[index] > 0), 1 / jnp.sqrt(jnp.maximum(chances[index], 1e-12)), 0.0)
    return index, scale.astype(squares.dtype)


def _features(view: View, uses: Uses, names: list[str], picked: Picked) -> dict[str, Any]:
    """By site the gradients of the picked columns, (columns, size), or inputs and gradients of a tap with one position."""
    some = view._replace(data=view.problem.take(view.data, picked.row), factor=None)
    present = jnp.ones(len(picked.row), picked.scale.dtype)
    gradients: dict[str, jax.Array] = {}
    inputs: dict[str, jax.Array] = {}
    if uses.weights or uses.biases:
        back = gradients_of(some, Probes(), present, names)
        signs = (jnp.arange(len(back.visits))[:, None] == picked.column[None]) * picked.scale[None]
        gradients, inputs = back.mixed(signs), back.inputs
    found: dict[str, Any] = {}
    for name in view.z:
        if name in uses.weights:
            use = uses.weights[name]
            a, g = together(use.taps, inputs), together(use.taps, gradients)
            found[name] = (a[:, 0], g[:, 0]) if g.shape[1] == 1 else use.vector(jnp.einsum("nr...a,nr...b->n...ab", a, g))
        elif name in uses.biases:
            g = together(uses.biases[name], gradients)
            found[name] = g.reshape(len(g), -1, g.shape[-1]).sum(axis=1)
        else:
            every = rows_of(some, Layout.of(view.z, (name,)), Probes(), present, names)
            found[name] = every[jnp.arange(len(picked.row)), picked.column] * picked.scale[:, None]
    return found
