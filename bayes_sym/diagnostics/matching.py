"""Which unit of a layer does at g x what another one does at x: a group action on units, read from their activations."""

from __future__ import annotations

import numpy as np

from ..groups import FiniteGroup


__all__ = ["homomorphism_defect", "matched_units"]


def matched_units(there: np.ndarray, here: np.ndarray) -> np.ndarray:
    """The permutation under which units are most correlated: ``source[i]`` is the unit of `here` that unit i of `there` is like.

    The sum of correlations is maximal (Hungarian algorithm). Units that are constant have no correlation, and get what is left.

    Args:
        there: activations at g x, (samples, units).
        here: activations at x.

    Returns:
        Integers (units,), in the convention of representations: there[:, i] ~ here[:, source[i]].
    """
    from scipy.optimize import linear_sum_assignment

    a, b = (values - values.mean(axis=0) for values in (there, here))
    scale = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    correlation = np.divide(a.T @ b, scale, out=np.zeros_like(scale), where=scale > 0)
    return linear_sum_assignment(correlation, maximize=True)[1]


def homomorphism_defect(group: FiniteGroup, sources: np.ndarray, alive: np.ndarray) -> float:
    """The share of pairs g, h other than the identity, and units that are alive, for which source[g h] differs from source[h][source[g]].

    0 for a group action, and nearly 1 for matches of many units by chance.

    Args:
        group: the group.
        sources: the permutations of all elements, (order, units).
        alive: which units count, booleans (units,).
    """
    if not alive.any() or group.order == 1:
        return 0.0
    composed = sources[:, sources].swapaxes(0, 1)  # [g, h, i] = sources[h][sources[g][i]]
    return float((sources[group.table] != composed)[1:, 1:, alive].mean())
