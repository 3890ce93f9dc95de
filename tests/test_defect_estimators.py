"""Estimators of the defect against toys with known moments: bias, variance, coverage, planning, sweeps and the exact test."""

import math

import jax
import numpy as np
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import (
    defect,
    defect_from_products,
    defect_sweep,
    draws_needed,
    equivariance_error_from_draws,
    equivariance_error_from_independent_draws,
    equivariance_test,
    plot_defect_sweep,
)
from bayes_sym.errors import DataError, GroupActionError, OptionError, ShapeError


C2, C4 = groups.cyclic(2), groups.cyclic(4)
# a Gaussian difference with mean D and covariance V = root root', over two outputs; the group's other element has none
D, ROOT = np.array([0.3, -0.2]), np.array([[1.0, 0.0], [0.5, 0.7]])
V = ROOT @ ROOT.T


def gaussian(generator, *shape):
    """Differences with mean D and covariance V, (*shape, 2)."""
    return D + generator.standard_normal((*shape, 2)) @ ROOT.T


def crossed(generator, draws, examples, centre=1.0, spread=0.4, of_draw=0.6, noise=0.5):
    """d_t(x) = mean_x + an effect of draw t at every x + noise: (draws, examples) and the true E_x |E d|^2."""
    means = centre + spread * generator.standard_normal(examples)
    effects = of_draw * generator.standard_normal((draws, 1))
    return means + effects + noise * generator.standard_normal((draws, examples)), centre**2 + spread**2


def within(values, truth):
    """Whether the mean of independent values is within 4 standard errors of the truth."""
    return abs(np.mean(values) - truth) < 4 * np.std(values, ddof=1) / math.sqrt(len(values))


# Bias and variance in closed form


def test_moments_of_pairs_and_halves():
    draws, repetitions = 6, 6000
    d = gaussian(np.random.default_rng(0), repetitions, draws, 1)
    along, square = 4 * D @ V @ D / draws, np.trace(V @ V) / draws**2
    for estimator, variance in {"pairs": along + 2 * square * draws / (draws - 1), "halves": along + 4 * square}.items():
        found = np.array([defect([one], estimator=estimator).predictive for one in d])
        assert within(found, D @ D)
        assert found.var() == pytest.approx(variance, rel=0.1)
    plug_in = (d.mean(axis=1) ** 2).sum(axis=(1, 2))
    assert within(plug_in, D @ D + np.trace(V) / draws)


def test_halves_are_the_product_of_the_means_of_both():
    d = np.random.default_rng(0).standard_normal((3, 7, 4, 2)) + 0.3
    found = defect(d, estimator="halves")
    first, second = d[:, :3].mean(axis=1), d[:, 3:].mean(axis=1)
    assert found.predictive == pytest.approx((first * second).sum(axis=-1).mean())
    assert found.member == pytest.approx(defect(d).member)
    # the delete-one jackknife of a product of means, by brute force
    without = [[(np.delete(d[:, :3], t, 1).mean(1) * second).sum(-1).mean() for t in range(3)]]
    without += [[(first * np.delete(d[:, 3:], t, 1).mean(1)).sum(-1).mean() for t in range(4)]]
    over_draws = sum((len(w) - 1) / len(w) * np.sum((np.array(w) - np.mean(w)) ** 2) for w in without)
    per_example = (first * second).sum(axis=-1).mean(axis=0)
    assert found.predictive_se == pytest.approx(math.sqrt(per_example.var(ddof=1) / 4 + over_draws))


