"""Ranges of six operations chosen by the Laplace evidence, where shapes are turned and nothing else (LILA, Immer et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayes_sym import datasets
from bayes_sym.inference import Laplace, Problem, Progress, fit
from bayes_sym.layers import Activation, Augment, Dense, Flatten, Selection, Sequential
from bayes_sym.transforms import Rotate, Scale, ShearX, Stretch, TranslateX, TranslateY

from .augmented import Data, Outcome, score_rows
from .experiment import Options
from .scaled_layers import classify


__all__ = ["EvidenceModel", "learn_by_evidence"]

_SIDE, _WIDTH, _STEPS, _TRAIN = 14, 16, 2400, 200
_ROTATE = Rotate(180.0)
_OPERATIONS = (TranslateX(), TranslateY(), _ROTATE, Scale(), Stretch(), ShearX())
_START = tuple(5 / 180 if operation is _ROTATE else 0.03 for operation in _OPERATIONS)


@dataclass(frozen=True)
class EvidenceModel:
    """A NumPyro model ``model(x, y=None)``: a tanh net of one hidden layer, averaged over copies; a prior scale per layer.

    Attributes:
        copies: per image.
    """

    copies: int = 16

    @property
    def spec(self) -> Augment:
        """The net."""
        net = Sequential((Flatten(), Dense(_SIDE**2, _WIDTH), Activation("tanh"), Dense(_WIDTH, 2)))
        return Augment(net, (Selection(_OPERATIONS),), copies=self.copies)

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> None:
        """See `classify`."""
        classify(self.spec, "1.", x, y)


@cache
def _scheme(steps: int) -> Laplace:
    return Laplace(
        optax.adam(optax.cosine_decay_schedule(0.005, steps, 0.1)),
        "ekfac",
        ("scale", "*.magnitude"),
        optax.adam(0.05),
        burn_in=max(1, steps // 10),
        refresh=max(1, steps // 60),
        hyper_steps=5,
        trust=0.5,
        objective="dual",
        start=0.5,
    )


def _data(seed: int, num_train: int) -> Data:
    """The upright ones of shapes that are turned by up to 90 degrees, labelled by shape."""
    shapes = datasets.rotated_shapes(2 * num_train, 1, 1000, seed=seed, side=_SIDE, spread=90.0)
    (x, y), (x_test, y_test) = ((part.x[part.y % 2 == 0], part.y[part.y % 2 == 0] // 2) for part in (shapes.train, shapes.test))
    turns = [_ROTATE.apply(jnp.asarray(x_test), 0.5, jnp.full((len(x_test), 1), u, x.dtype)) for u in (0.0, 0.25, 0.75, 1.0)]
    return Data(x, y, {}, x_test, y_test, np.stack(turns))


def learn_by_evidence(options: Options) -> Outcome:
    """One fit, with a row for the net and for each operation: the evidence of the averaged net alone moves the ranges and the prior scales.

    The objective is the exact evidence by the kernel of 200 images (`dual`), for the net has thousands of weights.
    """
    data = _data(options.seed, options.num_train or _TRAIN)
    model = EvidenceModel()
    problem = Problem(model, starts=(("scale", 1.0), ("*.magnitude", _START)))
    steps = _STEPS if options.steps is None else options.steps
    arrays = (jnp.asarray(data.x), jnp.asarray(data.y))
    at = jax.jit(lambda z: problem.constrain(z, arrays))
    history: list[tuple[int, int, list[dict[str, Any]]]] = []

    def watch(progress: Progress) -> None:
        history.append((0, progress.step, model.spec.report(at({**progress.state.z, **progress.state.hyper}), module="net")))

    found = fit(
        problem,
        _scheme(steps),
        jax.random.key(options.seed),
        *arrays,
        num_steps=steps,
        callbacks=[watch],
        chunk=max(1, steps // 20),
        progress=False,
    )
    values = at({**found.state.z, **found.state.hyper})
    ranges = [
        {
            "part": "range",
            "method": "evidence",
            "fit": 0,
            "layer": row["layer"],
            "operation": row["operation"],
            "unit": row["unit"],
            "learned": float(row["range"]),
            "learned_low": None,
            "learned_high": None,
            "magnitude": float(row["magnitude"]),
            "oracle": 90.0 if row["operation"] == "Rotate" else None,
            "probability": 1.0,
            "selected": True,
            "seed": options.seed,
        }
        for row in model.spec.report(values, module="net")
    ]
    return Outcome(score_rows("evidence", model.spec, [values], data, 16, [found.seconds], options.seed), ranges, history)
