"""The Laplace evidence: a pure function of site values and data, differentiable in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro
from bayes_sym.errors import CurvatureError, OptionError

from . import rows
from .blocks import Layout
from .curvature.dependence import dependent_outputs
from .curvature.measure import CURVATURES, measure
from .curvature.pieces import Kronecker, Piece
from .curvature.prior_parts import PriorPart, dense_part, gaussian_part
from .problem import Problem, Values
from .rows import Data


__all__ = ["Evidence", "evaluate", "log_evidence", "prior_parts"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "log_likelihood", "scatter", "log_det_ratio", "newton_decrement"],
    meta_fields=["kind", "untapped"],
)
@dataclass(frozen=True)
class Evidence:
    """A Laplace estimate of log p(data), in nats, and its parts.

    ``value = log_likelihood - scatter / 2 - log_det_ratio / 2``, plus ``newton_decrement / 2`` if that was asked for.

    Attributes:
        value: the estimate.
        log_likelihood: log p(data | values).
        scatter: (theta - mean)' D (theta - mean), with D the prior precision. For a prior that is not Gaussian, minus
            twice its log-density relative to the peak of the Gaussian with the same curvature.
        log_det_ratio: log|G + D| - log|D|, with G the curvature of the negative log likelihood.
        newton_decrement: g' (G + D)^-1 g, with g the gradient of the log joint: 0 at a mode.
        kind: ``"laplace-"`` and the curvature, e.g. ``"laplace-full"``.
        untapped: sites without a tap that a Kronecker curvature treated by a dense block or a diagonal.
    """

    value: jax.Array
    log_likelihood: jax.Array
    scatter: jax.Array
    log_det_ratio: jax.Array
    newton_decrement: jax.Array
    kind: str
    untapped: tuple[str, ...] = ()


def log_evidence(
    problem: Problem,
    params: Values,
    *data: Any,
    curvature: str = "full",
    optimise: Sequence[str] = (),
    correction: str | None = None,
) -> Evidence:
    """The Laplace evidence at given constrained values of the sites.

        log p(data) ~ log p(data | theta) - 1/2 (theta - mean)' D (theta - mean) - 1/2 log|I + D^-1 G|

    with D the prior precision and G the generalised Gauss-Newton matrix (for these likelihoods the Fisher information).
    Integrals are taken in unconstrained coordinates. The function is pure: jit it, differentiate it in `params` and
    `data`, vmap it over strengths. It evaluates at the point it is given, whether or not that is a mode.

    Args:
        problem: the model.
        params: constrained values of all latent sites.
        data: the arguments of the model; they may include strengths or magnitudes to differentiate in.
        curvature: ``"full"``, ``"block"`` (per site), ``"diag"``, ``"kfac"`` or ``"kfac_reduce"``. Full curvature is exact
            where the model is linear and Gaussian. In log-determinant full <= block <= diag, so block and diag give lower
            bounds of the full one's evidence; KFAC is no bound.
        optimise: patterns of sites that are held at their values instead of integrated over; their priors do not count.
        correction: ``"newton"`` adds half the Newton decrement, which makes the evidence of linear-Gaussian models
            independent of the point.

    Returns:
        The evidence.

    Raises:
        CurvatureError: unknown or too large a curvature, a likelihood without a Fisher root, or (outside jit) a prior
            whose Hessian is indefinite.
        PriorError: a prior that this curvature cannot price.
        OptionError: sites that are missing from `params`, or an option out of its range.
    """
    _check_options(curvature, correction)
    data = rows.as_arrays(data)
    structure = problem.structure(*data)
    missing = [name for name in structure.latent if name not in params]
    if missing:
        raise OptionError(f"params lack values for the sites {missing}; it has {list(params)}")
    held = problem.match(optimise, structure)
    fixed = {name: jnp.asarray(params[name]) for name in held}
    free = {name: jnp.asarray(params[name], jnp.result_type(float)) for name in structure.latent if name not in held}
    if not free:
        raise OptionError(f"optimise={tuple(optimise)} holds every site: there is nothing left to integrate over")
    evidence = _at(problem, free, fixed, data, curvature, correction)
    if not isinstance(evidence.value, jax.core.Tracer) and not bool(jnp.isfinite(evidence.value)):
        raise CurvatureError(
            f"the {evidence.kind} evidence is not finite (log likelihood {evidence.log_likelihood}, log-determinant ratio "
            f"{evidence.log_det_ratio}): the Hessian of a prior is indefinite at this point. Name scale hyperparameters in optimise=(...)"
        )
    return evidence


@partial(jax.jit, static_argnames=("problem", "curvature", "correction"))
def _at(problem: Problem, free: Values, fixed: Values, data: Data, curvature: str, correction: str | None) -> Evidence:
    example = problem.take(data, slice(0, 1))
    sites, _ = problem.trace(example, constrained={**free, **fixed})
    z = {name: _numpyro.unconstrain(sites[name], free[name]) for name in problem.structure(*data).latent if name in free}
    pieces = measure(problem, z, fixed, data, curvature)
    return evaluate(problem, z, fixed, data, pieces, curvature, correction=correction)


def _check_options(curvature: str, correction: str | None) -> None:
    if curvature not in CURVATURES:
        raise CurvatureError(f"unknown curvature {curvature!r}: choose one of {', '.join(CURVATURES)}")
    if correction not in (None, "newton"):
        raise OptionError(f"correction must be None or 'newton', got {correction!r}")


def evaluate(
    problem: Problem,
    z: Values,
    fixed: Values,
    data: Data,
    pieces: tuple[Piece, ...],
    curvature: str,
    *,
    correction: str | None = None,
) -> Evidence:
    """The evidence at unconstrained `z`, with a curvature that was measured before.

    Separate from `measure`, because a curvature that does not depend on the hyperparameters can serve many of their
    steps.
    """
    parts = prior_parts(problem, z, fixed, data, tuple(piece.layout for piece in pieces))
    sites, _ = problem.trace(data, unconstrained=z, constrained=fixed)
    log_likelihood = jnp.zeros(())
    for site in sites.values():
        if site["type"] == "sample" and site["is_observed"] and _numpyro.in_plate(site, problem.data_plate):
            log_likelihood = log_likelihood + _numpyro.log_prob_of(site)
    gradient = jax.grad(lambda z: _log_joint(problem, z, fixed, data))(z)
    scatter = sum((scatter for _, scatter in parts), jnp.zeros(()))
    log_det_ratio, decrement = jnp.zeros(()), jnp.zeros(())
    for piece, (part, _) in zip(pieces, parts, strict=True):
        log_det_ratio = log_det_ratio + piece.log_det_ratio(part)
        decrement = decrement + piece.decrement(part, piece.layout.flatten(gradient))
    value = log_likelihood - scatter / 2 - log_det_ratio / 2
    if correction == "newton":
        value = value + decrement / 2
    tapped = {name for piece in pieces if isinstance(piece, Kronecker) for name in piece.layout.names}
    biases = {meta.bias for meta in problem.structure(*data).taps.values()}
    untapped: tuple[str, ...] = ()
    if curvature.startswith("kfac"):
        untapped = tuple(name for name in z if name not in tapped and name not in biases)
    return Evidence(value, log_likelihood, scatter, log_det_ratio, decrement, f"laplace-{curvature}", untapped)


def _log_joint(problem: Problem, z: Values, fixed: Values, data: Data) -> jax.Array:
    density = problem.log_density(z, data, constrained=fixed)
    return density.likelihood + density.prior + density.log_det


def prior_parts(
    problem: Problem, z: Values, fixed: Values, data: Data, layouts: tuple[Layout, ...]
) -> tuple[tuple[PriorPart, jax.Array], ...]:
    """For every group of sites the prior as curvature sees it, and its scatter."""
    example = problem.take(data, slice(0, 1))

    def trace(z: Values) -> tuple[dict[str, Any], Any]:
        return problem.trace(example, unconstrained=z, constrained=fixed)

    def log_prior(z: Values) -> jax.Array:
        """Of the sites in `z`, in unconstrained coordinates."""
        sites, at = trace(z)
        return sum((_numpyro.log_prob_of(sites[name]) for name in z), sum(at.log_det.values(), jnp.zeros(())))

    sites, _ = trace(z)
    hierarchical = _depend_on_others(trace, z) if any(len(layout.names) > 1 for layout in layouts) else set()
    found = []
    for layout in layouts:
        of_sites = [
            gaussian_part(sites[name]["fn"], shape) if _numpyro.is_real(sites[name]["fn"].support) else None
            for name, shape in zip(layout.names, layout.shapes, strict=True)
        ]
        vector = layout.flatten(z)
        if all(part is not None for part in of_sites) and not hierarchical & set(layout.names):
            part = _side_by_side([part for part in of_sites if part is not None])
            found.append((part, (part.whiten(vector) ** 2).sum()))
            continue

        def of_group(vector: jax.Array, layout: Layout = layout) -> jax.Array:
            return log_prior({**z, **layout.unflatten(vector)})

        part = dense_part(-jax.hessian(of_group)(vector))
        others = {name: value for name, value in z.items() if name not in layout.names}
        own = of_group(vector) - (_log_prior_of(trace, z, tuple(others)) if others else 0.0)
        found.append((part, -2 * (own + part.size / 2 * math.log(2 * math.pi) + part.log_det_root)))
    return tuple(found)


def _log_prior_of(trace: Any, z: Values, names: tuple[str, ...]) -> jax.Array:
    sites, at = trace(z)
    return sum((_numpyro.log_prob_of(sites[name]) + at.log_det.get(name, 0.0) for name in names), jnp.zeros(()))


def _depend_on_others(trace: Any, z: Values) -> set[str]:
    """The sites whose prior depends on other sites that are integrated over."""

    def parameters(z: Values) -> dict[str, list[jax.Array]]:
        return {name: [jnp.asarray(leaf) for leaf in jax.tree.leaves(trace(z)[0][name]["fn"])] for name in z}

    return {name for name, flags in dependent_outputs(parameters, z).items() if any(flags)}


def _side_by_side(parts: list[PriorPart]) -> PriorPart:
    """The part of independent vectors, concatenated."""
    if len(parts) == 1:
        return parts[0]
    ends = [sum(part.size for part in parts[: i + 1]) for i in range(len(parts) - 1)]

    def along(name: str, v: jax.Array) -> jax.Array:
        pieces = jnp.split(v, ends, axis=-1)
        return jnp.concatenate([getattr(part, name)(piece) for part, piece in zip(parts, pieces, strict=True)], axis=-1)

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
    )
