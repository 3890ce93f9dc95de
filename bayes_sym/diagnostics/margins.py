"""Equivariance defects from sums over draws and over examples alone, which can be added up block by block."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from ..errors import OptionError
from . import two_way
from .estimates import EquivarianceError, joined, of_a_point


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
    if draws == 1:
        return of_a_point(member_of, numbers)
    if draws == 2:
        raise OptionError("two draws are too few for a jackknife over draws: give at least 3, or 1 for a point estimate")
    per_draw = cross_of_draws / examples
    by_draw = two_way.jackknife((per_draw.sum() - 2 * per_draw) / ((draws - 1) * (draws - 2)))
    return joined(member_of, squares_of_draws / examples, cross_of_examples / (draws * (draws - 1)), [by_draw], numbers)
