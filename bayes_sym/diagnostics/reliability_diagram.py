"""The reliability diagram: accuracy against confidence, with intervals, and how many examples each bin holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from .calibration import Bins, bin_members, checked_labels
from .calibration_error import calibration_error


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["reliability_diagram", "wilson"]


def reliability_diagram(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    level: float = 0.95,
    num_bins: int = 15,
    bins: Bins = "equal-mass",
    figure: Figure | None = None,
) -> Figure:
    """Accuracy against mean confidence per bin with Wilson's intervals, above the number of examples per bin.

    Args:
        probabilities: (num_examples, classes), rows that sum to 1 (to 1e-3).
        labels: whole numbers (num_examples,) in 0..classes-1.
        level: the coverage of the bars.
        num_bins: as in `calibration`.
        bins: as in `calibration`.
        figure: an empty figure to draw on; None makes one.

    Raises:
        ShapeError: the axes are not these, or do not match.
        DataError: a row is not a distribution, or a label is not one of the classes.
        OptionError: an option is out of range.
    """
    error = calibration_error(probabilities, labels, level=level, num_bins=num_bins, bins=bins)
    p, y = checked_labels(probabilities, labels)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    members = bin_members(confidence, num_bins, bins)
    counts = np.array([len(b) for b in members])
    hits = np.array([right[b].sum() for b in members])
    low, high = wilson(hits, counts, level)
    centres = np.array([confidence[b].mean() for b in members])
    accuracy = hits / counts
    if bins == "equal-width":
        edges = np.linspace(0, 1, num_bins + 1)
        lefts = edges[np.clip(np.ceil(centres * num_bins).astype(int) - 1, 0, num_bins - 1)]
        widths = np.full(len(members), 1 / num_bins)
    else:
        lefts = np.array([confidence[b].min() for b in members])
        widths = np.array([confidence[b].max() for b in members]) - lefts
    if figure is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
    bars = np.maximum([accuracy - low, high - accuracy], 0)
    upper.errorbar(centres, accuracy, yerr=bars, fmt="o-", color="C0", markersize=5, linewidth=1, capsize=3, label="bins")
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel("accuracy")
    upper.legend(frameon=False, loc="upper left", fontsize=9)
    upper.set_title(
        f"calibration error {error.ece:.3f}, {100 * level:g}% interval {error.low:.3f} to {error.high:.3f}\n"
        f"({error.if_calibrated:.3f} expected of calibrated predictions; bars: {100 * level:g}% per bin)",
        fontsize=9,
        loc="left",
    )
    lower.bar(lefts, counts, width=np.maximum(widths, 0.004), align="edge", color="C0", alpha=0.5, edgecolor="C0")
    lower.set_xlim(0, 1.005)
    lower.set_xlabel("confidence, the largest probability")
    lower.set_ylabel("examples")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def wilson(hits: np.ndarray, counts: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval (1927) for the rates behind `hits` out of `counts`: (low, high)."""
    from scipy.special import ndtri

    z2 = float(ndtri((1 + level) / 2)) ** 2
    rates = hits / counts
    centre = (rates + z2 / (2 * counts)) / (1 + z2 / counts)
    half = np.sqrt(z2 * (rates * (1 - rates) / counts + z2 / (4 * counts**2))) / (1 + z2 / counts)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