def test_independent_draws_are_unbiased_and_noisier():
    generator = np.random.default_rng(0)
    draws, repetitions, offset = 6, 4000, np.array([2.0, 1.0])
    a = offset + generator.standard_normal((repetitions, draws, 1, 2))
    b = offset + gaussian(generator, repetitions, draws, 1)
    estimate = lambda a, b: equivariance_error_from_independent_draws(np.stack([a, b], axis=1))  # noqa: E731
    found = [estimate(*pair) for pair in zip(a, b, strict=True)]
    values = np.array([one.predictive for one in found])
    assert within(values, D @ D / 2)  # half, because the identity has no defect
    both = V + np.eye(2)
    # U(a) + U(b) - 2 a.b has the quadratic terms of U for each covariance, and 4 tr V_a V_b / T^2 across
    square = (2 * (np.trace(V @ V) + 2) * draws / (draws - 1) + 4 * np.trace(V)) / draws**2
    assert values.var() == pytest.approx((4 * D @ both @ D / draws + square) / 4, rel=0.1)
    assert math.isnan(found[0].member) and math.isnan(found[0].emergence) and not found[0].is_point_estimate


def test_independent_draws_match_brute_force():
    rep = representations.regular(C4)
    draws = np.random.default_rng(0).standard_normal((5, 4, 3, 4)) + np.arange(4)
    found = equivariance_error_from_independent_draws(draws, rep)

    def brute(here, there):  # per example; here (T, n, 4) at x, there (T', group, n, 4)
        total = 0
        for g in range(1, 4):
            a, b = here[..., rep.source[g]], there[:, g]
            dots = lambda u, v: np.einsum("snc,tnc->stn", u, v)  # noqa: E731
            different = ~np.eye(5, dtype=bool)
            total = total + sum(dots(u, u)[different[: len(u), : len(u)]].mean(axis=0) for u in (a, b))
            total = total - 2 * dots(a, b).mean(axis=(0, 1))
        return total / 4

    per_example = brute(draws[:, 0], draws)
    assert found.predictive == pytest.approx(per_example.mean(), rel=1e-12)
    variance = per_example.var(ddof=1) / 3
    for t_here in (True, False):
        drop = lambda t: np.delete(draws, t, axis=0)  # noqa: E731
        without = [
            brute(drop(t)[:, 0], draws).mean() if t_here else brute(draws[:, 0], drop(t)).mean()  # noqa: B023
            for t in range(5)
        ]
        variance += 4 / 5 * np.sum((np.array(without) - np.mean(without)) ** 2)
    assert found.predictive_se == pytest.approx(math.sqrt(variance), rel=1e-12)


# Intervals


@pytest.mark.parametrize("size", [(24, 30), (16, 20), (40, 120)], ids=str)
def test_intervals_cover(size):
    generator = np.random.default_rng(0)
    repetitions, hits = 600, dict.fromkeys(("pairs", "halves", "member"), 0)
    for _ in range(repetitions):
        d, truth = crossed(generator, *size)
        pairs = defect([d])
        found = {
            "pairs": pairs.interval(),
            "halves": defect([d], estimator="halves").interval(),
            "member": pairs.interval(of="member"),
        }
        truths = dict.fromkeys(hits, truth) | {"member": truth + 0.6**2 + 0.5**2}
        for name, (low, high) in found.items():
            hits[name] += low < truths[name] < high
    for name, count in hits.items():
        assert 0.90 < count / repetitions < 0.99, name


def test_independent_intervals_cover():
    generator = np.random.default_rng(1)
    repetitions, hits = 600, 0
    for _ in range(repetitions):
        d, truth = crossed(generator, 24, 40)
        here = 0.4 * generator.standard_normal((24, 1)) + 0.3 * generator.standard_normal((24, 40))
        low, high = equivariance_error_from_independent_draws(np.stack([here, d], axis=1)).interval()
        hits += low < truth / 2 < high
    assert 0.90 < hits / repetitions < 0.99


def test_intervals_over_clusters_cover_where_those_over_examples_do_not():
    generator = np.random.default_rng(0)
    originals, copies, repetitions, hits = 20, 6, 500, {True: 0, False: 0}
    ids = np.repeat(np.arange(originals), copies)[generator.permutation(originals * copies)]
    for _ in range(repetitions):
        means = 1 + 0.5 * generator.standard_normal(originals)[ids]
        d = means + 0.1 * generator.standard_normal((20, 1)) + 0.2 * generator.standard_normal((20, len(ids)))
        for clustered in hits:
            low, high = defect([d], clusters=ids if clustered else None).interval()
            hits[clustered] += low < 1 + 0.5**2 < high
    assert 0.90 < hits[True] / repetitions < 0.99
    assert hits[False] / repetitions < 0.8


