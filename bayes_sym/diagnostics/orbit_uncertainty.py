"""How much the uncertainty of predictions varies along orbits, where an equivariant posterior has the same everywhere."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError
from ..representations import Representation
from . import two_way
from .symmetric_kl import probabilities_on_orbit


__all__ = ["OrbitUncertainty", "orbit_uncertainty"]


class OrbitUncertainty(NamedTuple):
    """Spreads along orbits in squared nats; each ``_se`` is a standard error over examples and draws.

    Attributes:
        entropy: the variance along the orbit of the entropy of the mean prediction, mean over examples. May be negative: it is
            a product of two halves of the draws and is never clipped. Its square root is a spread in nats.
        entropy_se: its standard error; nan with one example.
        information: the same for the mutual information between label and weights, the entropy of the mean prediction less
            the mean entropy of the draws' predictions.
        information_se: its standard error; nan with one example.
        num_draws: draws used.
        num_examples: examples used.
    """

    entropy: float
    entropy_se: float
    information: float
    information_se: float
    num_draws: int
    num_examples: int


def orbit_uncertainty(
    draws: ArrayLike, output: Representation | None = None, *, clusters: ArrayLike | None = None
) -> OrbitUncertainty:
    """The variance along orbits of predictive entropy and of mutual information.

    With u'(x, g) from the draws of even number and u'' from those of odd number,

        variance = mean_x mean_g (u'(x, g) - mean_g u'(x, g)) (u''(x, g) - mean_g u''(x, g)).

    The noise of finitely many draws, which is in both factors of a plain variance, is independent in these, so an equivariant
    posterior has the mean 0. The entropies themselves are too small by a multiple of 1/T, nearly the same all along an orbit.

    Args:
        draws: (num_draws, group, num_examples, classes): probabilities of draw t at g x, with the identity at g = 0; at least
            4 draws, an even number of them.
        output: how the group permutes the classes; entropies do not depend on it, but the axes are checked.
        clusters: as in `defect`.

    Raises:
        ShapeError: the draws do not have these axes, or not one entry per element.
        DataError: a row is not a distribution.
        OptionError: there are fewer than 4 draws or an odd number of them.
    """
    p = probabilities_on_orbit(draws, output)
    count, _, examples = p.shape[:3]
    if count < 4 or count % 2:
        raise OptionError(f"uncertainties of two halves of the draws need an even number of at least 4, got {count}")
    chunks = two_way.checked_clusters(clusters, examples)
    entropies = _entropy(p)  # (draws, group, examples)
    halves = [(p[start::2].sum(axis=0), entropies[start::2].sum(axis=0)) for start in (0, 1)]
    size = count // 2
    of_half = [_centred(mean / size, own / size) for mean, own in halves]
    per_example = [(a * b).mean(axis=0) for a, b in zip(*of_half, strict=True)]
    without = np.empty((count, 2))
    for t in range(count):
        mean, own = halves[t % 2]
        smaller = _centred((mean - p[t]) / (size - 1), (own - entropies[t]) / (size - 1))
        without[t] = [(a * b).mean() for a, b in zip(smaller, of_half[1 - t % 2], strict=True)]
    ses = []
    for i, values in enumerate(per_example):
        # each half is a sample of its own
        parts = [two_way.jackknife(without[start::2, i]) for start in (0, 1)]
        ses.append(two_way.standard_error([two_way.over_examples(values, chunks), *parts])[0])
    entropy, information = (float(values.mean()) for values in per_example)
    return OrbitUncertainty(entropy, ses[0], information, ses[1], count, examples)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)


def _centred(mean: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and mutual information (group, num_examples), each less its mean along the orbit."""
    entropy = _entropy(mean)
    information = entropy - own
    return entropy - entropy.mean(axis=0), information - information.mean(axis=0)
