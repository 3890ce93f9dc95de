"""mixed-groups: upright digits and the same digits turned by quarters; layers share weights over turns, over shifts, or not.

Every layer has a group convolution, a convolution and a factored dense map, nested as linear maps (van der Ouderaa et al. 2023,
section 6.3). Where the data are turned, the evidence should leave more to the first.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bayes_sym import datasets
from bayes_sym.models import LadderClassifier

from .experiment import Experiment, Options
from .findings import Findings
from .learned_layers import COLUMNS, Images, Job, learn, outcome_of, rows_of
from .side_by_side import side_by_side


__all__ = ["MIXED_GROUPS"]

_WIDTH, _STEPS, _NUM_TRAIN = 1, 800, 600
_RELATIVE = 1.0  # no pathway has an advantage at the start


def _digits(task: str, num_train: int, seed: int) -> Images:
    split = datasets.rotated_digits(num_train, 0, 497, seed=seed, rotate=task == "rotated", canvas=16)
    turned = np.stack([np.rot90(split.test.x, k, axes=(1, 2)) for k in range(4)])
    return *split.train, *split.test, turned


def _run(options: Options) -> Findings:
    tasks = ("upright", "rotated") if options.task is None else (options.task,)
    num_train = _NUM_TRAIN if options.num_train is None else options.num_train
    model = LadderClassifier("mixed", 16, 1, 10, _WIDTH, relative=_RELATIVE)
    steps = options.steps or _STEPS
    jobs = [
        Job(model, learned, partial(_digits, task, num_train, options.seed), steps, options.seed)
        for learned in (True, False)
        for task in tasks
    ]
    outcomes = side_by_side(learn, jobs, options, again=outcome_of, quick=True)
    rows = []
    for i, outcome in enumerate(outcomes):
        task = {"task": tasks[i % len(tasks)]}
        if outcome.shares is not None:
            shares = list(outcome.shares.of("group").values())
            energies = list(outcome.shares.of("group", "energy").values())
            outcome.scores["group_share"], outcome.scores["group_share_least"] = float(np.mean(shares)), min(shares)
            outcome.scores["group_energy"], outcome.scores["group_energy_least"] = float(np.mean(energies)), min(energies)
        rows += [{**task, **row} for row in rows_of(outcome)]
    figures = {f"pathways-{task}": outcome.draw for task, outcome in zip(tasks, outcomes, strict=False)}
    return Findings(rows, figures, {"task": ("task", "{}"), **COLUMNS}, {"experiment": "mixed-groups", "seed": options.seed})


MIXED_GROUPS = Experiment(
    "mixed-groups",
    "layers that share weights over turns, over shifts or not at all, on upright and on turned digits",
    _run,
    ("upright", "rotated"),
    steps=_STEPS,
)