def test_clusters_of_one_are_no_clusters_and_repeated_examples_count_once():
    d = np.random.default_rng(0).standard_normal((2, 6, 5, 3))
    plain = defect(d)
    assert defect(d, clusters=list("abcde")).predictive_se == pytest.approx(plain.predictive_se, rel=1e-12)
    twice = defect(np.concatenate([d, d], axis=2), clusters=[*range(5), *range(5)])
    assert twice.predictive_se == pytest.approx(plain.predictive_se, rel=1e-12)
    assert twice.member_se == pytest.approx(plain.member_se, rel=1e-12)
    assert math.isnan(defect(d, clusters=[0] * 5).predictive_se)
    assert equivariance_error_from_draws(d.swapaxes(0, 1), clusters=[0, 0, 1, 1, 1]).num_draws == 6


def test_the_interval_is_that_of_student():
    # draws that agree leave the chance of three examples alone: t with 2 degrees of freedom, whose quantiles these are
    found = defect(np.broadcast_to([1.0, 2.0, 4.0], (1, 8, 3)))
    assert found.predictive == pytest.approx(7) and found.predictive_df == pytest.approx(2)
    low, high = found.interval(0.9)
    assert (low + high) / 2 == pytest.approx(7)
    assert high - low == pytest.approx(2 * 2.91999 * found.predictive_se, rel=1e-5)
    assert np.diff(found.interval()) == pytest.approx(2 * 4.30265 * found.predictive_se, rel=1e-5)
    wide = found.interval(0.99)
    assert wide[0] < low < high < wide[1]
    exact = defect(np.zeros((2, 4, 3)))
    assert exact.interval() == (0, 0)
    assert all(map(math.isnan, defect(np.ones((1, 4, 1))).interval()))
    with pytest.raises(OptionError, match="between 0 and 1, got 95"):
        found.interval(95)
    with pytest.raises(OptionError, match="'predictive' or 'member', got 'both'"):
        found.interval(of="both")


def test_products_of_parts_of_the_examples_give_the_whole():
    d = np.random.default_rng(0).standard_normal((2, 6, 9, 3))
    squares = (d**2).sum(axis=-1).mean(axis=0)
    cross = np.einsum("gnc,gtnc->tn", d.sum(axis=1), d) / 2 - squares
    parts = [slice(0, 4), slice(4, 9)]
    joined = defect_from_products(*(np.concatenate([a[:, p] for p in parts], axis=1) for a in (squares, cross)))
    assert joined.interval() == pytest.approx(defect(d).interval(), rel=1e-12)
    with pytest.raises(ShapeError, match=r"both be \(num_draws, num_examples\), got shapes \(6, 9\) and \(6, 4\)"):
        defect_from_products(squares, cross[:, :4])


# Planning


def test_planning_moments_are_unbiased():
    draws, repetitions = 6, 4000
    found = [draws_needed([one], 0.1) for one in gaussian(np.random.default_rng(0), repetitions, draws, 1)]
    assert within([one.signal for one in found], D @ V @ D)
    assert within([one.noise for one in found], np.trace(V @ V))


