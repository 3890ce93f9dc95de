"""mixed-groups: layers choose between turns and shifts, shifts alone, and neither, on upright digits and on turned ones.

Every layer has a convolution over the group of turns by 90 degrees, a plain convolution and a factored dense map (van der
Ouderaa et al. 2023, section 6.3). Unlike the published net all maps stay in one frame and filters are turned instead, so
that the pathways are nested and each is equivariant to what its name says.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bayes_sym import datasets
from bayes_sym.models import LadderClassifier

from .experiment import Experiment, Options
from .findings import Findings
from .learned_layers import COLUMNS, Job, learn, rows_of
from .side_by_side import side_by_side


__all__ = ["MIXED_GROUPS"]

_WIDTH, _STEPS, _NUM_TRAIN = 1, 1200, 1000
_SETS = ("upright", "rotated")


def _digits(which: str, num_train: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    split = datasets.rotated_digits(num_train, seed=seed, rotate=which == "rotated", canvas=16)
    turned = np.stack([np.rot90(split.test.x, k, axes=(1, 2)) for k in range(4)])
    return *split.train, *split.test, turned


def _run(options: Options) -> Findings:
    num_train = _NUM_TRAIN if options.num_train is None else options.num_train
    model = LadderClassifier("mixed", 16, 1, 10, _WIDTH)
    jobs = [
        Job(model, True, partial(_digits, which, num_train, options.seed), options.steps or _STEPS, options.seed)
        for which in _SETS
    ]
    outcomes = side_by_side(learn, jobs, progress=options.progress)
    rows = [{"data": which, **row} for which, outcome in zip(_SETS, outcomes, strict=True) for row in rows_of(outcome)]
    figures = {which: outcome.draw for which, outcome in zip(_SETS, outcomes, strict=True)}
    columns = {"data": ("data", "{}"), **COLUMNS}
    return Findings(rows, figures, columns, {"experiment": "mixed-groups", "seed": options.seed})


MIXED_GROUPS = Experiment(
    "mixed-groups", "layers that choose between turns, shifts and neither, on upright and turned digits", _run
)
