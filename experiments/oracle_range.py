"""The range of augmentation that a perfect net would learn, in closed form up to one quadrature: the oracle of the experiments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bayes_sym.errors import OptionError


__all__ = ["bayes_cross_entropy", "oracle_range"]

_POINTS = 4_001  # of the quadrature


def bayes_cross_entropy(width: float, *, spread: float, centers: Sequence[float], period: float | None = None) -> float:
    """The cross-entropy, in nats, of the net that knows everything, when inputs are moved by +-`width`.

    An input of class k stands at a place uniform on centers[k] +- spread, and augmentation moves it by as much as +-width,
    uniformly. So the density of what the net sees is, for every class, a trapezoid; the classes being equally many, the cross-entropy is
    the mean entropy of the class given the place. It is 0 as long as trapezoids do not overlap, which is what label-preserving means.

    Args:
        width: the half-range of augmentation, 0 or positive.
        spread: half-range of the data around each centre, positive.
        centers: of the classes that augmentation can mix up, in the unit of `width`.
        period: of the place, if it is an angle; None if it is a line.
    """
    low, high = min(centers) - spread - width, max(centers) + spread + width
    place = np.linspace(low, high, _POINTS) if period is None else np.linspace(0, period, _POINTS)[:-1]
    turns = (
        [0.0] if period is None else period * np.arange(-2 - np.ceil((high - low) / period), 3 + np.ceil((high - low) / period))
    )
    density = np.stack([sum(_trapezoid(place - center - turn, spread, width) for turn in turns) for center in centers])
    total = density.sum(axis=0)
    share = density / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=0)
    return float((entropy * total).sum() * (place[1] - place[0]) / len(centers))


def _trapezoid(x: np.ndarray, a: float, b: float) -> np.ndarray:
    """The density of U(-a, a) + U(-b, b)."""
    if b == 0:
        return (np.abs(x) <= a) / (2 * a)
    return np.clip(np.minimum((a + b - np.abs(x)) / (4 * a * b), 1 / (2 * max(a, b))), 0, None)


def oracle_range(strength: float, limit: float, *, spread: float, centers: Sequence[float], period: float | None = None) -> float:
    """The half-range at the first local minimum of cross-entropy less strength * width/limit.

    The reward grows for ever and the cross-entropy is bounded, so for strong rewards the lowest point of all may be to destroy the data;
    a fit that starts small finds the first one.

    Args:
        strength: of the reward, in nats per unit of magnitude, positive.
        limit: the range at magnitude 1, in the unit of `spread`.
        spread, centers, period: as for `bayes_cross_entropy`.

    Raises:
        OptionError: there is no such minimum: the reward wins all the way.
    """
    coarse = np.linspace(0, limit, 201)[1:]
    loss = (
        np.array([bayes_cross_entropy(w, spread=spread, centers=centers, period=period) for w in coarse])
        - strength * coarse / limit
    )
    rising = np.flatnonzero(np.diff(loss) > 0)
    if not strength > 0 or not len(rising):
        raise OptionError(
            f"with a reward of {strength} per unit of magnitude no range below the limit of {limit} is the best of its kind"
        )
    first = rising[0]
    fine = np.linspace(coarse[max(first - 1, 0)], coarse[min(first + 1, len(coarse) - 1)], 81)
    again = [bayes_cross_entropy(w, spread=spread, centers=centers, period=period) - strength * w / limit for w in fine]
    return float(fine[int(np.argmin(again))])
