"""How the hidden blocks of an expanded net are filled from a small net's weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bayes_sym.errors import OptionError
from bayes_sym.groups import FiniteGroup


__all__ = ["ARRANGEMENTS", "Arrangement", "arrangement"]


class Arrangement(NamedTuple):
    """Block (g, h), from copy h to copy g, is mean[g, h] times the small net's weights moved by element[g, h].

    Attributes:
        element: indices of group elements, (G, G).
        mean: factors of the means, (G, G).
        scale: factors of the standard deviations, (G, G); where it is 0 they start at `off_scale`.
        is_equivariant: whether the expanded net is equivariant under regular hidden representations.
    """

    element: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    is_equivariant: bool


# the element by which block (g, h) is moved: r(g, h, table, inverse)
_WORDS: dict[str, Callable[[int, int, np.ndarray, np.ndarray], int]] = {
    "diag": lambda g, h, t, inv: g,
    "tied": lambda g, h, t, inv: g,
    "mix": lambda g, h, t, inv: g,
    "gcnn": lambda g, h, t, inv: t[t[g, inv[h]], g],
    "fixed": lambda g, h, t, inv: h,
    "row_rolled": lambda g, h, t, inv: t[g, inv[h]],
    "row_constant": lambda g, h, t, inv: inv[h],
}
ARRANGEMENTS = tuple(_WORDS)
_BROKEN = ("row_rolled", "row_constant")


def arrangement(name: str, group: FiniteGroup, share: float = 0.5) -> Arrangement:
    """The arrangement of this name.

        diag          rho(g) W where g = h, else 0: the mean net is the group average of the small one
        tied          rho(g) W / sqrt|G| everywhere
        mix           sqrt(share) diag + sqrt(1 - share) tied
        gcnn          rho(g h^-1 g) W / sqrt|G|: the "R^(2i-j)" of the paper's code; rows repeat for central involutions
        fixed         rho(h) W / sqrt|G|: equivariant, but one row many times
        row_rolled    rho(g h^-1) W / sqrt|G|: equivariant in its outputs for commutative groups only
        row_constant  rho(h^-1) W / sqrt|G|: not equivariant

    Args:
        name: one of these.
        group: the group.
        share: of ``"mix"``, the share of the squared weights that is diagonal.
    """
    if name not in _WORDS:
        raise OptionError(f"arrangement must be one of {ARRANGEMENTS}, got {name!r}")
    if not 0 <= share <= 1:
        raise OptionError(f"share must be between 0 and 1, got {share}")
    order = group.order
    table, inverse = np.asarray(group.table), np.asarray(group.inverse)
    element = np.array([[_WORDS[name](g, h, table, inverse) for h in range(order)] for g in range(order)])
    uniform = np.full((order, order), 1 / math.sqrt(order))
    if name == "diag":
        mean = scale = np.eye(order)
    elif name == "mix":
        mean = math.sqrt(share) * np.eye(order) + math.sqrt(1 - share) * uniform
        scale = np.sqrt(share * np.eye(order) + (1 - share) * uniform**2)
    else:
        mean = scale = uniform
    return Arrangement(element, mean, scale, name not in _BROKEN)
