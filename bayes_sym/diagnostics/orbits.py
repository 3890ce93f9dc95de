"""Predictions along orbits: their axes, and how a group acts on their outputs."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, ShapeError
from ..representations import Representation


__all__ = ["mapped", "mapped_back", "on_orbit"]


def on_orbit(draws: ArrayLike, output: Representation | None) -> np.ndarray:
    """Draws (num_draws, group, num_examples, *outputs) in float64, checked.

    Raises:
        ShapeError: the draws do not have these axes, or not one entry per element of the group.
        DataError: a prediction is not finite.
    """
    values = np.asarray(draws, np.float64)
    if values.ndim < 3 or 0 in values.shape:
        raise ShapeError(f"draws must be (num_draws, group, num_examples, *outputs), got shape {values.shape}")
    if output is not None and values.shape[1] != output.group.order:
        raise ShapeError(
            f"axis 1 of the draws runs over the {output.group.order} elements of {output.group.name}, got shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise DataError("the draws are not all finite: look at the predictions for NaN or infinity")
    return values


def mapped(output: Representation | None, g: int, draws: np.ndarray) -> np.ndarray:
    """rho_out(g) on the output axes of (num_draws, num_examples, *output.shape, ...), in the precision of `draws`.

    Raises:
        ShapeError: the representation does not act on outputs of this shape.
    """
    if output is None:
        return draws
    if draws.shape[2 : 2 + len(output.shape)] != output.shape:
        raise ShapeError(
            f"the output representation acts on {output.shape}, but the draws of shape {draws.shape} have outputs of shape "
            f"{draws.shape[2:]}"
        )
    flat = draws.reshape(*draws.shape[:2], output.dim, -1)
    if output.source is None:
        moved = np.einsum("ij,tnjc->tnic", output.matrices()[g], flat)
    else:
        moved = flat[:, :, output.source[g]]
        if output.sign is not None:
            moved = moved * output.sign[g][:, None]
    return moved.reshape(draws.shape)


def mapped_back(output: Representation | None, draws: np.ndarray) -> np.ndarray:
    """rho_out(g)^-1 on every ``draws[:, g]`` of (num_draws, group, num_examples, *outputs)."""
    if output is None:
        return draws
    back = [mapped(output, int(output.group.inverse[g]), draws[:, g]) for g in range(draws.shape[1])]
    return np.stack(back, axis=1)
