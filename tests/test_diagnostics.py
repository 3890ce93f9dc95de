"""Diagnostics: estimators against known moments and hand cases, and the checker on nets that are and are not symmetric."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import (
    EquivarianceError,
    calibration,
    check_equivariance,
    defect,
    equivariance_error,
    equivariance_error_from_draws,
    orbit_agreement,
)
from bayes_sym.errors import DataError, GroupActionError, OptionError, ShapeError
from bayes_sym.layers import Conv, Flatten


C2, C3, C4, D4 = (*map(groups.cyclic, (2, 3, 4)), groups.dihedral(4))


# The defect


def test_the_u_statistic_is_unbiased_and_the_plug_in_is_not():
    mean, root = np.array([0.3, -0.2]), np.array([[1.0, 0.0], [0.5, 0.7]])
    draws, repetitions, order = 5, 4000, 2
    truth = (mean @ mean) / order  # the identity's difference is 0
    bias = np.trace(root @ root.T) / draws / order
    noise = np.random.default_rng(0).standard_normal((repetitions, draws, 1, 2))
    moved = mean + noise @ root.T
    unbiased = np.array([defect([np.zeros_like(d), d]).predictive for d in moved])
    plug_in = (moved.mean(axis=1) ** 2).sum(axis=(1, 2)) / order
    se = unbiased.std() / math.sqrt(repetitions)
    assert abs(unbiased.mean() - truth) < 4 * se
    assert (unbiased < 0).any()  # never clipped
    assert abs(plug_in.mean() - truth - bias) < 4 * plug_in.std() / math.sqrt(repetitions)
    assert bias > 20 * se


def test_the_member_defect_is_the_mean_square():
    d = np.random.default_rng(0).standard_normal((2, 6, 5, 3, 2))
    found = defect(d)
    assert found.member == pytest.approx((d**2).sum(axis=(-1, -2)).mean())
    per_draw = (d**2).sum(axis=(-1, -2)).mean(axis=(0, 2))
    per_example = (d**2).sum(axis=(-1, -2)).mean(axis=(0, 1))
    assert found.member_se == pytest.approx(math.sqrt(per_draw.var(ddof=1) / 6 + per_example.var(ddof=1) / 5))
    assert found.emergence == pytest.approx(1 - found.predictive / found.member)
    assert (found.num_draws, found.num_examples, found.is_point_estimate) == (6, 5, False)


def test_the_u_statistic_and_its_jackknife_match_brute_force():
    order, draws, examples = 3, 7, 4
    d = np.random.default_rng(0).standard_normal((order, draws, examples, 2)) + 0.4

    def pairs(d):  # the definition: the mean over pairs of different draws of d_s . d_t, per example
        T = d.shape[1]
        dots = np.einsum("gsnc,gtnc->gstn", d, d)
        return dots[:, ~np.eye(T, dtype=bool)].mean(axis=(0, 1))

    found = defect(d)
    assert found.predictive == pytest.approx(pairs(d).mean(), rel=1e-12)
    without = np.array([pairs(np.delete(d, t, axis=1)).mean() for t in range(draws)])
    jackknife = (draws - 1) / draws * ((without - without.mean()) ** 2).sum()
    assert found.predictive_se == pytest.approx(math.sqrt(pairs(d).var(ddof=1) / examples + jackknife), rel=1e-12)
    assert defect(iter(d)) == found


def test_intervals_cover_the_truth():
    # d_t(x) = mean_x + (what draw t does to every x) + noise, so the draws are shared across examples
    generator = np.random.default_rng(0)
    repetitions, draws, examples, centre, spread = 500, 24, 30, 1.0, 0.4
    covered = 0
    for _ in range(repetitions):
        means = centre + spread * generator.standard_normal(examples)
        d = means + 0.6 * generator.standard_normal((draws, 1)) + 0.5 * generator.standard_normal((draws, examples))
        found = defect([d])
        covered += abs(found.predictive - (centre**2 + spread**2)) < 1.96 * found.predictive_se
    assert 0.88 < covered / repetitions < 0.99


def test_one_draw_is_a_flagged_plug_in():
    d = np.random.default_rng(0).standard_normal((2, 1, 6, 3))
    found = defect(d)
    per_example = (d[:, 0] ** 2).sum(axis=-1).mean(axis=0)
    assert found.is_point_estimate and found.predictive == found.member == pytest.approx(per_example.mean())
    assert found.predictive_se == found.member_se == pytest.approx(per_example.std(ddof=1) / math.sqrt(6))
    assert found.emergence == 0


def test_one_example_has_no_standard_error_and_exact_members_no_emergence():
    assert math.isnan(defect(np.ones((1, 4, 1))).predictive_se)
    exact = defect(np.zeros((2, 4, 3, 1)))
    assert (exact.predictive, exact.member, exact.predictive_se, exact.emergence) == (0, 0, 0, 0)


def test_results_are_pytrees_with_static_counts():
    found = defect(np.random.default_rng(0).standard_normal((2, 5, 3)))
    doubled = jax.tree.map(lambda value: 2 * value, found)
    assert isinstance(doubled, EquivarianceError) and doubled.predictive == 2 * found.predictive
    assert doubled.num_draws == 5 and len(jax.tree.leaves(found)) == 8
    assert set(dataclasses.asdict(found)) >= {"predictive", "predictive_se", "member", "member_se", "emergence", "num_draws"}


@pytest.mark.parametrize(
    ("differences", "error", "message"),
    [
        (np.zeros((1, 2, 3)), OptionError, "give at least 3, or 1 for a point estimate"),
        ([], ShapeError, "no group element"),
        ([np.zeros(3)], ShapeError, r"must be \(num_draws, num_examples, \*outputs\) per element, got shape \(3,\)"),
        ([np.zeros((3, 2)), np.zeros((3, 4))], ShapeError, r"got \(3, 2\) and \(3, 4\)"),
        ([np.zeros((3, 2)), np.full((3, 2), np.nan)], DataError, "at element 1 are not all finite"),
        (np.zeros((2, 0, 3)), ShapeError, "got shape"),
    ],
)
def test_defect_errors(differences, error, message):
    with pytest.raises(error, match=message):
        defect(differences)


# The equivariance error of predictions


TURN = representations.permutation(C4, [[[1, 0], [-1, 1]]])
ANGLE = 2 * np.pi / 3
THIRD = representations.matrix(C3, [[[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]])
# swaps the rows of a (2, 3) array and cycles its columns
ROWS_AND_COLUMNS = representations.permutation(groups.product(C2, C3), [[3, 4, 5, 0, 1, 2], [1, 2, 0, 4, 5, 3]]).reshape(2, 3)
ACTIONS = {
    "invariant": (representations.image(D4, (3, 3)), None),
    "permuted": (representations.image(C4, (2, 2)), representations.regular(C4)),
    "signed": (representations.regular(C4), TURN),
    "matrix": (representations.regular(C3), THIRD),
    "images": (representations.image(C4, (2, 2)), representations.image(C4, (2, 2))),
    "product": (ROWS_AND_COLUMNS, representations.regular(groups.product(C2, C3))),
}
every_action = pytest.mark.parametrize(("action", "output"), ACTIONS.values(), ids=ACTIONS.keys())


def linear(action, output, draws=6, symmetric=False, seed=0):
    """Random linear predictors (num_draws, n, *output.shape, 2); equivariant ones if `symmetric`."""
    shape = (2,) if output is None else (*output.shape, 2)
    weights = np.random.default_rng(seed).standard_normal((draws, action.dim, math.prod(shape) // 2, 2))
    if symmetric:
        trivial = representations.trivial(action.group, 1)
        joint = action.reshape(action.dim) * (trivial if output is None else output.reshape(output.dim))
        projected = np.einsum("ij,tjc->tic", joint.projector, weights.reshape(draws, joint.dim, 2))
        weights = projected.reshape(weights.shape)

    def predict(x):
        flat = np.asarray(x).reshape(len(x), -1)
        return np.einsum("ni,tioc->tnoc", flat, weights).reshape(draws, len(flat), *shape)

    return predict


@every_action
def test_equivariant_members_have_no_defect(action, output):
    x = np.random.default_rng(1).standard_normal((5, *action.shape)).astype(np.float32)
    found = equivariance_error(linear(action, output, symmetric=True), x, action, output)
    assert found.member < 1e-12 and abs(found.predictive) < 1e-12
    loose = equivariance_error(linear(action, output), x, action, output)
    assert loose.member > 0.1


@every_action
def test_the_error_is_that_of_its_definition(action, output):
    x = np.random.default_rng(1).standard_normal((5, *action.shape)).astype(np.float32)
    predict = linear(action, output)
    found = equivariance_error(predict, x, action, output)
    draws = np.stack([predict(action.transform(g, x)) for g in range(action.group.order)], axis=1)
    again = equivariance_error_from_draws(draws, output)
    dense = np.eye(1)[None].repeat(action.group.order, axis=0) if output is None else output.matrices()
    aligned = draws.reshape(*draws.shape[:3], dense.shape[-1], -1)
    differences = aligned - np.einsum("gij,tnjc->tgnic", dense, aligned[:, 0])
    brute = defect(differences.swapaxes(0, 1))
    for field in ("predictive", "predictive_se", "member", "member_se"):
        assert getattr(found, field) == pytest.approx(getattr(brute, field), rel=1e-5)
        assert getattr(again, field) == pytest.approx(getattr(brute, field), rel=1e-5)


def test_mixed_members_cancel_in_the_mean_prediction():
    # draws come in pairs f and f o g^-1 ... over the whole group: the mean is invariant, the members are not
    action = representations.image(C4, (3, 3))
    weights = np.random.default_rng(0).standard_normal((200, 9))
    orbit = np.concatenate([weights[:, action.source[g]] for g in range(4)])
    x = np.random.default_rng(1).standard_normal((20, 3, 3)).astype(np.float32)
    found = equivariance_error(lambda x: (np.asarray(x).reshape(len(x), 9) @ orbit.T).T, x, action)
    assert abs(found.predictive) < 0.02 * found.member
    assert found.emergence > 0.98


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"output": representations.regular(C3)}, GroupActionError, "of C4, but the output representation of C3"),
        ({"output": representations.regular(C4)}, ShapeError, r"acts on \(4,\), but the draws .* outputs of shape \(2,\)"),
        ({"predict": lambda x: np.ones(3)}, ShapeError, "must return draws"),
        ({"predict": lambda x: np.ones((3, 4))}, ShapeError, "for its 5 examples, got shape"),
        ({"predict": lambda x: np.full((3, 5), np.inf)}, DataError, "not finite"),
        ({"x": np.ones((5, 4, 4))}, ShapeError, "acts on arrays of shape"),
    ],
)
def test_equivariance_error_errors(change, error, message):
    action = representations.image(C4, (3, 3))
    options = {"predict": linear(action, None), "x": np.ones((5, 3, 3)), "action": action, "output": None} | change
    with pytest.raises(error, match=message):
        equivariance_error(**options)


def test_draws_that_are_not_common_are_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(OptionError, match="the same key at every call"):
        equivariance_error(
            lambda x: generator.standard_normal((8, len(x))), np.ones((3, 2, 2)), representations.image(C4, (2, 2))
        )


def test_draws_on_the_orbit_need_every_element():
    with pytest.raises(ShapeError, match=r"the 4 elements of C4, got shape \(5, 3, 2, 4\)"):
        equivariance_error_from_draws(np.ones((5, 3, 2, 4)), representations.regular(C4))
    with pytest.raises(ShapeError, match=r"\(num_draws, group, num_examples, \*outputs\), got shape \(5, 3\)"):
        equivariance_error_from_draws(np.ones((5, 3)))
    with pytest.raises(DataError, match="not all finite"):
        equivariance_error_from_draws(np.full((3, 4, 2), np.nan))


# Agreement of labels


def probabilities(labels, classes=4):
    """One-hot probabilities (group, n, classes) of labels (group, n)."""
    return np.eye(classes)[np.asarray(labels)]


def test_agreement_by_hand():
    # columns are examples: all agree; one element differs; the identity is the odd one out; a tie of two and two
    on_orbit = probabilities([[0, 1, 3, 0], [0, 1, 1, 0], [0, 2, 1, 1], [0, 1, 1, 1]])
    by_kind = {
        "vote": [1, 3 / 4, 3 / 4, 2 / 4],
        "reference": [1, 3 / 4, 1 / 4, 2 / 4],
        "pairwise": [1, 3 / 6, 3 / 6, 2 / 6],
    }
    for kind, expected in by_kind.items():
        found = orbit_agreement(on_orbit, kind)
        assert found.agreement == pytest.approx(np.mean(expected))
        assert found.se == pytest.approx(np.std(expected, ddof=1) / 2)


def test_agreement_maps_labels_back():
    rep = representations.regular(C4)
    at_x = np.random.default_rng(0).dirichlet(np.ones(4), 3)
    equivariant = np.asarray(rep.orbit(at_x))
    for kind in ("vote", "reference", "pairwise"):
        assert orbit_agreement(equivariant, kind, rep).agreement == 1
    assert orbit_agreement(equivariant, "reference").agreement == pytest.approx(1 / 4)


def test_agreement_of_one_element_or_one_example():
    found = orbit_agreement(probabilities([[1, 2]]), "pairwise")
    assert (found.agreement, found.se) == (1, 0)
    assert math.isnan(orbit_agreement(probabilities([[1], [2]])).se)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: orbit_agreement(np.ones((2, 4))), ShapeError, "average over the draws first"),
        (lambda: orbit_agreement(np.full((2, 1, 4), np.nan)), DataError, "not all finite"),
        (lambda: orbit_agreement(probabilities([[0]]), "most"), OptionError, "kind must be .* got 'most'"),
        (lambda: orbit_agreement(np.ones((4, 1, 2)), output=TURN), GroupActionError, "permutation of the classes"),
        (lambda: orbit_agreement(np.ones((3, 1, 4)), output=representations.regular(C4)), ShapeError, "4 classes by 4 elements"),
    ],
)
def test_agreement_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Calibration


P = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]])
Y = np.array([0, 1, 1, 0])


def test_calibration_by_hand():
    found = calibration(P, Y, num_bins=2)
    nll = -np.log([0.9, 0.4, 0.8, 0.55])
    assert found.accuracy == 0.75
    assert found.accuracy_se == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert found.nll == pytest.approx(nll.mean())
    assert found.nll_se == pytest.approx(nll.std(ddof=1) / 2)
    assert found.brier == pytest.approx(2 * (0.1**2 + 0.6**2 + 0.2**2 + 0.45**2) / 4)
    # equal mass: {0.55, 0.6} with accuracy 1/2, {0.8, 0.9} with accuracy 1
    assert found.ece == pytest.approx(0.5 * abs(0.5 - 0.575) + 0.5 * abs(1 - 0.85))
    # equal width, four bins: (0.5, 0.75] and (0.75, 1] hold the same examples; ten bins: {0.55, 0.6}, {0.8}, {0.9}
    assert calibration(P, Y, num_bins=4, bins="equal-width").ece == pytest.approx(found.ece)
    assert calibration(P, Y, num_bins=10, bins="equal-width").ece == pytest.approx((2 * 0.075 + 0.2 + 0.1) / 4)
    # more bins than examples: one example per bin
    assert calibration(P, Y).ece == pytest.approx((0.45 + 0.6 + 0.2 + 0.1) / 4)


def test_calibrated_probabilities_have_small_errors():
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), 20_000)
    y = (generator.uniform(size=(20_000, 1)) > p.cumsum(axis=1)[:, :2]).sum(axis=1)
    found = calibration(p.astype(np.float32), y)
    assert found.ece < 0.02
    assert abs(found.accuracy - p.max(axis=1).mean()) < 4 * found.accuracy_se
    assert calibration(p**4 / (p**4).sum(axis=1, keepdims=True), y).ece > 0.1


def test_impossible_labels_cost_a_finite_number():
    found = calibration([[1.0, 0.0]], [1])
    assert found.nll == pytest.approx(-math.log(np.finfo(np.float32).tiny)) and math.isnan(found.nll_se)
    assert found.brier == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"probabilities": P[None]}, ShapeError, r"\(num_examples, classes\), got shape \(1, 4, 2\)"),
        ({"labels": Y[:3]}, ShapeError, r"labels must be \(4,\).*got shape \(3,\)"),
        ({"labels": Y + 1}, DataError, r"in 0..1, got .* from 1 to 2"),
        ({"labels": Y - 1}, DataError, "from -1 to 0"),
        ({"labels": Y.astype(float)}, DataError, "whole numbers"),
        ({"probabilities": 2 * P}, DataError, "4 rows .* row 0 sums to 2 .* apply a softmax"),
        ({"probabilities": P + [[1, -1]]}, DataError, "smallest entry is -0.9"),
        ({"probabilities": np.full((4, 2), np.nan)}, DataError, "not distributions"),
        ({"num_bins": 0}, OptionError, "num_bins must be a whole number of at least 1, got 0"),
        ({"bins": "quantile"}, OptionError, "bins must be .* got 'quantile'"),
    ],
)
def test_calibration_errors(change, error, message):
    with pytest.raises(error, match=message):
        calibration(**({"probabilities": P, "labels": Y} | change))


# The checker. Layers are checked in test_layers; here are nets.


def edges(x):
    """How much an image changes along both axes, averaged: invariant under rotations and mirrors."""
    return (jnp.diff(x, axis=1) ** 2).mean((1, 2)) + (jnp.diff(x, axis=2) ** 2).mean((1, 2))


def rows_only(x):
    return (jnp.diff(x, axis=1) ** 2).mean((1, 2))


def blur(x):
    return x + jnp.roll(x, 1, 1) + jnp.roll(x, -1, 1) + jnp.roll(x, 1, 2) + jnp.roll(x, -1, 2)


@pytest.mark.parametrize("group", [C4, D4], ids=lambda group: group.name)
def test_symmetric_nets_pass(group, key):
    invariant = check_equivariance(edges, group, input=(4, 4), channels=2, key=key)
    assert invariant and invariant.passed and invariant.max_error < 1e-5 and invariant.reason == ""
    grid = representations.image(group, (4, 4))
    assert check_equivariance(blur, group, input=grid, output=grid, key=key)


def test_broken_nets_raise_with_the_numbers(key):
    with pytest.raises(
        GroupActionError, match=r"the net is not equivariant under C4: the relative error is 0.\d+ at element [13]"
    ):
        check_equivariance(rows_only, C4, input=(4, 4), key=key)
    found = check_equivariance(rows_only, C4, input=(4, 4), key=key, raise_if_broken=False)
    assert not found and found.max_error > 0.05 and found.worst_element in (1, 3) and "padding" in found.reason
    # half a turn leaves it invariant, and a wide tolerance lets everything pass
    assert check_equivariance(rows_only, C2, input=(4, 4), key=key)
    assert check_equivariance(rows_only, C4, input=(4, 4), key=key, tolerance=100.0)
    # an equivariant net is not an invariant one
    assert not check_equivariance(blur, C4, input=(4, 4), key=key, raise_if_broken=False)


def test_the_error_is_relative(key):
    for scale in (1e-6, 1e6):
        assert check_equivariance(lambda x, scale=scale: scale * edges(x), C4, input=(4, 4), key=key)
        assert not check_equivariance(
            lambda x, scale=scale: scale * rows_only(x), C4, input=(4, 4), key=key, raise_if_broken=False
        )


def test_a_layer_breaks_where_its_weights_stay(key):
    layer = Conv(1, 2, 3)
    weights = {
        site.name: jnp.asarray(np.random.default_rng(0).standard_normal(site.shape), jnp.float32) for site in layer.sites()
    }
    grid = representations.image(C4, (4, 4))
    assert not check_equivariance(lambda x: layer.apply(weights, x), C4, input=grid, output=grid, key=key, raise_if_broken=False)
    assert check_equivariance(layer, C4, input=grid, key=key)


def test_nets_that_are_not_finite_are_broken(key):
    found = check_equivariance(lambda x: edges(x) / 0, C4, input=(4, 4), key=key, raise_if_broken=False)
    assert not found and math.isnan(found.max_error)


def test_sequences_vectors_and_keys_of_both_kinds(key):
    shifts = representations.sequence(C4, 8)
    assert check_equivariance(lambda x: x - jnp.roll(x, 2, 1), C4, input=shifts, output=shifts, channels=3, key=key)
    assert check_equivariance(lambda x: jnp.sort(x, axis=1), C4, input=shifts, key=jax.random.PRNGKey(0))
    other = check_equivariance(rows_only, C4, input=(4, 4), key=jax.random.key(1), raise_if_broken=False)
    assert other.max_error != check_equivariance(rows_only, C4, input=(4, 4), key=key, raise_if_broken=False).max_error


@pytest.mark.parametrize(
    ("net", "options", "error", "message"),
    [
        (
            edges,
            {"input": representations.image(D4, (4, 4))},
            GroupActionError,
            "input= must be a representation of C4, got one of D4",
        ),
        (edges, {"channels": representations.regular(D4)}, GroupActionError, "channels= must be a representation of C4"),
        (edges, {"input": (4, 5)}, GroupActionError, "must be square"),
        (edges, {"hidden": []}, OptionError, "hidden= is for layers"),
        (edges, {"output": representations.regular(C4)}, ShapeError, "build the representation for the shape of your data"),
        (lambda x: x.sum(), {}, ShapeError, "a net maps a batch to a batch"),
        (Flatten(), {"output": representations.regular(C4)}, OptionError, "no layer has weights"),
        (Conv(1, 4), {"hidden": [representations.regular(C4)]}, OptionError, r"so 0 for the output widths \(4,\), got 1"),
    ],
)
def test_checker_errors(net, options, error, message, key):
    with pytest.raises(error, match=message):
        check_equivariance(net, C4, **({"input": (4, 4)} | options), key=key)
