"""Intervals and bounds for the equivariance defect that hold at every sample size, from theory.

They are for outputs in a set of squared diameter 2, such as probability vectors, or of any other that is given; the mean over the
group includes the identity. They are wide: `EquivarianceError.interval` is what measures, these are what is certain.
"""

from __future__ import annotations

import math

from ..errors import OptionError
from .estimates import EquivarianceError


__all__ = ["certificate", "defect_bounds", "draws_bound", "examples_bound", "pac_bayes_bound"]


def certificate(divergence: float, diameter: float | None = None) -> float:
    """What the predictive defect cannot exceed if mean_g KL(q || g q) is `divergence`, at any inputs, without a draw.

        min(divergence, 2) for probability vectors,    diameter^2 min(divergence / 2, 1) in general,

    because |E_q f - E_q' f| <= diameter TV(q, q') and TV^2 <= KL / 2 (Pinsker); the diameter of a simplex is sqrt(2). Usually
    hundreds of times too large: it is of use near symmetry.

    Args:
        divergence: in nats, e.g. ``parameter_asymmetry(...).overall.divergence``.
        diameter: the largest Euclidean distance between two outputs; None for probability vectors.

    Raises:
        OptionError: a number is negative.
    """
    _check(divergence=divergence)
    return _square(diameter) * min(divergence / 2, 1.0)


def draws_bound(num_draws: int, order: int, failure: float, *, diameter: float | None = None) -> float:
    """Half the width of an interval for the defect at given inputs, from T posterior draws, that fails with this probability.

        ((order - 1) / order) sqrt(32 log(2 / failure) / T)    for probability vectors

    McDiarmid's inequality: another draw changes the unbiased predictive defect, and the plug-in one too, by at most
    8 (order - 1) / (order T). Around the plug-in value the interval is for its mean, which is larger than the defect.

    Args:
        num_draws: T, independent draws, each used at every input and element.
        order: the number of elements of the group.
        failure: the probability, between 0 and 1.
        diameter: as in `certificate`.

    Raises:
        OptionError: a number is out of its range.
    """
    _check(num_draws=num_draws, order=order - 1, failure=failure)
    return 2 * math.sqrt(2) * _largest(order, diameter) * math.sqrt(math.log(2 / failure) / num_draws)


def examples_bound(num_examples: int, order: int, failure: float, *, diameter: float | None = None) -> float:
    """Half the width of an interval for the defect over all inputs, from n inputs that are independent of the posterior.

        c sqrt(log(2 / failure) / (2 n)),    c = 2 (order - 1) / order    for probability vectors

    Hoeffding's inequality: the defect of one input lies in [0, c]. For the defect as it is at these inputs, with no noise of draws.

    Args:
        num_examples: n, test inputs; on inputs that the posterior was fitted to see `pac_bayes_bound`.
        order: as in `draws_bound`.
        failure: as in `draws_bound`.
        diameter: as in `certificate`.

    Raises:
        OptionError: a number is out of its range.
    """
    _check(num_examples=num_examples, order=order - 1, failure=failure)
    return _largest(order, diameter) * math.sqrt(math.log(2 / failure) / (2 * num_examples))


def pac_bayes_bound(
    defect: float,
    divergence: float,
    num_examples: int,
    order: int,
    failure: float,
    *,
    member: bool = False,
    diameter: float | None = None,
) -> float:
    """What the defect over all inputs does not exceed, given that at the inputs to which q was fitted, except with this probability.

        defect + 2 c sqrt((2 KL + log(2 sqrt(N) / failure)) / (2 N)),    c = 2 (order - 1) / order    for probability vectors

    It holds for all q at once. The predictive defect is quadratic in q, so 2 KL, of pairs of draws, whose products lie in
    [-c, c]; the member defect is linear and not negative: c in place of 2 c, and KL in place of 2 KL (McAllester and Maurer).

    Args:
        defect: of q at the N training inputs, without noise of draws.
        divergence: KL(q || prior) in nats; the prior must not depend on the inputs.
        num_examples: N.
        order: as in `draws_bound`.
        failure: as in `draws_bound`.
        member: whether this is the member defect.
        diameter: as in `certificate`.

    Raises:
        OptionError: a number is out of its range.
    """
    _check(num_examples=num_examples, order=order - 1, failure=failure, divergence=divergence)
    pairs = 1 if member else 2
    complexity = pairs * divergence + math.log(2 * math.sqrt(num_examples) / failure)
    return defect + pairs * _largest(order, diameter) * math.sqrt(complexity / (2 * num_examples))


def defect_bounds(
    error: EquivarianceError, order: int, failure: float = 0.05, *, diameter: float | None = None
) -> tuple[float, float]:
    """(low, high) of an interval for the predictive defect over all inputs that holds at any number of draws and inputs.

    Half of the probability of failure goes to the draws and half to the inputs; the defect lies in [0, c] anyway. The
    draws must be independent and shared by all inputs, and the inputs independent of each other and of the posterior.

    Raises:
        OptionError: a number is out of its range, or `error` is of a point estimate.
    """
    if error.is_point_estimate:
        raise OptionError("one draw says nothing about the mean prediction: give an error from several draws")
    half = draws_bound(error.num_draws, order, failure / 2, diameter=diameter)
    half += examples_bound(error.num_examples, order, failure / 2, diameter=diameter)
    return max(error.predictive - half, 0.0), min(error.predictive + half, _largest(order, diameter))


def _square(diameter: float | None) -> float:
    if diameter is None:
        return 2.0
    _check(diameter=diameter)
    return diameter**2


def _largest(order: int, diameter: float | None) -> float:
    """c: the largest defect of one input."""
    return _square(diameter) * (order - 1) / order


def _check(**given: float) -> None:
    """Refuses what is negative or nan, counts below 1, and probabilities outside (0, 1)."""
    for name, value in given.items():
        if not value >= (1 if name.startswith("num_") else 0) or (name == "failure" and not 0 < value < 1):
            shown = value + 1 if name == "order" else value
            raise OptionError(f"{name} is out of its range, got {shown!r}: counts are at least 1, `failure` lies between 0 and 1")
