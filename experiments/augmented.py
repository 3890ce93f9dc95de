"""Fits of one net with learned, fixed or no augmentation, and what they say: scores of the net, and a row for each range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from bayes_sym.diagnostics import calibration, invariance
from bayes_sym.inference import MAP, Pace, Problem, Progress, RegularisedMAP, Scheme, paced
from bayes_sym.inference.intervals import interval_over
from bayes_sym.inference.seeds import fit_seeds
from bayes_sym.layers import Augment, Layer, Prepared, Selection, Site, random_module
from bayes_sym.transforms import Transform

from .experiment import Options


__all__ = [
    "COLUMNS",
    "Arm",
    "Outcome",
    "Task",
    "learn",
    "num_steps",
    "outcome_of",
    "range_rows",
    "score_rows",
    "set_problem",
    "set_scheme",
]

COLUMNS = {
    "method": ("method", "{}"),
    "fit": ("fit", "{}"),
    "operation": ("operation", "{}"),
    "layer": ("layer", "{}"),
    "learned": ("learned", "{:.3g}"),
    "learned_low": ("low", "{:.3g}"),
    "learned_high": ("high", "{:.3g}"),
    "oracle": ("oracle", "{:.3g}"),
    "probability": ("prob.", "{:.2f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "nll": ("NLL", "{:.3f}"),
    "total_variation": ("TV", "{:.3f}"),
    "agreement": ("agreement", "{:.3f}"),
    "invariance": ("invariance", "{:.3f}"),
    "seconds": ("seconds", "{:.0f}"),
}
"""The columns of the printed table."""


class Data(NamedTuple):
    """What an arm is fitted to and judged by.

    Attributes:
        x, y: training inputs and labels.
        given: by operation, what it prepares for x once and for all.
        x_test, y_test: what predictions are judged by.
        moved: (versions, N, ...): the test inputs, transformed within the label-preserving range.
    """

    x: np.ndarray
    y: np.ndarray
    given: dict[Transform, np.ndarray]
    x_test: np.ndarray
    y_test: np.ndarray
    moved: np.ndarray


def _nobody_knows(operation: str, strength: float | None) -> float | None:
    return None


@dataclass(frozen=True)
class Task:
    """What all arms of an experiment share.

    Attributes:
        name: of the experiment.
        data: makes the data for a seed and a number of training rows.
        num_train: training rows.
        steps, batch_size, rate: of every fit, with Adam at this learning rate and a cosine decay to a twentieth.
        seeds: fits per arm, from different starts on the same data.
        rest: steps for which magnitudes and selections stand still.
        copies: per example, when predictions are made.
        wide: how wide the prior of weights is, in units of 1/sqrt(fan-in); first weights are as if it were 1.
        oracle: the range of an operation, by name, that a perfect net learns under a reward of some strength, or that keeps all
            labels where ranges stand still (None); None where nobody knows it.
    """

    name: str
    data: Callable[[int, int], Data]
    num_train: int
    steps: int
    batch_size: int
    rate: float = 3e-3
    seeds: int = 3
    rest: int = 500
    copies: int = 8
    wide: float = 1.0
    oracle: Callable[[str, float | None], float | None] = _nobody_knows


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        name: of the method.
        net: the net that it trains.
        layers: of augmentation; empty for none.
        starts: (pattern, value) pairs of the sites of augmentation.
        strength: of the reward per row; None where ranges stand still.
        copies: per example in training.
        pace: learning rate of magnitudes and selections relative to that of weights.
        rest: in place of the task's.
        order: of the norm that is rewarded.
        fair: whether the reward is for how far inputs are moved (`Augment.displacements`), and not per unit of magnitude.
        exact: whether all outcomes of finite operations are enumerated.
    """

    name: str
    net: Layer
    layers: tuple[Selection, ...] = ()
    starts: tuple[tuple[str, float | tuple[float, ...]], ...] = ()
    strength: float | None = None
    copies: int = 1
    pace: float = 7.0
    rest: int | None = None
    order: int = 2
    fair: bool = False
    exact: bool = False

    @property
    def spec(self) -> Layer:
        """The net, with augmentation around it if there is any."""
        return Augment(self.net, self.layers, copies=self.copies, exact=self.exact) if self.layers else self.net


