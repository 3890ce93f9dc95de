"""A figure of the equivariance defect against the number of posterior draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .sweep import DefectSweep


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_defect_sweep"]


def plot_defect_sweep(sweep: DefectSweep, figure: Figure | None = None) -> Figure:
    """Left the mean defects with bars of one standard deviation over sets of draws; right that deviation and its slope.

    Args:
        sweep: what `defect_sweep` found.
        figure: an empty figure to draw on; None makes one.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    if figure is None:
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = np.array(sweep.sizes, float)
    for values, label, nudge in ((sweep.unbiased, "unbiased", 0.98), (sweep.plug_in, "plug-in", 1.02)):
        left.errorbar(
            sizes * nudge, values.mean(axis=1), values.std(axis=1, ddof=1), fmt="o-", ms=4, lw=1, capsize=2, label=label
        )
    left.axhline(0, color="0.6", lw=0.8, zorder=0)
    left.set(ylabel="predictive defect", title=f"mean and deviation over {sweep.repeats} sets")
    left.legend(frameon=False)
    error = 1 / np.sqrt(2 * (sweep.repeats - 1))  # of log sd
    bars = np.abs(sweep.sd * (np.exp([[-error], [error]]) - 1))
    right.errorbar(sizes, sweep.sd, bars, fmt="o", ms=4, capsize=2)
    right.set(yscale="log", ylabel="standard deviation")
    if len(sizes) > 1:
        slope, se = sweep.slope()
        centre = np.exp(np.log(sizes).mean())
        height = np.exp(np.log(sweep.sd).mean())
        right.plot(sizes, height * (sizes / centre) ** slope, lw=1, color="C0", label=f"slope {slope:.2f} ± {se:.2f}")
        for other, style in ((-0.5, "--"), (-1.0, ":")):
            line = sweep.sd[0] * (sizes / sizes[0]) ** other
            right.plot(sizes, line, style, lw=1, color="0.5", label=f"slope {other:g}", zorder=0)
        right.legend(frameon=False)
    for axis in (left, right):
        axis.set(xscale="log", xlabel="posterior draws", xticks=sizes)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.spines[["top", "right"]].set_visible(False)
    return figure
