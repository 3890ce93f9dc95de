"""What a symmetrisation is: when q is made invariant, under which action on its weights, and how it is kept so."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym.errors import ClosednessError, GroupActionError, OptionError
from bayes_sym.layers.layer import Layer
from bayes_sym.representations import Representation

from . import rows
from .families import Family
from .families.family import Reps
from .problem import Problem, Values
from .rows import Data
from .structure import Structure
from .weight_action import target_module


__all__ = ["HOLDS", "Symmetrisation", "TrainingAccuracy", "check_at", "hold"]

HOLDS = ("none", "gradient", "update", "tie")


@dataclass(frozen=True)
class TrainingAccuracy:
    """A condition for `at=`: as soon as the net at the mean of q has this accuracy on the training data (asked between chunks).

    Attributes:
        accuracy: between 0 and 1.
        latest: the fraction of all steps at which it happens in any case.
    """

    accuracy: float
    latest: float = 0.8

    def __post_init__(self) -> None:
        if not (0 < self.accuracy <= 1 and 0 < self.latest < 1):
            raise OptionError(
                f"TrainingAccuracy needs 0 < accuracy <= 1 and 0 < latest < 1, got {self.accuracy} and {self.latest}"
            )


At = float | int | TrainingAccuracy


class Symmetrisation(abc.ABC):
    """Makes q invariant under a group once, and keeps it so if asked to. Subclasses are frozen dataclasses.

    Attributes:
        action: how the group acts on one input of the model.
        output: how it acts on one output; None for invariant outputs.
        at: when: a fraction of all steps (a float), a step (an integer), or a `TrainingAccuracy`.
        module: which `random_module`; None if the model has one.
        hold: what keeps q invariant afterwards: ``"none"``; ``"gradient"`` projects every gradient onto the invariant ones, which
            equals full augmentation with noise that is common to an orbit, without its cost; ``"update"`` projects every step,
            which is exact for any optimiser; ``"tie"`` does both, so that q has one parameter per orbit in effect.
    """

    action: Representation
    output: Representation | None
    at: At
    module: str | None
    hold: str

    def step(self, num_steps: int) -> int:
        """The step before which it happens, or happens at the latest."""
        if isinstance(self.at, TrainingAccuracy):
            return max(1, round(self.at.latest * num_steps))
        return max(1, round(self.at * num_steps)) if isinstance(self.at, float) else self.at

    def target(self, structure: Structure) -> tuple[str, Layer]:
        """The module to act on: its name and specification."""
        return target_module(structure, self.module, type(self).__name__)

    def problem(self, problem: Problem, data: Data) -> Problem:
        """The problem afterwards."""
        return problem

    @abc.abstractmethod
    def reps(self, problem: Problem, data: Data) -> Reps:
        """How the group acts on the weights of the problem afterwards, by full site name; q is invariant under it."""

    @abc.abstractmethod
    def check(self, family: Family, params: Any, problem: Problem, data: Data) -> None:
        """Refuses families and nets that it cannot treat, before any compute; `params` may be shapes."""

    def check_values(self, family: Family, params: Any, problem: Problem, data: Data) -> None:
        """Refuses first parameters that have no invariant counterpart."""
        return None

    @abc.abstractmethod
    def apply(self, family: Family, params: Any, problem: Problem, data: Data) -> Any:
        """The parameters afterwards, from those of the problem before."""

    def due(self, problem: Problem, position: Values, data: Data) -> bool:
        """Whether the condition holds."""
        if not isinstance(self.at, TrainingAccuracy):
            return False
        return float(_accuracy(problem, position, data)) >= self.at.accuracy


def check_at(at: At, who: str, earliest: int = 1) -> None:
    """Refuses a time that is none."""
    fraction_ok = isinstance(at, float) and 0 < at < 1
    step_ok = isinstance(at, int) and not isinstance(at, bool) and at >= earliest
    if not (fraction_ok or step_ok or isinstance(at, TrainingAccuracy)):
        raise OptionError(
            f"{who}(at={at!r}): give a fraction of all steps, 0 < at < 1, or a step number of at least {earliest}, or TrainingAccuracy(...)"
        )


def check_hold(hold: str, who: str) -> None:
    """Refuses an unknown way of holding."""
    if hold not in HOLDS:
        raise OptionError(f"{who}(hold={hold!r}): choose one of {HOLDS}")


def check_monomial(action: Representation, output: Representation | None, who: str) -> None:
    """Refuses actions that mix coordinates."""
    for rep, what in ((action, "action"), (output, "output")):
        if rep is not None and not rep.is_monomial:
            raise GroupActionError(
                f"the {what} {rep} mixes coordinates, and a factorised Gaussian is not closed under that: {who} needs permutation or "
                "signed representations"
            )


def hold(family: Family, tree: Any, reps: Reps) -> Any:
    """The part of a gradient, of an update or of parameters that is invariant.

    Raises:
        ClosednessError: the group does not act linearly on the family's parameters.
    """
    if not family.is_linear:
        raise ClosednessError(
            f"the parameters of {type(family).__name__} do not transform linearly, so gradients cannot be projected: use hold='none', or "
            "a factorised family"
        )
    return family.project(tree, reps)


@jax.jit
def _matches(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return (outputs.argmax(axis=-1) == labels).mean()


def _accuracy(problem: Problem, position: Values, data: Data) -> jax.Array:
    """The share of rows whose most probable class at `position` is the observed one."""
    from .predict import predict

    leaves = jax.tree.leaves(data)
    labels = leaves[-1]
    if not jnp.issubdtype(labels.dtype, jnp.integer) or rows.num_rows(data) != labels.shape[0]:
        raise OptionError(
            "TrainingAccuracy needs integer labels as the model's last argument: give at= as a step or a fraction instead"
        )
    draws = {name: value[None] for name, value in problem.constrain(position, data).items()}
    outputs = predict(problem, draws, jax.random.key(0), *data[:-1])
    return _matches(jnp.asarray(outputs[0]), labels)
