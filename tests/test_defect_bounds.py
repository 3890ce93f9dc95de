"""Bounds for the defect: that they hold in simulations of their worst cases, and that their constants are needed."""

import math

import numpy as np
import pytest

from bayes_sym.diagnostics import (
    certificate,
    defect,
    defect_bounds,
    draws_bound,
    equivariance_error_from_draws,
    examples_bound,
    pac_bayes_bound,
)
from bayes_sym.errors import OptionError


FAILURE = 0.05


def opposite(signs):
    """Draws of two classes that are certain, and change sides between x and g x: signs (num_draws, num_examples)."""
    here = np.stack([signs > 0, signs < 0], axis=-1).astype(float)
    return np.stack([here, here[..., ::-1]], axis=1)


def differences(draws):
    return np.moveaxis(draws - draws[:, :1], 1, 0)


def test_the_largest_change_by_one_draw_is_that_of_the_bound():
    draws, order = 400, 2
    same, changed = np.ones((draws, 1)), np.ones((draws, 1))
    changed[0] = -1
    change = 8 * (order - 1) / (order * draws)
    unbiased = [defect(differences(opposite(signs))).predictive for signs in (same, changed)]
    plug_in = [(differences(opposite(signs)).mean(axis=1) ** 2).sum(axis=-1).mean() for signs in (same, changed)]
    for values in (unbiased, plug_in):
        assert 0.99 * change < values[0] - values[1] < change + 1e-12
    # McDiarmid: T such changes, squared
    expected = math.sqrt(draws * change**2 * math.log(2 / FAILURE) / 2)
    assert draws_bound(draws, order, FAILURE) == pytest.approx(expected)
    assert draws_bound(draws, order, FAILURE) == pytest.approx(1 / 2 * math.sqrt(32 * math.log(2 / FAILURE) / draws))


def test_the_interval_over_draws_holds():
    generator, draws, share = np.random.default_rng(0), 50, 0.8
    signs = np.where(generator.uniform(size=(2000, draws, 1)) < share, 1, -1)
    truth = (2 * share - 1) ** 2  # D = (2 share - 1) (1, -1), and half of |D|^2 for the identity
    found = np.array([equivariance_error_from_draws(opposite(one)).predictive for one in signs])
    half = draws_bound(draws, 2, FAILURE)
    assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(2000)
    assert (np.abs(found - truth) > half).mean() <= FAILURE
    assert np.quantile(np.abs(found - truth), 1 - FAILURE) > 0.2 * half  # wide, not absurd


def test_the_interval_over_examples_holds_and_nearly_fails_at_its_worst():
    generator, examples, order = np.random.default_rng(0), 100, 4
    largest = 2 * (order - 1) / order
    values = largest * generator.integers(2, size=(4000, examples))  # defects of inputs at both ends of their range
    deviations = np.abs(values.mean(axis=1) - largest / 2)
    half = examples_bound(examples, order, FAILURE)
    assert half == pytest.approx(largest * math.sqrt(math.log(2 / FAILURE) / (2 * examples)))
    assert (deviations > half).mean() <= FAILURE
    assert np.quantile(deviations, 1 - FAILURE) > 0.65 * half


def test_the_interval_over_both_holds():
    generator, hits = np.random.default_rng(0), 0
    share = 0.9
    for _ in range(300):
        asymmetric = generator.uniform(size=40) < 0.5  # the share of inputs that the predictions are asymmetric at
        signs = np.where(generator.uniform(size=(200, 1)) < share, 1, -1) * np.ones((200, 40))
        draws = opposite(signs)
        draws[:, 1, ~asymmetric] = draws[:, 0, ~asymmetric]
        low, high = defect_bounds(equivariance_error_from_draws(draws), 2, FAILURE)
        hits += low <= 0.5 * (2 * share - 1) ** 2 <= high
        assert 0 <= low and high <= 1
    assert hits >= 300 * (1 - FAILURE)
    assert defect_bounds(equivariance_error_from_draws(opposite(np.ones((100_000, 1)))), 2) == (0, 1)


def test_the_pac_bayes_bound_holds_where_selection_breaks_the_plain_one():
    generator = np.random.default_rng(0)
    hypotheses, examples, order = 300, 60, 2
    largest = 2 * (order - 1) / order
    held, plain = {True: 0, False: 0}, 0
    for _ in range(400):
        # the defect of every hypothesis at every input; q puts everything on the best one, the prior is uniform
        values = largest * generator.integers(2, size=(hypotheses, examples))
        best = values.mean(axis=1).min()
        truth = largest / 2
        for member in held:
            bound = pac_bayes_bound(best, math.log(hypotheses), examples, order, FAILURE, member=member)
            held[member] += truth <= bound
        plain += truth <= best + examples_bound(examples, order, FAILURE)
    assert min(held.values()) >= 400 * (1 - FAILURE)
    assert plain < 400 * 0.5
    log = math.log(2 * math.sqrt(60) / FAILURE)
    assert pac_bayes_bound(0.1, 3.0, 60, 2, FAILURE) == pytest.approx(0.1 + 2 * math.sqrt((6 + log) / 120))
    assert pac_bayes_bound(0.1, 3.0, 60, 2, FAILURE, member=True) == pytest.approx(0.1 + math.sqrt((3 + log) / 120))


def test_bounds_scale_with_the_square_of_the_diameter():
    for bound in (lambda d: draws_bound(9, 4, 0.1, diameter=d), lambda d: examples_bound(9, 4, 0.1, diameter=d)):
        assert bound(math.sqrt(2)) == pytest.approx(bound(None)) and bound(3.0) == pytest.approx(4.5 * bound(None))
    assert pac_bayes_bound(0, 1.0, 9, 4, 0.1, diameter=2.0) == pytest.approx(2 * pac_bayes_bound(0, 1.0, 9, 4, 0.1))
    assert draws_bound(9, 1, 0.1) == examples_bound(9, 1, 0.1) == 0  # the trivial group


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certificate(-1.0), "divergence is out of its range, got -1.0"),
        (lambda: certificate(math.nan), "divergence is out of its range, got nan"),
        (lambda: draws_bound(0, 4, 0.1), "num_draws is out of its range, got 0"),
        (lambda: draws_bound(5, 0, 0.1), "order is out of its range, got 0"),
        (lambda: examples_bound(5, 4, 1.0), "failure is out of its range, got 1.0"),
        (lambda: examples_bound(5, 4, 0.1, diameter=-2.0), "diameter is out of its range"),
        (lambda: pac_bayes_bound(0.1, -3.0, 5, 4, 0.1), "divergence is out of its range"),
        (lambda: defect_bounds(defect(np.ones((2, 1, 3))), 2), "one draw says nothing"),
    ],
)
def test_bound_errors(call, message):
    with pytest.raises(OptionError, match=message):
        call()
