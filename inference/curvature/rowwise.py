"""Dense curvature, one row of the data at a time: for any model, tapped or not, and the reference for what is faster.

Rows are independent given the weights, so a vmap of the model over single rows gives their square-root Fisher rows
S' J, whose Gram matrix is the generalised Gauss-Newton matrix J' S S' J.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym.errors import CurvatureError

from .. import rows
from ..blocks import Layout
from ..prior_parts import PriorPart
from .gram import Gram, Rows
from .pieces import Diagonal, Piece
from .spectrum import Spectrum, pair_products
from .view import Probes, View, moving, num_columns, over_chunks, roots_of, visit


__all__ = ["check_dense", "dense", "diagonal", "full", "hessian", "moving_roots", "row_count", "rows_of"]

_LARGEST_DENSE = 20_000  # parameters of one dense block


def row_count(view: View, layout: Layout) -> int:
    """K: the square-root Fisher rows of one data row."""
    data = view.problem.take(view.data, slice(0, 1))
    names = moving_roots(view, layout)
    counts: dict[str, int] = {}

    def note() -> None:
        for name, root in roots_of(view.observations(view.z, data)).items():
            counts[name] = num_columns(root.columns)

    jax.eval_shape(note)
    return sum(counts[name] for name in names)


def moving_roots(view: View, layout: Layout) -> list[str]:
    """The distribution parameters that can depend on the sites of the layout."""
    data = view.problem.take(view.data, slice(0, 1))

    def parameters(flat: jax.Array) -> dict[str, Any]:
        found = roots_of(view.observations({**view.z, **layout.unflatten(flat)}, data))
        return {name: root.parameter for name, root in found.items()}

    return moving(parameters, layout.flatten(view.z))


def rows_of(view: View, layout: Layout, probes: Probes, present: jax.Array, names: list[str] | None = None) -> jax.Array:
    """Square-root Fisher rows (rows, K, size) of all rows of the view; K is the number of probes if they are counted.

    `names` are the distribution parameters whose roots count, by default those that depend on the layout.
    """
    flat = layout.flatten(view.z)
    names = moving_roots(view, layout) if names is None else names
    if not names:
        return jnp.zeros((rows.num_rows(view.data), 0, layout.size), flat.dtype)
    leaves, structure = jax.tree.flatten(view.data)
    mask = rows.row_mask(view.data, view.problem.row_args)
    num_rows = rows.num_rows(view.data)

    def one(i: jax.Array) -> jax.Array:
        row = jax.tree.unflatten(
            structure, [leaf[i][None] if is_row else leaf for leaf, is_row in zip(leaves, mask, strict=True)]
        )

        def forward(flat: jax.Array) -> tuple[dict[str, Any], Any]:
            found = roots_of(view.observations({**view.z, **layout.unflatten(flat)}, row), i)
            return {name: found[name].parameter for name in names}, {name: found[name].columns for name in names}

        _, pull, columns = jax.vjp(forward, flat, has_aux=True)
        own = replace(probes, key=None if probes.key is None else jax.random.fold_in(probes.key, i))
        cotangents, visits = visit(columns, own, present[i][None])
        return jax.vmap(lambda index: pull(cotangents(index))[0])(visits)

    return jax.vmap(one)(jnp.arange(num_rows))


def _accumulate(
    view: View, layout: Layout, probes: Probes, add: Callable[[jax.Array], jax.Array], limit: int | None
) -> jax.Array:
    """The sum over chunks of rows of add(square-root Fisher rows (rows * K, size))."""

    def of_chunk(view: View, probes: Probes, present: jax.Array) -> jax.Array:
        return add(rows_of(view, layout, probes, present).reshape(-1, layout.size))

    return over_chunks(view, probes, max(1, probes.count or row_count(view, layout)) * layout.size, of_chunk, limit)


def full(view: View, layout: Layout, probes: Probes) -> Piece:
    """The exact matrix, held by its rows where these are fewer than the parameters (the dual form)."""
    total = rows.num_rows(view.data) * (probes.count or row_count(view, layout))
    if total >= layout.size:
        return dense(view, layout, probes)
    check_dense(total, layout)
    found = rows_of(view, layout, probes, jnp.ones(rows.num_rows(view.data), jnp.result_type(float)))
    return Rows(layout, found.reshape(-1, layout.size))


def dense(view: View, layout: Layout, probes: Probes, limit: int | None = None) -> Gram:
    """The exact block of some sites."""
    check_dense(layout.size, layout)
    return Gram(layout, _accumulate(view, layout, probes, lambda found: found.T @ found, limit))


def diagonal(view: View, layout: Layout, probes: Probes, part: PriorPart, limit: int | None = None) -> Piece:
    """The diagonal of G; for a correlated prior with root L, that of L' G L, which gives a bound as well."""
    if part.variances is not None:
        return Diagonal(layout, _accumulate(view, layout, probes, lambda found: (found**2).sum(axis=0), limit))
    terms = part.terms()

    def products(found: jax.Array) -> jax.Array:
        return pair_products([term.apply(found) for term in terms])

    return Spectrum(layout, _accumulate(view, layout, probes, products, limit)[:, :, None], None, None, False)


def hessian(view: View, layout: Layout) -> Gram:
    """Minus the Hessian of the log likelihood, which may be indefinite."""
    check_dense(layout.size, layout)

    def log_likelihood(flat: jax.Array) -> jax.Array:
        z = {**view.z, **layout.unflatten(flat)}
        return view.problem.log_density(z, view.data, constrained=view.fixed, factor=view.factor).likelihood

    return Gram(layout, -jax.hessian(log_likelihood)(layout.flatten(view.z)))


def check_dense(size: int, layout: Layout) -> None:
    """Refuses a dense matrix that would not fit, before any of it is computed."""
    if size > _LARGEST_DENSE:
        raise CurvatureError(
            f"a dense curvature of {size} x {size} over the sites {list(layout.names)} would take {size**2 * 4 / 2**30:.1f} GiB in "
            "float32: use curvature='ekfac', which needs a tap for every large weight, or 'diag'"
        )
