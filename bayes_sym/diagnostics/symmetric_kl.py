"""How far mean predictive distributions are from equivariance, as a symmetric Kullback-Leibler divergence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, GroupActionError, OptionError
from ..representations import Representation
from . import two_way
from .orbits import mapped_back, on_orbit


__all__ = ["SymmetricKL", "probabilities_on_orbit", "symmetric_kl"]

_SMALLEST = float(np.finfo(np.float32).tiny)


class SymmetricKL(NamedTuple):
    """A symmetric divergence in nats.

    Attributes:
        value: corrected for the number of draws, so it may be negative; it is never clipped.
        se: its standard error over examples and draws; nan with one example.
        plug_in: the divergence between the mean predictions of these draws, which is too large.
        df: degrees of freedom of `se`.
        num_draws: draws used; 1 leaves the plug-in value uncorrected.
        num_examples: examples used.
    """

    value: float
    se: float
    plug_in: float
    df: float
    num_draws: int
    num_examples: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high) of a confidence interval, by Student's t; not clipped at 0. Approximate near 0.

        Raises:
            OptionError: the level is not between 0 and 1.
        """
        return two_way.interval(self.value, self.se, self.df, level)


def symmetric_kl(draws: ArrayLike, output: Representation | None = None, *, clusters: ArrayLike | None = None) -> SymmetricKL:
    """KL(p || q) + KL(q || p) between the mean predictions p at g x, mapped back, and q at x: mean over x and the group.

        J = sum_c (p_c - q_c) (log p_c - log q_c)

    With T draws the plug-in value J_T is too large by a multiple of 1/T, so the value is 2 J_T - (J' + J'') / 2, with J' and J''
    from the draws of even and odd number: what is left falls faster than 1/T. The mean over the group includes the identity, where J
    is 0. Probabilities below the smallest normal float32, 1.18e-38, count as that number.

    Args:
        draws: (num_draws, group, num_examples, classes): probabilities of draw t at g x, not mapped back, with the identity at g = 0.
            1 draw, or at least 4.
        output: how the group permutes the classes; None for invariant outputs.
        clusters: as in `defect`.

    Raises:
        ShapeError: the draws do not have these axes, or not one entry per element.
        DataError: a row is not a distribution.
        OptionError: there are 2 or 3 draws, too few to correct from.
    """
    p = probabilities_on_orbit(draws, output)
    count, _, examples = p.shape[:3]
    chunks = two_way.checked_clusters(clusters, examples)
    total = p.sum(axis=0)
    plug_in = _divergence(total / count)
    if count == 1:
        se, df = two_way.standard_error([two_way.over_examples(plug_in, chunks)])
        return SymmetricKL(float(plug_in.mean()), se, float(plug_in.mean()), df, count, examples)
    if count < 4:
        raise OptionError(f"{count} draws are too few to correct for their number: give at least 4, or 1 for a point estimate")
    halves = [p[start::2].sum(axis=0) for start in (0, 1)]
    sizes = [(count + 1) // 2, count // 2]
    of_half = [_divergence(half / size) for half, size in zip(halves, sizes, strict=True)]
    per_example = 2 * plug_in - (of_half[0] + of_half[1]) / 2
    without = np.empty(count)
    for t in range(count):
        own, other = t % 2, 1 - t % 2
        smaller = _divergence((halves[own] - p[t]) / (sizes[own] - 1)).mean()
        without[t] = 2 * _divergence((total - p[t]) / (count - 1)).mean() - (smaller + of_half[other].mean()) / 2
    se, df = two_way.standard_error([two_way.over_examples(per_example, chunks), two_way.jackknife(without)])
    return SymmetricKL(float(per_example.mean()), se, float(plug_in.mean()), df, count, examples)


def _divergence(mean: np.ndarray) -> np.ndarray:
    """J between every g and the identity, (num_examples,), of mean predictions (group, num_examples, classes)."""
    log = np.log(np.maximum(mean, _SMALLEST))
    return ((mean - mean[0]) * (log - log[0])).sum(axis=-1).mean(axis=0)


def probabilities_on_orbit(draws: ArrayLike, output: Representation | None) -> np.ndarray:
    """Probabilities (num_draws, group, num_examples, classes) mapped back along orbits, checked.

    Raises:
        ShapeError: the draws do not have these axes, or not one entry per element.
        GroupActionError: `output` is not a permutation representation, so it does not act on labels.
        DataError: a row is not a distribution.
    """
    if output is not None and not output.is_permutation:
        raise GroupActionError(f"probabilities can only be mapped back by a permutation of the classes, got {output}")
    values = on_orbit(draws, output)
    if values.ndim != 4 or (values < 0).any() or np.abs(values.sum(axis=-1) - 1).max() > 1e-3:
        raise DataError(
            f"draws must be probabilities (num_draws, group, num_examples, classes) whose rows sum to 1, got shape {values.shape} with "
            f"values from {values.min():.3g} to {values.max():.3g}: apply a softmax to logits"
        )
    return mapped_back(output, values)
