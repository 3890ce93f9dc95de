"""rings: the range of rotations chosen by the Laplace evidence, with no reward and no validation data (LILA, Immer et al. 2022).

Points on two circles, told apart by their radius, are seen on an arc only. The label does not depend on the angle, and a range of
rotations by half the arc lets the net explain every point by all of them. The magnitude and the scales of the prior climb the
evidence of the averaged net, by gradients through its whole curvature; the noise is fresh at every update. From a narrow start
it ends near half an arc of 120 degrees; that is one optimum of the evidence, and rotations of all angles are another, so there is a
wide start beside it (docs/decisions.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayes_sym import datasets
from bayes_sym.errors import CollapseWarning
from bayes_sym.inference import Laplace, Problem, Progress, fit, log_evidence
from bayes_sym.inference.intervals import interval_over
from bayes_sym.inference.posterior import GaussianPosterior
from bayes_sym.layers import Activation, Augment, Dense, Selection, Sequential
from bayes_sym.transforms import Transform, signed

from .augmented import COLUMNS as SHARED_COLUMNS
from .augmented import Data, score_rows
from .experiment import Experiment, Options
from .figures import plot_ranges
from .findings import Findings
from .scaled_layers import classify
from .side_by_side import side_by_side


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RINGS", "RingModel", "Turn", "learn"]

ARCS = (120.0, 60.0, 360.0)
"""The arcs on which points are seen, in degrees."""

STARTS = (5.0, 150.0)
"""Where ranges start, in degrees: narrow, as in the paper, and wide. There are several optima, and the evidence compares them."""

_STEPS, _SEEDS = 3000, 3
_COLUMNS = {
    "arc": ("arc", "{:.0f}"),
    **SHARED_COLUMNS,
    "log_evidence": ("log evidence", "{:.1f}"),
    "first_log_evidence": ("at first", "{:.1f}"),
    "evidence_kind": ("kind", "{}"),
}


@dataclass(frozen=True)
class Turn(Transform):
    """Points (batch, 2) turn about the origin by an angle uniform on (-limit m, limit m).

    Attributes:
        limit: the largest angle, in degrees.
    """

    limit: float = 180.0
    unit = "degrees"

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The rotation matrix, written out."""
        angle = signed(jnp.radians(self.limit * magnitude), u[:, 0])
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], axis=1)


@dataclass(frozen=True)
class RingModel:
    """A NumPyro model ``model(x, y=None)``: a tanh net of one hidden layer, averaged over turned copies; a prior scale per layer.

    Attributes:
        copies: per point; 0 for no augmentation.
        width: of the hidden layer.
    """

    copies: int = 32
    width: int = 50

    @property
    def spec(self) -> Augment | Sequential:
        """The net."""
        net = Sequential((Dense(2, self.width), Activation("tanh"), Dense(self.width, 2)))
        return Augment(net, (Selection((Turn(),)),), copies=self.copies) if self.copies else net

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> None:
        """See `classify`."""
        classify(self.spec, "0.", x, y)


