"""How far a posterior is from equivariance: the defect of its mean prediction and of its members, without bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, GroupActionError, OptionError, ShapeError
from ..representations import Representation


__all__ = ["EquivarianceError", "defect", "equivariance_error", "equivariance_error_from_draws"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["predictive", "predictive_se", "member", "member_se", "emergence"],
    meta_fields=["num_draws", "num_examples", "is_point_estimate"],
)
@dataclass(frozen=True)
class EquivarianceError:
    """The equivariance defects of a posterior, with standard errors over examples and draws.

    Attributes:
        predictive: the squared defect of the mean prediction, E_x mean_g |E_t d_t(x, g)|^2, in squared units of the
            outputs. Unbiased, so it may be negative; it is never clipped.
        predictive_se: its standard error; nan with one example.
        member: the mean squared defect of single draws, E_x mean_g E_t |d_t(x, g)|^2.
        member_se: its standard error; nan with one example.
        emergence: 1 - predictive / member: the share of the members' defect that averaging over draws removes. 0 where
            `member` is 0, because there is nothing to remove.
        num_draws: draws used.
        num_examples: examples used.
        is_point_estimate: whether there was one draw only. Then `predictive` is the plug-in value and equals `member`,
            and the standard errors are over examples alone.
    """

    predictive: float
    predictive_se: float
    member: float
    member_se: float
    emergence: float
    num_draws: int
    num_examples: int
    is_point_estimate: bool


def defect(differences: Iterable[ArrayLike]) -> EquivarianceError:
    """The equivariance defects from differences that are already aligned.

    With T = num_draws and d_t the difference of draw t at example x and element g,

        predictive = mean_x mean_g (|sum_t d_t|^2 - sum_t |d_t|^2) / (T (T - 1)),    member = mean_x mean_g mean_t |d_t|^2.

    The first is a U-statistic: unbiased for |E d|^2 whatever the spread of the draws, where |mean_t d_t|^2 would be too
    large by tr Cov(d) / T. The draws are shared by all examples, so the variance is the crossed one: that of the
    examples' values over n, plus the delete-one jackknife over draws. Near a predictive defect of exactly 0 the
    estimate is not Gaussian, and intervals from its standard error are approximate. Sums are in float64.

    Args:
        differences: d_t(x, g) for every element g of the group *including the identity*, over which the mean is taken:
            an array (group, num_draws, num_examples, *outputs), or an iterable over its first axis, so that one element
            at a time needs to be held. num_draws is 1, for a point estimate, or at least 3.

    Raises:
        ShapeError: the elements differ in shape, or there are no draws, no examples or no elements.
        OptionError: there are two draws, of which a jackknife cannot be taken.
        DataError: a difference is not finite.
    """
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
        cross += np.einsum("nc,tnc->tn", d.sum(axis=0), d) - square  # d_t . (sum of the other draws)
        order += 1
    if order == 0:
        raise ShapeError("differences hold no group element: give one array per element, the identity included")
    return _estimate(squares / order, cross / order)


def _estimate(squares: np.ndarray, cross: np.ndarray) -> EquivarianceError:
    """The estimates from |d_t|^2 and d_t . sum_{s != t} d_s, both (num_draws, num_examples) and averaged over the group."""
    draws, examples = squares.shape
    member_of = squares.mean(axis=0)
    member = float(member_of.mean())
    if draws == 1:
        se = math.sqrt(_variance_of_mean(member_of))
        return EquivarianceError(member, se, member, se, 0.0, draws, examples, True)
    if draws == 2:
        raise OptionError("two draws leave the jackknife over draws with one: give at least 3, or 1 for a point estimate")
    predictive_of = cross.sum(axis=0) / (draws * (draws - 1))
    predictive = float(predictive_of.mean())
    # Without draw t the sum over pairs loses t's row and column, 2 d_t . sum_{s != t} d_s.
    per_draw = cross.mean(axis=1)
    without = (per_draw.sum() - 2 * per_draw) / ((draws - 1) * (draws - 2))
    jackknife = (draws - 1) / draws * ((without - predictive) ** 2).sum()
    return EquivarianceError(
        predictive=predictive,
        predictive_se=math.sqrt(_variance_of_mean(predictive_of) + jackknife),
        member=member,
        member_se=math.sqrt(_variance_of_mean(member_of) + _variance_of_mean(squares.mean(axis=1))),
        emergence=1 - predictive / member if member > 0 else 0.0,
        num_draws=draws,
        num_examples=examples,
        is_point_estimate=False,
    )


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else math.nan


def equivariance_error(
    predict: Callable[[jax.Array], ArrayLike],
    x: ArrayLike,
    action: Representation,
    output: Representation | None = None,
) -> EquivarianceError:
    """The equivariance defects of predictions F_t, with d_t(x, g) = F_t(g x) - rho_out(g) F_t(x).

    The mean over the group includes the identity, whose difference is 0: the sum is divided by the group's order. See
    `defect` for the estimators, their standard errors and their bias.

    Args:
        predict: maps inputs like `x` to draws (num_draws, num_examples, *outputs), e.g. class probabilities. Draw t
            must use the same weights at every call, so pass it the same key each time. It is called order + 1 times;
            one of them repeats `x`, to see that the draws are the same.
        x: inputs (num_examples, *action.shape, ...).
        action: the representation on the inputs, e.g. ``representations.image(group, (8, 8))``.
        output: the representation on the outputs, whose first axes are ``output.shape``; None for invariant outputs.

    Raises:
        OptionError: `predict` gives other draws at the same inputs.
        GroupActionError: `action` and `output` represent different groups.
        ShapeError: the inputs, or the draws, do not have the shape that they should.
        DataError: a prediction is not finite.
    """
    if output is not None and output.group != action.group:
        raise GroupActionError(f"the action is of {action.group.name}, but the output representation of {output.group.name}")
    x = jax.numpy.asarray(x)
    here = _checked(predict(action.transform(0, x)), x.shape[0])

    def differences() -> Iterator[np.ndarray]:
        for g in range(action.group.order):
            there = _checked(predict(action.transform(g, x)), x.shape[0])
            if there.shape != here.shape:
                raise ShapeError(f"predict gave draws of shape {here.shape} at x and {there.shape} at element {g} of its orbit")
            difference = there - _mapped(output, g, here)
            if g == 0 and np.abs(difference).max() > 1e-3 * np.abs(here).max():
                raise OptionError(
                    "predict gave other draws when called again with the same inputs; the defect needs common draws: give it "
                    "samples that are fixed, or the same key at every call"
                )
            yield difference

    return defect(differences())


def equivariance_error_from_draws(draws: ArrayLike, output: Representation | None = None) -> EquivarianceError:
    """The equivariance defects of predictions that are already computed on the orbits.

    Args:
        draws: (num_draws, group, num_examples, *outputs): ``draws[t, g]`` are the predictions of draw t at g x, not mapped
            back, with the identity at g = 0 and the same weights for every g.
        output: the representation on the outputs, whose first axes are ``output.shape``; None for invariant outputs.

    Raises:
        ShapeError: the draws do not have these axes, or not one entry per element of the group.
        DataError: a prediction is not finite.
    """
    values = np.asarray(draws, np.float64)
    if values.ndim < 3 or 0 in values.shape:
        raise ShapeError(f"draws must be (num_draws, group, num_examples, *outputs), got shape {values.shape}")
    if output is not None and values.shape[1] != output.group.order:
        raise ShapeError(
            f"axis 1 of the draws runs over the {output.group.order} elements of {output.group.name}, got shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise DataError("the draws are not all finite: look at the predictions for NaN or infinity")
    return defect(values[:, g] - _mapped(output, g, values[:, 0]) for g in range(values.shape[1]))


def _checked(draws: ArrayLike, examples: int) -> np.ndarray:
    values = np.asarray(draws, np.float64)
    if values.ndim < 2 or values.shape[1] != examples or 0 in values.shape:
        raise ShapeError(
            f"predict must return draws (num_draws, num_examples, *outputs) for its {examples} examples, got shape "
            f"{values.shape}; add a first axis of length 1 to a point estimate"
        )
    if not np.isfinite(values).all():
        raise DataError("predict returned values that are not finite: look at the weights and the inputs for NaN or infinity")
    return values


def _mapped(output: Representation | None, g: int, draws: np.ndarray) -> np.ndarray:
    """rho_out(g) on the output axes of (num_draws, num_examples, *output.shape, ...), in the precision of `draws`."""
    if output is None:
        return draws
    if draws.shape[2 : 2 + len(output.shape)] != output.shape:
        raise ShapeError(
            f"the output representation acts on {output.shape}, but the draws of shape {draws.shape} have outputs of shape "
            f"{draws.shape[2:]}"
        )
    flat = draws.reshape(*draws.shape[:2], output.dim, -1)
    if output.source is None:
        moved = np.einsum("ij,tnjc->tnic", output.matrices()[g], flat)
    else:
        moved = flat[:, :, output.source[g]]
        if output.sign is not None:
            moved = moved * output.sign[g][:, None]
    return moved.reshape(draws.shape)
