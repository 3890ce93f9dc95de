"""Invariance of outputs by three measures, and the range that a perfect net would learn."""

import numpy as np
import pytest
import scipy.stats
from scipy.special import softmax

from bayes_sym.diagnostics import invariance
from bayes_sym.errors import DataError, OptionError, ShapeError
from bayes_sym.experiments.oracle_range import bayes_cross_entropy, oracle_range


RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((7, 3))
MOVED = LOGITS + 0.5 * RNG.standard_normal((4, 7, 3))


def test_measures_are_those_of_loops():
    found = invariance(LOGITS, MOVED)
    tv, same, score = [], [], []
    centred, moved = LOGITS - LOGITS.mean(axis=1, keepdims=True), MOVED - MOVED.mean(axis=2, keepdims=True)

    def apart(a, b):
        return 1 - a @ b / np.sqrt((a @ a) * (b @ b))

    for n in range(7):
        tv.append(np.mean([0.5 * np.abs(softmax(MOVED[v, n]) - softmax(LOGITS[n])).sum() for v in range(4)]))
        same.append(np.mean([MOVED[v, n].argmax() == LOGITS[n].argmax() for v in range(4)]))
        others = np.mean([apart(centred[n], centred[m]) for m in range(7) if m != n])
        score.append((others - np.mean([apart(centred[n], moved[v, n]) for v in range(4)])) / (others + 1e-8))
    assert found.total_variation == pytest.approx(np.mean(tv)) and found.agreement == pytest.approx(np.mean(same))
    assert found.total_variation_se == pytest.approx(scipy.stats.sem(tv)) and found.agreement_se == pytest.approx(
        scipy.stats.sem(same)
    )
    assert found.median == pytest.approx(np.median(score))


def test_invariant_constant_and_shuffled_outputs():
    same = invariance(LOGITS, np.stack([LOGITS, LOGITS + 3.0]))  # logits are known up to a constant
    assert same.total_variation == pytest.approx(0, abs=1e-12) and same.agreement == 1 and same.median == pytest.approx(1)
    constant = invariance(np.ones((5, 3)) * [1.0, 0, 0], np.ones((2, 5, 3)) * [1.0, 0, 0])
    assert constant.total_variation == 0 and constant.median == 0
    other = RNG.standard_normal((1, 2000, 3))
    assert abs(invariance(RNG.standard_normal((2000, 3)), other).median) < 0.2  # as far as another example
    assert np.isnan(invariance(LOGITS[:1], MOVED[:, :1]).agreement_se)


@pytest.mark.parametrize(
    ("logits", "moved", "error", "message"),
    [
        (LOGITS, LOGITS, ShapeError, r"takes logits \(num_examples, classes\).*got \(7, 3\) and \(7, 3\)"),
        (LOGITS[:, :1], MOVED[..., :1], ShapeError, "two classes or more"),
        (LOGITS, MOVED * np.inf, DataError, "outputs that are not finite"),
    ],
)
def test_errors(logits, moved, error, message):
    with pytest.raises(error, match=message):
        invariance(logits, moved)


# The oracle


@pytest.mark.parametrize("width", [0.0, 0.4, 0.6, 0.9, 2.0])
def test_the_cross_entropy_is_that_of_draws(width):
    centers = np.array([2.0, 4.0, 6.0, 8.0])
    rng = np.random.default_rng(1)
    place = rng.choice(centers, 40_000) + rng.uniform(-0.5, 0.5, 40_000) + width * rng.uniform(-1, 1, 40_000)

    def density(x):  # of a sum of uniforms: the overlap of an interval of length 1 with the other one
        if width == 0:
            return (np.abs(x) <= 0.5).astype(float)
        return np.maximum(0, np.minimum(x + 0.5, width) - np.maximum(x - 0.5, -width)) / (2 * width)

    each = np.stack([density(place - c) for c in centers])
    share = each / each.sum(axis=0)
    entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(axis=0)
    found = bayes_cross_entropy(width, spread=0.5, centers=centers)
    assert found == pytest.approx(entropy.mean(), abs=4 * entropy.std() / np.sqrt(40_000) + 1e-9)


@pytest.mark.parametrize(("width", "nats"), [(0.5, 0.0), (0.6, 0.0125), (0.75, 0.0625), (1.0, 0.1875), (2.0, 0.6065)])
def test_the_cross_entropy_of_the_sinusoids(width, nats):
    assert bayes_cross_entropy(width, spread=0.5, centers=(2, 4, 6, 8)) == pytest.approx(nats, abs=1e-4)


@pytest.mark.parametrize(("strength", "degrees"), [(0.05, 45.5), (0.1, 46.1), (0.2, 47.5), (0.3, 48.8), (0.5, 52.0), (1.0, 63.7)])
def test_oracles_of_rotations(strength, degrees):
    assert oracle_range(strength, 180, spread=45, centers=(0, 180), period=360) == pytest.approx(degrees, abs=0.15)


@pytest.mark.parametrize(("strength", "hertz"), [(0.05, 0.51), (0.1, 0.52), (0.2, 0.54), (0.5, 0.61), (0.8, 0.73)])
def test_oracles_of_sinusoids(strength, hertz):
    assert oracle_range(strength, 2.0, spread=0.5, centers=(2, 4, 6, 8)) == pytest.approx(hertz, abs=0.006)


def test_small_rewards_have_an_oracle_in_closed_form():
    # two classes on a line, 4 a apart: the overlap beyond a has entropy, and the slope of its mean must be the reward
    width = oracle_range(0.1, 1.0, spread=0.2, centers=(0.0, 0.8))
    step = 0.01
    around = [bayes_cross_entropy(w, spread=0.2, centers=(0.0, 0.8)) for w in (width - step, width + step)]
    assert (around[1] - around[0]) / (2 * step) == pytest.approx(0.1, rel=0.05) and width > 0.2


def test_rewards_that_win_all_the_way_have_none():
    with pytest.raises(OptionError, match="with a reward of 9 per unit of magnitude no range below the limit of 1.0"):
        oracle_range(9, 1.0, spread=0.2, centers=(0.0, 0.8))