@cache
def _scheme(steps: int, moves: bool) -> Laplace:
    return Laplace(
        optax.adam(optax.cosine_decay_schedule(0.01, steps, 0.1)),
        "full",
        ("scale", "*.magnitude") if moves else ("scale",),
        optax.adam(0.05),
        burn_in=max(1, steps // 10),
        refresh=max(1, steps // 60),
        hyper_steps=10,
        trust=0.5,
    )


Job = tuple[float, float | None, int]


def _name(start: float | None) -> str:
    if start is None:
        return "none"
    return "evidence" if start == STARTS[0] else f"evidence-from-{start:.0f}"


class Outcome(NamedTuple):
    """The rows of one fit, and (step, degrees) over training."""

    rows: list[dict[str, Any]]
    history: list[tuple[int, float]]


def learn(job: Job, options: Options) -> Outcome:
    """One fit: an arc, where the range starts (None for no rotations), and its number."""
    arc, start, number = job
    learned = start is not None
    seed = options.seed + 1000 * number
    points = datasets.rings(options.num_train or 200, 1, 1000, seed=seed, arc=arc)
    model = RingModel() if learned else RingModel(0)
    problem = Problem(model, starts=(("scale", 1.0), *((("*.magnitude", start / 180),) if start is not None else ())))
    steps = _STEPS if options.steps is None else options.steps
    history: list[tuple[int, float]] = []
    arrays = (jnp.asarray(points.train.x), jnp.asarray(points.train.y))
    held = ("scale", "*augment.*") if learned else ("scale",)

    def watch(progress: Progress) -> None:
        if learned:
            history.append((progress.step, float(180 * jax.nn.sigmoid(progress.state.hyper["net.augment.0.magnitude"][0]))))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # rings on a short arc need few weights
        found = fit(
            problem,
            _scheme(steps, learned),
            jax.random.key(seed),
            *arrays,
            num_steps=steps,
            callbacks=[watch],
            chunk=max(1, steps // 10),
            progress=False,
        )
    posterior = found.posterior
    assert isinstance(posterior, GaussianPosterior) and posterior.log_evidence is not None
    first, values = (
        problem.constrain(z, arrays)
        for z in (problem.initial(jax.random.key(seed), arrays), {**found.state.z, **found.state.hyper})
    )
    x = points.test.x
    turns = [Turn().apply(jnp.asarray(x), arc / 360, jnp.full((len(x), 1), u, x.dtype)) for u in (0.0, 0.25, 0.75, 1.0)]
    data = Data(*points.train, {}, x, points.test.y, np.stack(turns))
    name = _name(start)
    (scores,) = score_rows(name, model.spec, [values], data, 32, [found.seconds], seed)
    shared = {
        "fit": number,
        "log_evidence": float(posterior.log_evidence),
        "first_log_evidence": float(log_evidence(problem, first, *arrays, curvature="full", optimise=held).value),
        "evidence_kind": posterior.evidence_kind,
    }
    rows = [{"arc": arc, **scores, **shared}]
    if isinstance(model.spec, Augment):
        (report,) = model.spec.report(values, module="net")
        learned_range = {"learned": float(report["range"]), "oracle": arc / 2, "probability": 1.0, "selected": True}
        place = {"method": name, "fit": number, "layer": 0, "operation": "Turn", "unit": "degrees"}
        rows.append({"arc": arc, "part": "range", **place, **learned_range, "seed": seed})
    return Outcome(rows, history)


def _run(options: Options) -> Findings:
    arcs = ARCS if options.task is None else (float(options.task),)
    kinds = [(arc, start) for arc in arcs for start in (*STARTS, None)]
    # all arcs of a start share their programs
    groups: list[list[Job]] = [[(arc, start, i) for arc in arcs for i in range(_SEEDS)] for start in (*STARTS, None)]
    jobs: list[Job] = [(*kind, number) for kind in kinds for number in range(_SEEDS)]
    found = side_by_side(partial(_learn_all, options=options), groups, options, again=_outcomes)
    outcomes = {
        job: outcome for group, several in zip(groups, found, strict=True) for job, outcome in zip(group, several, strict=True)
    }
    rows = [row for job in jobs for row in outcomes[job].rows]
    for arc, start in kinds:
        own = [row for row in rows if row["part"] == "range" and row["arc"] == arc and row["method"] == _name(start)]
        interval = interval_over([row["learned"] for row in own])
        for row in own:
            row |= {"learned_low": interval.low, "learned_high": interval.high}
    history = {job: outcome.history for job, outcome in outcomes.items() if job[1] is not None}
    figures = {"ranges": partial(_draw_ranges, rows), "training": partial(_draw_history, history)}
    return Findings(rows, figures, _COLUMNS, {"experiment": "rings", "seed": options.seed, "task": options.task})


def _learn_all(group: Sequence[Job], options: Options) -> list[Outcome]:
    """Fits that share their programs, in one process."""
    return [learn(job, options) for job in group]


def _outcomes(kept: Sequence[Sequence[Any]]) -> list[Outcome]:
    return [Outcome(*fields) for fields in kept]


def _draw_ranges(rows: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """A line per arc: half of it, and from each start the mean of what the evidence has chosen with its interval over fits."""
    own = [row for row in rows if row["part"] == "range"]
    arcs = list(dict.fromkeys(row["arc"] for row in own))
    learned: dict[str, list[float]] = {}
    bounds: dict[str, list[tuple[float, float] | None]] = {}
    for method in dict.fromkeys(row["method"] for row in own):
        groups = [[row for row in own if row["arc"] == arc and row["method"] == method] for arc in arcs]
        learned[method] = [float(np.mean([row["learned"] for row in group])) for group in groups]
        bounds[method] = [
            None if g[0]["learned_low"] is None else (max(0.0, g[0]["learned_low"]), g[0]["learned_high"]) for g in groups
        ]
    names = [f"arc of {arc:.0f}" for arc in arcs]
    plot_ranges(names, learned, [arc / 2 for arc in arcs], bounds, unit="degrees", figure=figure)


def _draw_history(history: Mapping[Job, Sequence[tuple[int, float]]], figure: Figure) -> None:
    """The range of every fit over training, from a narrow start and from a wide one, and half of each arc."""
    axes = figure.add_subplot()
    for color, arc in enumerate(dict.fromkeys(job[0] for job in history)):
        axes.axhline(arc / 2, color=f"C{color}", linestyle=":", linewidth=1)
        for (own, start, number), entries in history.items():
            if own == arc:
                label = f"arc of {arc:.0f}" if number == 0 and start == STARTS[0] else None
                axes.plot([step for step, _ in entries], [value for _, value in entries], color=f"C{color}", label=label)
    axes.set(xlabel="step", ylabel="range [degrees] (dotted: half of the arc)", ylim=(0, 185))
    axes.legend(fontsize=8, frameon=False)


RINGS = Experiment(
    "rings",
    "Points on arcs: the evidence chooses the range of rotations, with no reward and no validation",
    _run,
    tasks=tuple(f"{arc:.0f}" for arc in ARCS),
    steps=_STEPS,
)
