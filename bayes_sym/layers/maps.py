"""What layers between feature maps of fixed sizes have in common: their grids, and the checks of what they are given."""

from __future__ import annotations

from typing import Any

from ..errors import GroupActionError, ShapeError
from .layer import Field


__all__ = ["check_map", "check_maps_field", "output_grid"]


def output_grid(grid: tuple[int, ...], stride: int) -> tuple[int, int]:
    """(ceil(height/stride), ceil(width/stride))."""
    return -(-grid[0] // stride), -(-grid[1] // stride)


def check_map(what: str, path: str, x: Any, grid: tuple[int, ...], channels: int) -> None:
    """Refuses inputs that are not (batch, *grid, channels).

    Raises:
        ShapeError: any other shape.
    """
    if x.ndim != 4 or x.shape[1:] != (*grid, channels):
        raise ShapeError(
            f"{what} {path!r} takes feature maps (batch, {grid[0]}, {grid[1]}, {channels} channels), got an array of shape {x.shape}. "
            f"Its weights belong to pixels, so the size is fixed: set {what}(inputs=..., grid=(height, width)) to what comes in"
        )


def check_maps_field(what: str, field: Field, grid: tuple[int, ...], channels: int) -> None:
    """Refuses a group action that is not one on maps of this grid with this number of channels.

    Raises:
        GroupActionError: plain vectors, another grid, or another number of channels.
    """
    if field.grid != tuple(grid):
        raise GroupActionError(
            f"{what} takes maps of {tuple(grid)} pixels, but the group acts on {field.grid or 'plain vectors'}"
        )
    if field.channels.dim != channels:
        raise GroupActionError(f"{what} takes {channels} channels, but the group acts on {field.channels.dim}")
