"""Figures that several experiments share: learned ranges beside those of the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_sym.errors import OptionError


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_ranges"]


def plot_ranges(
    names: Sequence[str],
    learned: Mapping[str, Sequence[float]],
    oracle: Sequence[float | None],
    intervals: Mapping[str, Sequence[tuple[float, float] | None]] | None = None,
    *,
    unit: str = "",
    figure: Figure | None = None,
) -> Figure:
    """What a method has learned about each transform, on a line from no invariance to its full range.

    A line per transform: a bar is the oracle's range, a marker is what each method has learned, with its interval.

    Args:
        names: of the transforms, e.g. ``"rotation"``.
        learned: by method, a range per transform, from 0.
        oracle: the range with which the data were made, per transform; None where nobody knows it.
        intervals: by method, (low, high) of each range, or None.
        unit: of the ranges, for the axis, e.g. ``"share of the full range"``.
        figure: an empty figure to draw on; None makes one.

    Raises:
        OptionError: the numbers of transforms do not match.
    """
    intervals = {} if intervals is None else intervals
    lengths = {len(names), len(oracle), *map(len, learned.values()), *map(len, intervals.values())}
    if len(lengths) > 1 or not names or not learned:
        raise OptionError(
            f"plot_ranges needs as many learned ranges, oracles and intervals as names, {len(names)}, and at least one of each, got "
            f"lengths {sorted(lengths)}"
        )
    unknown = [method for method in intervals if method not in learned]
    if unknown:
        raise OptionError(f"intervals of {unknown} have no learned ranges; there are: {', '.join(learned)}")
    from matplotlib.figure import Figure

    if figure is None:
        figure = Figure(figsize=(7.5, 1.3 + 0.45 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(names))[::-1].astype(float)
    known = [(at, value) for at, value in zip(place, oracle, strict=True) if value is not None]
    if known:
        axes.barh([at for at, _ in known], [v for _, v in known], 0.72, color="0.85", label="oracle", zorder=1)
        axes.vlines([v for _, v in known], [at - 0.36 for at, _ in known], [at + 0.36 for at, _ in known], color="0.35", zorder=2)
    shifts = (np.arange(len(learned)) - (len(learned) - 1) / 2) * -min(0.22, 0.6 / len(learned))
    for i, ((method, values), shift) in enumerate(zip(learned.items(), shifts, strict=True)):
        style: dict[str, Any] = {"color": f"C{i % 10}", "zorder": 3}
        axes.plot(values, place + shift, "osD^vP*X"[i % 8], markersize=6, label=method, linestyle="none", **style)
        for at, bounds in zip(place + shift, intervals.get(method, ()), strict=False):
            if bounds is not None:
                axes.hlines(at, *bounds, linewidth=2, **style)
    axes.axvline(0, color="0.35", linewidth=0.8)
    axes.set_yticks(place, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(f"range{f' [{unit}]' if unit else ''}")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
