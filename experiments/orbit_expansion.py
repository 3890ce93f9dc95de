"""orbit-expansion: ways to make a variational net equivariant, against the trivial ones that would explain a gain.

Methods x trigger times x optimisers on 300 handwritten digits with all their rotations: no symmetrisation, the same width from the
start, averages and projections of q, orbit expansions in several arrangements, and a q that is tied from the start. Every row
also shows the orbit average of its predictions. With local files the same code runs Fashion-MNIST and CIFAR-10 with the protocol of
"Equivariance and Augmentation for Bayesian Neural Networks" (channels 32 and 64, 500 epochs of batches of 128, SGD with
Nesterov momentum).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bayes_sym import datasets, groups, representations
from bayes_sym.errors import OptionError
from bayes_sym.groups import FiniteGroup
from bayes_sym.inference import (
    Cell,
    Comparison,
    MeanField,
    Problem,
    Variational,
    average,
    compare,
    expand,
    full_orbit,
    project,
    tie,
)
from bayes_sym.inference.cell import Labelled
from bayes_sym.models import ConvClassifier

from .experiment import Experiment, Options


__all__ = ["ORBIT_EXPANSION"]

_GROUPS = {"C2": groups.cyclic(2), "C4": groups.cyclic(4), "D4": groups.dihedral(4)}
_TASKS = ("methods", "triggers", "optimizers", "fashion-mnist", "cifar10")


class _Sets(NamedTuple):
    """Disjoint images and labels."""

    train: Labelled
    validation: Labelled
    test: Labelled


@dataclass(frozen=True)
class _Setting:
    """A data set with its net and its way of fitting, chosen on validation images: docs/decisions.md."""

    sets: _Sets
    side: int
    inputs: int
    channels: tuple[int, int]
    epochs: int
    batch_size: int
    scale: float
    start: float
    particles: int
    noise: str
    optimizer: str


def _setting(options: Options) -> _Setting:
    if options.task not in ("fashion-mnist", "cifar10"):
        digits = datasets.digits(options.num_train or 300, seed=options.seed)
        split = _Sets(*((part.x, part.y) for part in (digits.train, digits.validation, digits.test)))
        return _Setting(split, 8, 1, (8, 16), options.epochs or 100, 16, 6.0, 0.24, 2, "local", "adam")
    count = options.num_train or 5000
    read = datasets.fashion_mnist if options.task == "fashion-mnist" else datasets.cifar10
    whole = read(options.data_dir, progress=options.progress)
    if count + 1000 > len(whole.train.x):
        raise OptionError(f"--num-train {count} leaves no 1000 images for validation, of {len(whole.train.x)}")
    order = np.random.default_rng([options.seed, 17]).permutation(len(whole.train.x))

    def rows(index: np.ndarray) -> Labelled:
        return whole.train.x[index], whole.train.y[index]

    split = _Sets(rows(order[:count]), rows(order[count : count + 1000]), (whole.test.x, whole.test.y))
    side, inputs = whole.train.x.shape[1], whole.train.x.shape[3]
    return _Setting(split, side, inputs, (32, 64), options.epochs or 500, 128, 3.0, 0.5, 10, "weights", "sgd")


@cache
def _optimizer(kind: str, steps: int) -> optax.GradientTransformation:
    """Means and log scales at rates of their own; one object per kind and length, so that another seed compiles nothing."""
    fall = partial(optax.cosine_decay_schedule, decay_steps=steps)
    if kind == "adam":
        rules = {"mean": optax.adam(fall(2e-2)), "scale": optax.adam(fall(1e-3))}
    else:
        sgd = partial(optax.sgd, momentum=0.9, nesterov=True)
        rules = {"mean": sgd(fall(5e-2)), "scale": sgd(fall(5e-2))}
    labelled = optax.multi_transform(rules, _labels)
    return labelled if kind == "adam" else optax.chain(optax.clip_by_global_norm(1.0), labelled)


def _labels(params: Any) -> Any:
    return type(params)(*({site: label for site in field} for field, label in zip(params, ("mean", "scale"), strict=True)))


def _plan(options: Options) -> list[Cell]:
    """The cells with their data."""
    setting = _setting(options)
    group: FiniteGroup = _GROUPS[options.group or "C4"]
    action = representations.image(group, (setting.side, setting.side))
    per_epoch = -(-len(setting.sets.train[0]) // setting.batch_size)
    steps = options.steps or setting.epochs * per_epoch
    small = Problem(ConvClassifier(setting.channels, setting.inputs, scale=setting.scale))
    wider = tuple(group.order * width for width in setting.channels)
    wide = Problem(ConvClassifier(wider, setting.inputs, scale=setting.scale))

    def cell(name: str, problem: Problem = small, symmetrise: Any = None, kind: str = setting.optimizer) -> Cell:
        scheme = Variational(
            MeanField(0.05),
            _optimizer(kind, steps),
            augment=full_orbit(action),
            augment_weight="sum",
            symmetrise=symmetrise,
            num_particles=setting.particles,
            noise=setting.noise,
            start=setting.start,
        )
        return Cell(name, problem, scheme, steps, setting.batch_size)

    grown = partial(expand, action, off_scale=0.01)
    task = options.task or "methods"
    cells: Iterable[Cell]
    if task == "triggers":
        cells = [cell("baseline"), cell("wide", wide)]
        for at in (1, 0.2, 0.5):
            when = f"@{at:.0%}" if isinstance(at, float) else "@start"
            cells += [cell(f"average{when}", symmetrise=average(action, at=at))]
            cells += [cell(f"project{when}", symmetrise=project(action, at=at))]
            cells += [cell(f"expand-diag{when}", symmetrise=grown(at=at))]
    elif task == "optimizers":
        cells = []
        for kind in ("adam", "sgd"):
            cells += [cell(f"baseline-{kind}", kind=kind), cell(f"project-{kind}", symmetrise=project(action), kind=kind)]
            cells += [cell(f"tied-{kind}", symmetrise=tie(action), kind=kind)]
            cells += [cell(f"expand-diag-{kind}", symmetrise=grown(), kind=kind)]
    else:
        cells = [
            cell("baseline"),
            cell("wide", wide),
            cell("average-geometric", symmetrise=average(action)),
            cell("average-arithmetic", symmetrise=average(action, kind="arithmetic")),
            cell("project", symmetrise=project(action)),
            cell("tied", symmetrise=tie(action)),
            cell("expand-gcnn", symmetrise=grown(arrangement="gcnn")),
            cell("expand-row-rolled", symmetrise=grown(arrangement="row_rolled")),
            cell("expand-row-constant", symmetrise=grown(arrangement="row_constant")),
            cell("expand-mix", symmetrise=grown(arrangement="mix")),
            cell("expand-diag", symmetrise=grown()),
            cell("expand-diag-held", symmetrise=grown(hold="gradient")),
        ]
    sets = setting.sets
    return [replace(c, data=sets.train, test=sets.test, validation=sets.validation, action=action) for c in cells]


def _run(options: Options) -> Comparison:
    return compare(
        _plan(options),
        jax.random.key(options.seed),
        progress=options.progress,
        mesh=options.mesh,
        folder=options.folder,
        about={"experiment": "orbit-expansion", "task": options.task or "methods", "seed": options.seed},
    )


ORBIT_EXPANSION = Experiment(
    "orbit-expansion",
    "ways to symmetrise a variational conv net, with the baselines that would explain a gain",
    _run,
    tasks=_TASKS,
    reads_files=True,
    groups=tuple(_GROUPS),
    has_epochs=True,
    plan=_plan,
)
