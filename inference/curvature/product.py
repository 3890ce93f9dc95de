"""Products of the curvature with vectors, without forming any of it: one derivative forwards and one backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..blocks import Layout
from ..rows import Data
from .fisher import Root
from .view import EXACT, Probes, View, moving, over_chunks, roots_of


__all__ = ["curvature_product"]

Map = Callable[[jax.Array], jax.Array]


def curvature_product(view: View, together: int, chunk: int | None) -> Map:
    """v -> J' S S' J v, over chunks of rows; `together` vectors are held at once."""
    layout, problem = Layout.of(view.z), view.problem
    flat = layout.flatten(view.z)

    def roots(flat: jax.Array, data: Data) -> dict[str, Root]:
        return roots_of(view.observations(layout.unflatten(flat), data))

    def parameters(flat: jax.Array) -> dict[str, Any]:
        return {name: root.parameter for name, root in roots(flat, problem.take(view.data, slice(0, 1))).items()}

    names = moving(parameters, flat)

    def linear(data: Data) -> tuple[Callable[[jax.Array], dict[str, Any]], dict[str, Root]]:
        """J for some rows, and the roots S."""

        def forward(flat: jax.Array) -> tuple[dict[str, Any], dict[str, Root]]:
            found = roots(flat, data)
            return {name: found[name].parameter for name in names}, {name: found[name] for name in names}

        _, push, here = jax.linearize(forward, flat, has_aux=True)
        return push, here

    def held(count: int) -> int:
        """Numbers that the derivative for `count` rows keeps."""
        kept = jax.eval_shape(lambda: linear(problem.take(view.data, slice(0, count))))
        return sum(leaf.size for leaf in jax.tree.leaves(kept))

    def of_chunk(v: jax.Array, view: View, probes: Probes, present: jax.Array) -> jax.Array:
        push, here = linear(view.data)
        tangents = push(v)
        cotangents = {name: _fisher_times(here[name], tangents[name], present) for name in names}
        return jax.linear_transpose(push, v)(cotangents)[0]

    entries = (held(2) - held(1)) * together
    return lambda v: over_chunks(view, EXACT, entries, partial(of_chunk, v), chunk) if names else jnp.zeros_like(v)


def _fisher_times(root: Root, tangent: Any, present: jax.Array) -> Any:
    """S S' t for the rows that are present.

    By einsum: sums of products written out are wrong on CPUs with jaxlib 0.10.2 (github.com/jax-ml/jax/issues/39103).
    """

    def along(columns: jax.Array, tangent: jax.Array) -> jax.Array:
        return jnp.einsum("knd,nd->kn", _flat(columns, 2), _flat(tangent, 1))

    seen = sum(jax.tree.leaves(jax.tree.map(along, root.columns, tangent)), jnp.zeros(())) * present[None]
    return jax.tree.map(lambda c, t: jnp.einsum("knd,kn->nd", _flat(c, 2), seen).reshape(t.shape), root.columns, tangent)


def _flat(array: jax.Array, leading: int) -> jax.Array:
    """All axes but the leading ones in one."""
    return array.reshape(*array.shape[:leading], math.prod(array.shape[leading:]))
