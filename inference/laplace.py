"""Laplace: MAP and evidence interleaved, and a Gaussian posterior from the curvature at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from bayes_sym import _numpyro
from bayes_sym.errors import CurvatureError, OptionError

from . import rows
from .chunks import start_state
from .curvature.dependence import dependent_outputs
from .curvature.measure import CURVATURES, measure, measure_basis, untapped
from .curvature.pieces import Piece
from .curvature.site_priors import prior_parts
from .curvature.view import EXACT, Probes
from .evidence import Evidence, evaluate, evidence_kind, settled
from .map import ADAM
from .posterior import GaussianPosterior
from .problem import Problem, Structure, Values
from .rows import Data
from .scheme import Info, Scheme


__all__ = ["Laplace"]

_HYPER = optax.adam(0.1)
_LONGEST = 2.0  # the longest step of a log strength


class LaplaceState(NamedTuple):
    """Unconstrained values of the weights and of the optimised sites, and both optimisers' states."""

    z: Values
    hyper: Values
    optimizer: Any
    hyper_optimizer: Any


@dataclass(frozen=True)
class Laplace(Scheme):
    """A Gaussian at the mode, with the generalised Gauss-Newton curvature (Immer et al. 2021, "Scalable marginal likelihood").

    While the weights are optimised, the sites named by `optimise` are moved up the Laplace evidence: type-II maximum
    likelihood of prior strengths, softness and noise. Modes are those of the density in unconstrained coordinates. The
    prior is the weight decay; there is no other.

    Attributes:
        optimizer: an optax optimiser of the weights.
        curvature: of the posterior, and of the evidence unless `objective` says otherwise; see `log_evidence`.
            ``"ekfac"`` keeps its basis fixed during each update of the optimised sites.
        optimise: patterns of the sites to choose by evidence, e.g. ``("softness", "*.scale")``; all others are
            integrated over.
        hyper_optimizer: an optax optimiser of those sites, in unconstrained coordinates.
        burn_in: steps before the first evidence update; None for a fifth of all steps.
        refresh: steps between evidence updates; None for a twentieth of all steps.
        hyper_steps: steps on the evidence per update.
        update: ``"gradient"``, or ``"mackay"`` to move positive prior strengths by the fixed point that balances effective
            parameters and scatter (MacKay 1992), without a learning rate; sites that the likelihood depends on, and those
            that are not positive, take gradient steps.
        objective: the curvature of the evidence that is climbed, e.g. ``"ntk"``; None for that of the posterior.
        probes: random probes per measurement of that objective, or ``"exact"``. The posterior's own curvature is exact.
        block_size: rows per block of ``"ntk"``.
        subset: patterns of the sites to integrate over, e.g. ``("net.4.*",)``, or ``"last"`` for the last tapped weight and
            its bias; the other weights stay at the mode, and the evidence is conditional on them. None for all.
        chunk: the most rows at a time in measurements; None for what a fixed amount of memory holds.
    """

    optimizer: optax.GradientTransformation = ADAM
    curvature: str = "ekfac"
    optimise: tuple[str, ...] = ()
    hyper_optimizer: optax.GradientTransformation = _HYPER
    burn_in: int | None = None
    refresh: int | None = None
    hyper_steps: int = 20
    update: str = "gradient"
    objective: str | None = None
    probes: int | str = "exact"
    block_size: int = 128
    subset: tuple[str, ...] | str | None = None
    chunk: int | None = None

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses unknown options and site patterns."""
        for name in (self.curvature, self.objective or self.curvature):
            if name not in CURVATURES:
                raise CurvatureError(f"unknown curvature {name!r}: choose one of {', '.join(CURVATURES)}")
        if self.curvature == "ntk":
            raise CurvatureError(
                "curvature='ntk' gives no posterior over the weights: use objective='ntk' beside curvature='ekfac', say"
            )
        if self.update not in ("gradient", "mackay"):
            raise OptionError(f"update must be 'gradient' or 'mackay', got {self.update!r}")
        if self.probes != "exact" and (not isinstance(self.probes, int) or self.probes < 1):
            raise OptionError(f"probes must be 'exact' or a number of at least 1, got {self.probes!r}")
        if isinstance(self.optimise, str):
            raise OptionError(f"optimise must be a tuple of names, got {self.optimise!r}: write optimise=({self.optimise!r},)")
        held = problem.match(self.optimise, structure)
        if len(held) == len(structure.latent):
            raise OptionError(f"optimise={self.optimise} names every site: there is nothing left to integrate over")
        self.integrated(problem, structure)

    def integrated(self, problem: Problem, structure: Structure) -> tuple[str, ...]:
        """The sites of the Gaussian."""
        held = problem.match(self.optimise, structure)
        free = tuple(name for name in structure.latent if name not in held)
        if self.subset is None:
            return free
        if self.subset == "last":
            if not structure.taps:
                raise OptionError(
                    "subset='last' is the last tapped weight, and the model has no taps: name the sites, subset=('w',)"
                )
            last = list(structure.taps.values())[-1]
            chosen: tuple[str | None, ...] = (last.weight, last.bias)
        elif isinstance(self.subset, str):
            raise OptionError(f"subset must be a tuple of names or 'last', got {self.subset!r}: write subset=({self.subset!r},)")
        else:
            chosen = problem.match(self.subset, structure)
        found = tuple(name for name in free if name in chosen)
        if not found:
            raise OptionError(f"subset={self.subset} leaves nothing to integrate over: optimise={self.optimise} holds it already")
        return found

    def check_data(self, problem: Problem, data: Data) -> None:
        """Refuses priors and likelihoods that the curvature cannot price, by an abstract run of the end of the fit."""
        state = jax.eval_shape(partial(start_state, self, problem), jax.random.key(0), data)
        jax.eval_shape(partial(_approximate, self, problem), state, data)
        if self.optimise:
            jax.eval_shape(partial(_climb_evidence, self, problem), jax.random.key(0), state, data)

    def boundaries(self, num_steps: int) -> tuple[int, ...]:
        """The steps before which the evidence moves the optimised sites."""
        if not self.optimise:
            return ()
        burn_in = num_steps // 5 if self.burn_in is None else self.burn_in
        refresh = max(1, num_steps // 20) if self.refresh is None else self.refresh
        return tuple(range(max(1, burn_in), num_steps, refresh))

    def init(self, key: jax.Array, problem: Problem, data: Data) -> LaplaceState:
        """Weights drawn from the prior, hyperparameters at their prior medians."""
        values = problem.initial(key, data)
        held = problem.match(self.optimise, problem.structure(*data))
        hyper = {name: values[name] for name in held}
        z = {name: value for name, value in values.items() if name not in held}
        return LaplaceState(z, hyper, self.optimizer.init(z), self.hyper_optimizer.init(hyper))

    def step(
        self, key: jax.Array, state: LaplaceState, problem: Problem, batch: Data, factor: jax.Array
    ) -> tuple[LaplaceState, Info]:
        """One optimiser step of the weights on the negative log joint, the optimised sites held."""

        def loss(z: Values) -> jax.Array:
            density = problem.log_density({**z, **state.hyper}, batch, factor=factor, key=key)
            return -(density.likelihood + density.prior + density.log_det) / (factor * rows.num_rows(batch))

        value, gradient = jax.value_and_grad(loss)(state.z)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.z)
        return state._replace(z=optax.apply_updates(state.z, updates), optimizer=optimizer), Info(value)

    def cross(self, key: jax.Array, state: LaplaceState, problem: Problem, data: Data, step: int) -> LaplaceState:
        """`hyper_steps` steps of the optimised sites up the evidence."""
        return _climb_evidence(self, problem, key, state, data)

    def posterior(self, key: jax.Array, state: LaplaceState, problem: Problem, data: Data, records: Any) -> GaussianPosterior:
        """The Gaussian at the last weights, with its evidence."""
        found, evidence = _approximate(self, problem, state, data)
        if not bool(jnp.isfinite(evidence.value)):
            raise CurvatureError(
                f"the {evidence.kind} evidence is {evidence.value} (log likelihood {evidence.log_likelihood}): a prior has an indefinite "
                f"Hessian at this point. Name its hyperparameters in optimise=(...); the sites are {list(problem.structure(*data).latent)}"
            )
        return found

    def position(self, state: LaplaceState) -> Values:
        """The weights and the optimised sites."""
        return {**state.z, **state.hyper}


def _parts(scheme: Laplace, problem: Problem, state: LaplaceState, data: Data) -> tuple[Values, Values]:
    """The unconstrained sites to integrate over, and the other weights."""
    names = scheme.integrated(problem, problem.structure(*data))
    rest = {name: value for name, value in state.z.items() if name not in names}
    return {name: state.z[name] for name in names}, rest


def _constrained(problem: Problem, state: LaplaceState, held: Values, data: Data) -> Values:
    sites, _ = problem.trace(problem.take(data, slice(0, 1)), unconstrained={**state.z, **held})
    return {name: sites[name]["value"] for name in held}


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _climb_evidence(scheme: Laplace, problem: Problem, key: jax.Array, state: LaplaceState, data: Data) -> LaplaceState:
    objective = scheme.objective or scheme.curvature
    probes = EXACT if scheme.probes == "exact" else Probes(int(scheme.probes), key)
    z, rest = _parts(scheme, problem, state, data)

    def held(hyper: Values) -> Values:
        return _constrained(problem, state, {**rest, **hyper}, data)

    basis = None
    if objective == "ekfac":
        basis = measure_basis(problem, z, held(state.hyper), data, probes=probes, chunk=scheme.chunk)

    def measured(hyper: Values) -> tuple[Piece, ...]:
        return measure(
            problem,
            z,
            held(hyper),
            data,
            objective,
            probes=probes,
            basis=basis,
            block_size=scheme.block_size,
            chunk=scheme.chunk,
        )

    # A curvature that does not move with the hyperparameters (prior strengths of centred weights) is measured once.
    moves = any(jax.tree.leaves(dependent_outputs(measured, state.hyper)))
    once = None if moves else settled(problem, z, held(state.hyper), data, measured(state.hyper))
    kind = evidence_kind(objective, probes.count)

    def evidence(hyper: Values) -> Evidence:
        pieces = measured(hyper) if once is None else once
        return evaluate(problem, z, held(hyper), data, pieces, kind)

    strengths = _strengths(problem, state.hyper, data, evidence) if scheme.update == "mackay" else []

    def step(carry: tuple[Values, Any], _: None) -> tuple[tuple[Values, Any], None]:
        hyper, optimizer = carry
        gradient = jax.grad(lambda hyper: -evidence(hyper).value)(hyper)
        updates, optimizer = scheme.hyper_optimizer.update(gradient, optimizer, hyper)
        moved = optax.apply_updates(hyper, updates)
        if strengths:
            moved = {**moved, **_fixed_point(evidence, hyper, strengths)}
        return (moved, optimizer), None

    (hyper, optimizer), _ = jax.lax.scan(step, (state.hyper, state.hyper_optimizer), None, length=scheme.hyper_steps)
    return state._replace(hyper=hyper, hyper_optimizer=optimizer)


def _strengths(problem: Problem, hyper: Values, data: Data, evidence: Callable[[Values], Evidence]) -> list[str]:
    """The positive sites that only priors depend on."""
    sites, _ = problem.trace(problem.take(data, slice(0, 1)))
    found = []
    for name in hyper:

        def log_likelihood(value: jax.Array, name: str = name) -> jax.Array:
            return evidence({**hyper, name: value}).log_likelihood

        if not dependent_outputs(log_likelihood, hyper[name]) and _numpyro.is_positive(sites[name]["fn"].support):
            found.append(name)
    return found


def _fixed_point(evidence: Callable[[Values], Evidence], hyper: Values, names: list[str]) -> Values:
    """MacKay's update of log strengths.

    For variances proportional to h^p the scatter is E h^-p, and the log-determinant has the derivative p gamma in log h,
    gamma being the number of effective parameters. The evidence is stationary where E h^-p = gamma, so
    log h <- log h + log(E h^-p / gamma) / p, with p from the second derivative of the scatter.
    """
    chosen = {name: hyper[name] for name in names}
    flat, unflatten = jax.flatten_util.ravel_pytree(chosen)

    def scatter(flat: jax.Array) -> jax.Array:
        return evidence({**hyper, **unflatten(flat)}).scatter

    def log_det_ratio(flat: jax.Array) -> jax.Array:
        return evidence({**hyper, **unflatten(flat)}).log_det_ratio

    slope = jax.grad(scatter)(flat)
    power = -jnp.diagonal(jax.hessian(scatter)(flat)) / slope
    step = jnp.log(-slope / jax.grad(log_det_ratio)(flat)) / power
    usable = jnp.isfinite(step)
    return unflatten(flat + jnp.clip(jnp.where(usable, step, 0.0), -_LONGEST, _LONGEST))


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _approximate(scheme: Laplace, problem: Problem, state: LaplaceState, data: Data) -> tuple[GaussianPosterior, Evidence]:
    z, rest = _parts(scheme, problem, state, data)
    point = {**rest, **state.hyper}
    fixed = _constrained(problem, state, point, data)
    pieces = measure(problem, z, fixed, data, scheme.curvature, chunk=scheme.chunk)
    names = untapped(problem, z, data, scheme.curvature)
    evidence = evaluate(problem, z, fixed, data, pieces, evidence_kind(scheme.curvature), names)
    parts = prior_parts(problem, z, fixed, data, tuple(piece.layout for piece in pieces))
    blocks = tuple(piece.posterior(part, piece.layout.flatten(z)) for piece, (part, _) in zip(pieces, parts, strict=True))
    example = problem.take(data, slice(0, 1))
    return GaussianPosterior(problem, example, blocks, point, evidence.value, evidence.kind, linearise=True), evidence
