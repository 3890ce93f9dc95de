"""A net trained as a MAP in rounds; between them the exact evidence, the weights held, says how strong its priors are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import CurvatureError
from bayes_sym.inference import HeldEvidence, Laplace, Problem, hold_evidence
from bayes_sym.inference.laplace import LaplaceState
from bayes_sym.inference.problem import Values
from bayes_sym.inference.rows import Data


__all__ = ["InRounds", "round_starts", "with_held"]

_T = TypeVar("_T")
_PARTS = 8  # a round has this part of all steps


@dataclass(frozen=True)
class InRounds(Laplace):
    """Most of the steps at the first strengths, and the rest in rounds, each of which starts with strengths that MacKay's identity gives.

    Strengths and weights move each other: a pathway that the data do not need has weights that shrink with every round, and what
    is left of them is the less, the longer a round is. Strengths straight after the first steps say little (docs/decisions.md).

    Attributes:
        rounds: how many, at most 7; each has an eighth of all steps.
        columns: of the Fisher roots, to draw for the exact evidence: a few times as many as there are effective parameters.
        still: whether the strengths stay as they are: the same steps as a MAP, to compare with, which are also the same program.
    """

    rounds: int = 3
    columns: int = 800
    still: bool = False

    def check_data(self, problem: Problem, data: Data) -> None:
        """Nothing: the exact evidence prices every layer of a ladder."""

    def boundaries(self, num_steps: int) -> tuple[int, ...]:
        """The first steps of the rounds."""
        return round_starts(num_steps, self.rounds)

    def cross(self, key: jax.Array, state: LaplaceState, problem: Problem, data: Data, step: int) -> LaplaceState:
        """Balances the strengths."""
        if self.still:
            return state
        strength = {"strength": jnp.exp(state.hyper["strength"])}
        found = with_held(lambda held: held.balanced(strength), problem, {**state.z, **strength}, data, self.columns)
        return state._replace(hyper={"strength": jnp.log(found["strength"]).astype(state.hyper["strength"].dtype)})


def round_starts(num_steps: int, rounds: int) -> tuple[int, ...]:
    """The first step of every round, each with an eighth of all steps."""
    steps = max(1, num_steps // _PARTS)
    return tuple(step for step in range(num_steps - rounds * steps, num_steps, steps) if step > 0)


def with_held(fn: Callable[[HeldEvidence], _T], problem: Problem, params: Values, data: Data, columns: int) -> _T:
    """A function of the exact evidence of a net with the weights held.

    Its correction ``"seen"`` counts of the scatter what the data see: the many weights that they leave open need longer than a fit
    to come to their prior mean. Where the kernel of a net with wide priors is indefinite in float32, all is done again in float64.
    """

    def at(params: Values, data: Data) -> _T:
        held = hold_evidence(
            problem,
            params,
            *data,
            optimise=("strength",),
            curvature="dual",
            correction="seen",
            probes=columns,
            key=jax.random.key(1),
        )
        return fn(held)

    with suppress(CurvatureError):
        return at(params, data)
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(value), float) for name, value in params.items()}
        x, *rest = (np.asarray(array) for array in data)
        return at(wide, (x.astype(float), *rest))
