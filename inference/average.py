"""Averaging, projecting and tying a variational posterior over a group, without changing the net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from .families import Family
from .families.averages import KINDS, check_average, check_signs, symmetrised
from .families.family import Reps
from .problem import Problem
from .rows import Data
from .symmetrisation import At, Symmetrisation, check_at, check_hold
from .weight_action import Hidden, weight_action


__all__ = ["Averaging", "average", "project", "tie"]


@dataclass(frozen=True)
class Averaging(Symmetrisation):
    """Replaces q by an invariant member of its family: see `average`, `project` and `tie`."""

    action: Representation
    output: Representation | None
    kind: str
    hidden: Hidden
    at: At
    hold: str
    module: str | None

    def reps(self, problem: Problem, data: Data) -> Reps:
        """The action on the weights under the chosen hidden representations."""
        return weight_action(problem, data, self.action, self.output, hidden=self.hidden, module=self.module)

    def check(self, family: Family, params: Any, problem: Problem, data: Data) -> None:
        """Asks the family whether it is closed."""
        reps = self.reps(problem, data)
        check_average(family, reps, self.kind)
        if self.hold != "none" and not family.is_linear:
            raise OptionError(
                f"hold={self.hold!r} needs a family on whose parameters the group acts linearly (MeanField, MeanFieldLaplace, Gamma, ...), "
                f"got {type(family).__name__}: use hold='none'"
            )
        jax.eval_shape(lambda params: self.apply(family, params, problem, data), params)

    def check_values(self, family: Family, params: Any, problem: Problem, data: Data) -> None:
        """Fixed signs must agree along orbits."""
        check_signs(family, params, self.reps(problem, data))

    def apply(self, family: Family, params: Any, problem: Problem, data: Data) -> Any:
        """The invariant member."""
        return symmetrised(family, params, self.reps(problem, data), self.kind)


def average(
    action: Representation,
    output: Representation | None = None,
    *,
    kind: str = "geometric",
    hidden: Hidden = "trivial",
    at: At = 0.2,
    hold: str = "none",
    module: str | None = None,
) -> Averaging:
    """q replaced by the geometric or arithmetic mean of its transforms (within its family).

    With ``hidden="trivial"`` (the paper's "avg") the group moves inputs and outputs only, so 3x3 filters become isotropic.

    Args:
        action: how the group acts on one input.
        output: how it acts on one output; None for invariant outputs.
        kind: ``"geometric"`` (mean of natural parameters: the closest invariant q' in KL(q' || q)), ``"arithmetic"`` (mean of mean
            parameters: the closest in KL(q || q'), which adds the spread of the means to the variances) or ``"parameters"``.
        hidden: how it acts on hidden channels: ``"trivial"``, ``"regular"`` or one representation per hidden layer.
        at: when: a fraction of all steps, a step, or a `TrainingAccuracy`.
        hold: how q is kept invariant afterwards: see `Symmetrisation`.
        module: which `random_module`; None if the model has one.
    """
    if kind not in KINDS:
        raise OptionError(f"average(kind={kind!r}): choose one of {KINDS}")
    check_at(at, "average")
    check_hold(hold, "average")
    return Averaging(action, output, kind, hidden, at, hold, module)


def project(
    action: Representation,
    output: Representation | None = None,
    *,
    hidden: Hidden = "regular",
    at: At = 0.2,
    hold: str = "none",
    module: str | None = None,
) -> Averaging:
    """q's parameters replaced by their projection onto the invariant ones, by default under regular hidden representations.

    The paper's "proj". Means are averaged over orbits, and so are the logs of standard deviations. Arguments as for `average`.
    """
    check_at(at, "project")
    check_hold(hold, "project")
    return Averaging(action, output, "parameters", hidden, at, hold, module)


def tie(
    action: Representation,
    output: Representation | None = None,
    *,
    hidden: Hidden = "regular",
    at: At = 0,
    module: str | None = None,
) -> Averaging:
    """q held exactly invariant, by default from the start: in effect one parameter per orbit of weights.

    The predictive is then equivariant at all times, with any optimiser and without augmentation; single draws are not. Arguments
    as for `average`.
    """
    check_at(at, "tie", earliest=0)
    return Averaging(action, output, "parameters", hidden, at, "tie", module)
