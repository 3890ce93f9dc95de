"""Figures of learned augmentation: ranges beside their oracles, and ranges and probabilities over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import plot_ranges


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_history", "draw_ranges"]

History = Sequence[tuple[int, int, list[dict[str, Any]]]]


def draw_ranges(rows: Sequence[Mapping[str, Any]], operation: str, figure: Figure) -> None:
    """One line per method: the oracle's range of an operation, the mean of what the fits have learned, and its interval over fits."""
    own = [row for row in rows if row["part"] == "range" and row["operation"] == operation]
    methods = list(dict.fromkeys(row["method"] for row in own))
    if not methods:
        figure.text(0.5, 0.5, f"no method here has {operation}", ha="center")
        return
    by_method = [[row for row in own if row["method"] == method] for method in methods]
    learned = [float(np.mean([row["learned"] for row in group])) for group in by_method]
    bounds = [
        None if group[0]["learned_low"] is None else (max(0.0, group[0]["learned_low"]), group[0]["learned_high"])
        for group in by_method
    ]
    oracle = [group[0]["oracle"] for group in by_method]
    plot_ranges(methods, {"learned": learned}, oracle, {"learned": bounds}, unit=own[0]["unit"], figure=figure)


def draw_history(history: Mapping[str, History], operation: str, figure: Figure) -> None:
    """Above the range of an operation over training, below how probable it is, with a line per method and fit."""
    ranges, probabilities = figure.subplots(2, 1, sharex=True)
    unit = ""
    for color, (method, entries) in enumerate(history.items()):
        for label, fit in enumerate(sorted({fit for fit, _, _ in entries})):
            steps, values, chances = [], [], []
            for of_fit, step, report in entries:
                found = [row for row in report if row["operation"] == operation] if of_fit == fit else []
                if found:
                    unit = found[0]["unit"]
                    steps.append(step)
                    values.append(max(float(np.max(row["range"])) for row in found))
                    chances.append(max(float(row["probability"]) for row in found))
            style = {"color": f"C{color % 10}", "linewidth": 1, "label": method if label == 0 else None}
            ranges.plot(steps, values, **style)
            probabilities.plot(steps, chances, **style)
    ranges.set_ylabel(f"range{f' [{unit}]' if unit else ''}")
    probabilities.set(ylabel="probability", xlabel="step", ylim=(-0.05, 1.05))
    ranges.legend(fontsize=7, frameon=False, ncols=2)
