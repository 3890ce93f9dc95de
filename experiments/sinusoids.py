"""sinusoids: the shift of frequency that keeps classes 2 Hz apart, learned with the net, alone and among other operations.

Each series has the frequency of its class, moved by up to half a hertz; a further shift by up to half a hertz keeps the label. Surrogates
and noise of the papers' limits keep all labels at any magnitude, so under a reward per unit of magnitude they are worth more than
shifts, and which operation a blend selects is decided early, by an untrained net. Drawn one by one, and rewarded for how
far they move a series, the shift is selected (docs/decisions.md).
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import datasets
from bayes_sym.layers import Selection
from bayes_sym.transforms import FourierSurrogate, FrequencyShift, GaussianNoise, Transform

from .augmented import COLUMNS, Arm, Data, Task, learn, outcome_of
from .augmented_figures import draw_history, draw_ranges
from .experiment import Experiment, Options
from .findings import Findings
from .oracle_range import oracle_range
from .series_net import series_net
from .side_by_side import side_by_side


__all__ = ["ARMS", "CENTERS", "SINUSOIDS", "TASK", "data_of", "oracle"]

CENTERS = (2.0, 4.0, 6.0, 8.0)
"""The frequencies of the classes, in hertz."""

_SHIFT = FrequencyShift(2.0, 100.0)
_THREE = (_SHIFT, FourierSurrogate(0.1 * np.pi), GaussianNoise(0.1))
_NET = series_net(1, 16, 4, size=150, hop=50)
_START = (("*.magnitude", 0.05),)


@cache
def oracle(operation: str, strength: float | None) -> float | None:
    """The half-range of shifts, in hertz, that a perfect net learns under a reward of this strength; None for others."""
    if operation != "FrequencyShift" or strength == 0:
        return None
    return 0.5 if strength is None else oracle_range(strength, 2.0, spread=0.5, centers=CENTERS)


def data_of(seed: int, num_train: int, *, phase: str = "full") -> Data:
    """Series, their quadratures, and test series shifted by half a hertz and by a quarter, both ways."""
    waves = datasets.sinusoids(num_train, 1, 300, seed=seed, phase=phase)
    prepare = jax.jit(_SHIFT.prepare)
    x = jnp.asarray(waves.test.x)
    ready = prepare(x)
    moved = [_SHIFT.apply(x, 0.25, jnp.full((len(x), 1), u, x.dtype), ready) for u in (0.0, 0.25, 0.75, 1.0)]
    given: dict[Transform, np.ndarray] = {_SHIFT: np.asarray(prepare(jnp.asarray(waves.train.x)))}
    return Data(*waves.train, given, *waves.test, np.stack(moved))


TASK = Task("sinusoids", data_of, num_train=4000, steps=3000, batch_size=64, oracle=oracle)
"""What all arms share."""

_CHOICE = (*_START, ("*.selection", 0.0))


def _blend(layers: int) -> tuple[Selection, ...]:
    return (Selection(_THREE, "blend", temperature=0.01),) * layers


def _gumbel(name: str, layers: int) -> Arm:
    return Arm(name, _NET, (Selection(_THREE, "gumbel"),) * layers, (("*.magnitude", 0.125), _CHOICE[1]), 0.2, fair=True)


ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", _NET),
        Arm("fixed", _NET, (Selection((_SHIFT,)),), (("*.magnitude", 0.5),)),
        Arm("oracle", _NET, (Selection((_SHIFT,)),), (("*.magnitude", 0.25),)),
        Arm("learned", _NET, (Selection((_SHIFT,)),), _START, 0.2),
        Arm("augerino", _NET, (Selection(_THREE),), _START, 0.2),
        Arm("augnet", _NET, _blend(1), _CHOICE, 0.2, rest=0, pace=3.0),
        Arm("augnet-warm-up", _NET, _blend(1), _CHOICE, 0.2),
        Arm("augnet-fair", _NET, _blend(1), (("*.magnitude", 0.125), _CHOICE[1]), 0.2, fair=True),
        _gumbel("gumbel-fair", 1),
        _gumbel("gumbel-fair-2-layers", 2),
        _gumbel("gumbel-fair-4-layers", 4),
        Arm("augnet-2-layers", _NET, _blend(2), _CHOICE, 0.2, rest=0, pace=3.0),
        Arm("augnet-4-layers", _NET, _blend(4), _CHOICE, 0.2, rest=0, pace=3.0),
    )
}
"""Every method by name."""

_DEFAULT = ("none", "fixed", "oracle", "learned", "augerino", "augnet", "gumbel-fair")


def _run(options: Options) -> Findings:
    names = list(_DEFAULT) if options.task is None else [options.task]
    found = side_by_side(partial(learn, task=TASK, options=options), [ARMS[name] for name in names], options, again=outcome_of)
    rows = [row for outcome in found for row in (*outcome.scores, *outcome.ranges)]
    history = {name: outcome.history for name, outcome in zip(names, found, strict=True)}
    figures = {
        "ranges": partial(draw_ranges, rows, "FrequencyShift"),
        "training": partial(draw_history, history, "FrequencyShift"),
    }
    return Findings(rows, figures, COLUMNS, {"experiment": "sinusoids", "seed": options.seed, "task": options.task})


SINUSOIDS = Experiment(
    "sinusoids",
    "Which shifts of the frequency keep the labels of series: learned alone, with others, and among others",
    _run,
    tasks=tuple(ARMS),
    has_epochs=True,
    steps=TASK.steps,
)
