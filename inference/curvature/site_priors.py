"""The priors of a model's sites as curvature sees them, group by group of sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro

from ..blocks import Layout
from ..prior_parts import Component, PriorPart, dense_part, gaussian_part
from ..problem import Problem, Values
from ..rows import Data
from .dependence import dependent_outputs


__all__ = ["prior_parts"]


def prior_parts(
    problem: Problem,
    z: Values,
    fixed: Values,
    data: Data,
    layouts: tuple[Layout, ...],
    scales: Mapping[str, jax.Array] | None = None,
) -> tuple[tuple[PriorPart, jax.Array], ...]:
    """For every group of sites the prior as curvature sees it, and its scatter.

    `scales` multiply the covariances of sites; they do not reach priors that are not Gaussian or depend on other sites.
    """

    def trace(z: Values) -> tuple[dict[str, Any], Any]:
        return problem.latent_trace(data, unconstrained=z, constrained=fixed)

    def log_prior(z: Values) -> jax.Array:
        """Of the sites in `z`, in unconstrained coordinates."""
        sites, at = trace(z)
        return sum((_numpyro.log_prob_of(sites[name]) for name in z), sum(at.log_det.values(), jnp.zeros(())))

    sites, _ = trace(z)
    hierarchical = _depend_on_others(trace, z) if any(len(layout.names) > 1 for layout in layouts) else set()
    found = []
    for layout in layouts:
        of_sites = [_gaussian(sites[name]["fn"], shape) for name, shape in zip(layout.names, layout.shapes, strict=True)]
        vector = layout.flatten(z)
        if all(part is not None for part in of_sites) and not hierarchical & set(layout.names):
            own = [part for part in of_sites if part is not None]
            if scales is not None:
                own = [part.scaled(scales[name]) for name, part in zip(layout.names, own, strict=True)]
            part = _side_by_side(own)
            found.append((part, part.scatter(vector)))
            continue

        def of_group(vector: jax.Array, layout: Layout = layout) -> jax.Array:
            return log_prior({**z, **layout.unflatten(vector)})

        part = dense_part(-jax.hessian(of_group)(vector))
        others = {name: value for name, value in z.items() if name not in layout.names}
        log_prior_here = of_group(vector) - (_log_prior_of(trace, z, tuple(others)) if others else 0.0)
        found.append((part, -2 * (log_prior_here + part.size / 2 * math.log(2 * math.pi) + part.log_det_root)))
    return tuple(found)


def _gaussian(fn: Any, shape: tuple[int, ...]) -> PriorPart | None:
    part = gaussian_part(fn, shape) if _numpyro.is_real(fn.support) else None
    return None if part is None else replace(part, fn=fn)


def _log_prior_of(trace: Any, z: Values, names: tuple[str, ...]) -> jax.Array:
    sites, at = trace(z)
    return sum((_numpyro.log_prob_of(sites[name]) + at.log_det.get(name, 0.0) for name in names), jnp.zeros(()))


def _depend_on_others(trace: Any, z: Values) -> set[str]:
    """The sites whose prior depends on other sites that are integrated over."""

    def parameters(z: Values) -> dict[str, list[jax.Array]]:
        sites, _ = trace(z)
        return {name: [jnp.asarray(leaf) for leaf in jax.tree.leaves(sites[name]["fn"])] for name in z}

    return {name for name, flags in dependent_outputs(parameters, z).items() if any(flags)}


def _side_by_side(parts: list[PriorPart]) -> PriorPart:
    """The part of independent vectors, concatenated."""
    if len(parts) == 1:
        return parts[0]
    ends = [sum(part.size for part in parts[: i + 1]) for i in range(len(parts) - 1)]

    def along(name: str, v: jax.Array) -> jax.Array:
        pieces = jnp.split(v, ends, axis=-1)
        return jnp.concatenate([getattr(part, name)(piece) for part, piece in zip(parts, pieces, strict=True)], axis=-1)

    sizes = [part.size for part in parts]
    components = tuple(
        Component(term.variance, partial(_within, sum(sizes[:i]), sum(sizes[: i + 1]), term))
        for i, part in enumerate(parts)
        for term in part.terms()
    )
    variances = None
    if all(part.variances is not None for part in parts):
        variances = jnp.concatenate([part.variances for part in parts if part.variances is not None])
    return PriorPart(
        size=sum(part.size for part in parts),
        mean=jnp.concatenate([part.mean for part in parts]),
        root=partial(along, "root"),
        root_transposed=partial(along, "root_transposed"),
        whiten=partial(along, "whiten"),
        log_det_root=sum((part.log_det_root for part in parts), jnp.zeros(())),
        variances=variances,
        components=components,
    )


def _within(start: int, end: int, term: Component, v: jax.Array) -> jax.Array:
    """A component of one vector as one of the concatenation, where the others are zero."""
    return jnp.zeros_like(v).at[..., start:end].set(term.apply(v[..., start:end]))
