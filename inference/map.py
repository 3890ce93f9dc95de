"""MAP: the most probable weights, by any optax optimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

from . import rows
from .posterior import PointPosterior
from .problem import Problem, Values
from .rows import Data
from .scheme import Info, Scheme, check_start
from .structure import Structure
from .whitening import whitened_update


__all__ = ["ADAM", "MAP"]

ADAM = optax.adam(3e-3)
"""The default optimiser: one object, so that schemes built twice are equal and compile once."""


class MAPState(NamedTuple):
    """The point in unconstrained coordinates and the optimiser's state."""

    z: Values
    optimizer: Any


@dataclass(frozen=True)
class MAP(Scheme):
    """Maximum a posteriori in the sites' own coordinates (no Jacobian of the constraining maps, as in AutoDelta).

    Beware of scale hyperparameters: the joint density of weights and their scale has no maximum. Fix them, or use
    `Laplace(optimise=...)`, which integrates the weights out.

    Attributes:
        optimizer: an optax optimiser of the negative log joint per row.
        whiten: whether it sees the weights in units of their prior, as in `Laplace`.
        start: what the first weights are multiplied with, as in `Laplace`.
    """

    optimizer: optax.GradientTransformation = ADAM
    whiten: bool = False
    start: float = 1.0

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses a start that is no factor."""
        check_start(self.start)

    def init(self, key: jax.Array, problem: Problem, data: Data) -> MAPState:
        """A draw of the weights from the prior times `start`, hyperparameters at their medians."""
        z = problem.initial(key, data, start=self.start)
        return MAPState(z, self.optimizer.init(z))

    def step(self, key: jax.Array, state: MAPState, problem: Problem, batch: Data, factor: jax.Array) -> tuple[MAPState, Info]:
        """One optimiser step on -(log likelihood + log prior)/N."""
        return self.descend(key, state, problem, batch, factor)

    def descend(
        self,
        key: jax.Array,
        state: MAPState,
        problem: Problem,
        batch: Data,
        factor: jax.Array,
        log_prior: Callable[[Values], jax.Array] | None = None,
    ) -> tuple[MAPState, Info]:
        """As `step`, under a log prior of unconstrained values besides that of the model."""

        def loss(z: Values) -> jax.Array:
            density = problem.log_density(z, batch, factor=factor, key=key)
            extra = 0.0 if log_prior is None else log_prior(z)
            return -(density.likelihood + density.prior + extra) / (factor * rows.num_rows(batch))

        value, gradient = jax.value_and_grad(loss)(state.z)
        if self.whiten:
            updates, optimizer = whitened_update(problem, self.optimizer, gradient, state.optimizer, state.z, {}, batch)
        else:
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.z)
        return MAPState(optax.apply_updates(state.z, updates), optimizer), Info(value)

    def posterior(self, key: jax.Array, state: MAPState, problem: Problem, data: Data, records: Any) -> PointPosterior:
        """All mass at the last point."""
        return PointPosterior(problem, problem.take(data, slice(0, 1)), state.z)

    def position(self, state: MAPState) -> Values:
        """The point."""
        return state.z
