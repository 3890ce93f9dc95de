"""The equivariance defect against the number of posterior draws, from one array of draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError
from ..representations import Representation
from .orbits import mapped, on_orbit


__all__ = ["DefectSweep", "defect_sweep"]


@dataclass(frozen=True, eq=False)
class DefectSweep:
    """Predictive defects from disjoint sets of draws, for several sizes of a set.

    All examples are the same throughout, so spreads are those over draws. Values are means over examples: those of parts of the
    examples average to those of all.

    Attributes:
        sizes: T, the numbers of draws per set.
        unbiased: the unbiased defect of every set, (sizes, repeats).
        plug_in: |mean_t d_t|^2 of every set, (sizes, repeats): too large by tr Cov(d) / T on average.
    """

    sizes: tuple[int, ...]
    unbiased: np.ndarray
    plug_in: np.ndarray

    @property
    def repeats(self) -> int:
        """The number of sets per size."""
        return self.unbiased.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """The mean unbiased defect per size."""
        return self.unbiased.mean(axis=1)

    @property
    def sd(self) -> np.ndarray:
        """The standard deviation of the unbiased defect over sets, per size."""
        return self.unbiased.std(axis=1, ddof=1)

    def slope(self) -> tuple[float, float]:
        """The slope of log sd against log T and its standard error: -1/2 far above `DrawsNeeded.critical`, -1 far below it.

        With K sets per size, log sd has standard error 1/sqrt(2 (K - 1)); sizes are treated as independent, though they share draws.

        Raises:
            OptionError: there are fewer than 2 sizes.
        """
        if len(self.sizes) < 2:
            raise OptionError(f"a slope needs at least 2 sizes, got {self.sizes}")
        log = np.log(self.sizes)
        centred = log - log.mean()
        spread = float(centred @ centred)
        return float(centred @ np.log(self.sd)) / spread, 1 / float(np.sqrt(2 * (self.repeats - 1) * spread))


def defect_sweep(
    draws: ArrayLike, sizes: Sequence[int], repeats: int | None = None, output: Representation | None = None
) -> DefectSweep:
    """The predictive defect of `repeats` disjoint sets of T draws, for every T in `sizes`, in one pass over the draws.

    Args:
        draws: (num_draws, group, num_examples, *outputs), as in `equivariance_error_from_draws`; draws must be independent, or
            shuffled. The first repeats * T of them are used at size T.
        sizes: numbers of draws per set, at least 2, increasing.
        repeats: sets per size, at least 2; None: as many as the largest size leaves.
        output: the representation on the outputs; None for invariant outputs.

    Raises:
        OptionError: the sizes are not such numbers, or there are not enough draws for them.
        ShapeError: the draws do not have these axes.
        DataError: a prediction is not finite.
    """
    values = on_orbit(draws, output)
    chosen = tuple(int(size) for size in sizes)
    if not chosen or chosen[0] < 2 or any(a >= b for a, b in zip(chosen, chosen[1:], strict=False)):
        raise OptionError(f"sizes must be increasing numbers of draws, each at least 2, got {tuple(sizes)}")
    count = len(values) // chosen[-1] if repeats is None else int(repeats)
    if count < 2 or count * chosen[-1] > len(values):
        raise OptionError(
            f"{len(values)} draws do not hold {max(count, 2)} disjoint sets of {chosen[-1]}: draw at least {max(count, 2) * chosen[-1]}, "
            "or ask for fewer repeats or a smaller size"
        )
    order, examples = values.shape[1:3]
    unbiased, plug_in = np.zeros((2, len(chosen), count))
    for g in range(1, order):
        d = (values[:, g] - mapped(output, g, values[:, 0])).reshape(len(values), -1)
        squares = np.einsum("tc,tc->t", d, d)
        for i, size in enumerate(chosen):
            total = d[: count * size].reshape(count, size, -1).sum(axis=1)
            of_sum, of_each = np.einsum("kc,kc->k", total, total), squares[: count * size].reshape(count, size).sum(axis=1)
            unbiased[i] += (of_sum - of_each) / (size * (size - 1))
            plug_in[i] += of_sum / size**2
    scale = order * examples
    return DefectSweep(chosen, unbiased / scale, plug_in / scale)
