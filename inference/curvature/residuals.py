"""Whitened residuals of observations: what the score of each row is in the columns of its Fisher root."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro

from .. import rows
from .view import View, roots_of


__all__ = ["residuals_of"]


def residuals_of(view: View, names: list[str]) -> tuple[jax.Array, jax.Array]:
    """Columns S of the roots of every row, (K, rows, entries), and e of least norm with S e = the score, (K, rows).

    Everything is in the arrays that the observed distributions hold one entry per row of: for a Gaussian with unit
    variance e is y - mean, for classes with probabilities p it is (y - p) / sqrt(p). Arrays that rows share (one noise scale)
    count as constants.
    """
    sites, _ = view.problem.trace(view.data, unconstrained=view.z, constrained=view.fixed, factor=view.factor)
    observed = {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample" and site["is_observed"] and _numpyro.in_plate(site, view.problem.data_plate)
    }
    count = rows.num_rows(view.data)
    leaves, tree = jax.tree.flatten({name: site["fn"] for name, site in observed.items()})
    own = [
        i
        for i, leaf in enumerate(leaves)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.shape(leaf)[:1] == (count,)
    ]

    def rebuilt(chosen: list[jax.Array]) -> dict[str, Any]:
        every = list(leaves)
        for i, leaf in zip(own, chosen, strict=True):
            every[i] = leaf
        return jax.tree.unflatten(tree, every)

    def parameters(chosen: list[jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
        fns = rebuilt(chosen)
        roots = roots_of({name: {"fn": fns[name], "scale": site["scale"]} for name, site in observed.items()}, view.stream)
        return {name: roots[name].parameter for name in names}, {name: roots[name].columns for name in names}

    def log_likelihood(chosen: list[jax.Array]) -> jax.Array:
        terms = []
        for name, fn in rebuilt(chosen).items():
            scale = observed[name]["scale"]
            found = fn.log_prob(observed[name]["value"])
            terms.append((found if scale is None else found * scale).sum())
        return sum(terms, jnp.zeros(()))

    at = [leaves[i] for i in own]
    score = _flat(jax.grad(log_likelihood)(at), count)
    _, pull, columns = jax.vjp(parameters, at, has_aux=True)
    found = []
    for name in names:
        zeros = {other: jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), columns[other]) for other in names}

        def pulled(column: Any, name: str = name, zeros: dict[str, Any] = zeros) -> jax.Array:
            return _flat(pull({**zeros, name: column})[0], count)

        found.append(jax.vmap(pulled)(columns[name]))
    every = jnp.concatenate(found)
    square = jnp.einsum("kni,knj->nij", every, every)
    ridge = jnp.finfo(square.dtype).eps * jnp.trace(square, axis1=1, axis2=2) + jnp.finfo(square.dtype).tiny
    square = square + ridge[:, None, None] * jnp.eye(square.shape[-1], dtype=square.dtype)[None]
    solved = jnp.linalg.solve(square, score[..., None])[..., 0]
    return every, jnp.einsum("kni,ni->kn", every, solved)


def _flat(leaves: list[jax.Array], count: int) -> jax.Array:
    """(rows, entries)."""
    return jnp.concatenate([leaf.reshape(count, -1) for leaf in leaves], axis=1)
