"""What a scheme is: pure functions from state to state that the one fitting loop drives."""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, NamedTuple

import jax

from bayes_sym.errors import OptionError

from .posterior import Posterior
from .problem import Problem
from .rows import Data
from .structure import Structure


__all__ = ["Info", "Scheme", "check_start"]

State = Any


class Info(NamedTuple):
    """What one step reports.

    Attributes:
        loss: a scalar to watch, in nats per row.
        record: arrays by name to keep from every step (the draws of a sampler), or None.
    """

    loss: jax.Array
    record: dict[str, jax.Array] | None = None


class Scheme(abc.ABC):
    """An inference scheme. Subclasses are frozen dataclasses of options, so they can be static arguments of jit.

    The loop calls, in this order: `check` and `check_data`; `init`; then `step` again and again, with `cross` before the steps named by
    `boundaries` (and before the step at which `due` first says so); and `posterior` at the end.

    Attributes:
        takes_batches: whether a step may see some of the rows only.
        vmaps_seeds: whether several seeds may be stepped in one vmapped program. Set it false where the work of a step depends
            on the data, so that each seed would wait for the slowest.
    """

    takes_batches: ClassVar[bool] = True
    vmaps_seeds: ClassVar[bool] = True

    @abc.abstractmethod
    def init(self, key: jax.Array, problem: Problem, data: Data) -> State:
        """The state before the first step: a pytree of arrays. Jitted by the loop."""

    @abc.abstractmethod
    def step(self, key: jax.Array, state: State, problem: Problem, batch: Data, factor: jax.Array) -> tuple[State, Info]:
        """One step on a batch of rows, which stand for `factor` times as many. Jitted by the loop."""

    @abc.abstractmethod
    def posterior(self, key: jax.Array, state: State, problem: Problem, data: Data, records: Any) -> Posterior:
        """What was inferred, from the last state and the records of all steps."""

    @abc.abstractmethod
    def position(self, state: State) -> dict[str, jax.Array]:
        """One representative point in unconstrained coordinates, for diagnosis."""

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses options that do not fit the problem, before any compute."""
        return None

    def check_data(self, problem: Problem, data: Data) -> None:
        """Refuses data that the scheme cannot work on, before any compute."""
        return None

    def check_state(self, problem: Problem, state: State, data: Data) -> None:
        """Refuses first values with which what was asked for later cannot work, before the first step."""
        return None

    def boundaries(self, num_steps: int) -> tuple[int, ...]:
        """Steps before which `cross` is called; chunks end there."""
        return ()

    def cross(self, key: jax.Array, state: State, problem: Problem, data: Data, step: int) -> State:
        """The state after crossing the boundary at `step`, from the problem of step `step - 1` to that of step `step`."""
        return state

    def due(self, problem: Problem, state: State, data: Data, step: int, boundaries: tuple[int, ...]) -> bool:
        """Whether to cross the next boundary now, before `step`, for schemes that wait for a condition; asked between chunks."""
        return False

    def problem_at(self, problem: Problem, data: Data, step: int, boundaries: tuple[int, ...]) -> Problem:
        """The problem that step number `step` works on, given all boundaries known so far."""
        return problem

    def stage(self, step: int, boundaries: tuple[int, ...]) -> Scheme:
        """The scheme that takes step number `step`: itself, or a variant after a boundary."""
        return self


def check_start(start: float) -> None:
    """Refuses a factor of the first weights that is not positive: at zero, no weight of a deep net has a gradient."""
    if not 0 < start < math.inf:
        raise OptionError(f"start multiplies the first weights, so it must be positive, got {start}: 1 for draws from the prior")
