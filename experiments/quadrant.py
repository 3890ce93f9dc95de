"""quadrant: digits in one of four quadrants, with labels that ignore the quadrant or ask for it; the evidence decides per layer.

The same images for both tasks (van der Ouderaa et al. 2023, section 6.1). For the digit, every layer may be a
convolution; for digit and quadrant together, the net must break translation symmetry somewhere.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from bayes_sym import datasets
from bayes_sym.models import LadderClassifier

from .experiment import Experiment, Options
from .findings import Findings
from .learned_layers import COLUMNS, Job, learn, rows_of
from .side_by_side import side_by_side


__all__ = ["QUADRANT"]

_WIDTH, _STEPS, _NUM_TRAIN = 4, 1300, 1300
_RELATIVE = 0.3  # dense pathways start with less strength than convolutions: a symmetry is broken where the data ask for it
_WIDE = 8.0  # about the precision of 1 per weight of the published MAP
_FITS = (
    ("f_both", True, 1.0),
    ("conv", True, 1.0),
    ("f_both", False, _WIDE),
    ("fc", False, _WIDE),
    ("f_both", False, 1.0),
)  # the longest first


def _digits(task: str, num_train: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    split = datasets.quadrant_digits(num_train, 0, seed=seed, task=task)
    return *split.train, *split.test, datasets.placements(split.test.x)


def _run(options: Options) -> Findings:
    task = options.task or "digit"
    num_train = _NUM_TRAIN if options.num_train is None else options.num_train
    data = partial(_digits, task, num_train, options.seed)
    classes = 10 if task == "digit" else 40
    steps = options.steps or _STEPS
    jobs = [
        Job(LadderClassifier(variant, 16, 1, classes, _WIDTH, relative=_RELATIVE), learned, data, steps, options.seed, wide)
        for variant, learned, wide in _FITS
    ]
    outcomes = side_by_side(learn, jobs, replace(options, folder=None))
    first = outcomes[0]
    figures = {"pathways": first.draw}
    rows = [{"task": task, **row} for outcome in outcomes for row in rows_of(outcome)]
    return Findings(rows, figures, COLUMNS, {"experiment": "quadrant", "seed": options.seed, "task": task})


QUADRANT = Experiment(
    "quadrant",
    "layers that learn to be convolutions, or not, from digits in quadrants",
    _run,
    ("digit", "quadrant"),
    steps=_STEPS,
)
