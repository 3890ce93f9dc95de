"""The Laplace evidence: a pure function of site values and data, differentiable in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro
from bayes_sym._precision import full_precision
from bayes_sym.errors import CurvatureError, OptionError

from . import rows
from .curvature.gram import Dual
from .curvature.measure import BOUNDS, CURVATURES, measure, measure_basis, untapped
from .curvature.pieces import Piece
from .curvature.site_priors import prior_parts
from .curvature.tapped import Basis
from .curvature.view import EXACT, Probes
from .problem import Problem, Values
from .rows import Data


__all__ = [
    "Evidence",
    "as_probes",
    "check_options",
    "evaluate",
    "evidence_basis",
    "evidence_kind",
    "log_evidence",
    "log_likelihood_and_gradient",
    "log_likelihood_at",
    "price",
    "settled",
    "split_sites",
    "unconstrained",
]


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
        newton_decrement: g' (G + D)^-1 g, with g the gradient of the log joint: 0 at a mode. For ``"ntk"`` an upper bound,
            g' D^-1 g.
        kind: the curvature and what it is to the full one: ``"laplace-full"``, ``"laplace-block-bound"``,
            ``"laplace-ekfac-bound"``, ``"laplace-diag-bound"``, ``"ntk-bound"`` (lower bounds of the evidence under full
            curvature), ``"laplace-kfac"``, ``"laplace-kfac_reduce"`` (no bounds), ``"laplace-hessian"``. Estimates from random
            probes end in ``"-probes"`` and are no bounds.
        untapped: sites without a tap that a structured curvature treated by a dense block or a diagonal.
    """

    value: jax.Array
    log_likelihood: jax.Array
    scatter: jax.Array
    log_det_ratio: jax.Array
    newton_decrement: jax.Array
    kind: str
    untapped: tuple[str, ...] = ()


def evidence_kind(curvature: str, probes: int | None = None) -> str:
    """What kind of evidence a curvature gives."""
    name = "ntk" if curvature == "ntk" else f"laplace-{curvature}"
    if probes is not None and curvature != "hessian":
        return f"{name}-probes"
    return f"{name}-bound" if curvature in BOUNDS else name


@full_precision
def log_evidence(
    problem: Problem,
    params: Values,
    *data: Any,
    curvature: str = "full",
    probes: int | str = "exact",
    key: jax.Array | None = None,
    optimise: Sequence[str] = (),
    correction: str | None = None,
    basis: Basis | None = None,
    block_size: int = 128,
    num_rows: int | None = None,
    chunk: int | None = None,
) -> Evidence:
    """The Laplace evidence at given constrained values of the sites.

        log p(data) ~ log p(data | theta) - 1/2 (theta - mean)' D (theta - mean) - 1/2 log|I + D^-1 G|

    with D the prior precision and G the generalised Gauss-Newton matrix (for these likelihoods the Fisher information).
    Integrals are taken in unconstrained coordinates. The function is pure: jit it, differentiate it in `params` and
    `data`, vmap it over strengths. It evaluates at the point it is given, whether or not that is a mode.

    Full curvature is exact where the model is linear and Gaussian. In log-determinant full <= block <= ekfac,
    block <= diag and full <= ntk, with all columns visited, so these give lower bounds of the full one's evidence. KFAC,
    though closer at times, is no bound (`docs/evidence.md` has values and costs).

    Args:
        problem: the model.
        params: constrained values of all latent sites.
        data: the arguments of the model; they may include strengths or magnitudes to differentiate in.
        curvature: ``"full"``; ``"block"`` (per site); ``"ekfac"``, ``"kfac"``, ``"kfac_reduce"`` (per tapped weight; expand or
            reduce of Eschenhagen et al. 2023); ``"diag"``; ``"ntk"`` (blocks of data rows, Immer et al. 2023); ``"dual"`` (one kernel of
            all rows: the exact value for any number of weights); or ``"hessian"`` (minus the Hessian of the log likelihood instead of G).
        probes: ``"exact"``, or a number of random probes instead of all columns of the Fisher root: the cost then does not
            grow with the number of classes. Their signs are Rademacher; the curvature and its gradients are unbiased, the
            log-determinant is so only for ``"ntk"``, where cells of (block of rows, column) are drawn. ``"dual"`` draws that many
            columns of all rows by their weight; the number should exceed that of effective parameters.
        key: for a number of probes.
        optimise: patterns of sites that are held at their values instead of integrated over; their priors do not count.
        correction: ``"newton"`` adds half the Newton decrement, which makes the evidence of linear-Gaussian models
            independent of the point. ``"seen"``, for ``"dual"``, counts the scatter of what the data see of the weights alone.
        basis: for ``"ekfac"``, a basis from `evidence_basis` that is kept over many evaluations; the bound holds in any.
        block_size: for ``"ntk"``, rows per block. Larger blocks are tighter; neighbouring rows share blocks.
        num_rows: N, where the data are a batch of N rows in all.
        chunk: the most rows that are treated at a time; None for what a fixed amount of memory holds.

    Returns:
        The evidence.

    Raises:
        CurvatureError: unknown or too large a curvature, a likelihood without a Fisher root, or (outside jit) a Hessian
            that is indefinite, or a kernel of rows that float32 cannot tell from an indefinite one.
        PriorError: a prior that this curvature cannot price.
        OptionError: sites that are missing from `params`, or an option out of its range.
    """
    data = rows.as_arrays(data)
    free, fixed = split_sites(problem, params, data, optimise)
    check_options(curvature, correction, block_size, chunk)
    factor = _factor(num_rows, data)
    return finite(
        _at(problem, free, fixed, data, curvature, correction, as_probes(probes, key), basis, block_size, chunk, factor)
    )


