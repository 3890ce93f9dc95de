"""digits-c4: inference schemes compared on handwritten digits under exact rotations by 90 degrees.

300 upright images to train on; 300 others, in all four rotations, to choose the length of training; the rest, in all
four rotations, to report on. The rows build up an explanation: width alone, augmentation alone, both, orbit expansion.
"""

from __future__ import annotations

import jax
import numpy as np
import optax

from bayes_sym import datasets, groups, representations
from bayes_sym.inference import MAP, Cell, Comparison, Laplace, MeanField, Problem, Variational, compare, expand, full_orbit
from bayes_sym.models import ConvClassifier, SoftConvClassifier

from .experiment import Experiment, Options


__all__ = ["DIGITS_C4"]

_SMALL, _WIDE = (8, 16), (32, 64)
_ADAM = optax.adam(3e-3)
_SCALE = 4.0  # prior of the variational nets; see docs/decisions.md


def _variational(**options: object) -> Variational:
    return Variational(MeanField(0.02), _ADAM, num_particles=2, augment_weight="sum", **options)  # type: ignore[arg-type]


def _cells(rotated: tuple[np.ndarray, np.ndarray], action: representations.Representation, steps: int | None) -> list[Cell]:
    small, wide = Problem(ConvClassifier(_SMALL)), Problem(ConvClassifier(_WIDE, scale=2 * 2**0.5))
    noisy, noisy_wide = Problem(ConvClassifier(_SMALL, scale=_SCALE)), Problem(ConvClassifier(_WIDE, scale=_SCALE))
    soft = Problem(SoftConvClassifier(action.group, (8, 8), _SMALL))
    laplace = Laplace(_ADAM, "full", ("softness",), optax.adam(0.3), burn_in=200, refresh=75, hyper_steps=5)
    orbit = full_orbit(action)
    every = {"batch_size": 50, "select": True}

    def length(own: int) -> int:
        return own if steps is None else steps

    return [
        Cell("map", small, MAP(_ADAM), length(600), **every),
        Cell("map-wide", wide, MAP(_ADAM), length(600), **every),
        Cell("soft-laplace", soft, laplace, length(600)),
        Cell("soft-laplace-rotated", soft, laplace, length(600), data=rotated),
        Cell("vi", noisy, _variational(), length(1000), **every),
        Cell("vi-augmented", noisy, _variational(augment=orbit), length(1500), **every),
        Cell("vi-augmented-wide", noisy_wide, _variational(augment=orbit), length(1000), **every),
        Cell("vi-orbit-expansion", noisy, _variational(augment=orbit, symmetrise=expand(action)), length(1000), **every),
    ]


def _run(options: Options) -> Comparison:
    split = datasets.digits(options.num_train, seed=options.seed)
    action = representations.image(groups.cyclic(4), (8, 8))
    turns = np.random.default_rng([options.seed, 4]).integers(0, 4, len(split.train.x))
    orbit = np.asarray(action.orbit(split.train.x, (1, 2)))
    rotated = (orbit[turns, np.arange(len(turns))], split.train.y)
    return compare(
        _cells(rotated, action, options.steps),
        jax.random.key(options.seed),
        *split.train,
        test=split.test,
        validation=split.validation,
        action=action,
        progress=options.progress,
        mesh=options.mesh,
        about={"experiment": "digits-c4", "seed": options.seed},
    )


DIGITS_C4 = Experiment("digits-c4", "MAP, Laplace and variational nets on 8x8 digits, with rotations by 90 degrees", _run)
