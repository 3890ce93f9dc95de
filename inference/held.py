"""Evidence with the curvature held: everything that the data say is worked out once, and prior strengths move freely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bayes_sym._precision import full_precision
from bayes_sym.errors import CurvatureError, OptionError

from . import rows
from .curvature.dependence import traced
from .curvature.measure import measure, untapped
from .curvature.pieces import Piece
from .curvature.tapped import Basis
from .curvature.view import Probes
from .effective import gammas
from .evidence import (
    Evidence,
    as_probes,
    check_options,
    evidence_kind,
    finite,
    log_likelihood_and_gradient,
    price,
    settled,
    split_sites,
    unconstrained,
)
from .problem import Problem, Values
from .rows import Data


__all__ = ["HeldEvidence", "hold_evidence"]

_LONGEST = 1.5  # the longest step of a log strength while scatter and effective parameters are brought together
_SECANT = 1e-3  # steps that are long enough to tell from them how fast the scatter falls


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["z", "data", "pieces", "likelihood", "gradient"],
    meta_fields=["problem", "kind", "untapped", "correction"],
)
@dataclass(frozen=True)
class HeldEvidence:
    """The evidence as a function of prior strengths alone, everything that the data say worked out before.

    Call it with constrained values of the held sites; it is pure and differentiable in them, and costs no pass over the
    data. Made by `hold_evidence`.
    """

    problem: Problem
    z: Values
    data: Data
    pieces: tuple[Piece, ...]
    likelihood: jax.Array
    gradient: Values
    kind: str
    untapped: tuple[str, ...]
    correction: str | None = None

    @full_precision
    def __call__(self, fixed: Mapping[str, jax.Array]) -> Evidence:
        """The evidence at these values of the held sites; outside jit, a `CurvatureError` where it is not finite."""
        return finite(_priced(self, {name: jnp.asarray(value) for name, value in fixed.items()}))

    @full_precision
    def effective_parameters(self, fixed: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """gamma of every site at these values of the held sites, as `effective_parameters` gives it."""
        return _counted(self, {name: jnp.asarray(value) for name, value in fixed.items()})

    @full_precision
    def balanced(self, fixed: Mapping[str, jax.Array], *, tolerance: float = 0.01, max_steps: int = 30) -> dict[str, jax.Array]:
        """The prior strengths at which MacKay's identity holds: of every strength, the scatter of its weights equals their gamma.

        There the evidence of the weights as they are, without a correction, is stationary. If variances are proportional to s^p,
        log(scatter/gamma) falls p times as fast as log s where the data determine the weights, and 2 p times as fast where they
        hardly do. Whole steps of log(scatter/gamma) / p (MacKay 1992) swing for ever in the second case; two thirds of them leave a
        third of the way at most in either. Where a strength has weights of both powers it can fall faster still, so the steps of one
        that swings are halved.

        Args:
            fixed: constrained values of the held sites, to start from; all of them positive, such as scales.
            tolerance: of |log(scatter/gamma)|.
            max_steps: how many steps to take at most.

        Returns:
            The values by site.

        Raises:
            OptionError: a held site that is not positive, or an option out of its range.
            CurvatureError: a strength whose weights are all at their prior mean, or one that did not come within `tolerance`.
        """
        if not (tolerance > 0 and max_steps >= 1):
            raise OptionError(f"tolerance must be positive and max_steps at least 1, got {tolerance} and {max_steps}")
        sites = self.problem.structure(*self.data).latent
        wrong = [name for name in fixed if not sites[name].positive]
        if wrong:
            raise OptionError(
                f"the sites {wrong} are not positive, so they are no prior strengths: leave them out of optimise=(...)"
            )
        logs, unflatten = ravel_pytree({name: jnp.log(jnp.asarray(value)) for name, value in fixed.items()})
        step, before, last = jnp.zeros_like(logs), jnp.ones_like(logs), jnp.zeros_like(logs)
        power, damping = jnp.full_like(logs, 2.0), jnp.ones_like(logs)
        for _ in range(max_steps + 1):
            scatter, gamma = _sums(self, unflatten(logs))
            apart = jnp.log(scatter / gamma)
            if not jnp.isfinite(apart).all():
                raise CurvatureError(
                    f"log(scatter/gamma) of {list(fixed)} is {apart}: where it is -inf, all weights are at their prior mean, and the "
                    "evidence has no maximum at a strength above 0. Train them, or leave that strength out of optimise=(...)"
                )
            if jnp.abs(apart).max() <= tolerance:
                return {name: jnp.exp(value) for name, value in unflatten(logs).items()}
            moved = jnp.abs(step) > _SECANT
            power = jnp.where(moved, jnp.log(before / scatter) / jnp.where(moved, step, 1.0), power)
            swings = (apart * last < 0) & (2 * jnp.abs(apart) > jnp.abs(last))
            damping = jnp.where(swings, damping / 2, damping)
            step = damping * jnp.clip(apart / (1.5 * power), -_LONGEST, _LONGEST)
            logs, before, last = logs + step, scatter, apart
        raise CurvatureError(
            f"after max_steps={max_steps} steps, log(scatter/gamma) of {list(fixed)} is still {apart}: "
            f"not all within tolerance={tolerance}. Take more steps, or start nearer"
        )


@jax.jit
def _sums(held: HeldEvidence, logs: Values) -> tuple[jax.Array, jax.Array]:
    """Scatter and effective parameters of the weights under every strength, each times half the power that their variance has of it."""

    def found(logs: Values) -> Evidence:
        fixed = {name: jnp.exp(value) for name, value in logs.items()}
        return price(held.problem, held.z, fixed, held.data, held.pieces, held.likelihood, None, held.kind, (), None)

    scatter, _ = ravel_pytree(jax.grad(lambda logs: -found(logs).scatter / 2)(logs))
    gamma, _ = ravel_pytree(jax.grad(lambda logs: found(logs).log_det_ratio / 2)(logs))
    return scatter, gamma


@jax.jit
def _priced(held: HeldEvidence, fixed: Values) -> Evidence:
    known = (held.pieces, held.likelihood, held.gradient, held.kind, held.untapped, held.correction)
    return price(held.problem, held.z, fixed, held.data, *known)


@jax.jit
def _counted(held: HeldEvidence, fixed: Values) -> dict[str, jax.Array]:
    return gammas(held.problem, held.z, fixed, held.data, held.pieces)


@full_precision
def hold_evidence(
    problem: Problem,
    params: Values,
    *data: Any,
    optimise: Sequence[str],
    curvature: str = "ekfac",
    correction: str | None = None,
    probes: int | str = "exact",
    key: jax.Array | None = None,
    basis: Basis | None = None,
    block_size: int = 128,
    chunk: int | None = None,
) -> HeldEvidence:
    """Measures the curvature once, to choose the sites named by `optimise` by many cheap evaluations of the evidence.

    Arguments are those of `log_evidence`.

    Raises:
        OptionError: the likelihood or its curvature depends on a site in `optimise` (a noise scale, say): holding the
            curvature would give wrong gradients, and `log_evidence` gives the right ones.
    """
    data = rows.as_arrays(data)
    free, fixed = split_sites(problem, params, data, optimise)
    check_options(curvature, correction, block_size, chunk)
    settings = (curvature, as_probes(probes, key), basis, block_size, chunk)
    z, pieces, likelihood, gradient = _settled(problem, free, fixed, data, *settings)
    kind = evidence_kind(curvature, settings[1].count)
    example = problem.take(data, slice(0, 1))
    names = untapped(problem, z, data, curvature)
    return HeldEvidence(problem, z, example, pieces, likelihood, gradient, kind, names, correction)


@partial(jax.jit, static_argnames=("problem", "curvature", "block_size", "chunk"))
def _settled(
    problem: Problem,
    free: Values,
    fixed: Values,
    data: Data,
    curvature: str,
    probes: Probes,
    basis: Basis | None,
    block_size: int,
    chunk: int | None,
) -> tuple[Values, tuple[Piece, ...], jax.Array, Values]:
    def data_side(fixed: Values) -> tuple[Values, tuple[Piece, ...], jax.Array, Values]:
        """Coordinates, curvature, log likelihood and its gradient: what needs a pass over the data."""
        z = unconstrained(problem, free, fixed, data)
        pieces = measure(problem, z, fixed, data, curvature, probes=probes, basis=basis, block_size=block_size, chunk=chunk)
        return z, pieces, *log_likelihood_and_gradient(problem, z, fixed=fixed, data=data, factor=None, pieces=pieces)

    depends, again = traced(data_side, fixed)
    if any(jax.tree.leaves(depends)):
        raise OptionError(
            f"the likelihood, its curvature or the coordinates depend on the sites in optimise={tuple(fixed)}, so they cannot be held "
            "while these move: use log_evidence, or leave out the sites that the likelihood depends on (noise scales)"
        )
    z, pieces, likelihood, gradient = again(fixed)
    return z, settled(problem, z, fixed, data, pieces), likelihood, gradient
