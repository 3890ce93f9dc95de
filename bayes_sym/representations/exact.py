"""Exact actions on pixel grids and on sequences, without interpolation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import groups
from ..errors import GroupActionError
from ..groups import FiniteGroup
from .constructors import permutation, trivial
from .representation import Representation


__all__ = ["image", "sequence"]


def image(group: FiniteGroup, shape: tuple[int, int]) -> Representation:
    """The exact action on the pixels of images of `shape` (height, width), without interpolation.

    C_n with n in {1, 2, 4} rotates by 360/n degrees counter-clockwise; D_n with n in {1, 2, 4} also mirrors left and
    right.

    Raises:
        GroupActionError: the group does not map the pixel grid to itself.
    """
    height, width = (int(size) for size in shape)
    pixels = np.arange(height * width).reshape(height, width)
    rotate: dict[int, Callable[[np.ndarray], np.ndarray]] = {1: np.copy, 2: lambda p: np.rot90(p, 2), 4: np.rot90}
    if group.order == 1:
        return trivial(group, pixels.size).reshape(height, width)
    for n, turn in rotate.items():
        moves = {groups.cyclic(n): [turn], groups.dihedral(n): [turn, np.fliplr] if n > 1 else [np.fliplr]}.get(group)
        if moves is not None:
            if n == 4 and height != width:
                raise GroupActionError(
                    f"{group.name} turns images by 90 degrees, so they must be square, got height {height} and width "
                    f"{width}: crop or pad them to a square, or use cyclic(2) or dihedral(2)"
                )
            return permutation(group, [np.ravel(move(pixels)) for move in moves]).reshape(height, width)
    raise GroupActionError(
        f"{group.name} has no exact action on a pixel grid: only rotations by 90 or 180 degrees and mirrors map pixels to "
        "pixels. Use cyclic(2), cyclic(4), dihedral(1), dihedral(2) or dihedral(4), or give the gather indices yourself by "
        "representations.permutation(group, images).reshape(height, width)"
    )


def sequence(group: FiniteGroup, length: int) -> Representation:
    """The exact action on sequences of `length`: C_n shifts circularly by length/n steps, D_n also reverses.

    Raises:
        GroupActionError: n does not divide the length, or the group is neither cyclic nor dihedral.
    """
    steps = np.arange(int(length))
    if group.order == 1:
        return trivial(group, len(steps))
    for n, kind in ((group.order, groups.cyclic), (group.order // 2, groups.dihedral)):
        if n >= 1 and group == kind(n):
            if length % n:
                raise GroupActionError(
                    f"{group.name} shifts by length/{n} steps, so {n} must divide the length, got {length}: pad or crop the "
                    "sequences, or use a group whose order divides it"
                )
            shift, reverse = np.roll(steps, length // n), steps[::-1]
            moves = [shift] if kind is groups.cyclic else [shift, reverse] if n > 1 else [reverse]
            return permutation(group, moves)
    raise GroupActionError(f"{group.name} has no standard action on sequences; use cyclic(n) or dihedral(n), or permutation(...)")
