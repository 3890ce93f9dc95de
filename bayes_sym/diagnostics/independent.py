"""The equivariance defect of the mean prediction from draws at g x that are independent of those at x."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError
from ..representations import Representation
from . import two_way
from .estimates import EquivarianceError
from .orbits import mapped, on_orbit


__all__ = ["equivariance_error_from_independent_draws"]


def equivariance_error_from_independent_draws(
    draws: ArrayLike, output: Representation | None = None, *, clusters: ArrayLike | None = None
) -> EquivarianceError:
    """The predictive defect where the draws at every element of the group are draws of their own.

    With a_t = rho_out(g) F_t(x), b_t = F'_t(g x) and U(z) = (|sum_t z_t|^2 - sum_t |z_t|^2) / (T (T - 1)), averaged over x and g,

        predictive = U(a) + U(b) - 2 (mean_t a_t) . (mean_t b_t).

    Unbiased for |E b - E a|^2. Its spread is that of predictions rather than of their differences, so it needs many more draws
    than `defect` does with common ones (ten times the variance is usual): take it where one set of weights cannot be
    used twice. The defect at the identity is known to be 0 and is not estimated; the mean over the group counts it.

    Args:
        draws: (num_draws, group, num_examples, *outputs): ``draws[t, g]`` are predictions at g x, not mapped back, with the
            identity at g = 0. Draws at different g are independent; one draw is common to all examples. At least 3.
        output: the representation on the outputs, whose first axes are ``output.shape``; None for invariant outputs.
        clusters: as in `defect`.

    Returns:
        The defect; `member` and `emergence` are nan, because the defect of a member needs one set of weights at x and g x.

    Raises:
        ShapeError: the draws do not have these axes, or not one entry per element of the group.
        OptionError: there are fewer than 3 draws.
        DataError: a prediction is not finite.
    """
    values = on_orbit(draws, output)
    count, order, examples = values.shape[:3]
    if count < 3:
        raise OptionError(f"{count} draws are too few for a jackknife over draws: give at least 3 at every element")
    chunks = two_way.checked_clusters(clusters, examples)
    others_here, others_there = np.zeros((count, examples)), np.zeros((count, examples))  # a_t . sum_{s != t} a_s
    across_here, across_there = np.zeros((count, examples)), np.zeros((count, examples))  # a_t . mean_s b_s
    for g in range(1, order):
        a = mapped(output, g, values[:, 0]).reshape(count, examples, -1)
        b = values[:, g].reshape(count, examples, -1)
        for z, others in ((a, others_here), (b, others_there)):
            others += np.einsum("nc,tnc->tn", z.sum(axis=0), z) - np.einsum("tnc,tnc->tn", z, z)
        across_here += np.einsum("nc,tnc->tn", b.mean(axis=0), a)
        across_there += np.einsum("nc,tnc->tn", a.mean(axis=0), b)
    pairs = count * (count - 1)
    per_example = (others_here.sum(axis=0) + others_there.sum(axis=0)) / pairs - 2 * across_here.mean(axis=0)
    parts = [two_way.over_examples(per_example / order, chunks)]
    for others, across in ((others_here, across_here), (others_there, across_there)):
        own, other = others.mean(axis=1) / order, across.mean(axis=1) / order
        # what the estimate loses with draw t of this side; the terms of the other side alone stay
        without = (own.sum() - 2 * own) / ((count - 1) * (count - 2)) - 2 * (other.sum() - other) / (count - 1)
        parts.append(two_way.jackknife(without))
    se, df = two_way.standard_error(parts)
    nan = float("nan")
    return EquivarianceError(float(per_example.mean()) / order, se, nan, nan, nan, count, examples, False, predictive_df=df)
