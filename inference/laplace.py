"""Laplace: MAP and evidence interleaved, and a Gaussian posterior from the curvature at the end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayes_sym.errors import CurvatureError, OptionError

from . import rows
from .chunks import start_state
from .curvature.dependence import dependent_outputs
from .curvature.measure import CURVATURES, measure
from .curvature.pieces import Piece
from .evidence import Evidence, evaluate, prior_parts
from .map import ADAM
from .posterior import GaussianPosterior
from .problem import Problem, Structure, Values
from .rows import Data
from .scheme import Info, Scheme


__all__ = ["Laplace"]

_HYPER = optax.adam(0.1)


class LaplaceState(NamedTuple):
    """Unconstrained values of the weights and of the optimised sites, and both optimisers' states."""

    z: Values
    hyper: Values
    optimizer: Any
    hyper_optimizer: Any


@dataclass(frozen=True)
class Laplace(Scheme):
    """A Gaussian at the mode, with the generalised Gauss-Newton curvature (Immer et al. 2021, "Scalable marginal likelihood").

    While the weights are optimised, the sites named by `optimise` are moved up the gradient of the Laplace evidence:
    type-II maximum likelihood of prior strengths, softness and noise. Modes are those of the density in unconstrained
    coordinates.

    Attributes:
        optimizer: an optax optimiser of the weights.
        curvature: ``"full"``, ``"block"``, ``"diag"``, ``"kfac"`` or ``"kfac_reduce"``; see `log_evidence`.
        optimise: patterns of the sites to choose by evidence, e.g. ``("softness", "*.scale")``; all others are
            integrated over.
        hyper_optimizer: an optax optimiser of those sites, in unconstrained coordinates.
        burn_in: steps before the first evidence update; None for a fifth of all steps.
        refresh: steps between evidence updates; None for a twentieth of all steps.
        hyper_steps: gradient steps on the evidence per update.
    """

    optimizer: optax.GradientTransformation = ADAM
    curvature: str = "kfac"
    optimise: tuple[str, ...] = ()
    hyper_optimizer: optax.GradientTransformation = _HYPER
    burn_in: int | None = None
    refresh: int | None = None
    hyper_steps: int = 20

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses unknown curvatures and site patterns."""
        if self.curvature not in CURVATURES:
            raise CurvatureError(f"unknown curvature {self.curvature!r}: choose one of {', '.join(CURVATURES)}")
        if isinstance(self.optimise, str):
            raise OptionError(f"optimise must be a tuple of names, got {self.optimise!r}: write optimise=({self.optimise!r},)")
        held = problem.match(self.optimise, structure)
        if len(held) == len(structure.latent):
            raise OptionError(f"optimise={self.optimise} names every site: there is nothing left to integrate over")

    def check_data(self, problem: Problem, data: Data) -> None:
        """Refuses priors and likelihoods that the curvature cannot price, by an abstract run of the end of the fit."""
        state = jax.eval_shape(partial(start_state, self, problem), jax.random.key(0), data)
        jax.eval_shape(partial(_approximate, self, problem), state, data)

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
        return _climb_evidence(self, problem, state, data)

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


def _fixed(problem: Problem, state: LaplaceState, hyper: Values, data: Data) -> Values:
    sites, _ = problem.trace(problem.take(data, slice(0, 1)), unconstrained={**state.z, **hyper})
    return {name: sites[name]["value"] for name in hyper}


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _climb_evidence(scheme: Laplace, problem: Problem, state: LaplaceState, data: Data) -> LaplaceState:
    def measured(hyper: Values) -> tuple[Piece, ...]:
        return measure(problem, state.z, _fixed(problem, state, hyper, data), data, scheme.curvature)

    # A curvature that does not move with the hyperparameters (prior strengths of centred weights) is measured once.
    moves = any(jax.tree.leaves(dependent_outputs(measured, state.hyper)))
    once = None if moves else measured(state.hyper)

    def loss(hyper: Values) -> jax.Array:
        pieces = measured(hyper) if once is None else once
        return -evaluate(problem, state.z, _fixed(problem, state, hyper, data), data, pieces, scheme.curvature).value

    def step(carry: tuple[Values, Any], _: None) -> tuple[tuple[Values, Any], jax.Array]:
        hyper, optimizer = carry
        value, gradient = jax.value_and_grad(loss)(hyper)
        updates, optimizer = scheme.hyper_optimizer.update(gradient, optimizer, hyper)
        moved = optax.apply_updates(hyper, updates)
        return (moved, optimizer), value

    (hyper, optimizer), _ = jax.lax.scan(step, (state.hyper, state.hyper_optimizer), None, length=scheme.hyper_steps)
    return state._replace(hyper=hyper, hyper_optimizer=optimizer)


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _approximate(scheme: Laplace, problem: Problem, state: LaplaceState, data: Data) -> tuple[GaussianPosterior, Evidence]:
    fixed = _fixed(problem, state, state.hyper, data)
    pieces = measure(problem, state.z, fixed, data, scheme.curvature)
    evidence = evaluate(problem, state.z, fixed, data, pieces, scheme.curvature)
    parts = prior_parts(problem, state.z, fixed, data, tuple(piece.layout for piece in pieces))
    blocks = tuple(piece.posterior(part, piece.layout.flatten(state.z)) for piece, (part, _) in zip(pieces, parts, strict=True))
    example = problem.take(data, slice(0, 1))
    found = GaussianPosterior(problem, example, blocks, state.hyper, evidence.value, evidence.kind, linearise=True)
    return found, evidence
