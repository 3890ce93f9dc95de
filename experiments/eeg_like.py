"""eeg-like: which operations on six channels keep the stage of signals made to be like those of sleep, learned with the net.

By construction, the stages do not change with the sign, the direction of time, and the exchange of left and right; they do with other
exchanges of channels, and with shifts of the frequency beyond the width of a rhythm. Every operation has a magnitude of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import datasets
from bayes_sym.datasets.sleep import SLEEP_MIRROR
from bayes_sym.layers import Selection
from bayes_sym.transforms import (
    ChannelShuffle,
    ChannelSymmetry,
    FrequencyShift,
    GaussianNoise,
    SignFlip,
    TimeMask,
    TimeReverse,
    Transform,
)

from .augmented import COLUMNS, Arm, Data, Task, learn, outcome_of
from .experiment import Experiment, Options
from .figures import plot_ranges
from .findings import Findings
from .series_net import series_net
from .side_by_side import side_by_side


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ARMS", "EEG_LIKE", "TASK"]


@dataclass(frozen=True)
class FrontBack(ChannelSymmetry):
    """The front channels and those at the back change places: the rhythms stay, and are no longer where they belong."""


_MIRROR = ChannelSymmetry(permutation=SLEEP_MIRROR)
_SHIFT = FrequencyShift(8.0, 64.0)
_WRONG = FrontBack(permutation=(4, 5, 2, 3, 0, 1))
_TRUE: tuple[Transform, ...] = (SignFlip(), _MIRROR, TimeReverse())
_ALL: tuple[Transform, ...] = (*_TRUE, ChannelShuffle(), TimeMask(), GaussianNoise(1.0), _SHIFT)
_NET = series_net(6, 16, 5, size=64, hop=32)


def oracle(operation: str, strength: float | None) -> float | None:
    """How probable the operations are that keep the distribution of every stage; None for others, which are bound to cost something."""
    return 0.5 if operation in {type(op).__name__ for op in _TRUE} else None


def _data(seed: int, num_train: int) -> Data:
    signals = datasets.sleep_stages(num_train, 1, 500, seed=seed, seconds=5)
    x = signals.test.x
    moved = np.stack([-x, x[..., list(SLEEP_MIRROR)], x[:, ::-1]])
    ready = jax.jit(_SHIFT.prepare)(jnp.asarray(signals.train.x))
    return Data(*signals.train, {_SHIFT: np.asarray(ready)}, *signals.test, moved)


TASK = Task("eeg-like", _data, num_train=500, steps=1000, batch_size=50, rest=200, oracle=oracle)
"""What all arms share."""

ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", _NET),
        Arm("fixed", _NET, (Selection(_ALL),), (("*.magnitude", 0.5),)),
        Arm("oracle", _NET, (Selection(_TRUE),), (("*.magnitude", 1 - 1e-4),)),
        Arm("learned", _NET, (Selection(_ALL),), (("*.magnitude", 0.1),), 0.1, order=1),
        Arm("learned-exact", _NET, (Selection((*_TRUE, _WRONG)),), (("*.magnitude", 0.1),), 0.02, order=1, exact=True),
        Arm(
            "augnet",
            _NET,
            (Selection(_ALL, "blend", temperature=0.01),) * 2,
            (("*.magnitude", 0.1), ("*.selection", 0.0)),
            0.2,
            fair=True,
        ),
    )
}
"""Every method by name: nothing, everything at half its magnitude, what is true, and three ways to learn it."""


def _run(options: Options) -> Findings:
    names = list(ARMS) if options.task is None else [options.task]
    found = side_by_side(partial(learn, task=TASK, options=options), [ARMS[name] for name in names], options, again=outcome_of)
    rows = [row for outcome in found for row in (*outcome.scores, *outcome.ranges)]
    about = {"experiment": "eeg-like", "seed": options.seed, "task": options.task}
    return Findings(rows, {"magnitudes": partial(_draw, rows)}, COLUMNS, about)


def _draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """A line per operation: its magnitude times its probability, mean over fits, largest over layers; bars where all is true."""
    limits = {type(op).__name__: float(op.physical(1.0)) for op in (*_ALL, _WRONG)}
    own = [row for row in rows if row["part"] == "range"]
    learned: dict[str, list[float]] = {}
    for method in ("learned", "learned-exact", "augnet"):
        of_method = [row for row in own if row["method"] == method]
        if of_method:
            learned[method] = [_share(of_method, name, limit) for name, limit in limits.items()]
    if not learned:
        figure.text(0.5, 0.5, "no method here learns ranges", ha="center")
        return
    known = [1.0 if oracle(name, None) is not None else None for name in limits]
    plot_ranges(list(limits), learned, known, unit="share of the limit", figure=figure)


def _share(rows: list[dict[str, Any]], operation: str, limit: float) -> float:
    """Of one operation of one method; nan where it has none."""
    best: dict[int, float] = {}
    for row in rows:
        if row["operation"] == operation:
            best[row["fit"]] = max(best.get(row["fit"], 0.0), row["learned"] * row["probability"] / limit)
    return float(np.mean(list(best.values()))) if best else float("nan")


EEG_LIKE = Experiment(
    "eeg-like",
    "Which operations keep the stage of made-up sleep signals: every operation has a magnitude of its own",
    _run,
    tasks=tuple(ARMS),
    has_epochs=True,
    steps=TASK.steps,
)