def test_planned_draws_give_the_precision():
    generator, precision = np.random.default_rng(0), 0.2
    plan = draws_needed([gaussian(generator, 2000, 1)], precision)
    signal, noise = D @ V @ D, np.trace(V @ V)
    assert plan.critical == pytest.approx(noise / (2 * signal), rel=0.25)
    assert plan.num_draws > max(16 * signal / precision**2, math.sqrt(8 * noise) / precision)
    values = [defect([gaussian(generator, plan.num_draws, 1)]).predictive for _ in range(3000)]
    assert 0.9 < np.std(values) / (precision / 2) < 1.1
    # and where there is no defect, the second one does
    symmetric = draws_needed([0.05 * generator.standard_normal((200, 30, 4))], 1e-3)
    assert symmetric.critical > 100 and symmetric.num_draws < 500
    assert draws_needed(np.zeros((2, 5, 3)), 1.0) == (3, 0, 0, 0)


# Sweeps over the number of draws


def asymmetric(generator, draws, shift):
    """Draws (draws, 2, 30, 3) of a linear predictor whose weights have the mean `shift` along what the group flips."""
    x = np.random.default_rng(7).standard_normal((30, 4))
    weights = 0.3 * generator.standard_normal((draws, 4, 3))
    weights[:, 0] += shift
    here = np.tanh(np.einsum("ni,tic->tnc", x, weights))
    there = np.tanh(np.einsum("ni,tic->tnc", x * [-1, 1, 1, 1], weights))
    return np.stack([here, there], axis=1)


def test_the_spread_falls_as_a_root_for_asymmetric_and_linearly_for_symmetric_posteriors():
    generator = np.random.default_rng(0)
    broken, sizes = asymmetric(generator, 64 * 160, 0.6), (20, 40, 80, 160)
    plan = draws_needed(broken[:400, 1:2].swapaxes(0, 1) - broken[:400, :1].swapaxes(0, 1), 0.01)
    assert 4 * plan.critical < sizes[0]
    sweep = defect_sweep(broken, sizes)
    assert sweep.repeats == 64
    assert sweep.slope()[0] == pytest.approx(-0.5, abs=0.1) and sweep.slope()[1] < 0.1
    exact = defect_sweep(asymmetric(generator, 64 * 160, 0.0), sizes)
    assert exact.slope()[0] == pytest.approx(-1.0, abs=0.15)
    for found, truth in ((sweep, defect(np.moveaxis(broken - broken[:, :1], 1, 0)).predictive), (exact, 0.0)):
        for values in found.unbiased:
            assert within(values, truth)
        assert (found.plug_in.mean(axis=1) > found.mean).all()
    # the plug-in's excess is tr Cov / T
    excess = exact.plug_in.mean(axis=1) - exact.mean
    np.testing.assert_allclose(excess * np.array(sizes), excess[0] * sizes[0], rtol=0.05)


def test_a_sweep_is_the_estimator_on_disjoint_sets():
    rep = representations.regular(C4)
    draws = np.random.default_rng(0).standard_normal((13, 4, 3, 4))
    sweep = defect_sweep(draws, [3, 6], output=rep)
    assert sweep.unbiased.shape == (2, 2) and sweep.sizes == (3, 6)
    for i, size in enumerate(sweep.sizes):
        for k in range(2):
            one = equivariance_error_from_draws(draws[k * size : (k + 1) * size], rep)
            assert sweep.unbiased[i, k] == pytest.approx(one.predictive, rel=1e-12)
            assert sweep.plug_in[i, k] == pytest.approx(one.predictive + (one.member - one.predictive) / size, rel=1e-12)
    figure = plot_defect_sweep(sweep)
    assert [axis.get_xlabel() for axis in figure.axes] == ["posterior draws"] * 2


# The exact test near 0


def noisy_orbits(generator, draws, output, shift=0.0, common=True, examples=3):
    """Draws (draws, 4, examples, 4) of an equivariant law, heavy-tailed and dependent between examples, plus a shift at g = 1."""
    if common:  # a random function with an invariant law: its values on the orbit, moved by an element at random
        base = generator.standard_t(3, (draws, 4, examples, 4)) + generator.standard_normal((draws, 1, 1, 1))
        moves = generator.integers(4, size=draws)
        base = np.stack([one[C4.table[h]] for one, h in zip(base, moves, strict=True)])
    else:
        base = generator.standard_t(3, (draws, 4, examples, 4)) + generator.standard_normal((draws, 4, 1, 1))
    base[:, 1] += shift
    return np.stack([base[:, g][..., output.source[g]] for g in range(4)], axis=1)