def finite(evidence: Evidence) -> Evidence:
    """The evidence itself; outside jit, one that is not finite is refused by what makes it so."""
    if isinstance(evidence.value, jax.core.Tracer) or bool(jnp.isfinite(evidence.value)):
        return evidence
    start = f"the {evidence.kind} evidence is {evidence.value} (log likelihood {evidence.log_likelihood}): "
    if evidence.kind == "laplace-hessian":
        reason = "the Hessian of the log joint is indefinite here, so this is no mode. Train further, or use curvature='full'"
    elif evidence.kind.startswith("laplace-dual") and evidence.value.dtype == jnp.float32:
        reason = (
            "under so wide a prior the kernel of the rows has eigenvalues farther apart than float32 tells, and comes out indefinite. "
            "Work in float64: with jax.enable_x64(True), params and data in float64"
        )
    else:
        reason = "the Hessian of a prior is indefinite at this point. Name scale hyperparameters in optimise=(...)"
    raise CurvatureError(start + reason)


@full_precision
def evidence_basis(
    problem: Problem,
    params: Values,
    *data: Any,
    optimise: Sequence[str] = (),
    probes: int | str = "exact",
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> Basis:
    """The eigenvectors of the Kronecker factors at `params`, for ``log_evidence(curvature="ekfac", basis=...)``.

    Measuring it costs an eigen-decomposition per factor; a basis that is a few steps old serves as well.
    """
    data = rows.as_arrays(data)
    free, fixed = split_sites(problem, params, data, optimise)
    return _basis_at(problem, free, fixed, data, as_probes(probes, key), chunk)


@partial(jax.jit, static_argnames=("problem", "chunk"))
def _basis_at(problem: Problem, free: Values, fixed: Values, data: Data, probes: Probes, chunk: int | None) -> Basis:
    return measure_basis(problem, unconstrained(problem, free, fixed, data), fixed, data, probes=probes, chunk=chunk)


def split_sites(problem: Problem, params: Values, data: Data, optimise: Sequence[str]) -> tuple[Values, Values]:
    """The sites to integrate over and those to hold."""
    structure = problem.structure(*data)
    missing = [name for name in structure.latent if name not in params]
    if missing:
        raise OptionError(f"params lack values for the sites {missing}; it has {list(params)}")
    held = problem.match(optimise, structure)
    fixed = {name: jnp.asarray(params[name]) for name in held}
    free = {name: jnp.asarray(params[name], jnp.result_type(float)) for name in structure.latent if name not in held}
    if not free:
        raise OptionError(f"optimise={tuple(optimise)} holds every site: there is nothing left to integrate over")
    return free, fixed


def as_probes(probes: int | str, key: jax.Array | None) -> Probes:
    """The option `probes` as the measurements take it."""
    if probes == "exact":
        return EXACT
    if not isinstance(probes, int) or probes < 1:
        raise OptionError(f"probes must be 'exact' or a number of at least 1, got {probes!r}")
    if key is None:
        raise OptionError(f"probes={probes} draws random signs: pass key=jax.random.key(...), or probes='exact'")
    return Probes(probes, key)


def check_options(curvature: str, correction: str | None, block_size: int, chunk: int | None) -> None:
    """Refuses options out of their range."""
    if curvature not in CURVATURES:
        raise CurvatureError(f"unknown curvature {curvature!r}: choose one of {', '.join(CURVATURES)}")
    if correction not in (None, "newton", "seen"):
        raise OptionError(f"correction must be None, 'newton' or 'seen', got {correction!r}")
    if correction == "seen" and curvature != "dual":
        raise OptionError(f"correction='seen' needs the rows of curvature='dual', got {curvature!r}")
    if correction == "newton" and curvature == "ntk":
        raise OptionError("correction='newton' needs a curvature of the weights, and 'ntk' has none: use 'full' or 'ekfac'")
    if block_size < 1 or (chunk is not None and chunk < 1):
        raise OptionError(f"block_size and chunk must be at least 1, got {block_size} and {chunk}")


def _factor(num_rows: int | None, data: Data) -> float | None:
    here = rows.num_rows(data)
    if num_rows is not None and num_rows < here:
        raise OptionError(
            f"num_rows={num_rows} is the size of the whole data, but {here} rows were given: leave it out for all rows"
        )
    return None if num_rows is None else num_rows / here


@partial(jax.jit, static_argnames=("problem", "curvature", "correction", "block_size", "chunk", "factor"))
def _at(
    problem: Problem,
    free: Values,
    fixed: Values,
    data: Data,
    curvature: str,
    correction: str | None,
    probes: Probes,
    basis: Basis | None,
    block_size: int,
    chunk: int | None,
    factor: float | None,
) -> Evidence:
    z = unconstrained(problem, free, fixed, data)
    pieces = measure(
        problem, z, fixed, data, curvature, probes=probes, basis=basis, block_size=block_size, chunk=chunk, factor=factor
    )
    kind = evidence_kind(curvature, probes.count)
    names = untapped(problem, z, data, curvature)
    return evaluate(problem, z, fixed, data, pieces, kind, names, correction=correction, factor=factor)


def unconstrained(problem: Problem, free: Values, fixed: Values, data: Data) -> Values:
    """The coordinates in which integrals are taken."""
    sites, _ = problem.latent_trace(data, constrained={**free, **fixed})
    return {name: _numpyro.unconstrain(sites[name], free[name]) for name in problem.structure(*data).latent if name in free}


def evaluate(
    problem: Problem,
    z: Values,
    fixed: Values,
    data: Data,
    pieces: tuple[Piece, ...],
    kind: str,
    untapped: tuple[str, ...] = (),
    *,
    correction: str | None = None,
    factor: float | None = None,
) -> Evidence:
    """The evidence at unconstrained `z`, with a curvature that was measured before."""
    likelihood, gradient = log_likelihood_and_gradient(problem, z, fixed=fixed, data=data, factor=factor, pieces=pieces)
    return price(problem, z, fixed, data, pieces, likelihood, gradient, kind, untapped, correction)


def log_likelihood_and_gradient(
    problem: Problem, z: Values, *, fixed: Values, data: Data, factor: float | None, pieces: tuple[Piece, ...]
) -> tuple[jax.Array, Values]:
    """log p(data | z) and its gradient, which is empty for ``"dual"``: its rows tell what is needed of it."""
    fn = partial(log_likelihood_at, problem, fixed=fixed, data=data, factor=factor)
    return (fn(z), {}) if all(isinstance(piece, Dual) for piece in pieces) else jax.value_and_grad(fn)(z)


def log_likelihood_at(problem: Problem, z: Values, *, fixed: Values, data: Data, factor: float | None) -> jax.Array:
    """log p(data | z), scaled to all N rows."""
    return problem.log_density(z, data, constrained=fixed, factor=factor).likelihood


def price(
    problem: Problem,
    z: Values,
    fixed: Values,
    data: Data,
    pieces: tuple[Piece, ...],
    log_likelihood: jax.Array,
    gradient: Values | None,
    kind: str,
    untapped: tuple[str, ...],
    correction: str | None,
) -> Evidence:
    """The evidence from everything that the data say: only the priors are evaluated here, on one row.

    Without the gradient of the log likelihood, the Newton decrement is left at zero.
    """
    parts = prior_parts(problem, z, fixed, data, tuple(piece.layout for piece in pieces))
    example = problem.take(data, slice(0, 1))

    def log_prior(z: Values) -> jax.Array:
        density = problem.log_density(z, example, constrained=fixed)
        return density.prior + density.log_det

    if gradient:
        gradient = jax.tree.map(jnp.add, gradient, jax.grad(log_prior)(z))
    scatter = sum((scatter for _, scatter in parts), jnp.zeros(()))
    log_det_ratio, decrement = jnp.zeros(()), jnp.zeros(())
    for piece, (part, _) in zip(pieces, parts, strict=True):
        log_det_ratio = log_det_ratio + piece.log_det_ratio(part)
        if gradient is not None:
            of_piece = piece.decrement(part) if isinstance(piece, Dual) else piece.decrement(part, piece.layout.flatten(gradient))
            decrement = decrement + of_piece
    value = log_likelihood - scatter / 2 - log_det_ratio / 2
    if correction == "newton":
        value = value + decrement / 2
    if correction == "seen":
        (piece,), ((part, _),) = pieces, parts
        assert isinstance(piece, Dual)
        value = log_likelihood - piece.seen(part) / 2 - log_det_ratio / 2
    return Evidence(value, log_likelihood, scatter, log_det_ratio, decrement, kind, untapped)


def settled(problem: Problem, z: Values, fixed: Values, data: Data, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The pieces with all worked out that does not depend on prior strengths."""
    parts = prior_parts(problem, z, fixed, data, tuple(piece.layout for piece in pieces))
    return tuple(piece.settled(part) for piece, (part, _) in zip(pieces, parts, strict=True))
