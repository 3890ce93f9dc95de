"""quadrant: digits in one of four quadrants, with labels that ignore the quadrant or ask for it; the evidence decides per layer.

The same images for both tasks (van der Ouderaa et al. 2023, section 6.1). For the digit, every layer may be a
convolution; for digit and quadrant together, the net must break translation symmetry somewhere. Local files give MNIST in
the same quadrants, or CIFAR-10.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bayes_sym import datasets
from bayes_sym.errors import OptionError
from bayes_sym.models import LadderClassifier

from .experiment import Experiment, Options
from .findings import Findings
from .learned_layers import COLUMNS, Images, Job, learn, outcome_of, rows_of
from .side_by_side import side_by_side


__all__ = ["QUADRANT"]

_WIDTH, _STEPS, _BATCH, _NUM_TRAIN, _NUM_TEST = 8, 800, 50, 600, 1000
_SHIFT = 1  # pixels: digits that are all centred hardly need translations (docs/decisions.md)
_SCALE = 11.3  # total strength of a layer: 8 times what keeps signals alive through ReLU, near the published precision of 1
_RELATIVE = 0.3  # dense pathways start with less strength than convolutions: a symmetry is broken where the data ask for it
_CLIP = 0.3  # of gradients: a few long ones undo in a round what strengths were chosen for (docs/decisions.md)
_ROUNDS, _COLUMNS = 2, 1600


class _Fit(NamedTuple):
    variant: str
    learned: bool
    relative: float = 1.0
    clip: float | None = _CLIP
    columns: int = _COLUMNS


_FITS = (  # the longest first
    _Fit("f_both", True, _RELATIVE, columns=1000),  # with at most 450 effective parameters
    _Fit("conv", True),
    _Fit("fc", False, clip=None),  # worse with short gradients
    _Fit("f_both", False),
)


def _digits(task: str, num_train: int, seed: int) -> Images:
    split = datasets.quadrant_digits(num_train, 0, seed=seed, task=task, shift=_SHIFT)
    return *split.train, *split.test, datasets.placements(split.test.x)


def _files(task: str, folder: Path, num_train: int, seed: int) -> Images:
    """The first images of the published sets, those to train on drawn by the seed."""
    split = datasets.cifar10(folder) if task == "cifar10" else datasets.quadrant_mnist(folder, seed=seed, task=task)
    order = np.random.default_rng([seed, 5]).permutation(len(split.train.y))[:num_train]
    x, y = split.test.x[:_NUM_TEST], split.test.y[:_NUM_TEST]
    return split.train.x[order], split.train.y[order], x, y, datasets.placements(x)


def _net(variant: str, relative: float, image: int, inputs: int, classes: int) -> LadderClassifier:
    sizes = (image, inputs, classes, _WIDTH)
    return LadderClassifier(variant, *sizes, _SCALE, relative=relative, activation="silu", smooth=2, choose="centroid")


def _run(options: Options) -> Findings:
    task = options.task or "digit"
    num_train = _NUM_TRAIN if options.num_train is None else options.num_train
    if options.data_dir is not None:
        data = partial(_files, task, options.data_dir, num_train, options.seed)
    elif task == "cifar10":
        raise OptionError("the task cifar10 reads local files: pass --data-dir with the folder of CIFAR-10")
    else:
        data = partial(_digits, task, num_train, options.seed)
    image, inputs = (16, 1) if options.data_dir is None else (32, 3 if task == "cifar10" else 1)
    classes = 40 if task == "quadrant" else 10
    steps = options.steps or _STEPS
    jobs = [
        Job(
            _net(each.variant, each.relative, image, inputs, classes),
            each.learned,
            data,
            steps,
            options.seed,
            _BATCH,
            clip=each.clip,
            evidence=each.variant == "fc",
            columns=each.columns,
            rounds=_ROUNDS,
        )
        for each in _FITS
    ]
    outcomes = side_by_side(learn, jobs, options, again=outcome_of, quick=True)
    first = outcomes[0]
    figures = {"pathways": first.draw}
    rows = [{"task": task, **row} for outcome in outcomes for row in rows_of(outcome)]
    return Findings(rows, figures, COLUMNS, {"experiment": "quadrant", "seed": options.seed, "task": task})


QUADRANT = Experiment(
    "quadrant",
    "layers that learn to be convolutions, or not, from digits in quadrants",
    _run,
    ("digit", "quadrant", "cifar10"),
    reads_files=True,
    steps=_STEPS,
)
