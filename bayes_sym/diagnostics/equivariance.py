"""How far a posterior is from equivariance: the defect of its mean prediction and of its members, without bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import jax
import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, GroupActionError, OptionError, ShapeError
from ..representations import Representation
from .estimates import EquivarianceError, defect
from .orbits import mapped, on_orbit
from .rotations import SampledRotations


__all__ = ["equivariance_error", "equivariance_error_from_draws"]


def equivariance_error(
    predict: Callable[[jax.Array], ArrayLike],
    x: ArrayLike,
    action: Representation | SampledRotations,
    output: Representation | None = None,
    *,
    clusters: ArrayLike | None = None,
) -> EquivarianceError:
    """The equivariance defects of predictions F_t, with d_t(x, g) = F_t(g x) - rho_out(g) F_t(x).

    The mean over the group includes the identity, whose difference is 0: the sum is divided by the group's order. See
    `defect` for the estimators, their standard errors and their bias.

    Args:
        predict: maps inputs like `x` to draws (num_draws, num_examples, *outputs), e.g. class probabilities. Draw t
            must use the same weights at every call, so pass it the same key each time. It is called order + 1 times;
            one of them repeats `x`, to see that the draws are the same.
        x: inputs (num_examples, *action.shape, ...).
        action: the representation on the inputs, e.g. ``representations.image(group, (8, 8))``, or `SampledRotations`.
        output: the representation on the outputs, whose first axes are ``output.shape``; None for invariant outputs.
        clusters: as in `defect`.

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
            difference = there - mapped(output, g, here)
            if g == 0 and np.abs(difference).max() > 1e-3 * np.abs(here).max():
                raise OptionError(
                    "predict gave other draws when called again with the same inputs; the defect needs common draws: give it "
                    "samples that are fixed, or the same key at every call"
                )
            yield difference

    found = defect(differences(), clusters=clusters)
    return replace(found, floor=action.floor(x)) if isinstance(action, SampledRotations) else found


def equivariance_error_from_draws(
    draws: ArrayLike,
    output: Representation | None = None,
    *,
    estimator: Literal["pairs", "halves"] = "pairs",
    clusters: ArrayLike | None = None,
) -> EquivarianceError:
    """The equivariance defects of predictions that are already computed on the orbits.

    Args:
        draws: (num_draws, group, num_examples, *outputs): ``draws[t, g]`` are the predictions of draw t at g x, not mapped
            back, with the identity at g = 0 and the same weights for every g.
        output: the representation on the outputs, whose first axes are ``output.shape``; None for invariant outputs.
        estimator: as in `defect`.
        clusters: as in `defect`.

    Raises:
        ShapeError: the draws do not have these axes, or not one entry per element of the group.
        DataError: a prediction is not finite.
    """
    values = on_orbit(draws, output)
    return defect(
        (values[:, g] - mapped(output, g, values[:, 0]) for g in range(values.shape[1])), estimator=estimator, clusters=clusters
    )


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
