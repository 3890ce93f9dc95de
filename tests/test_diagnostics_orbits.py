"""Accuracies, divergences and uncertainties along orbits: hand cases, and Dirichlet draws with closed forms."""

import math

import numpy as np
import pytest
from scipy.special import digamma

from bayes_sym import groups, representations
from bayes_sym.diagnostics import orbit_accuracy, orbit_uncertainty, plot_orbit, symmetric_kl
from bayes_sym.errors import DataError, GroupActionError, OptionError, ShapeError


C2, C4 = groups.cyclic(2), groups.cyclic(4)
Q, P = np.array([0.6, 0.3, 0.1]), np.array([0.35, 0.35, 0.3])
CONCENTRATIONS = (20.0, 60.0)  # of the Dirichlet draws at x and at g x


def dirichlet_draws(generator, draws, examples=1):
    """Probabilities (draws, 2, examples, 3) with the means Q at x and P at g x."""
    each = [generator.dirichlet(c * mean, (draws, examples)) for c, mean in zip(CONCENTRATIONS, (Q, P), strict=True)]
    return np.stack(each, axis=1)


def within(values, truth, slack=0.0):
    """Whether the mean of independent values is within 4 standard errors, and `slack`, of the truth."""
    return abs(np.mean(values) - truth) < 4 * np.std(values, ddof=1) / math.sqrt(len(values)) + slack


# Accuracy


def test_accuracy_by_hand():
    # columns: right everywhere; wrong at one element; wrong at x only; wrong everywhere
    labels = np.array([[0, 1, 2, 0], [0, 1, 1, 0], [0, 2, 1, 2], [0, 1, 1, 2]])
    found = orbit_accuracy(np.eye(4)[labels], [0, 1, 1, 1])
    plain, mean, worst = [1, 1, 0, 0], [1, 3 / 4, 3 / 4, 0], [1, 0, 0, 0]
    assert (found.plain, found.mean, found.worst, found.gap) == (0.5, np.mean(mean), 0.25, 0.25)
    for se, values in ((found.plain_se, plain), (found.mean_se, mean), (found.worst_se, worst), (found.gap_se, [0, 1, 0, 0])):
        assert se == pytest.approx(np.std(values, ddof=1) / 2)
    assert math.isnan(orbit_accuracy(np.eye(4)[labels[:, :1]], [0]).worst_se)


def test_accuracy_of_equivariant_labels():
    rep = representations.regular(C4)
    at_x = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    y = at_x.argmax(axis=-1)
    y[:10] = (y[:10] + 1) % 4
    found = orbit_accuracy(np.asarray(rep.orbit(at_x)), y, rep)
    assert found.plain == found.mean == found.worst == 0.8 and found.gap == found.gap_se == 0
    assert orbit_accuracy(np.asarray(rep.orbit(at_x)), y).worst == 0


# Symmetric divergence


TRUTH = ((P - Q) * np.log(P / Q)).sum() / 2  # half, because the identity has no divergence


def test_the_divergence_of_point_estimates_is_its_definition():
    rep = representations.regular(C4)
    p = np.random.default_rng(0).dirichlet(np.ones(4), (1, 4, 5))
    found = symmetric_kl(p, rep)
    expected = np.zeros(5)
    for g in range(4):
        back = np.stack([p[0, g][:, i] for i in np.argsort(rep.source[g])], axis=-1)
        expected += ((back - p[0, 0]) * np.log(back / p[0, 0])).sum(axis=-1) / 4
    assert found.value == found.plug_in == pytest.approx(expected.mean())
    assert found.se == pytest.approx(expected.std(ddof=1) / math.sqrt(5))
    equivariant = np.asarray(rep.orbit(p[0, 0]))[None]
    assert symmetric_kl(equivariant, rep).value == pytest.approx(0, abs=1e-7)


def test_the_correction_removes_the_bias_of_few_draws():
    generator, draws = np.random.default_rng(0), 16
    found = [symmetric_kl(dirichlet_draws(generator, draws)) for _ in range(4000)]
    bias = sum(
        (mean * (1 - mean) / (c + 1) * (1 / mean + m2 / mean**2)).sum()
        for c, mean, m2 in zip(CONCENTRATIONS, (Q, P), (P, Q), strict=True)
    ) / (4 * draws)
    plug_in = [one.plug_in for one in found]
    assert within(plug_in, TRUTH + bias, 0.1 * bias)  # the second-order expansion of J, halved for the identity
    assert not within(plug_in, TRUTH)
    assert within([one.value for one in found], TRUTH)


def test_the_divergence_of_odd_numbers_of_draws_and_its_jackknife():
    p = dirichlet_draws(np.random.default_rng(0), 7, 3)
    found = symmetric_kl(p)

    def plain(p):
        mean = p.mean(axis=0)
        return ((mean[1] - mean[0]) * np.log(mean[1] / mean[0])).sum(axis=-1) / 2

    def corrected(even, odd):
        return 2 * plain(np.concatenate([even, odd])) - (plain(even) + plain(odd)) / 2

    even, odd = p[::2], p[1::2]
    per_example = corrected(even, odd)
    assert found.value == pytest.approx(per_example.mean(), rel=1e-12)
    without = [corrected(np.delete(even, t, 0), odd).mean() for t in range(4)] + [
        corrected(even, np.delete(odd, t, 0)).mean() for t in range(3)
    ]
    variance = per_example.var(ddof=1) / 3 + 6 / 7 * ((without - np.mean(without)) ** 2).sum()
    assert found.se == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_divergence_intervals_cover():
    generator, hits, repetitions = np.random.default_rng(0), 0, 500
    for _ in range(repetitions):
        low, high = symmetric_kl(np.repeat(dirichlet_draws(generator, 20), 2, axis=2)).interval()
        hits += low < TRUTH < high
    assert 0.90 < hits / repetitions < 0.99