@dataclass(frozen=True)
class Classifier:
    """A NumPyro model ``model(x, y=None, *given)``: labels by a net, whose operations are given what they prepared for x.

    Attributes:
        spec: the net.
        prepares: the operations of `given`.
        reward: the log prior per unit of the norm of augmentation, N times lambda; 0 where the scheme adds it, or nobody does.
        wide: the prior scale of weights times the square root of their fan-in.
    """

    spec: Layer
    prepares: tuple[Transform, ...] = ()
    reward: float = 0.0
    wide: float = 1.0

    def __call__(self, x: jax.Array, y: jax.Array | None = None, *given: jax.Array) -> None:
        """Weights have normal priors scaled to the fan-in."""

        def prior(site: Site) -> dist.Distribution:
            return dist.Normal(0.0, self.wide / math.sqrt(site.fan_in)).expand(site.shape).to_event(len(site.shape))

        net = random_module("net", self.spec, prior=prior)
        if self.reward and isinstance(self.spec, Augment):
            numpyro.factor("reward", self.reward * self.spec.norm(net.weights))
        ready = dict(zip(self.prepares, given, strict=True)) if given else {}
        with numpyro.plate("data", x.shape[0]):
            inputs: Any = Prepared(x, ready) if ready else x
            numpyro.sample("y", dist.Categorical(logits=net(inputs)), obs=y)


class Outcome(NamedTuple):
    """What the fits of an arm found.

    Attributes:
        scores: a row per fit.
        ranges: a row per fit, layer and operation.
        history: (fit, step, the rows of ranges then).
    """

    scores: list[dict[str, Any]]
    ranges: list[dict[str, Any]]
    history: list[tuple[int, int, list[dict[str, Any]]]]


def outcome_of(kept: Sequence[Any]) -> Outcome:
    """An outcome from what was kept of it."""
    return Outcome(*kept)


