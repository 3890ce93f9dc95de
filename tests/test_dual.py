"""The dual form: kernels of all Fisher rows against dense matrices, drawn columns against their chances, and learning by it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import layers, tap
from bayes_sym.errors import CurvatureError, OptionError
from bayes_sym.inference import Laplace, Problem, effective_parameters, fit, log_evidence
from bayes_sym.inference.curvature.dual import heavy_columns


pytestmark = pytest.mark.usefixtures("x64")

CONV = layers.Conv(1, 2, bias=False)
X = 1.5 * np.sin(1.7 * np.arange(81) + 0.1).reshape(9, 3, 3, 1)
Y = np.arange(9, dtype=np.int32) % 3
SHAPES = {"conv": (3, 3, 1, 2), "bias": (2,), "tied": (2, 2), "head": (3, 2), "gain": ()}
WEIGHTS = {
    name: 0.8 * np.sin((1.1 + i) * np.arange(1, np.prod(shape, dtype=int) + 1)).reshape(shape)
    for i, (name, shape) in enumerate(SHAPES.items())
}


def model(x, y=None):
    """A convolution, a weight that is used twice, a bias, a head with one position, a site without a tap; one strength."""
    strength = numpyro.sample("strength", dist.LogNormal(0.0, 1.0))
    conv, bias, tied, head, gain = (
        numpyro.sample(name, dist.Normal(0.1 * i, strength * (1 + i)).expand(shape).to_event(len(shape)))
        for i, (name, shape) in enumerate(SHAPES.items())
    )
    patches = CONV.patches(x)
    h = jnp.tanh(tap("conv", patches @ conv.reshape(9, 2) + bias[None, None, None], inputs=patches, weight="conv", bias="bias"))
    h = h.mean(axis=(1, 2))
    h = jnp.tanh(tap("tied.0", h @ tied, inputs=h, weight="tied"))
    h = tap("tied.1", h @ tied, inputs=h, weight="tied")
    logits = tap("head", h @ head.T, inputs=h, weight="head") * jnp.exp(gain)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


@functools.lru_cache
def found(curvature, strength=0.7, **options):
    return log_evidence(
        Problem(model),
        WEIGHTS | {"strength": strength},
        X,
        Y,
        curvature=curvature,
        optimise=("strength",),
        correction="newton",
        **options,
    )


def test_all_rows_give_the_exact_evidence_and_its_newton_term():
    exact, dual = found("full"), found("dual")
    assert float(exact.newton_decrement) > 1
    for part in ("log_likelihood", "scatter", "log_det_ratio", "newton_decrement", "value"):
        assert float(getattr(dual, part)) == pytest.approx(float(getattr(exact, part)), rel=1e-9)
    assert dual.kind == "laplace-dual"


def test_effective_parameters_of_sites_are_those_of_the_dense_matrix():
    params = WEIGHTS | {"strength": 0.7}
    dense, dual = (
        effective_parameters(Problem(model), params, X, Y, curvature=c, optimise=("strength",)) for c in ("full", "dual")
    )
    assert set(dual) == set(SHAPES)
    for name in SHAPES:
        assert float(dual[name]) == pytest.approx(float(dense[name]), rel=1e-8, abs=1e-10)


def test_drawn_columns_have_no_bias_to_first_order():
    def trace(key):
        options = {} if key is None else {"probes": 9, "key": key}
        params = WEIGHTS | {"strength": 1e-4}
        return log_evidence(Problem(model), params, X, Y, curvature="dual", optimise=("strength",), **options).log_det_ratio * 1e8

    draws = jax.jit(jax.vmap(trace))(jax.random.split(jax.random.key(0), 1000))  # of the 27 columns
    assert abs(draws.mean() - trace(None)) < 4 * draws.std() / 1000**0.5
    assert 0 < draws.std() < 0.5 * trace(None)


def test_heavy_columns_are_drawn_surely_and_light_ones_by_their_weight():
    weights = jnp.array([5.0, 0.0, 0.1, 0.2, 7.0, 0.3, 0.4])
    keys = jax.random.split(jax.random.key(1), 4000)
    index, scale = jax.vmap(lambda key: heavy_columns(key, weights, 4))(keys)
    assert np.all(np.diff(np.asarray(index), axis=1) > 0)  # nothing twice
    counts = np.bincount(np.asarray(index).reshape(-1), minlength=7) / 4000
    chances = np.array([1.0, 0.0, 0.2, 0.4, 1.0, 0.6, 0.8])  # c = 2 leaves two draws for the light ones
    assert np.all(np.abs(counts - chances) <= 4 * np.sqrt(chances * (1 - chances) / 4000) + 1e-12)
    expected = 1 / np.sqrt(chances[np.asarray(index)])
    assert np.allclose(np.asarray(scale), expected)


def test_fewer_columns_than_asked_for_are_all_taken_once():
    index, scale = heavy_columns(jax.random.key(0), jnp.array([0.0, 2.0, 0.0, 3.0]), 3)
    assert sorted(np.asarray(index)[np.asarray(scale) > 0]) == [1, 3]
    assert np.asarray(scale).tolist() == [1.0, 1.0, 0.0]


ROWS = np.sin(1.3 * np.arange(120) ** 1.1).reshape(40, 3)
TARGETS = ROWS @ np.array([0.4, -1.1, 0.3]) + 0.3 * np.sin(2.1 * np.arange(40))


def linear(x, y=None):
    strength = numpyro.sample("strength", dist.LogNormal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0.0, strength).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


@pytest.mark.parametrize("update", ["gradient", "mackay"])
def test_strengths_find_their_optimum_although_the_weights_have_not_been_trained(update):
    """With the Newton correction the evidence is that of the linear model whatever the weights: here they stand still."""
    scheme = Laplace(
        optax.sgd(0.0),
        optimise=("strength",),
        objective="dual",
        correction="newton",
        update=update,
        hyper_optimizer=optax.adam(0.05),
        refresh=1,
        burn_in=1,
        hyper_steps=20,
    )
    learned = fit(Problem(linear), scheme, jax.random.key(0), ROWS, TARGETS, num_steps=10, progress=False)
    strengths = np.exp(np.linspace(-2, 2, 20_001))
    values, vectors = np.linalg.eigh(ROWS @ ROWS.T)
    values, y = values.clip(0), vectors.T @ TARGETS
    variance = 0.09 + strengths[:, None] ** 2 * values
    evidence = -0.5 * (y**2 / variance + np.log(variance)).sum(axis=1)
    best = strengths[evidence.argmax()]
    assert float(jnp.exp(learned.state.hyper["strength"])) == pytest.approx(best, rel=2e-3)


def test_what_the_rows_see_of_the_scatter_leaves_out_what_they_do_not_determine():
    w, s = np.array([0.5, -2.0, 1.5]), 0.8
    rows = ROWS[:2] / 0.3  # two rows of three weights: one direction is not seen at all
    params = {"strength": s, "w": w}
    got = log_evidence(
        Problem(linear), params, ROWS[:2], TARGETS[:2], curvature="dual", optimise=("strength",), correction="seen"
    )
    values, vectors = np.linalg.eigh(s**2 * rows.T @ rows)
    seen = (values / (1 + values) * (vectors.T @ w / s) ** 2).sum()
    assert float(got.scatter) == pytest.approx(w @ w / s**2) and float(got.scatter) > seen + 0.1
    assert float(got.value) == pytest.approx(float(got.log_likelihood - got.log_det_ratio / 2) - seen / 2, rel=1e-10)
    with pytest.raises(OptionError, match="correction='seen' needs the rows of curvature='dual', got 'full'"):
        log_evidence(Problem(linear), params, ROWS, TARGETS, optimise=("strength",), correction="seen")


def test_refusals():
    with pytest.raises(CurvatureError, match="gives no posterior over the weights: use objective='dual'"):
        fit(Problem(linear), Laplace(curvature="dual"), jax.random.key(0), ROWS, TARGETS, num_steps=1, progress=False)
    many = jnp.zeros((40_000, 3))
    with pytest.raises(CurvatureError, match="of 40000 Fisher columns for 1 components .* pass probes="):
        log_evidence(
            Problem(linear), {"strength": 1.0, "w": jnp.zeros(3)}, many, many[:, 0], curvature="dual", optimise=("strength",)
        )
    with pytest.raises(OptionError, match="correction must be None, 'newton' or 'seen', got 'Newton'"):
        fit(Problem(linear), Laplace(correction="Newton"), jax.random.key(0), ROWS, TARGETS, num_steps=1, progress=False)