def test_impossible_classes_cost_a_finite_number():
    p = np.array([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert symmetric_kl(p).value == pytest.approx(-math.log(np.finfo(np.float32).tiny), rel=1e-6)


# Uncertainty


def entropy(p):
    return -(p * np.log(p)).sum()


def test_variances_of_uncertainty_are_those_of_the_law():
    generator, draws = np.random.default_rng(0), 100
    found = [orbit_uncertainty(dirichlet_draws(generator, draws)) for _ in range(400)]
    predictive = np.array([entropy(Q), entropy(P)])
    # the mean entropy of Dirichlet draws is psi(c + 1) - sum_i m_i psi(c m_i + 1)
    own = [digamma(c + 1) - (m * digamma(c * m + 1)).sum() for c, m in zip(CONCENTRATIONS, (Q, P), strict=True)]
    # entropies of means of n draws are too small by sum_i Var_i / (2 n m_i), n being half of the draws
    small = np.array([((1 - m) / (c + 1)).sum() / draws for c, m in zip(CONCENTRATIONS, (Q, P), strict=True)])
    assert within([one.entropy for one in found], (predictive - small).var())
    assert within([one.information for one in found], (predictive - small - own).var())


def test_uncertainty_does_not_vary_for_equivariant_laws():
    generator = np.random.default_rng(1)
    shared = [orbit_uncertainty(generator.dirichlet([3, 2, 1], (10, 4, 2))) for _ in range(1000)]
    assert within([one.entropy for one in shared], 0) and within([one.information for one in shared], 0)
    plain = [np.var([entropy(m) for m in generator.dirichlet([3, 2, 1], (10, 4)).mean(axis=0)]) for _ in range(200)]
    assert not within(plain, 0)  # what a variance without halves would say
    rep = representations.regular(C4)
    p = generator.dirichlet(np.ones(4), (6, 1, 3))
    exact = orbit_uncertainty(np.stack([p[:, 0][..., rep.source[g]] for g in range(4)], axis=1), rep)
    assert exact.entropy == pytest.approx(0, abs=1e-15) and exact.information_se == pytest.approx(0, abs=1e-15)


def test_the_standard_error_of_an_uncertainty_is_that_seen():
    generator = np.random.default_rng(2)
    found = [orbit_uncertainty(np.repeat(dirichlet_draws(generator, 40), 2, axis=2)) for _ in range(400)]
    for name in ("entropy", "information"):
        seen = np.std([getattr(one, name) for one in found])
        assert np.sqrt(np.mean([getattr(one, f"{name}_se") ** 2 for one in found])) == pytest.approx(seen, rel=0.15)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: orbit_accuracy(np.ones((4, 3, 2)), [0, 1]), ShapeError, r"labels must be \(3,\)"),
        (lambda: orbit_accuracy(np.ones((4, 2, 2)), [0, 2]), DataError, "in 0..1, got .* from 0 to 2"),
        (lambda: symmetric_kl(np.ones((4, 2, 3, 2))), DataError, "apply a softmax"),
        (lambda: symmetric_kl(np.full((3, 2, 3, 2), 0.5)), OptionError, "3 draws are too few"),
        (
            lambda: symmetric_kl(np.full((4, 2, 3, 2), 0.5), representations.permutation(C2, [[[0, 1], [-1, -1]]])),
            GroupActionError,
            "by a permutation of the classes",
        ),
        (lambda: orbit_uncertainty(np.full((5, 2, 3, 2), 0.5)), OptionError, "an even number of at least 4, got 5"),
        (lambda: orbit_uncertainty(np.full((4, 3, 3, 4), 0.25), representations.regular(C4)), ShapeError, "the 4 elements of C4"),
    ],
)
def test_orbit_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The figure


def test_the_figure_shows_every_element_mapped_back():
    rep = representations.regular(C4)
    images = np.random.default_rng(0).uniform(size=(4, 5, 5, 1))
    p = np.random.default_rng(1).dirichlet(np.ones(4), 30)
    draws = np.stack([p[:, rep.source[g]] for g in range(4)], axis=1)
    figure = plot_orbit(images, draws, rep, names=["0°", "90°", "180°", "270°"], label=2)
    assert [axis.get_title() for axis in figure.axes[:4]] == ["0°", "90°", "180°", "270°"]
    for g, axis in enumerate(figure.axes[4:]):
        np.testing.assert_array_equal(figure.axes[g].images[0].get_array(), images[g, ..., 0])
        np.testing.assert_allclose([bar.get_height() for bar in axis.patches], p.mean(axis=0))
        assert axis.patches[2].get_facecolor() != axis.patches[0].get_facecolor()
    means = plot_orbit(np.repeat(images, 3, axis=-1), draws.mean(axis=0))
    assert len(means.axes) == 8 and not means.axes[4].collections  # no whiskers without draws


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.ones((4, 5, 5, 2))}, ShapeError, "plot_orbit takes images"),
        ({"draws": np.full((3, 2), 0.5)}, ShapeError, r"got shapes \(4, 5, 5\) and \(3, 2\)"),
        ({"names": ["a"]}, OptionError, "names must hold 4 names, got 1"),
        ({"label": 2}, OptionError, "label must be one of the 2 classes, got 2"),
    ],
)
def test_figure_errors(change, error, message):
    with pytest.raises(error, match=message):
        plot_orbit(**({"images": np.ones((4, 5, 5)), "draws": np.full((4, 2), 0.5)} | change))
