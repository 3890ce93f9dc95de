"""Equivariance defects from aligned differences: unbiased estimators, and standard errors over examples and draws."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, OptionError, ShapeError
from . import two_way


__all__ = ["EquivarianceError", "defect", "defect_from_products"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["predictive", "predictive_se", "member", "member_se", "emergence", "predictive_df", "member_df", "floor"],
    meta_fields=["num_draws", "num_examples", "is_point_estimate"],
)
@dataclass(frozen=True)
class EquivarianceError:
    """The equivariance defects of a posterior, with standard errors over examples and draws.

    Attributes:
        predictive: the squared defect of the mean prediction, E_x mean_g |E_t d_t(x, g)|^2, in squared units of the
            outputs. Unbiased, so it may be negative; it is never clipped.
        predictive_se: its standard error; nan with one example.
        member: the mean squared defect of single draws, E_x mean_g E_t |d_t(x, g)|^2; nan where the draws at different
            elements are not of the same weights.
        member_se: its standard error; nan with one example.
        emergence: 1 - predictive / member: the share of the members' defect that averaging over draws removes. 0 where
            `member` is 0, because there is nothing to remove.
        num_draws: draws used.
        num_examples: examples used.
        is_point_estimate: whether there was one draw only. Then `predictive` is the plug-in value and equals `member`,
            and the standard errors are over examples alone.
        predictive_df: degrees of freedom of `predictive_se`.
        member_df: those of `member_se`.
        floor: what interpolation alone does to the inputs, |R(a) R(b) x - R(a + b) x| / |x|: a continuous action on a
            pixel grid is not a group action, and a defect cannot be trusted below it. 0 where the action is exact.
    """

    predictive: float
    predictive_se: float
    member: float
    member_se: float
    emergence: float
    num_draws: int
    num_examples: int
    is_point_estimate: bool
    predictive_df: float = math.inf
    member_df: float = math.inf
    floor: float = 0.0

    def interval(self, level: float = 0.95, *, of: Literal["predictive", "member"] = "predictive") -> tuple[float, float]:
        """(low, high) of a confidence interval, by Student's t; not clipped at 0.

        Sources of chance are the examples and the draws. Where the defect is not large compared with its standard error, the
        estimate is not Gaussian (at 0 it is a weighted sum of chi-squares) and the coverage is not the nominal one: too high where
        the draws' noise has many directions, and down to 86% of 95% where it has one. `equivariance_test` is exact there.

        Raises:
            OptionError: the level is not between 0 and 1, or `of` is unknown.
        """
        if of == "predictive":
            return two_way.interval(self.predictive, self.predictive_se, self.predictive_df, level)
        if of == "member":
            return two_way.interval(self.member, self.member_se, self.member_df, level)
        raise OptionError(f"of must be 'predictive' or 'member', got {of!r}")


def defect(
    differences: Iterable[ArrayLike],
    *,
    estimator: Literal["pairs", "halves"] = "pairs",
    clusters: ArrayLike | None = None,
) -> EquivarianceError:
    """The equivariance defects from differences that are already aligned.

    With T = num_draws and d_t the difference of draw t at example x and element g,

        predictive = mean_x mean_g (|sum_t d_t|^2 - sum_t |d_t|^2) / (T (T - 1)),    member = mean_x mean_g mean_t |d_t|^2.

    The first is a U-statistic, the mean over pairs of different draws: unbiased for |E d|^2 whatever the spread of the draws,
    where |mean_t d_t|^2 would be too large by tr Cov(d) / T. The other estimator is the product of the means of both halves
    of the draws, mean_{t < T/2} d_t . mean_{t >= T/2} d_t: unbiased too, from two sums alone, but its variance,
    4 D'VD / T + 4 tr V^2 / T^2 with D = E d and V = Cov d, has twice the second term.

    The draws are shared by all examples, so the variance is the crossed one: that of the examples' values over n, plus the
    delete-one jackknife over draws. Noise that is neither of an example nor of a draw counts in both: the interval then errs on the
    wide side. Sums are in float64.

    Args:
        differences: d_t(x, g) for every element g of the group *including the identity*, over which the mean is taken:
            an array (group, num_draws, num_examples, *outputs), or an iterable over its first axis, so that one element
            at a time needs to be held. num_draws is 1, for a point estimate, or at least 3 (4 for halves).
        estimator: ``"pairs"`` or ``"halves"``.
        clusters: identifiers (num_examples,) of the originals that examples were made from, if several examples come from one:
            standard errors are then over originals. None: every example is its own.

    Raises:
        ShapeError: the elements differ in shape, there are no draws, no examples or no elements, or not one cluster per example.
        OptionError: there are too few draws for a jackknife, or the estimator is unknown.
        DataError: a difference is not finite.
    """
    if estimator not in ("pairs", "halves"):
        raise OptionError(f"estimator must be 'pairs' or 'halves', got {estimator!r}")
    order = 0
    for difference in differences:
        d = np.asarray(difference, np.float64)
        if d.ndim < 2 or 0 in d.shape:
            raise ShapeError(f"differences must be (num_draws, num_examples, *outputs) per element, got shape {d.shape}")
        if order == 0:
            shape = d.shape
            squares, cross = np.zeros(shape[:2]), np.zeros(shape[:2])
        if d.shape != shape:
            raise ShapeError(f"differences must have one shape for every element, got {shape} and {d.shape}")
        if not np.isfinite(d).all():
            raise DataError(f"the differences at element {order} are not all finite: look at the predictions for NaN or infinity")
        d = d.reshape(*shape[:2], -1)
        square = np.einsum("tnc,tnc->tn", d, d)
        squares += square
        if estimator == "pairs":
            cross += np.einsum("nc,tnc->tn", d.sum(axis=0), d) - square  # d_t . (sum of the other draws)
        else:
            cross += _with_other_half(d)
        order += 1
    if order == 0:
        raise ShapeError("differences hold no group element: give one array per element, the identity included")
    return defect_from_products(squares / order, cross / order, estimator=estimator, clusters=clusters)


def _with_other_half(d: np.ndarray) -> np.ndarray:
    """d_t . (mean of the draws in the half without t), (num_draws, num_examples)."""
    half = len(d) // 2
    first, second = d[: max(half, 1)].mean(axis=0), d[half:].mean(axis=0)
    return np.concatenate([np.einsum("nc,tnc->tn", second, d[:half]), np.einsum("nc,tnc->tn", first, d[half:])])


def defect_from_products(
    squares: np.ndarray,
    cross: np.ndarray,
    *,
    estimator: Literal["pairs", "halves"] = "pairs",
    clusters: ArrayLike | None = None,
) -> EquivarianceError:
    """The defects from products of differences, as `defect` gives them; products of parts of the examples can be joined.

    Args:
        squares: |d_t|^2, (num_draws, num_examples), averaged over the group with the identity.
        cross: of the same shape and averaged likewise: d_t . sum_{s != t} d_s for pairs, and d_t . (mean of the half of the draws
            without t) for halves.
        estimator: as in `defect`.
        clusters: as in `defect`.

    Raises:
        ShapeError: the arrays do not have one shape (num_draws, num_examples), or there is not one cluster per example.
        OptionError: there are too few draws for a jackknife.
    """
    squares, cross = np.asarray(squares, np.float64), np.asarray(cross, np.float64)
    if squares.ndim != 2 or squares.shape != cross.shape or squares.size == 0:
        raise ShapeError(
            f"squares and cross must both be (num_draws, num_examples), got shapes {squares.shape} and {cross.shape}"
        )
    draws, examples = squares.shape
    clusters = two_way.checked_clusters(clusters, examples)
    if draws == 1:
        return of_a_point(squares[0], clusters)
    if draws == 2 or (draws == 3 and estimator == "halves"):
        least = 3 if estimator == "pairs" else 4
        raise OptionError(
            f"{'two' if draws == 2 else 'three'} draws are too few for a jackknife over draws: give at least {least}, or 1 for a "
            "point estimate"
        )
    per_draw = cross.mean(axis=1)
    if estimator == "pairs":
        predictive_of = cross.sum(axis=0) / (draws * (draws - 1))
        # Without draw t the sum over pairs loses t's row and column, 2 d_t . sum_{s != t} d_s.
        by_draw = [two_way.jackknife((per_draw.sum() - 2 * per_draw) / ((draws - 1) * (draws - 2)))]
    else:
        half = draws // 2
        predictive_of = cross[:half].mean(axis=0)
        by_draw = [two_way.over_examples(part) for part in (per_draw[:half], per_draw[half:])]
    return joined(squares.mean(axis=0), squares.mean(axis=1), predictive_of, by_draw, clusters)


def of_a_point(squares: np.ndarray, clusters: np.ndarray | None) -> EquivarianceError:
    """Both defects of a single draw, from |d|^2 of every example."""
    error = float(squares.mean())
    se, df = two_way.standard_error([two_way.over_examples(squares, clusters)])
    return EquivarianceError(error, se, error, se, 0.0, 1, len(squares), True, df, df)


def joined(
    member_of: np.ndarray,
    member_by_draw: np.ndarray,
    predictive_of: np.ndarray,
    by_draw: list[two_way.Variance],
    clusters: np.ndarray | None,
) -> EquivarianceError:
    """The defects and their two-way standard errors.

    Args:
        member_of: the member defect of every example.
        member_by_draw: the member defect of every draw.
        predictive_of: the predictive defect of every example.
        by_draw: the parts of the predictive defect's variance over draws.
        clusters: a number for every example.
    """
    predictive, member = float(predictive_of.mean()), float(member_of.mean())
    predictive_se, predictive_df = two_way.standard_error([two_way.over_examples(predictive_of, clusters), *by_draw])
    member_se, member_df = two_way.standard_error(
        [two_way.over_examples(member_of, clusters), two_way.over_examples(member_by_draw)]
    )
    return EquivarianceError(
        predictive=predictive,
        predictive_se=predictive_se,
        member=member,
        member_se=member_se,
        emergence=1 - predictive / member if member > 0 else 0.0,
        num_draws=len(member_by_draw),
        num_examples=len(member_of),
        is_point_estimate=False,
        predictive_df=predictive_df,
        member_df=member_df,
    )
