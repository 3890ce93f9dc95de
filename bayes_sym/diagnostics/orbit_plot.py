"""A figure of one image, its transforms, and what is predicted along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError, ShapeError
from ..representations import Representation
from .symmetric_kl import probabilities_on_orbit


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_orbit"]


def plot_orbit(
    images: ArrayLike,
    draws: ArrayLike,
    output: Representation | None = None,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    label: int | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Above the image at every element of the group, below it the predictive probabilities there, mapped back.

    Bars are means over draws and whiskers their 5% to 95% quantiles: bars that differ along the orbit show what averaging over draws
    leaves of the members' asymmetry, whiskers that are long show what it removes.

    Args:
        images: (group, height, width) or (group, height, width, channels) with 1 or 3 channels, the transforms of one image.
        draws: (num_draws, group, classes): probabilities at them, not mapped back; or (group, classes), their means.
        output: how the group permutes the classes; None for invariant outputs.
        names: what to call the elements; None: their numbers.
        classes: what to call the classes; None: their numbers.
        label: the class to mark as the true one.
        figure: an empty figure to draw on; None makes one.

    Raises:
        ShapeError: the axes are not these, or do not match.
        OptionError: there is not one name per element or class, or the label is no class.
        DataError: a row is not a distribution.
    """
    from matplotlib.figure import Figure

    pictures, values = np.asarray(images), np.asarray(draws)
    values = values[None] if values.ndim == 2 else values
    fits = pictures.ndim == 3 or (pictures.ndim == 4 and pictures.shape[-1] in (1, 3))
    if not fits or values.ndim != 3 or values.shape[1] != len(pictures):
        raise ShapeError(
            f"plot_orbit takes images (group, height, width[, 1 or 3]) and probabilities ([num_draws,] group, classes), got shapes "
            f"{pictures.shape} and {np.shape(draws)}"
        )
    order, count = values.shape[1:]
    for what, given, size in (("names", names, order), ("classes", classes, count)):
        if given is not None and len(given) != size:
            raise OptionError(f"{what} must hold {size} names, got {len(given)}")
    if label is not None and not 0 <= label < count:
        raise OptionError(f"label must be one of the {count} classes, got {label}")
    p = probabilities_on_orbit(values[:, :, None], output)[:, :, 0]
    low, high = np.quantile(p, [0.05, 0.95], axis=0)
    mean = p.mean(axis=0)
    if figure is None:
        figure = Figure(figsize=(1.5 * order + 0.8, 3.1), layout="constrained")
    axes = figure.subplots(2, order, squeeze=False, height_ratios=[1, 1], sharey="row")
    shown = pictures[..., 0] if pictures.ndim == 4 and pictures.shape[-1] == 1 else pictures
    bounds = {} if shown.ndim == 4 else {"cmap": "gray", "vmin": float(shown.min()), "vmax": float(shown.max())}
    for g in range(order):
        above, below = axes[:, g]
        above.imshow(shown[g], **bounds)
        above.set(title=str(g) if names is None else names[g], xticks=[], yticks=[])
        colours = ["C1" if label == c else "C0" for c in range(count)]
        below.bar(range(count), mean[g], color=colours)
        if len(p) > 1:
            below.vlines(range(count), low[g], high[g], color="0.3", lw=1)
        below.set(ylim=(0, 1), xticks=range(count), xticklabels=classes or range(count))
        below.tick_params(labelsize=7, rotation=90 if classes else 0, axis="x")
        below.spines[["top", "right"]].set_visible(False)
    axes[1, 0].set_ylabel("probability")
    return figure
