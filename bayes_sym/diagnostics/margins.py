"""Equivariance defects from sums over draws and over examples alone, which can be added up block by block."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError
from . import two_way
from .estimates import EquivarianceError


__all__ = ["defect_from_margins"]


def defect_from_margins(
    squares_of_draws: np.ndarray,
    squares_of_examples: np.ndarray,
    cross_of_draws: np.ndarray,
    cross_of_examples: np.ndarray,
    *,
    clusters: ArrayLike | None = None,
) -> EquivarianceError:
    """The defects that `defect_from_products` gives for pairs of draws, from the margins of its two arrays.

    With T draws, n examples, q(t, x) = |d_t|^2 and c(t, x) = d_t . sum_{s != t} d_s, both averaged over the group,

        predictive = sum c / (n T (T - 1)),    member = sum q / (n T);

    the variance over examples needs sum_t c(t, x), and the delete-one jackknife over draws sum_x c(t, x): without draw t
    the sum over pairs loses its row and its column, 2 c(t). So n + T numbers of each are enough.

    Args:
        squares_of_draws: sum_x q(t, x), (T,).
        squares_of_examples: sum_t q(t, x), (n,).
        cross_of_draws: sum_x c(t, x), (T,).
        cross_of_examples: sum_t c(t, x), (n,).
        clusters: as in `defect`.

    Raises:
        OptionError: there are two draws, too few for a jackknife.
        ShapeError: there is not one cluster per example.
    """
    draws, examples = len(squares_of_draws), len(squares_of_examples)
    numbers = two_way.checked_clusters(clusters, examples)
    member_of = squares_of_examples / draws
    member = float(member_of.mean())
    by_example = two_way.over_examples(member_of, numbers)
    if draws == 1:
        se, df = two_way.standard_error([by_example])
        return EquivarianceError(member, se, member, se, 0.0, draws, examples, True, df, df)
    if draws == 2:
        raise OptionError("two draws are too few for a jackknife over draws: give at least 3, or 1 for a point estimate")
    per_draw = cross_of_draws / examples
    by_draw = two_way.jackknife((per_draw.sum() - 2 * per_draw) / ((draws - 1) * (draws - 2)))
    predictive_of = cross_of_examples / (draws * (draws - 1))
    predictive = float(predictive_of.mean())
    predictive_se, predictive_df = two_way.standard_error([two_way.over_examples(predictive_of, numbers), by_draw])
    member_se, member_df = two_way.standard_error([by_example, two_way.over_examples(squares_of_draws / examples)])
    return EquivarianceError(
        predictive=predictive,
        predictive_se=predictive_se,
        member=member,
        member_se=member_se,
        emergence=1 - predictive / member if member > 0 else 0.0,
        num_draws=draws,
        num_examples=examples,
        is_point_estimate=False,
        predictive_df=predictive_df,
        member_df=member_df,
    )