@pytest.mark.parametrize("common", [True, False], ids=["common", "independent"])
def test_p_values_are_exact_and_have_power(common, key):
    generator, rep = np.random.default_rng(0), representations.regular(C4)
    p_values = np.array(
        [
            equivariance_test(
                noisy_orbits(generator, 8, rep, common=common), C4, rep, key=k, common=common, num_permutations=39
            ).p_value
            for k in jax.random.split(key, 500)
        ]
    )
    # p <= 1/40, 2/40, ... with exactly these probabilities
    for level in (0.05, 0.1, 0.25, 0.5):
        assert abs((p_values <= level + 1e-9).mean() - level) < 4 * math.sqrt(level * (1 - level) / 500)
    moved = noisy_orbits(generator, 60, rep, 2.0, common=common)
    assert equivariance_test(moved, C4, rep, key=key, common=common).p_value == 1 / 1000


def test_common_draws_of_two_elements_are_a_sign_flip_test(key):
    d = np.random.default_rng(0).standard_normal((6, 1)) + 1.5
    found = equivariance_test(np.stack([np.zeros_like(d), d], axis=1), C2, key=key, num_permutations=20_000)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    exact = (np.abs(signs @ d[:, 0]) >= abs(d.sum()) * (1 - 1e-9)).mean()
    assert found.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert found.statistic == pytest.approx((d.mean() / 2) ** 2)
    assert found.num_draws == 6


def test_a_predictor_that_is_exactly_equivariant_is_never_rejected(key):
    here = np.random.default_rng(0).standard_normal((5, 3, 2))
    assert equivariance_test(np.stack([here] * 4, axis=1), C4, key=key).p_value == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: defect(np.zeros((1, 4, 3)), estimator="thirds"), OptionError, "'pairs' or 'halves', got 'thirds'"),
        (lambda: defect(np.zeros((1, 3, 3)), estimator="halves"), OptionError, "three draws are too few .* at least 4"),
        (lambda: defect(np.zeros((1, 4, 3)), clusters=[0, 1]), ShapeError, r"clusters must be \(3,\), .* got shape \(2,\)"),
        (lambda: equivariance_error_from_independent_draws(np.zeros((2, 4, 3))), OptionError, "2 draws are too few"),
        (lambda: draws_needed(np.zeros((1, 3, 3)), 0.1), ShapeError, "at least 4 draws"),
        (lambda: draws_needed([], 0.1), ShapeError, "no group element"),
        (lambda: draws_needed(np.zeros((1, 5, 3)), 0.0), OptionError, "precision .* got 0.0"),
        (lambda: defect_sweep(np.zeros((9, 2, 3)), [4, 2]), OptionError, "increasing numbers of draws"),
        (
            lambda: defect_sweep(np.zeros((9, 2, 3)), [5]),
            OptionError,
            "9 draws do not hold 2 disjoint sets of 5: draw at least 10",
        ),
        (lambda: defect_sweep(np.zeros((9, 2, 3)), [4]).slope(), OptionError, "at least 2 sizes"),
        (lambda: defect_sweep(np.full((9, 2, 3), np.nan), [4]), DataError, "not all finite"),
        (lambda: equivariance_test(np.zeros((9, 3, 3)), C4, key=jax.random.key(0)), ShapeError, "the 4 elements of C4"),
        (lambda: equivariance_test(np.zeros((1, 4, 3)), C4, key=jax.random.key(0)), OptionError, "at least 2 draws"),
        (
            lambda: equivariance_test(np.zeros((9, 4, 3, 2)), C4, representations.regular(C2), key=jax.random.key(0)),
            GroupActionError,
            "of C4, but the output representation of C2",
        ),
    ],
)
def test_estimator_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
