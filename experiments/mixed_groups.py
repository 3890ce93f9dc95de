"""mixed-groups: digits upright, and the same digits in all four quarter turns; layers share weights over turns, over shifts, or not.

Every layer has a group convolution, a convolution and a factored dense map, nested as linear maps (van der Ouderaa et al. 2023,
section 6.3). Nets start near the first, and are trained in rounds, between which the exact evidence says how much prior strength
every pathway should have. To a net that does not see turns both sets of images say the same; where the images are turned, the
evidence should leave more to the group convolutions.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bayes_sym import datasets
from bayes_sym.models import LadderClassifier

from .experiment import Experiment, Options
from .findings import Findings
from .learned_layers import COLUMNS, Images, Job, Outcome, learn, outcome_of, rows_of
from .side_by_side import side_by_side


__all__ = ["MIXED_GROUPS"]

_TASKS = ("rotated", "upright")
_WIDTH, _STEPS, _BATCH, _NUM_TRAIN = 3, 1400, 16, 600
_SCALE = 11.3  # total strength of a layer, as in the quadrant experiment
_RELATIVE = 0.03  # of every pathway's strength to that of the one before it, which has more symmetry
_SPREAD = 1.0  # of the logits at the start: so narrow a net starts small or large by chance
_CLIP = 0.3  # of gradients: in one fit of three, a few long ones keep the net from learning (docs/decisions.md)
_ROUNDS, _COLUMNS = 4, 500  # the exact evidence has at most 110 effective parameters


def _digits(task: str, num_train: int, seed: int) -> Images:
    """Every figure is four times in the training set, in all its turns or upright, so that the sets differ in nothing else."""
    rotate = task == "rotated"
    split = datasets.rotated_digits(max(1, num_train // 4), 0, 497, seed=seed, rotate=rotate, canvas=16)
    x, y = split.train
    copies = _turns(x) if rotate else np.stack(4 * [x])
    return np.concatenate(copies), np.tile(y, 4), *split.test, _turns(split.test.x)


def _turns(images: np.ndarray) -> np.ndarray:
    """Images (N, n, n, 1) in their four quarter turns, (4, N, n, n, 1)."""
    return np.stack([np.rot90(images, k, axes=(1, 2)) for k in range(4)])


def _job(task: str, num_train: int, steps: int, seed: int) -> Job:
    sizes = (16, 1, 10, _WIDTH, _SCALE)
    # samples are chosen by their energy, which commutes with turns; the choice by the centroid does not
    net = LadderClassifier("mixed", *sizes, relative=_RELATIVE, activation="silu", smooth=2, choose="energy")
    digits = partial(_digits, task, num_train, seed)
    return Job(net, True, digits, steps, seed, _BATCH, spread=_SPREAD, clip=_CLIP, columns=_COLUMNS, rounds=_ROUNDS)


def _run(options: Options) -> Findings:
    num_train = _NUM_TRAIN if options.num_train is None else options.num_train
    jobs = [_job(task, num_train, options.steps or _STEPS, options.seed) for task in _TASKS]
    outcomes: list[Outcome] = side_by_side(learn, jobs, options, again=outcome_of, quick=True)
    rows, figures = [], {}
    for task, outcome in zip(_TASKS, outcomes, strict=True):
        assert outcome.shares is not None
        for what in ("share", "energy"):
            of_group = list(outcome.shares.of("group", what).values())
            outcome.scores[f"group_{what}"], outcome.scores[f"group_{what}_least"] = float(np.mean(of_group)), min(of_group)
        rows += [{"task": task, **row} for row in rows_of(outcome)]
        figures[task] = outcome.draw
    columns = {
        "task": ("digits", "{}"),
        **COLUMNS,
        "group_share": ("group", "{:.4f}"),
        "group_share_least": ("least", "{:.4f}"),
    }
    return Findings(rows, figures, columns, {"experiment": "mixed-groups", "seed": options.seed})


MIXED_GROUPS = Experiment(
    "mixed-groups",
    "layers that share weights over turns, over shifts or not at all, on upright and on turned digits",
    _run,
    steps=_STEPS,
)