def num_steps(task: Task, options: Options) -> int:
    """The steps asked for, or those of the epochs asked for, or the task's own."""
    if options.steps is not None:
        return options.steps
    if options.epochs is not None:
        return max(1, options.epochs * (options.num_train or task.num_train) // task.batch_size)
    return task.steps


def set_problem(task: Task, arm: Arm, prepares: tuple[Transform, ...] = ()) -> Problem:
    """The model of an arm with its starts."""
    return Problem(Classifier(arm.spec, prepares, wide=task.wide), starts=arm.starts if arm.layers else ())


def set_scheme(task: Task, arm: Arm, steps: int, units: tuple[float, ...] | None = None) -> Scheme:
    """`RegularisedMAP`, at rest first; or MAP, where ranges stand still all the time."""
    optimizer = optax.adam(optax.cosine_decay_schedule(task.rate, steps, 0.05))
    if not arm.layers:
        return MAP(optimizer, start=1 / task.wide)
    if arm.strength is None:
        return MAP(paced(optimizer, Pace("*augment.*", 0.0)), start=1 / task.wide)
    rest = min(task.rest if arm.rest is None else arm.rest, steps // 4)
    resting = paced(optimizer, Pace("*augment.*", arm.pace, rest))
    return RegularisedMAP(arm.strength, resting, start=1 / task.wide, units=units, order=arm.order)


def learn(arm: Arm, task: Task, options: Options) -> Outcome:
    """Fits an arm from `task.seeds` starts in one program, and scores it."""
    data = task.data(options.seed, options.num_train or task.num_train)
    steps = num_steps(task, options)
    used = {op for layer in arm.layers for op in layer.operations}
    given = {op: value for op, value in data.given.items() if op in used}
    problem, spec = set_problem(task, arm, tuple(given)), arm.spec
    units = None
    if arm.fair and isinstance(spec, Augment):
        units = spec.displacements(jax.random.key(0), jnp.asarray(data.x[:200]))
    history: list[tuple[int, int, list[dict[str, Any]]]] = []
    arrays = (data.x, data.y, *given.values())
    first = problem.take(arrays, slice(0, 1))
    at = jax.jit(lambda z: problem.constrain(z, first))

    def watch(fit: int, progress: Progress) -> None:
        if isinstance(spec, Augment):
            history.append((fit, progress.step, spec.report(at(progress.state.z), module="net")))

    fits = fit_seeds(
        problem,
        set_scheme(task, arm, steps, units),
        jax.vmap(partial(jax.random.fold_in, jax.random.key(options.seed)))(jnp.arange(task.seeds)),
        *arrays,
        num_steps=steps,
        batch_size=min(task.batch_size, len(data.x)),
        callbacks=[[partial(watch, i)] for i in range(task.seeds)],
        progress=False,
        chunk=max(1, steps // 20),
    )
    points = [at(found.state.z) for found in fits]
    return Outcome(
        score_rows(arm.name, spec, points, data, task.copies, [found.seconds for found in fits], options.seed),
        range_rows(arm, task, points, options.seed, units),
        history,
    )


def score_rows(
    name: str,
    spec: Layer,
    points: list[dict[str, jax.Array]],
    data: Data,
    copies: int,
    seconds: list[float],
    seed: int,
) -> list[dict[str, Any]]:
    """Accuracy, NLL and invariance of every fit; copies have the same noise for an input and its transforms."""
    judged: Layer = replace(spec, copies=copies, shared=True) if isinstance(spec, Augment) else spec

    @jax.jit
    def outputs(values: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        weights = {name.removeprefix("net."): value for name, value in values.items()}
        return numpyro.handlers.seed(lambda: judged.apply(weights, x), 0)()

    rows = []
    for i, values in enumerate(points):
        logits = outputs(values, jnp.asarray(data.x_test))
        moved = np.stack([np.asarray(outputs(values, jnp.asarray(version))) for version in data.moved])
        quality = calibration(jax.nn.softmax(logits), data.y_test)
        measured = invariance(logits, moved)
        rows.append(
            {
                "part": "method",
                "method": name,
                "fit": i,
                "accuracy": quality.accuracy,
                "accuracy_se": quality.accuracy_se,
                "nll": quality.nll,
                "nll_se": quality.nll_se,
                "total_variation": measured.total_variation,
                "total_variation_se": measured.total_variation_se,
                "agreement": measured.agreement,
                "agreement_se": measured.agreement_se,
                "invariance": measured.median,
                "constant": bool(np.ptp(np.asarray(logits), axis=0).max() < 1e-6),
                "seconds": round(seconds[i], 1),
                "seed": seed,
            }
        )
    return rows


def range_rows(
    arm: Arm, task: Task, points: list[dict[str, jax.Array]], seed: int, units: tuple[float, ...] | None = None
) -> list[dict[str, Any]]:
    """What every fit has learned about every operation, with the t-interval over fits, beside the oracle."""
    spec = arm.spec
    if not isinstance(spec, Augment):
        return []
    reports = [spec.report(values, module="net") for values in points]
    strengths = [_strengths(arm, report, units) for report in reports]
    rows = []
    for k, first in enumerate(reports[0]):
        learned = [float(np.max(report[k]["range"])) for report in reports]
        interval = interval_over(learned)
        for i, report in enumerate(reports):
            probability = float(report[k]["probability"])
            best = max(float(row["probability"]) for row in report if row["layer"] == first["layer"])
            rows.append(
                {
                    "part": "range",
                    "method": arm.name,
                    "fit": i,
                    "layer": first["layer"],
                    "operation": first["operation"],
                    "unit": first["unit"],
                    "learned": learned[i],
                    "learned_low": interval.low,
                    "learned_high": interval.high,
                    "oracle": task.oracle(first["operation"], strengths[i][k]) if probability > 0.5 else None,
                    "probability": probability,
                    "selected": probability >= best,
                    "seed": seed,
                }
            )
    return rows


def _strengths(arm: Arm, report: list[dict[str, Any]], units: tuple[float, ...] | None) -> list[float | None]:
    """The slope of the reward in the magnitude of every operation, where the others stand as learned: what an oracle of one is asked."""
    if arm.strength is None:
        return [None] * len(report)
    unit = np.ones(len(report)) if units is None else np.asarray(units)
    each = unit * np.array([float(row["probability"]) for row in report])
    if arm.order == 1:
        return [round(float(arm.strength * slope), 3) for slope in each]
    magnitude = np.array([float(row["magnitude"]) for row in report])
    norm = np.linalg.norm(each * magnitude)
    slopes = arm.strength * each**2 * magnitude / (norm if norm > 0 else 1.0)
    return [round(float(slope), 3) for slope in slopes]
