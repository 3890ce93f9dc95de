"""digits-c4: inference schemes compared on handwritten digits under exact rotations by 90 degrees.

300 upright images to train on; 300 others, in all four rotations, to choose the length of training; the rest, in all
four rotations, to report on. The rows build up an explanation: width alone, augmentation alone, both, orbit expansion.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import optax

from bayes_sym import datasets, groups, representations
from bayes_sym.inference import MAP, Cell, Comparison, Laplace, MeanField, Problem, Variational, compare, expand, full_orbit
from bayes_sym.models import ConvClassifier, SoftConvClassifier
from bayes_sym.representations import Representation

from .experiment import Experiment, Options


__all__ = ["DIGITS_C4"]

_adam = cache(optax.adam)  # one object per rate, so that the fits of another seed compile nothing
_SMALL, _WIDE = (8, 16), (32, 64)
_SCALE = 4.0  # prior of the variational nets; this and the learning rates were chosen on validation: docs/decisions.md


def _variational(learning_rate: float, **options: Any) -> Variational:
    return Variational(MeanField(0.02), _adam(learning_rate), num_particles=2, augment_weight="sum", **options)


def _cells(rotated: tuple[np.ndarray, np.ndarray], action: Representation, steps: int | None) -> list[Cell]:
    small, wide = Problem(ConvClassifier(_SMALL)), Problem(ConvClassifier(_WIDE, scale=2 * 2**0.5))
    noisy, noisy_wide = Problem(ConvClassifier(_SMALL, scale=_SCALE)), Problem(ConvClassifier(_WIDE, scale=_SCALE))
    soft = Problem(SoftConvClassifier(action.group, (8, 8), _SMALL))
    point, orbit = MAP(_adam(3e-3)), full_orbit(action)

    def length(own: int) -> int:
        return own if steps is None else steps

    third = max(1, length(1200) // 3)
    laplace = Laplace(_adam(5e-3), "full", ("softness",), _adam(0.3), burn_in=third, refresh=max(1, third // 3), hyper_steps=5)
    expansion = _variational(2e-3, augment=orbit, symmetrise=expand(action, at=0.25, off_scale=0.005))
    return [
        Cell("map", small, point, length(800), 100, "upright"),
        Cell("map-wide", wide, point, length(800), 100, "upright"),
        Cell("soft-laplace", soft, laplace, length(1200), 100),
        Cell("soft-laplace-rotated", soft, laplace, length(1200), 100, data=rotated),
        Cell("vi", noisy, _variational(1e-2), length(1200), 100, "upright"),
        Cell("vi-augmented", noisy, _variational(1e-2, augment=orbit), length(1500), 100, "orbit"),
        Cell("vi-augmented-wide", noisy_wide, _variational(3e-3, augment=orbit), length(1000), 50, "orbit"),
        Cell("vi-orbit-expansion", noisy, expansion, length(1200), 50, "orbit"),
    ]


def _plan(options: Options) -> list[Cell]:
    """The cells with their data."""
    split = datasets.digits(300 if options.num_train is None else options.num_train, seed=options.seed)
    action = representations.image(groups.cyclic(4), (8, 8))
    turns = np.random.default_rng([options.seed, 4]).integers(0, 4, len(split.train.x))
    orbit = np.asarray(action.orbit(split.train.x, (1, 2)))
    rotated = (orbit[turns, np.arange(len(turns))], split.train.y)
    return [
        replace(
            cell,
            data=split.train if cell.data is None else cell.data,
            test=split.test,
            validation=split.validation,
            action=action,
        )
        for cell in _cells(rotated, action, options.steps)
    ]


def _run(options: Options) -> Comparison:
    return compare(
        _plan(options),
        jax.random.key(options.seed),
        progress=options.progress,
        mesh=options.mesh,
        folder=options.folder,
        about={"experiment": "digits-c4", "seed": options.seed},
    )


DIGITS_C4 = Experiment(
    "digits-c4", "MAP, Laplace and variational nets on 8x8 digits, with rotations by 90 degrees", _run, plan=_plan
)
