"""Experiments on symmetric variational posteriors, at small sizes: what each of them claims, with the margin that chance needs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

from bayes_sym import groups
from bayes_sym.errors import ClosednessError, OptionError
from bayes_sym.experiments import (
    EXPERIMENTS,
    arrangements,
    closedness_table,
    families,
    linear_posterior,
    prior_invariance,
    sample_complexity,
)
from bayes_sym.experiments.arrangement_cases import CASES, convolutions
from bayes_sym.experiments.cycle import ACTION, PROBLEM, cycles, weights_move
from bayes_sym.experiments.repeats import repeats
from bayes_sym.inference import FullGaussian, LogNormal, MeanField, Variational, fit, tie
from bayes_sym.inference.families import certificate
from bayes_sym.inference.families.averages import check_signs
from bayes_sym.inference.families.dense import triangle_of
from bayes_sym.representations import regular, trivial


def drawn(draw, *given):
    """The axes that a figure has after drawing."""
    figure = Figure()
    draw(*given, figure)
    figure.canvas.draw()
    return figure.axes


def test_the_experiments_are_listed():
    assert {"arrangements", "prior-invariance", "sample-complexity", "families"} <= set(EXPERIMENTS)


# arrangements

EXACT = ("diag", "tied", "mix", "gcnn", "fixed")
EXPANDED = [convolutions(groups.cyclic(4), 2, 4), convolutions(groups.dihedral(4), 2, 4), CASES[4]]


@pytest.mark.parametrize("case", EXPANDED, ids=lambda case: case.name)
def test_arrangements_are_exact_broken_or_collapsed(case):
    rows = {row["arrangement"]: row for row in arrangements.expansions(case, 0)}
    dense, order = case.output is not None, case.group.order
    assert rows["diag"]["average_gap"] < 1e-12
    assert min(row["average_gap"] for name, row in rows.items() if name != "diag") > 1e-2
    for name, row in rows.items():
        equivariant = name in EXACT or dense or (name, case.group.name) == ("row_rolled", "C4")
        assert row["error_float64"] < 1e-12 if equivariant else row["error_float64"] > 1e-3, name
        assert row["error"] < 1e-5 if equivariant else row["error"] > 1e-3, name
        assert row["is_invariant"] == (name in EXACT or dense), name
        distinct = {"diag": order, "mix": order}.get(name, 1) if dense else {"gcnn": order // 2}.get(name, order)
        assert row["distinct_rows"] == (1 if name in ("fixed", "row_constant") else distinct), name
        # a prior that knows the fan-in asks for less of the wider net
        assert 1 < row["kl_fan_in"] / row["kl_before"] < row["kl_fixed"] / row["kl_fixed_before"]
        if dense:  # only blocks that differ can give outputs that move
            assert row["moving_share"] > 1e-2 if name in ("diag", "mix") else row["moving_share"] < 1e-12
    if case.group.name == "C4":  # equivariant, but under other hidden representations
        assert rows["row_rolled"]["certificate"] > 1 and abs(rows["row_rolled"]["other_certificate"]) < 1e-9
    assert len(drawn(arrangements._draw, list(rows.values()))) == 2


# prior-invariance

LINEAR_ACTION = regular(groups.cyclic(4)) * trivial(groups.cyclic(4), 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_of_a_linear_regression_the_divergence_falls_as_one_over_n_and_the_defect_as_its_square(seed):
    rows = linear_posterior.linear((20, 320, 1280, 5120), seed)
    by_prior = {name: [row for row in rows if row["prior"] == name] for name in linear_posterior.PRIORS}
    for row in by_prior["random"]:
        assert row["kl"] == pytest.approx(row["kl_by_prior"], rel=1e-8)  # the evidences cancel
    assert by_prior["random"][-1]["kl_slope"] == pytest.approx(-1, abs=0.1)
    assert by_prior["random"][-1]["defect_slope"] == pytest.approx(-2, abs=0.15)
    assert by_prior["random"][0]["defect"] > 1e-4
    for row in by_prior["invariant"] + by_prior["repaired"]:
        assert abs(row["kl"]) < 1e-12 and abs(row["kl_by_prior"]) < 1e-12 and row["defect"] < 1e-12
        assert row.get("kl_slope") is None


def test_the_exact_posterior_and_its_divergence_are_those_of_the_library(x64):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((6, 8)), rng.standard_normal(6)
    mean, scale = rng.standard_normal(8), np.exp(0.3 * rng.standard_normal(8))
    orbits = np.stack([x @ g.T for g in LINEAR_ACTION.matrices()])
    m, covariance = linear_posterior.exact_posterior(orbits, y, 0.5, mean, scale)
    # by Bayes' rule in another form: condition the joint Gaussian of w and outputs whose noise is 4 times as large
    flat, many = orbits.reshape(-1, 8), np.tile(y, 4)
    prior = np.diag(scale**2)
    gain = prior @ flat.T @ np.linalg.inv(flat @ prior @ flat.T + 4 * 0.25 * np.eye(24))
    assert np.allclose(m, mean + gain @ (many - flat @ mean), atol=1e-10)
    assert np.allclose(covariance, prior - gain @ flat @ prior, atol=1e-10)
    family = FullGaussian()
    params = family.init({"w": jnp.asarray(m)})
    q = type(params)(params.mean, (triangle_of(jnp.linalg.cholesky(jnp.asarray(covariance))),), params.layouts)
    ours = np.mean([linear_posterior._gaussian_kl(m, covariance, g @ m, g @ covariance @ g.T) for g in LINEAR_ACTION.matrices()])
    flat_action = LINEAR_ACTION.reshape(8)
    assert ours == pytest.approx(certificate(family, q, {"w": flat_action}), rel=1e-9) and ours > 0.01


def test_a_random_prior_breaks_the_symmetry_of_a_net_and_an_invariant_one_does_not():
    rows = {row["prior"]: row for row in prior_invariance.nets(40, steps=150, seed=0, seeds=2, num_test=100)}
    random, invariant, repaired = (rows[name] for name in ("random", "invariant", "repaired"))
    for row in (invariant, repaired):
        assert abs(row["defect"]) < 4 * row["defect_se"]
        assert random["defect"] - row["defect"] > 4 * math.hypot(random["defect_se"], row["defect_se"])
        assert random["kl"] > 10 * row["kl"]
    linear = linear_posterior.linear((320, 640), 0)
    assert len(drawn(prior_invariance._draw, linear + list(rows.values()))) == 2


# sample-complexity


def gaussian_draws(shift, draws, rng):
    """Invariant predictions (draws, 4, 3, 2): independent normal, the mean at g is g times the shift."""
    at = shift * np.arange(4)[:, None, None] * np.ones((4, 3, 2))
    return at + rng.standard_normal((draws, 4, 3, 2))


@pytest.mark.parametrize(("shift", "slope"), [(1.0, -0.5), (0.0, -1.0)], ids=["asymmetric", "symmetric"])
def test_estimators_of_a_known_defect_have_their_bias_and_their_spread(shift, slope):
    found = sample_complexity.Sampled.of("toy", gaussian_draws(shift, 8192, np.random.default_rng(0)), (8, 16, 32, 64, 128), 64)
    truth = 2 * shift**2 * (1 + 4 + 9) / 4
    for row in found.rows():
        for key, bias in (("independent", 3 / 4 * 4), ("plug_in", 3 / 4 * 4), ("unbiased", 0.0)):
            sd = row["sd"] if key == "unbiased" else row[f"{key}_sd"]
            # sets of independent estimates share predictions, which costs at most a factor of two
            assert abs(row[key] - truth - bias / row["num_draws"]) < 4 * 2 * sd / math.sqrt(64)
        assert row["sd"] / row["expected_sd"] == pytest.approx(1, abs=4 / math.sqrt(2 * 63) + 0.1)
    fitted, se = found.slope()
    assert found.shows_defect == (shift > 0)
    assert abs(fitted - slope) < 3 * se + 0.02  # the other term of the variance bends the line a little
    with pytest.raises(OptionError, match="need at least 4 sets of draws, got 3"):
        sample_complexity.independent_plug_in(gaussian_draws(0.0, 12, np.random.default_rng(0)), 4, 3)


def test_the_spread_of_a_net_falls_by_the_root_or_by_the_number_of_draws():
    train, test = cycles(200, 24, 0)
    several = []
    for name, symmetrise in (("asymmetric", None), ("symmetric", tie(ACTION))):
        scheme = Variational(MeanField(), optax.adam(2e-2), symmetrise=symmetrise)
        done = fit(PROBLEM, scheme, jax.random.key(0), *train, num_steps=300, progress=False)
        several.append(sample_complexity.sample(name, done.posterior, test.x, jax.random.key(1), (4, 8, 16, 32, 64, 128), 64))
    asymmetric, symmetric = several
    assert asymmetric.shows_defect and not symmetric.shows_defect
    for one, expected in ((asymmetric, -0.5), (symmetric, -1.0)):
        slope, se = one.slope()
        assert abs(slope - expected) < 3 * se + 0.05
        last = one.rows()[-1]
        assert last["independent"] > last["plug_in"] > last["unbiased"]
    last = symmetric.rows()[-1]
    assert abs(last["unbiased"]) < 4 * last["unbiased_se"]
    last = asymmetric.rows()[-1]
    assert last["unbiased"] > 10 * last["unbiased_se"]
    assert last["sd"] < last["bound"]
    assert len(drawn(sample_complexity._draw_means, several)) == 2
    assert len(drawn(sample_complexity._draw_spread, several)) == 1


# families


def test_what_the_table_calls_closed_has_the_density_of_the_transformed_draws():
    rows = closedness_table.closedness_rows(0)
    closed = {}
    for row in rows:
        if row["push_error"] is not None:
            assert row["push_error"] < 1e-10
        levels = [row[level] for level in ("push_forward", "log_affine", "moment")]
        assert all(levels) == (row["reason"] is None)
        if row["push_forward"]:
            assert row["push_error"] is not None
        closed.setdefault(row["family"], []).append("".join(str(int(level)) for level in levels))
    assert closed == {  # under permutations, signed permutations, matrices
        "MeanField": ["111", "111", "000"],
        "FullGaussian": ["111", "111", "111"],
        "MatrixNormal": ["100", "100", "100"],
        "LowRankGaussian": ["100", "100", "000"],
        "MeanFieldLaplace": ["101", "101", "000"],
        "LogNormal, constant signs": ["111", "000", "000"],
        "LogNormal, random signs": ["000", "000", "000"],
        "Gamma": ["111", "000", "000"],
        "Beta": ["111", "000", "000"],
    }
    assert len(drawn(closedness_table.draw_closedness, rows)) == 1


def test_fixed_signs_that_differ_along_orbits_keep_a_q_from_being_symmetrised():
    data = tuple(map(jnp.asarray, cycles(8, 1, 0)[0]))
    reps, z = weights_move("regular"), PROBLEM.initial(jax.random.key(0), data)
    random, constant = LogNormal().init(z), families.ConstantSigns().init(z)
    check_signs(families.ConstantSigns(), constant, reps)
    assert {float(sign) for leaf in constant.sign.values() for sign in leaf.reshape(-1)} == {-1.0, 1.0}
    assert all(np.array_equal(random.mean[name], constant.mean[name]) for name in z)
    assert certificate(LogNormal(), random, reps) == math.inf
    assert 0 < certificate(LogNormal(), constant, reps) < math.inf
    refused = Variational(LogNormal(), optax.adam(1e-2), symmetrise=tie(ACTION))
    with pytest.raises(ClosednessError, match="the transforms of q live on different half-lines"):
        repeats(PROBLEM, refused, 0, 2, *data, num_steps=2)


def test_symmetrised_families_have_no_defect_and_the_mixture_the_larger_elbo():
    rows = families.fits("MeanField", 0, steps=150, num_train=40, num_test=100)
    by_form = {row["under"]: row for row in rows}
    assert list(by_form) == ["nothing", "average", "projection", "tied", "mixture"]
    for form in ("average", "projection", "tied"):
        assert abs(by_form[form]["defect"]) < 4 * by_form[form]["defect_se"]
        assert by_form[form]["member_defect"] > 10 * abs(by_form[form]["defect"])
    nothing, mixture = by_form["nothing"], by_form["mixture"]
    assert nothing["defect"] > 4 * nothing["defect_se"]
    assert mixture["defect"] < 1e-12
    slack = 4 * mixture["gain_se"] + 1e-6  # log 4 in float32
    assert -slack <= mixture["gain"] <= math.log(4) + slack
    assert mixture["elbo"] - nothing["elbo"] == pytest.approx(mixture["gain"])
    # averages after the fit leave out what was learned, and mixing does not
    assert max(by_form[form]["elbo"] for form in ("average", "projection")) < nothing["elbo"] - 10
    assert all(row["seeds"] == 3 and row["part"] == "fit" for row in rows)
    assert len(drawn(families._draw, rows)) == 3
