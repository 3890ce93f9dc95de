"""Whether a symmetric point is stable: the curvature of an objective across the symmetric weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._precision import full_precision
from ..errors import DataError, OptionError, ShapeError
from ..representations import Representation


__all__ = ["TransversalCurvature", "transversal_curvature"]


class TransversalCurvature(NamedTuple):
    """The smallest curvature across the symmetric weights.

    Attributes:
        value: the smallest eigenvalue found. Never below the true one, but for rounding.
        residual: |H v - value v| on the space across: an eigenvalue lies within this distance of `value`.
        direction: v, of norm 1, by site: the asymmetric direction in which the objective bends least.
        num_steps: Lanczos steps taken; with as many as there are dimensions across, the value is exact.
    """

    value: float
    residual: float
    direction: dict[str, jax.Array]
    num_steps: int


@full_precision
def transversal_curvature(
    function: Callable[[Mapping[str, jax.Array]], jax.Array],
    point: Mapping[str, jax.Array],
    reps: Mapping[str, Representation],
    key: jax.Array,
    *,
    num_steps: int = 64,
) -> TransversalCurvature:
    """The smallest eigenvalue of (I - P) H (I - P) on the range of I - P, with H the Hessian of `function` at `point`.

    At a symmetric point of an invariant objective that is minimised, H maps neither space into the other. Then a positive value says
    that asymmetry decays there (noise keeps it at a spread of about 1 over the value), and a negative one that the symmetric
    solution is unstable and a fit will leave it. By Hessian-vector products and Lanczos with full reorthogonalisation.

    Args:
        function: a scalar function of the weights, e.g. a negative log posterior.
        point: weights by site.
        reps: the representation on every one of these sites.
        key: for the first vector.
        num_steps: Lanczos steps, one Hessian-vector product each; fewer where the space has fewer dimensions. Compare `residual` with
            `value` to see whether they were enough.

    Raises:
        OptionError: sites and representations do not go together, every vector is invariant, or `num_steps` is below 1.
        ShapeError: a site does not have the size that its representation acts on.
        DataError: a product is not finite.
    """
    if set(point) != set(reps) or num_steps < 1:
        raise OptionError(
            f"point and reps must name the same sites, with num_steps at least 1, got {sorted(point)}, {sorted(reps)} and {num_steps}"
        )
    values = {name: jnp.asarray(point[name]) for name in sorted(point)}
    for name, value in values.items():
        if value.size != reps[name].dim:
            raise ShapeError(f"site {name!r} has shape {value.shape}, but its representation acts on {reps[name].shape}")
    dim = sum(reps[name].dim - reps[name].rank for name in values)
    if dim == 0:
        raise OptionError("every vector is invariant under these representations: there is nothing across the symmetric weights")

    def across(tree: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: v - reps[name].project(v, tuple(range(v.ndim))) for name, v in tree.items()}

    @jax.jit
    def product(point: dict[str, jax.Array], vector: jax.Array) -> jax.Array:
        tangent = across(unravel(vector))
        _, bent = jax.jvp(jax.grad(function), (point,), (tangent,))
        return ravel_pytree(across(bent))[0]

    flat, unravel = ravel_pytree(values)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    start = ravel_pytree(across(unravel(jnp.asarray(generator.standard_normal(flat.size), flat.dtype))))[0]
    smallest, residual, vector, steps = _lanczos(
        lambda v: product(values, jnp.asarray(v, flat.dtype)), start, min(num_steps, dim)
    )
    return TransversalCurvature(smallest, residual, dict(unravel(jnp.asarray(vector, flat.dtype))), steps)


def _lanczos(product: Callable[[np.ndarray], jax.Array], start: jax.Array, steps: int) -> tuple[float, float, np.ndarray, int]:
    """The smallest Ritz value, its residual and its vector, from at most so many products."""
    basis = [np.asarray(start, np.float64) / np.linalg.norm(np.asarray(start, np.float64))]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        moved = np.asarray(product(basis[-1]), np.float64)
        if not np.isfinite(moved).all():
            raise DataError("a Hessian-vector product is not finite: look at the objective at this point")
        diagonal.append(float(basis[-1] @ moved))
        for _ in range(2):  # once leaves rounding errors that grow
            for vector in basis:
                moved = moved - (vector @ moved) * vector
        left = float(np.linalg.norm(moved))
        size = max(map(abs, diagonal))
        if len(diagonal) == steps or left <= 1e-10 * size:
            break
        beside.append(left)
        basis.append(moved / left)
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return float(values[0]), left * abs(float(vectors[-1, 0])), np.stack(basis, axis=1) @ vectors[:, 0], len(diagonal)
