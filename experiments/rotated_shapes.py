"""rotated-shapes: which rotations keep the label of a shape, learned with the net, beside what a perfect net would learn.

Two shapes, upright or inverted, are turned by up to 45 degrees: four classes, which survive a further turn by 45 degrees and no more. One
operation at a time from a narrow and a wide start, rewards of three strengths, Augerino's six operations at once, a choice
between five, and a posterior of the range; beside no augmentation, a range that somebody guessed, and the range that keeps all
labels. One more task, `evidence`, has shapes turned by up to 90 degrees, labelled by shape, and no reward.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax.numpy as jnp
import numpy as np

from bayes_sym import datasets
from bayes_sym.inference import MeanField, Point
from bayes_sym.inference.families import Family
from bayes_sym.layers import Activation, Conv, Dense, Flatten, Pool, Selection, Sequential
from bayes_sym.transforms import Rotate, Scale, ShearX, ShearY, Stretch, TranslateX, TranslateY

from .augmented import COLUMNS, Arm, Data, Outcome, Task, learn, outcome_of
from .augmented_figures import draw_history, draw_ranges
from .experiment import Experiment, Options
from .findings import Findings
from .oracle_range import oracle_range
from .rotated_evidence import learn_by_evidence
from .rotated_posterior import learn_posterior
from .side_by_side import side_by_side


__all__ = ["ARMS", "POSTERIORS", "POSTERIOR_TASK", "ROTATED_SHAPES", "TASK", "oracle"]

_SIDE, _CHANNELS = 20, 8
_NET = Sequential(
    (
        Conv(1, _CHANNELS, 3),
        Activation("relu"),
        Pool(2),
        Conv(_CHANNELS, _CHANNELS, 3),
        Activation("relu"),
        Pool(2),
        Flatten(),
        Dense((_SIDE // 4) ** 2 * _CHANNELS, 4),
    )
)
_ROTATE = Rotate(180.0)
_FIVE = (TranslateX(), TranslateY(), _ROTATE, ShearX(), ShearY())
_SIX = (TranslateX(), TranslateY(), _ROTATE, Scale(), Stretch(), ShearX())


@cache
def oracle(operation: str, strength: float | None) -> float | None:
    """The half-range of rotations, in degrees, that a perfect net learns under a reward of this strength; None for others."""
    if operation != "Rotate" or strength == 0.0:
        return None
    if strength is None:
        return 45.0
    return oracle_range(strength, 180.0, spread=45.0, centers=(0.0, 180.0), period=360.0)


def _data(seed: int, num_train: int) -> Data:
    shapes = datasets.rotated_shapes(num_train, 1, 300, seed=seed, side=_SIDE)
    x = jnp.asarray(shapes.test.x)
    moved = np.stack([_ROTATE.apply(x, 0.25, jnp.full((len(x), 1), u, x.dtype)) for u in (0.0, 0.25, 0.75, 1.0)])
    return Data(*shapes.train, {}, *shapes.test, moved)


TASK = Task("rotated-shapes", _data, num_train=8000, steps=2000, batch_size=64, oracle=oracle)
"""What all arms share."""


def _one(name: str, strength: float | None, start: float) -> Arm:
    return Arm(name, _NET, (Selection((_ROTATE,)),), (("*.magnitude", start / 180),), strength)


ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", _NET),
        _one("fixed", None, 90.0),
        _one("oracle", None, 45.0),
        _one("learned", 0.1, 22.5),
        _one("learned-from-90", 0.1, 90.0),
        _one("learned-0.3", 0.3, 22.5),
        _one("learned-0.5", 0.5, 22.5),
        _one("no-reward", 0.0, 22.5),
        Arm("augerino", _NET, (Selection(_SIX),), (("*.magnitude", 0.125),), 0.05),
        Arm("augerino-sum", _NET, (Selection(_SIX),), (("*.magnitude", 0.125),), 0.1, order=1),
        Arm(
            "augnet",
            _NET,
            (Selection(_FIVE, "blend", temperature=0.01),),
            (("*.magnitude", 0.125), ("*.selection", 0.0)),
            0.5,
        ),
        Arm(
            "augnet-fair",
            _NET,
            (Selection(_FIVE, "blend", temperature=0.01),),
            (("*.magnitude", 0.125), ("*.selection", 0.0)),
            0.5,
            fair=True,
        ),
        Arm("gumbel-fair", _NET, (Selection(_FIVE, "gumbel"),), (("*.magnitude", 0.125), ("*.selection", 0.0)), 0.5, fair=True),
    )
}
"""Every method by name, learned as a point."""


def _posterior(name: str, strength: float | None, copies: int = 1) -> Arm:
    return replace(_one(name, strength, 22.5), copies=copies)


POSTERIORS: dict[str, tuple[Arm, Family]] = {
    "variational": (_posterior("variational", 0.1), Point()),
    "variational-weights": (_posterior("variational-weights", 0.1), MeanField(0.01)),
    "variational-flat": (_posterior("variational-flat", None, copies=2), MeanField(0.01)),
}
"""Those with a posterior of the range, with the family of the weights: under the reward as a prior, and under a weak prior."""

POSTERIOR_TASK = replace(TASK, steps=4000, wide=5.0)
"""Theirs, with weights whose prior does not blunt the net: by how much the posterior misses a perfect one is decided by its edges."""

_DEFAULT = ("none", "fixed", "oracle", "learned", "augerino", "augnet-fair", "variational")


def _learn(name: str, options: Options) -> Outcome:
    if name == "evidence":
        return learn_by_evidence(options)
    if name in POSTERIORS:
        arm, weights = POSTERIORS[name]
        return learn_posterior(arm, POSTERIOR_TASK, options, weights=weights)
    return learn(ARMS[name], TASK, options)


def _run(options: Options) -> Findings:
    names = list(_DEFAULT) if options.task is None else [options.task]
    found = side_by_side(partial(_learn, options=options), names, options, again=outcome_of)
    rows = [row for outcome in found for row in (*outcome.scores, *outcome.ranges)]
    history = {name: outcome.history for name, outcome in zip(names, found, strict=True)}
    figures = {"ranges": partial(draw_ranges, rows, "Rotate"), "training": partial(draw_history, history, "Rotate")}
    return Findings(rows, figures, COLUMNS, {"experiment": "rotated-shapes", "seed": options.seed, "task": options.task})


ROTATED_SHAPES = Experiment(
    "rotated-shapes",
    "Which rotations keep the labels of shapes: learned ranges beside the closed-form oracle",
    _run,
    tasks=(*ARMS, *POSTERIORS, "evidence"),
    has_epochs=True,
    steps=TASK.steps,
)
