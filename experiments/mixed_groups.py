"""mixed-groups: upright digits, or the same digits turned by quarters; layers share weights over turns, over shifts, or not.

Every layer has a group convolution, a convolution and a factored dense map, nested as linear maps (van der Ouderaa et al. 2023,
section 6.3). One fit starts near the first, one with equal strengths, and the exact evidence chooses between them. Where the data
are turned, it should leave more to the group convolutions.
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

_WIDTH, _STEPS, _BATCH, _NUM_TRAIN = 3, 1000, 16, 600
_SCALE = 11.3  # total strength of a layer, as in the quadrant experiment
_COLUMNS = 1200  # for the exact evidence of 250 to 750 effective parameters
_BURN_IN = 0.6  # of the steps: strengths that move earlier follow weights that have learned nothing yet
_SPREAD = 1.0  # of the logits at the start: so narrow a net starts small or large by chance
_CLIP = 0.3  # of gradients: in one fit of three, a few long ones keep the net from learning (docs/decisions.md)
_STARTS = (0.1, 1.0)  # of every pathway's strength to that of the one before it, which has more symmetry


def _digits(task: str, num_train: int, seed: int) -> Images:
    split = datasets.rotated_digits(num_train, 0, 497, seed=seed, rotate=task == "rotated", canvas=16)
    turned = np.stack([np.rot90(split.test.x, k, axes=(1, 2)) for k in range(4)])
    return *split.train, *split.test, turned


def _net(relative: float) -> LadderClassifier:
    sizes = (16, 1, 10, _WIDTH, _SCALE)
    # samples are chosen by their energy, which commutes with turns; the choice by the centroid does not
    return LadderClassifier("mixed", *sizes, relative=relative, totals="held", activation="silu", smooth=2, choose="energy")


def _run(options: Options) -> Findings:
    task = options.task or "rotated"
    num_train = _NUM_TRAIN if options.num_train is None else options.num_train
    data = partial(_digits, task, num_train, options.seed)
    steps = options.steps or _STEPS
    job = Job(_net(1.0), True, data, steps, options.seed, _BATCH, _BURN_IN, _SPREAD, _CLIP, columns=_COLUMNS)
    jobs = [job._replace(model=_net(relative)) for relative in _STARTS]
    outcomes: list[Outcome] = side_by_side(learn, jobs, options, again=outcome_of, quick=True)
    best = max(outcomes, key=lambda outcome: outcome.scores["log_evidence"])
    rows = []
    for outcome in outcomes:
        assert outcome.shares is not None
        outcome.scores["chosen"] = outcome is best
        for what in ("share", "energy"):
            of_group = list(outcome.shares.of("group", what).values())
            outcome.scores[f"group_{what}"], outcome.scores[f"group_{what}_least"] = float(np.mean(of_group)), min(of_group)
        rows += [{"task": task, **row, "relative": outcome.scores["relative"]} for row in rows_of(outcome)]
    columns = {
        **COLUMNS,
        "group_share": ("group", "{:.3f}"),
        "group_share_least": ("least", "{:.3f}"),
        "chosen": ("chosen", "{}"),
    }
    return Findings(rows, {"pathways": best.draw}, columns, {"experiment": "mixed-groups", "seed": options.seed, "task": task})


MIXED_GROUPS = Experiment(
    "mixed-groups",
    "layers that share weights over turns, over shifts or not at all, on upright or on turned digits",
    _run,
    ("rotated", "upright"),
    steps=_STEPS,
)
