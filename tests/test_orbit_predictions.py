"""The defect of a posterior in blocks: against the estimators on stored predictions, closed forms, and its bound on memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import SampledRotations, defect_sweep, equivariance_error_from_draws
from bayes_sym.errors import DataError, GroupActionError, OptionError, ShapeError
from bayes_sym.inference import MAP, Laplace, Problem, Variational, fit, footprint, orbit_predictions, predict
from bayes_sym.inference.footprint import block_sizes, numbers_per_row
from bayes_sym.inference.orbit_predictions import posterior_equivariance
from bayes_sym.inference.predict import Drawn, blocks_of


C4 = groups.cyclic(4)
IMAGE = representations.image(C4, (4, 4))
TURN = representations.matrix(
    C4, [np.round([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in np.pi / 2 * np.arange(4)]
)


def classifier(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([16, 3]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=jnp.tanh(x.reshape(x.shape[0], -1)) @ w), obs=y)


def vectors(x, y=None):
    """Plane vectors from plane vectors: equivariant if w commutes with turns."""
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2, 2]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.3).to_event(1), obs=y)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 4, 4, 1)).astype(np.float32)
Y = RNG.integers(0, 3, 11)
PLANE = RNG.normal(size=(11, 2)).astype(np.float32)
KEY = jax.random.key(3)
DRAWS = {"w": RNG.normal(size=(9, 16, 3)).astype(np.float32)}
MATRICES = {"w": RNG.normal(size=(9, 2, 2)).astype(np.float32)}


def stored(problem, fitted, x, action, **options):
    """The predictions on all orbits, by `predict`."""
    order = action.group.order
    orbit = np.concatenate([action.transform(g, jnp.asarray(x)) for g in range(order)])
    found = predict(problem, fitted, KEY, orbit, **options)
    return found.reshape(len(found), order, len(x), *found.shape[2:])


def same(found, expected):
    for name in ("predictive", "predictive_se", "member", "member_se", "emergence", "predictive_df", "member_df"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=2e-4, abs=1e-7), name
    for name in ("num_draws", "num_examples", "is_point_estimate"):
        assert getattr(found, name) == getattr(expected, name)


@pytest.mark.parametrize("blocks", [(32, None), (4, 3), (1, 1)])
def test_blocks_give_the_defect_of_stored_predictions(blocks):
    draw_batch, data_batch = blocks
    clusters = np.arange(11) // 2
    found = posterior_equivariance(
        Problem(classifier),
        DRAWS,
        KEY,
        X,
        IMAGE,
        draw_batch=draw_batch,
        data_batch=data_batch,
        sizes=(2, 4),
        clusters=clusters,
        progress=False,
    )
    expected = stored(Problem(classifier), DRAWS, X, IMAGE)
    same(found.error, equivariance_error_from_draws(expected, clusters=clusters))
    d = (expected - expected[:, :1]).astype(np.float64)
    np.testing.assert_allclose(found.member_of, (d**2).sum(axis=-1).mean(axis=2), rtol=1e-4, atol=1e-7)
    of_sum, of_each = (d.sum(axis=0) ** 2).sum(axis=-1), (d**2).sum(axis=(0, -1))
    np.testing.assert_allclose(found.predictive_of, ((of_sum - of_each) / 72).mean(axis=1), rtol=1e-4, atol=1e-7)
    sweep = defect_sweep(expected, (2, 4))
    assert found.sweep.sizes == (2, 4) and found.sweep.repeats == 2
    np.testing.assert_allclose(found.sweep.unbiased, sweep.unbiased, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.sweep.plug_in, sweep.plug_in, rtol=1e-4, atol=1e-6)


def test_outputs_that_turn_with_the_inputs():
    found = posterior_equivariance(Problem(vectors), MATRICES, KEY, PLANE, TURN, TURN, progress=False).error
    same(found, equivariance_error_from_draws(stored(Problem(vectors), MATRICES, PLANE, TURN), TURN))
    turns = {"w": np.stack([0.3 * np.eye(2) + s * np.array([[0, 1], [-1, 0]]) for s in range(5)]).astype(np.float32)}
    zero = posterior_equivariance(Problem(vectors), turns, KEY, PLANE, TURN, TURN, progress=False).error
    assert abs(zero.predictive) < 1e-12 and zero.member < 1e-12 < found.member


def test_the_defect_of_a_linear_model_has_a_closed_form():
    """f(x) = x w with w ~ N(m, s^2): d = (g x - x) w, so the defects are |m|^2 and |m|^2 + 2 s^2 times mean |g x - x|^2 / 2."""

    def line(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    mean, sd, draws = np.array([0.4, -0.1]), 0.5, 4000
    weights = {"w": (mean + sd * np.random.default_rng(1).standard_normal((draws, 2))).astype(np.float32)}
    sign = representations.matrix(groups.cyclic(2), [np.eye(2), -np.eye(2)])
    found = posterior_equivariance(Problem(line), weights, KEY, PLANE, sign, progress=False).error
    x = PLANE.astype(np.float64)
    predictive = ((2 * x @ mean) ** 2).mean() / 2  # the identity counts, with a difference of 0
    member = predictive + (4 * sd**2 * (x**2).sum(axis=1)).mean() / 2
    # over draws alone: the examples are the same here and there
    spread = np.var([((2 * x @ w) ** 2).mean() / 2 for w in weights["w"]]) / draws
    assert abs(found.member - member) < 4 * math.sqrt(spread)
    gradient = 4 * (x @ mean)[:, None] * x  # the influence of one draw on the defect at each example
    se = math.sqrt((sd**2 * gradient.mean(axis=0) @ gradient.mean(axis=0)) / draws)
    assert abs(found.predictive - predictive) < 4 * se
    assert found.emergence == pytest.approx(1 - predictive / member, abs=0.05)


@pytest.mark.parametrize("scheme", [Variational(), Laplace(), MAP()], ids=["variational", "laplace", "map"])
def test_every_posterior_is_drawn_from_as_predict_does(scheme):
    problem = Problem(classifier)
    done = fit(problem, scheme, jax.random.key(0), X, Y, num_steps=5, progress=False)
    found = posterior_equivariance(problem, done, KEY, X, IMAGE, num_draws=6, data_batch=4, progress=False).error
    count = 1 if isinstance(scheme, MAP) else 6
    expected = stored(problem, done, X, IMAGE, num_draws=count)
    same(found, equivariance_error_from_draws(expected))
    assert found.is_point_estimate == isinstance(scheme, MAP)


def test_sampled_rotations_report_their_floor():
    action = SampledRotations(8)
    found = posterior_equivariance(Problem(classifier), DRAWS, KEY, X, action, progress=False).error
    same(found, equivariance_error_from_draws(stored(Problem(classifier), DRAWS, X, action)))
    assert found.floor == pytest.approx(action.floor(jnp.asarray(X))) and found.floor > 0.01


def test_predictions_held_at_once_do_not_grow_with_the_examples(monkeypatch):
    held = []
    summed = orbit_predictions.sums_of_block

    def watched(*args):
        x = args[-2]
        held.append(len(DRAWS["w"]) * 4 * len(x) * 3)
        return summed(*args)

    monkeypatch.setattr(orbit_predictions, "sums_of_block", watched)
    monkeypatch.setattr(orbit_predictions, "_HELD", 250)
    problem = Problem(classifier)
    few = posterior_equivariance(problem, DRAWS, KEY, X[:4], IMAGE, progress=False).error
    assert held == [216, 216]  # 9 draws, 4 turns, 2 examples, 3 classes
    many = posterior_equivariance(problem, DRAWS, KEY, np.tile(X, (4, 1, 1, 1)), IMAGE, progress=False).error
    assert max(held) == 216 and len(held) == 2 + 22
    once = posterior_equivariance(problem, DRAWS, KEY, X, IMAGE, progress=False).error
    assert many.predictive == pytest.approx(once.predictive, rel=1e-4)
    assert many.num_examples == 44 and few.num_examples == 4


def test_the_bar_counts_examples(capsys):
    posterior_equivariance(Problem(classifier), DRAWS, KEY, X, IMAGE, data_batch=4)
    shown = capsys.readouterr()
    assert "examples on their orbits" in shown.err and "/11" in shown.err and shown.out == ""


def test_refusals():
    problem = Problem(classifier)

    def call(x=X, draws=DRAWS, action=IMAGE, output=None, problem=problem, **options):
        return posterior_equivariance(problem, draws, KEY, x, action, output, progress=False, **options)

    with pytest.raises(OptionError, match="must be at least 1, got 100, 0, None"):
        call(draw_batch=0)
    with pytest.raises(OptionError, match="two draws are too few for a jackknife"):
        call(draws={"w": DRAWS["w"][:2]})
    with pytest.raises(OptionError, match="9 draws do not hold 2 disjoint sets of 5"):
        call(sizes=(3, 5))
    with pytest.raises(GroupActionError, match="the action is of C4, but the output representation of C2"):
        call(output=representations.trivial(groups.cyclic(2), 3))
    with pytest.raises(ShapeError, match=r"acts on \(2,\), but the model predicts a mean of shape \(3,\)"):
        call(output=TURN)
    with pytest.raises(ShapeError, match=r"acts on arrays of shape \(batch, 4, 4, \.\.\.\)"):
        call(x=X[:, :3])
    with pytest.raises(DataError, match="predictions in the block of examples from 0 on are not finite"):
        call(draws={"w": np.full_like(DRAWS["w"], np.nan)})
    with pytest.raises(DataError, match="NaN or infinite"):
        call(x=np.full_like(X, np.nan))


# Sizes of blocks


def test_the_largest_array_per_row_is_read_off_the_program():
    weights = jnp.ones((5, 7))

    def fn(x):
        hidden = jax.jit(lambda x: jnp.tanh(x @ weights))(x)  # 7 per row
        wide = jax.lax.map(lambda row: jnp.outer(row, row), hidden)  # 49 per row
        return wide.sum(axis=(1, 2)) + (weights.reshape(-1) * 2).sum()  # 35 in all, however many rows

    assert numbers_per_row(fn, lambda count: jax.ShapeDtypeStruct((count, 5), jnp.float32)) == 49


@pytest.mark.parametrize(
    ("numbers", "draws", "rows", "expected"),
    [
        (1, 32, 1024, (32, 1024)),
        (2**21 // 320, 32, 1024, (32, 10)),
        (2**21 // 8, 32, 1024, (8, 1)),
        (2**23, 32, 1024, (1, 1)),
    ],
)
def test_blocks_keep_to_the_budget(numbers, draws, rows, expected):
    assert jax.default_backend() != "cpu" or block_sizes(numbers, draws, rows) == expected


def test_small_blocks_predict_the_same(monkeypatch):
    whole = predict(Problem(classifier), DRAWS, KEY, np.tile(X, (12, 1, 1, 1)))
    for budget in ("_ON_CPU", "_ELSEWHERE"):
        monkeypatch.setattr(footprint, budget, 16 * 40)
    drawn = Drawn(Problem(classifier), {"w": jnp.asarray(DRAWS["w"])}, None)
    assert blocks_of(drawn, None, (jnp.tile(X, (12, 1, 1, 1)),), 9, 130) == (9, 4)
    parts = predict(Problem(classifier), DRAWS, KEY, np.tile(X, (12, 1, 1, 1)), data_batch=130)
    assert whole.shape == (9, 132, 3)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
