"""capacity: how invariant nets of different widths and depths are to shifts of the frequency, with and without learned augmentation.

Perceptrons on the raw series of `sinusoids`. An average over shifted copies is nearly invariant however small the net inside is; a net
without augmentation is as invariant as its capacity and its data make it. Phases are those of the released code, which leak the
class: with phases uniform on the circle no perceptron of this size learns anything from 400 series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_sym.layers import Activation, Dense, Flatten, Layer, Selection, Sequential
from bayes_sym.transforms import FrequencyShift

from .augmented import COLUMNS as SHARED_COLUMNS
from .augmented import Arm, Outcome, Task, learn, outcome_of
from .experiment import Experiment, Options
from .findings import Findings
from .side_by_side import side_by_side
from .sinusoids import data_of, oracle


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CAPACITIES", "CAPACITY", "METHODS", "TASK", "arm"]

CAPACITIES = tuple((width, depth) for depth in (1, 2) for width in (2, 4, 16, 64))
"""Units per hidden layer, and hidden layers."""

METHODS = ("none", "oracle", "learned")
"""No augmentation, the range that keeps all labels, and a range learned under a reward of 0.8 as in the paper."""

TASK = Task(
    "capacity",
    partial(data_of, phase="original"),
    num_train=400,
    steps=1500,
    batch_size=32,
    rate=1e-2,
    copies=10,
    wide=10.0,
    oracle=oracle,
)
"""What all arms share."""

_SHIFT = FrequencyShift(2.0, 100.0)
_COLUMNS = {"width": ("width", "{}"), "depth": ("depth", "{}"), **SHARED_COLUMNS, "spread": ("spread", "{:.3f}")}


def _net(width: int, depth: int) -> Layer:
    """Smooth units: those that are cut off die in nets of two, and a dead net is invariant."""
    layers: list[Layer] = [Flatten()]
    for i in range(depth):
        layers += [Dense(width if i else 1000, width), Activation("silu")]
    return Sequential((*layers, Dense(width, 4)))


def arm(method: str, width: int, depth: int) -> Arm:
    """One of the `METHODS` with one net."""
    net = _net(width, depth)
    if method == "none":
        return Arm(method, net)
    # learned from a range that is too wide: from a narrow one, these nets fit 400 series by heart before it grows
    starts = (("*.magnitude", 0.25 if method == "oracle" else 0.5),)
    return Arm(method, net, (Selection((_SHIFT,)),), starts, 0.8 if method == "learned" else None, pace=1.0, rest=0)


def _learn(cell: tuple[str, int, int], task: Task, options: Options) -> Outcome:
    return learn(arm(*cell), task, options)


def _run(options: Options) -> Findings:
    methods = METHODS if options.task is None else (options.task,)
    cells = [(method, width, depth) for method in methods for width, depth in CAPACITIES[::-1]]  # the longest first
    found = side_by_side(partial(_learn, task=TASK, options=options), cells, options, again=outcome_of)
    outcomes = dict(zip(cells, found, strict=True))
    rows: list[dict[str, Any]] = []
    for method in methods:
        for width, depth in CAPACITIES:
            outcome = outcomes[method, width, depth]
            rows += [{"width": width, "depth": depth, **row} for row in (*outcome.scores, *outcome.ranges)]
    rows += summaries(rows)
    about = {"experiment": "capacity", "seed": options.seed, "task": options.task}
    return Findings(rows, {"capacity": partial(_draw, rows)}, _COLUMNS, about)


def summaries(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per method: the median over capacities of the median over fits that are alive, and its spread (largest less smallest)."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["part"] == "method" and row["method"] == method]
        by_capacity = [_median(own, capacity, "invariance") for capacity in CAPACITIES]
        known = [value for value in by_capacity if value is not None]
        found.append(
            {
                "part": "summary",
                "method": method,
                "invariance": float(np.median(known)) if known else None,
                "spread": max(known) - min(known) if known else None,
                "dead": sum(row["constant"] for row in own),
            }
        )
    return found


def _median(rows: Sequence[Mapping[str, Any]], capacity: tuple[int, int], key: str) -> float | None:
    """Over the fits of one capacity whose predictions are not constant."""
    values = [row[key] for row in rows if (row["width"], row["depth"]) == capacity and not row["constant"]]
    return float(np.median(values)) if values else None


def _draw(rows: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """Invariance and accuracy of every method, medians over fits, from the smallest net to the largest."""
    panels = figure.subplots(1, 2)
    own = [row for row in rows if row["part"] == "method"]
    for axes, key in zip(panels, ("invariance", "accuracy"), strict=True):
        for color, method in enumerate(dict.fromkeys(row["method"] for row in own)):
            of_method = [row for row in own if row["method"] == method]
            values = [_median(of_method, capacity, key) for capacity in CAPACITIES]
            place = [i for i, value in enumerate(values) if value is not None]
            axes.plot(place, [value for value in values if value is not None], "o-", color=f"C{color}", label=method)
        axes.set_xticks(range(len(CAPACITIES)), [f"{width}x{depth}" for width, depth in CAPACITIES])
        axes.set(xlabel="width x depth", ylabel=key)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8, frameon=False)


CAPACITY = Experiment(
    "capacity",
    "Invariance to shifts of the frequency against the width and depth of a net, with and without augmentation",
    _run,
    tasks=METHODS,
    has_epochs=True,
    steps=TASK.steps,
)
