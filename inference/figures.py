"""Figures of a comparison, from its rows: symmetry against fit, and the evidence against the fit on test data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bayes_sym.errors import OptionError

from .intervals import over_seeds


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_evidence", "plot_tradeoff"]

Row = Mapping[str, Any]

_MARKERS = "osD^vP*X"


def plot_tradeoff(rows: Sequence[Row], figure: Figure | None = None) -> Figure:
    """Equivariance error against negative log-likelihood; the hollow markers at the left edge are the orbit averages.

    Bars are 95% intervals over seeds where there are three or more, with a dot for each seed, and else 2 standard errors
    over test images.

    Args:
        rows: the rows of a comparison, one per method and seed.
        figure: an empty figure to draw on; None makes one.
    """
    figure = _figure(figure, (8.6, 4.8))
    axes = figure.add_subplot()
    methods = over_seeds(rows)
    positive = [row["equivariance_error"] for row in rows if row["equivariance_error"] > 0]
    floor = max(1e-5, min(positive, default=1e-5) / 2)
    for i, row in enumerate(methods):
        colour, marker = _style(i)
        own = [r for r in rows if r["method"] == row["method"]]
        if len(own) > 1:
            axes.plot([max(r["equivariance_error"], floor) for r in own], [r["nll"] for r in own], ".", color=colour, alpha=0.45)
        x, error, y, spread = *_bar(row, "equivariance_error"), *_bar(row, "nll")
        x = max(x, floor)
        axes.errorbar(
            x,
            y,
            xerr=[[min(error, x * 0.999)], [error]],
            yerr=spread,
            fmt=marker,
            color=colour,
            markersize=8,
            capsize=3,
            label=f"{row['method']}  ({row['parameters']:,} weights)" if row.get("parameters") else row["method"],
        )
        axes.plot(floor, row["averaged_nll"], marker=marker, color=colour, fillstyle="none", markersize=8, linestyle="none")
    axes.set_xscale("log")
    axes.set_xlim(left=floor / 1.5)  # bars that reach 0 have no end on this scale
    unit = "squared units of the observations" if any("rmse" in row for row in rows) else "squared probability"
    axes.set_xlabel(f"equivariance error of the predictive, {unit}\n(hollow, at the left edge: test-time orbit average)")
    axes.set_ylabel("negative log-likelihood on all transforms [nats]")
    axes.set_title(_what_bars_are(methods), fontsize=9, loc="right")
    _tidy(axes)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def plot_evidence(rows: Sequence[Row], figure: Figure | None = None) -> Figure:
    """Log evidence against test NLL: a panel per kind of estimate and training set, since others do not compare.

    Args:
        rows: the rows of a comparison, one per method and seed.
        figure: an empty figure to draw on; None makes one.

    Raises:
        OptionError: no row has an evidence.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row, data in zip(rows, _training_sets(rows), strict=True):
        if row.get("log_evidence") is not None:
            groups.setdefault((row["evidence_kind"], data), []).append(row)
    if not groups:
        raise OptionError("no row has an evidence: Laplace and Variational estimate one, MAP and NUTS do not")
    across = min(3, len(groups))
    down = -(-len(groups) // across)
    figure = _figure(figure, (1.2 + 3.6 * across, 3.6 * down))
    names = list(dict.fromkeys(row["method"] for row in rows))
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(groups) :]:
        axes.remove()
    for axes, ((kind, data), own) in zip(panels, groups.items(), strict=False):
        for row in over_seeds(own):
            colour, marker = _style(names.index(row["method"]))
            alone = [r for r in own if r["method"] == row["method"]]
            if len(alone) > 1:
                axes.plot([r["log_evidence"] for r in alone], [r["nll"] for r in alone], ".", color=colour, alpha=0.45)
            x, error, y, spread = *_bar(row, "log_evidence"), *_bar(row, "nll")
            axes.errorbar(
                x, y, xerr=error or None, yerr=spread, fmt=marker, color=colour, markersize=7, capsize=3, label=row["method"]
            )
        sets = {key for k, key in groups if k == kind}
        axes.set_title(kind if len(sets) == 1 else f"{kind}, training data {data}", fontsize=10)
        axes.set_xlabel("log evidence [nats], higher is better")
        axes.margins(0.15)
        _tidy(axes)
        axes.legend(fontsize=8, frameon=False)
    for axes in panels[::across]:
        axes.set_ylabel("test NLL on all transforms [nats]")
    return figure


def _training_sets(rows: Sequence[Row]) -> list[str]:
    """A letter for each row's training data, the same for all seeds even where each has a split of its own."""
    seen: dict[Any, list[Any]] = {}
    letters = []
    for row in rows:
        own = seen.setdefault(row.get("seed"), [])
        if row.get("data_checksum") not in own:
            own.append(row.get("data_checksum"))
        letters.append("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[own.index(row.get("data_checksum")) % 26])
    return letters


def _bar(row: Row, name: str) -> tuple[float, float]:
    """Where a marker goes, and half the length of its bar."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is not None and high is not None:
        return row[name], (high - low) / 2
    return row[name], 2 * (row.get(f"{name}_se") or 0.0)


def _what_bars_are(methods: Sequence[Row]) -> str:
    several = {row["seeds"] for row in methods if row.get("nll_low") is not None}
    if len(several) == 1:
        return f"Bars: 95% intervals over {several.pop()} seeds"
    return "Bars: 95% intervals over seeds" if several else "Bars: 2 standard errors over test images"


def _style(i: int) -> tuple[str, str]:
    return f"C{i % 10}", _MARKERS[i % len(_MARKERS)]


def _figure(figure: Figure | None, size: tuple[float, float]) -> Figure:
    if figure is not None:
        return figure
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
