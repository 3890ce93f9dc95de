"""The Laplace evidence against published numbers, closed forms, finite differences and dense matrices, in float64."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.handlers import mask, scale

from bayes_sym import groups, layers, representations, tap
from bayes_sym.errors import CurvatureError, OptionError, PriorError, TapError
from bayes_sym.inference import Problem, log_evidence
from bayes_sym.inference.blocks import Layout
from bayes_sym.inference.curvature.fisher import fisher_roots
from bayes_sym.inference.curvature.gram import Gram, Rows
from bayes_sym.inference.prior_parts import gaussian_part
from bayes_sym.priors import SoftEquivariantNormal


pytestmark = pytest.mark.usefixtures("x64")


def det(shape, a, b):
    """Numbers that anybody can rebuild."""
    return np.sin(a * np.arange(1, np.prod(shape) + 1) + b).reshape(shape)


def evaluate(problem, params, *data, **options):
    """The evidence, in one compiled program."""
    return jax.jit(lambda params, data: log_evidence(problem, params, *data, **options))(params, data)


# The reference net: 3 -> 8 -> 2, tanh, Gaussian noise. The weights of the reference are those with a = 1.3 for W1.

WEIGHTS = {
    "W1": 0.6 * det((8, 3), 1.3, 0.1),
    "b1": 0.2 * det((8,), 0.7, 0.4),
    "W2": 0.5 * det((2, 8), 2.1, 0.3),
    "b2": 0.1 * det((2,), 0.9, 0.2),
}
X, Y = 1.5 * det((24, 3), 1.7, 0.05), det((24, 2), 2.3, 0.6)
PRECISIONS = {"scalar": np.full(4, 0.7), "layer": np.array([0.7, 1.3, 2.1, 0.4])}
LOG_LIKELIHOOD = -192.8156902413962
SCATTER = {"scalar": 4.550500200820268, "layer": 7.421362927823014}
# log-determinant ratio, evidence, its gradient in the log precisions, and in log sigma with its tolerance
REFERENCE = {
    ("full", "scalar"): (49.56118288880224, -219.87153178620744, [4.670960968912671], 329.84783276754416, 1e-8),
    ("full", "layer"): (
        44.74406628435832,
        -218.89840484748686,
        [1.4704670167122422, 1.0545741319331454, -0.6046783416596788, 0.9132611935539336],
        329.0440215578009,
        1e-8,
    ),
    ("kfac", "scalar"): (85.35140994209274, -237.7666453128527, [11.260668845234921], 343.02724852, 1e-6),
    ("kfac", "layer"): (
        75.57973101835397,
        -234.3162372144847,
        [4.484919876617618, 2.239357932988207, 1.144471427678436, 0.9926084776685201],
        341.09948899,
        1e-6,
    ),
    ("diag", "scalar"): (154.92657728360436, -272.5542289836085, [20.964535708018136], 362.4349822457551, 1e-8),
    ("diag", "layer"): (
        134.60830253497204,
        -263.83052297279374,
        [9.207113262944977, 3.3069797171190767, 5.522190807025632, 0.9926084776685201],
        361.434558086238,
        1e-8,
    ),
}


def mlp(x, y, precision, sigma):
    def gaussian(name, i, *shape):
        return numpyro.sample(name, dist.Normal(0, precision[i] ** -0.5).expand(shape).to_event(len(shape)))

    W1, b1, W2, b2 = gaussian("W1", 0, 8, 3), gaussian("b1", 1, 8), gaussian("W2", 2, 2, 8), gaussian("b2", 3, 2)
    hidden = jnp.tanh(tap("first", x @ W1.T + b1[None], inputs=x, weight="W1", bias="b1"))
    out = tap("second", hidden @ W2.T + b2[None], inputs=hidden, weight="W2", bias="b2")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(out, sigma).to_event(1), obs=y)


def mlp_in_out(x, y, precision, sigma):
    """The same net with every weight stored as (in, out)."""

    def gaussian(name, i, *shape):
        return numpyro.sample(name, dist.Normal(0, precision[i] ** -0.5).expand(shape).to_event(len(shape)))

    W1, b1, W2, b2 = gaussian("W1", 0, 3, 8), gaussian("b1", 1, 8), gaussian("W2", 2, 8, 2), gaussian("b2", 3, 2)
    hidden = jnp.tanh(tap("first", x @ W1 + b1[None], inputs=x, weight="W1", bias="b1"))
    out = tap("second", hidden @ W2 + b2[None], inputs=hidden, weight="W2", bias="b2")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(out, sigma).to_event(1), obs=y)


@functools.cache
def reference(curvature, y=None):
    """One program: (evidence, gradients) at (log precisions, log sigma, weights, inputs)."""
    y = Y if y is None else np.asarray(y, np.float32)

    def of(log_precision, log_sigma, weights, x):
        found = log_evidence(Problem(mlp), weights, x, y, jnp.exp(log_precision), jnp.exp(log_sigma), curvature=curvature)
        return found.value, found

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2, 3), has_aux=True))


@pytest.mark.parametrize(("curvature", "prior"), REFERENCE)
def test_the_reference_numbers(curvature, prior):
    log_det, value, by_precision, by_sigma, tolerance = REFERENCE[curvature, prior]
    (found, parts), gradients = reference(curvature)(np.log(PRECISIONS[prior]), np.log(0.5), WEIGHTS, X)
    assert float(parts.log_likelihood) == pytest.approx(LOG_LIKELIHOOD, rel=1e-8)
    assert float(parts.scatter) == pytest.approx(SCATTER[prior], rel=1e-8)
    assert float(parts.log_det_ratio) == pytest.approx(log_det, rel=1e-8)
    assert float(found) == pytest.approx(value, rel=1e-8)
    by_layer = np.asarray(gradients[0])
    assert np.allclose(by_layer.sum(keepdims=True) if prior == "scalar" else by_layer, by_precision, rtol=1e-8, atol=0)
    assert float(gradients[1]) == pytest.approx(by_sigma, rel=tolerance)
    assert (parts.kind, parts.untapped) == ("laplace-diag-bound" if curvature == "diag" else f"laplace-{curvature}", ())


@pytest.mark.parametrize("curvature", ["full", "kfac", "diag"])
def test_the_reference_numbers_in_float32(curvature):
    exact = reference(curvature)(np.log(PRECISIONS["layer"]), np.log(0.5), WEIGHTS, X)
    with jax.enable_x64(False):
        weights = {name: np.float32(value) for name, value in WEIGHTS.items()}
        y32 = tuple(map(tuple, Y))
        single = reference(curvature, y32)(
            np.float32(np.log(PRECISIONS["layer"])), np.float32(np.log(0.5)), weights, np.float32(X)
        )
        assert single[0][0].dtype == np.float32
    assert float(single[0][0]) == pytest.approx(float(exact[0][0]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(single[1]), jax.tree.leaves(exact[1]), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(np.asarray(b)).max()


@pytest.mark.parametrize("curvature", ["full", "kfac", "diag"])
@pytest.mark.parametrize("what", ["precision", "sigma", "weight", "input"])
def test_gradients_match_finite_differences(curvature, what):
    at = (np.log(PRECISIONS["layer"]), np.log(0.5), WEIGHTS, X)
    argument = ["precision", "sigma", "weight", "input"].index(what)
    index = {"precision": (1,), "sigma": (), "weight": (2, 1), "input": (5, 1)}[what]

    def value(step):
        moved = [np.array(a) if not isinstance(a, dict) else {k: v.copy() for k, v in a.items()} for a in at]
        array = moved[argument]["W1"] if what == "weight" else moved[argument]
        array[index] += step
        return float(reference(curvature)(*moved)[0][0])

    gradient = reference(curvature)(*at)[1][argument]
    exact = float((gradient["W1"] if what == "weight" else gradient)[index])
    h = 1e-3  # a five-point stencil: its error is O(h^4)
    found = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    assert abs(exact) > 1e-2
    assert found == pytest.approx(exact, rel=1e-6)


def test_weights_stored_either_way_round_have_one_evidence():
    turned = {name: value.T if value.ndim == 2 else value for name, value in WEIGHTS.items()}
    other = evaluate(Problem(mlp_in_out), turned, X, Y, PRECISIONS["layer"], 0.5, curvature="kfac")
    assert float(other.value) == pytest.approx(REFERENCE["kfac", "layer"][1], rel=1e-8)
    here = reference("kfac")(np.log(PRECISIONS["layer"]), np.log(0.5), WEIGHTS, X)[0][1]
    assert float(other.newton_decrement) == pytest.approx(float(here.newton_decrement), rel=1e-8)


@functools.cache
def log_dets(rows):
    """Log-determinant ratios of many nets at once: (curvature, net)."""

    def one(key):
        shapes = {name: value.shape for name, value in WEIGHTS.items()}
        flat = 2 * jax.random.normal(key, (50,))
        weights = Layout(tuple(shapes), tuple(shapes.values())).unflatten(flat)
        data = (X[:rows], Y[:rows], PRECISIONS["layer"], 0.5)
        ask = ("full", "block", "diag") if rows > 1 else ("block", "kfac")
        return jnp.stack([log_evidence(Problem(mlp), weights, *data, curvature=c).log_det_ratio for c in ask])

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(1), 20))).T


def test_coarser_curvatures_have_larger_log_determinants():
    full, block, diag = log_dets(24)
    assert (full < block).all() and (block < diag).all()


def test_kfac_is_exact_in_every_block_for_one_datum():
    block, kfac = log_dets(1)
    assert np.allclose(block, kfac, rtol=1e-10, atol=0)


# Bayesian linear regression, where the evidence is exact


BLR_X = det((20, 5), 1.7, 0.05)
BLR_Y = BLR_X @ det((5,), 0.9, 0.2) + 0.3 * det((20,), 2.9, 0.4)


def blr(x, y, precision, sigma):
    w = numpyro.sample("w", dist.Normal(0, precision**-0.5).expand([5]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


@functools.cache
def linear(correction):
    def of(log_precision, log_sigma, w):
        data = (BLR_X, BLR_Y, jnp.exp(log_precision), jnp.exp(log_sigma))
        found = log_evidence(Problem(blr), {"w": w}, *data, correction=correction)
        return found.value, found.newton_decrement

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))


def linear_posterior(precision, sigma):
    covariance = np.linalg.inv(BLR_X.T @ BLR_X / sigma**2 + precision * np.eye(5))
    return covariance @ BLR_X.T @ BLR_Y / sigma**2, covariance


def linear_gradients(precision, sigma):
    """Of log p(y) in the log precision and log sigma, by hand."""
    mean, covariance = linear_posterior(precision, sigma)
    effective = 5 - precision * np.trace(covariance)
    residual = BLR_Y - BLR_X @ mean
    return (effective - precision * mean @ mean) / 2, residual @ residual / sigma**2 - 20 + effective


def test_linear_regression_is_exact_from_any_point_with_the_newton_term():
    for w in (np.zeros(5), det((5,), 3.1, 0.0), np.full(5, 3.0)):
        (value, _), _ = linear("newton")(np.log(0.7), 0.0, w)
        assert float(value) == pytest.approx(-22.56030089774405, rel=1e-10)
        (value, _), gradients = linear("newton")(np.log(0.7), np.log(0.3), w)
        assert float(value) == pytest.approx(-4.988714207307016, rel=1e-10)
        assert np.allclose(gradients, linear_gradients(0.7, 0.3), rtol=1e-10, atol=0)
        assert np.allclose(gradients, [0.8089359955221197, -8.94875389034766], rtol=2e-9, atol=0)


@pytest.mark.parametrize(("sigma", "expected"), [(1.0, -22.56030089774405), (0.3, -4.988714207307016)])
def test_linear_regression_is_exact_at_the_optimum_without_it(sigma, expected):
    mean, _ = linear_posterior(0.7, sigma)
    (value, decrement), _ = linear(None)(np.log(0.7), np.log(sigma), mean)
    assert float(value) == pytest.approx(expected, rel=1e-10)
    assert abs(float(decrement)) < 1e-20
    (elsewhere, decrement), _ = linear(None)(np.log(0.7), np.log(sigma), mean + 0.1)
    assert float(elsewhere + decrement / 2) == pytest.approx(expected, rel=1e-10)
    assert float(elsewhere) < expected - 0.01


def test_the_optimum_of_the_evidence_satisfies_mackays_identity():
    precision, sigma = 3.7256573493632015, 0.2127958164061566
    mean, covariance = linear_posterior(precision, sigma)
    (value, _), gradients = linear(None)(np.log(precision), np.log(sigma), mean)
    assert float(value) == pytest.approx(-2.4223501346167353, rel=1e-10)
    assert np.abs(gradients).max() < 1e-6
    effective = 5 - precision * np.trace(covariance)
    assert effective == pytest.approx(1.98620965, abs=2e-7)
    assert effective == pytest.approx(precision * mean @ mean, abs=2e-7)
    log_z = scipy.stats.multivariate_normal(np.zeros(20), BLR_X @ BLR_X.T / precision + sigma**2 * np.eye(20)).logpdf(BLR_Y)
    assert float(value) == pytest.approx(log_z, rel=1e-10)


# Kronecker factors with shared positions, by hand


CONV = layers.Conv(1, 2, bias=False)


def pooled(x, y):
    w = numpyro.sample("w", dist.Normal(0, 0.7).expand([3, 3, 1, 2]).to_event(4))
    patches = CONV.patches(x)
    z = tap("conv", patches @ w.reshape(9, 2), inputs=patches, weight="w")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(z.mean(axis=(1, 2)), 0.5).to_event(1), obs=y)


def test_kronecker_factors_of_a_convolution_expand_and_reduce():
    x, y = det((7, 4, 4, 1), 1.7, 0.05), det((7, 2), 2.3, 0.6)
    w = det((3, 3, 1, 2), 1.1, 0.2)
    found = {
        name: float(evaluate(Problem(pooled), {"w": w}, x, y, curvature=name).log_det_ratio)
        for name in ("full", "kfac", "kfac_reduce")
    }
    padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
    patches = np.stack([padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)], axis=-1).reshape(7, 16, 9)
    # expand: a per position, and every position has 1/(16 sigma) of the gradient of the mean; reduce: the mean patch
    expand = np.einsum("nra,nrb->ab", patches, patches) / (7 * 16), 7 * 16 / (16 * 0.5) ** 2
    mean = patches.mean(axis=1)
    reduce = mean.T @ mean / 7, 7 / 0.5**2
    for name, (a, b) in {"kfac": expand, "kfac_reduce": reduce}.items():
        assert found[name] == pytest.approx(2 * np.log1p(0.7**2 * b * np.linalg.eigvalsh(a)).sum(), rel=1e-9)
    assert found["kfac_reduce"] == pytest.approx(found["full"], rel=1e-9)
    assert found["kfac"] > found["full"] + 0.1


# A convolutional classifier against its dense Jacobian


NET = layers.Sequential((layers.Conv(1, 2), layers.Activation("tanh"), layers.Pool(), layers.Dense(2, 3)))


def classifier(x, y=None):
    net = layers.random_module("net", NET)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


def classifier_case(rows):
    x, y = det((rows, 4, 4, 1), 1.7, 0.05), np.arange(rows) % 3
    weights = {f"net.{s.name}": 0.8 * det(s.shape, 1.1 + i, 0.2) for i, s in enumerate(NET.sites())}
    return weights, x, y


@functools.cache
def brute_force(rows):
    """(log likelihood, scatter, log-determinant ratio, the same of the diagonal), from the Jacobian of the logits."""
    weights, x, y = classifier_case(rows)
    layout = Layout.of(weights)
    flat = np.asarray(layout.flatten(weights))

    def logits(flat):
        return NET.apply({name.removeprefix("net."): w for name, w in layout.unflatten(flat).items()}, x)

    jacobian, out = jax.jit(lambda flat: (jax.jacrev(logits)(flat), logits(flat)))(flat)
    p = np.asarray(jax.nn.softmax(out))
    fisher = np.eye(3)[None] * p[:, :, None] - p[:, :, None] * p[:, None]
    G = np.einsum("nkp,nkl,nlq->pq", jacobian, fisher, jacobian)
    precision = np.concatenate([np.full(np.prod(s.shape), float(s.fan_in)) for s in NET.sites()])
    log_det = np.linalg.slogdet(G + np.diag(precision))[1] - np.log(precision).sum()
    diagonal = np.log1p(np.diagonal(G) / precision).sum()
    return np.log(p[np.arange(rows), y]).sum(), (precision * flat**2).sum(), log_det, diagonal


@pytest.mark.parametrize("rows", [4, 13], ids=["fewer rows than weights", "more"])
def test_full_evidence_matches_the_dense_jacobian(rows):
    weights, *data = classifier_case(rows)
    found = evaluate(Problem(classifier), weights, *data)
    *expected, _ = brute_force(rows)
    assert np.allclose([found.log_likelihood, found.scatter, found.log_det_ratio], expected, rtol=1e-9, atol=0)
    assert float(found.value) == pytest.approx(expected[0] - expected[1] / 2 - expected[2] / 2, rel=1e-9)


def test_the_dual_form_equals_the_primal_form():
    rows = det((3, 6), 1.7, 0.3)
    layout = Layout(("w",), ((6,),))
    part = gaussian_part(dist.Normal(0.0, np.linspace(0.2, 2.0, 6)), (6,))
    h = det((6,), 2.2, 0.1)

    def numbers(piece):
        block = piece.posterior(part, h)
        return piece.log_det_ratio(part), piece.decrement(part, h), block.root @ block.root.T

    dual, primal = jax.jit(lambda rows: (numbers(Rows(layout, rows)), numbers(Gram(layout, rows.T @ rows))))(rows)
    precision = rows.T @ rows + np.diag(np.linspace(0.2, 2.0, 6) ** -2)
    log_det = np.linalg.slogdet(precision)[1] + 2 * np.log(np.linspace(0.2, 2.0, 6)).sum()
    for found in (dual, primal):
        assert float(found[0]) == pytest.approx(log_det, rel=1e-10)
        assert float(found[1]) == pytest.approx(h @ np.linalg.solve(precision, h), rel=1e-10)
        assert np.allclose(found[2], np.linalg.inv(precision), rtol=1e-9, atol=1e-12)


# Likelihoods


LX, LW = det((6, 3), 1.7, 0.05), det((3, 4), 1.2, 0.3)


def _categorical_given_probs(f):
    return dist.Categorical(probs=jax.nn.softmax(f))


LIKELIHOODS = {
    # name: (outputs, the same likelihood in one or two parametrisations, observations, Fisher matrix of one row)
    "normal": (2, [lambda f: dist.Normal(f, 0.5).to_event(1)], det((6, 2), 2.3, 0.6), lambda f: np.eye(2) / 0.25),
    "poisson": (1, [lambda f: dist.Poisson(jnp.exp(f[:, 0]))], np.array([0, 2, 1, 4, 0, 1]), lambda f: np.diag(np.exp(f))),
    "bernoulli": (
        2,
        [lambda f: dist.Bernoulli(logits=f).to_event(1), lambda f: dist.Bernoulli(probs=jax.nn.sigmoid(f)).to_event(1)],
        np.array([[0, 1], [1, 1], [0, 0], [1, 0], [1, 1], [0, 1]]),
        lambda f: np.diag(1 / (2 + np.exp(f) + np.exp(-f))),
    ),
    "categorical": (
        4,
        [lambda f: dist.Categorical(logits=f), _categorical_given_probs],
        np.array([0, 1, 2, 3, 1, 0]),
        lambda f: np.diag(np.exp(f) / np.exp(f).sum()) - np.outer(np.exp(f), np.exp(f)) / np.exp(f).sum() ** 2,
    ),
}


def linear_model(likelihood, outputs):
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0, 0.9).expand([3, outputs]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", likelihood(x @ w), obs=y)

    return model


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_evidence_of_every_likelihood_in_every_parametrisation(name):
    outputs, ways, y, fisher = LIKELIHOODS[name]
    w = LW[:, :outputs]
    G = np.zeros((3 * outputs, 3 * outputs))
    for x in LX:
        G += np.kron(np.outer(x, x), fisher(x @ w))
    log_det = np.linalg.slogdet(np.eye(len(G)) + 0.81 * G)[1]
    for likelihood in ways:
        found = evaluate(Problem(linear_model(likelihood, outputs)), {"w": w}, LX, y)
        assert float(found.log_det_ratio) == pytest.approx(log_det, rel=1e-9)
        assert float(found.log_likelihood) == pytest.approx(float(likelihood(LX @ w).log_prob(y).sum()), rel=1e-9)


def weighted(x, y, weight):
    w = numpyro.sample("w", dist.Normal(0, 0.9).expand([3, 4]).to_event(2))
    handler = mask(mask=weight) if weight.dtype == bool else scale(scale=weight)
    with numpyro.plate("data", x.shape[0]), handler:
        numpyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


@pytest.mark.parametrize("weights", [np.array(2.5), np.linspace(0.5, 3, 6), np.arange(6) % 3 > 0], ids=["one", "by row", "mask"])
def test_scaled_and_masked_rows_count_by_their_weight(weights):
    *_, y, fisher = LIKELIHOODS["categorical"]
    each = np.broadcast_to(weights, 6)
    G = sum(weight * np.kron(np.outer(x, x), fisher(x @ LW)) for weight, x in zip(each, LX, strict=True))
    found = evaluate(Problem(weighted), {"w": LW}, LX, y, weights)
    assert float(found.log_det_ratio) == pytest.approx(np.linalg.slogdet(np.eye(12) + 0.81 * G)[1], rel=1e-9)


def cross_entropies():
    """Distribution -> (its parameters at two rows, -E log p(y | parameter) under the parameter at which it stands)."""
    theta = np.array([[0.3, -0.7, 1.1], [-1.2, 0.4, 0.2]])
    p, rate, sd = np.exp(theta) / np.exp(theta).sum(1, keepdims=True), np.exp(theta), 0.5 + theta**2

    def bernoulli(q, t):
        return -(q * jax.nn.log_sigmoid(t) + (1 - q) * jax.nn.log_sigmoid(-t)).sum()

    q = 1 / (1 + np.exp(-theta))
    return {
        "Normal.loc": (dist.Normal(theta, sd), "loc", theta, lambda n, t: ((t - theta[n]) ** 2 / (2 * sd[n] ** 2)).sum()),
        "Normal.scale": (
            dist.Normal(theta, sd),
            "scale",
            sd,
            lambda n, t: (jnp.log(t) + sd[n] ** 2 / (2 * t**2)).sum(),
        ),
        "Poisson": (dist.Poisson(rate), "rate", rate, lambda n, t: (t - rate[n] * jnp.log(t)).sum()),
        "BernoulliLogits": (dist.Bernoulli(logits=theta), "logits", theta, lambda n, t: bernoulli(q[n], t)),
        "BernoulliProbs": (
            dist.Bernoulli(probs=q),
            "probs",
            q,
            lambda n, t: -(q[n] * jnp.log(t) + (1 - q[n]) * jnp.log(1 - t)).sum(),
        ),
        "CategoricalLogits": (
            dist.Categorical(logits=theta),
            "logits",
            theta,
            lambda n, t: -(p[n] * jax.nn.log_softmax(t)).sum(),
        ),
        "CategoricalProbs": (dist.Categorical(probs=p), "probs", p, lambda n, t: -(p[n] * jnp.log(t)).sum()),
    }


@pytest.mark.parametrize(
    "name",
    ["Normal.loc", "Normal.scale", "Poisson", "BernoulliLogits", "BernoulliProbs", "CategoricalLogits", "CategoricalProbs"],
)
def test_fisher_roots_square_to_the_hessian_of_the_cross_entropy(name):
    fn, parameter, at, cross_entropy = cross_entropies()[name]
    fn = fn if name.startswith("Categorical") else fn.to_event(1)

    @jax.jit
    def both(at):
        hessians = jnp.stack([jax.hessian(functools.partial(cross_entropy, n))(at[n]) for n in range(2)])
        return fisher_roots({"fn": fn, "scale": None})[parameter].columns, hessians

    columns, hessians = both(at)
    assert np.allclose(np.einsum("kni,knj->nij", columns, columns), hessians, atol=1e-8, rtol=1e-8)


def test_saturated_logits_keep_their_curvature_in_float32():
    with jax.enable_x64(False):
        fn = dist.Bernoulli(logits=jnp.array([[-60.0], [60.0]])).to_event(1)
        columns = np.asarray(fisher_roots({"fn": fn, "scale": None})["logits"].columns)
    assert np.allclose(columns, np.exp(-30.0), rtol=1e-4)


# Priors


C4 = groups.cyclic(4)


def soft_model(prior):
    def model(x, y):
        w = numpyro.sample("w", prior)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, 0.4), obs=y)

    return model


def test_the_soft_equivariant_prior_is_priced_like_the_dense_gaussian():
    rep = representations.regular(C4)
    covariance = 1.7 * rep.projector + 0.2 * (np.eye(4) - rep.projector)
    x, y = det((9, 4), 1.7, 0.3), det((9,), 2.3, 0.6)
    log_z = scipy.stats.multivariate_normal(np.zeros(9), x @ covariance @ x.T + 0.16 * np.eye(9)).logpdf(y)
    for prior in (SoftEquivariantNormal(rep, 1.7, 0.2), dist.MultivariateNormal(np.zeros(4), covariance)):
        found = evaluate(Problem(soft_model(prior)), {"w": np.ones(4)}, x, y, correction="newton")
        assert float(found.scatter) == pytest.approx(4 / 1.7, rel=1e-9)
        assert float(found.value) == pytest.approx(log_z, rel=1e-9)


def hierarchical(x, y):
    s = numpyro.sample("s", dist.LogNormal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0, s).expand([5]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


def test_held_strengths_are_conditioned_on_and_others_integrated_with_their_hessian():
    at = {"s": np.array(1.3), "w": 0.5 * det((5,), 0.9, 0.2)}
    held = evaluate(Problem(hierarchical), at, BLR_X, BLR_Y, optimise=("s",), correction="newton")
    assert float(held.value) == pytest.approx(float(linear("newton")(-2 * np.log(1.3), np.log(0.3), np.zeros(5))[0][0]), rel=1e-9)

    def log_prior(z):  # of (log s, w), by hand
        w = z[1:]
        return -0.5 * z[0] ** 2 - 0.5 * (w @ w) * jnp.exp(-2 * z[0]) - 5 * z[0] - 3 * jnp.log(2 * jnp.pi)

    z = np.concatenate([[np.log(1.3)], at["w"]])
    precision = -np.asarray(jax.jit(jax.hessian(log_prior))(z))
    precision[1:, 1:] += BLR_X.T @ BLR_X / 0.09
    log_likelihood = scipy.stats.norm(BLR_X @ at["w"], 0.3).logpdf(BLR_Y).sum()
    expected = log_likelihood + log_prior(z) + 3 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2
    assert float(evaluate(Problem(hierarchical), at, BLR_X, BLR_Y).value) == pytest.approx(float(expected), rel=1e-9)


# What a curvature cannot see, and what it refuses


def untapped(x, y):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    v = numpyro.sample("v", dist.Normal(0, 1).expand([2]).to_event(1))
    z = tap("z", x @ w, inputs=x, weight="w")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(z @ v, 0.5), obs=y)


def test_sites_without_a_tap_are_listed_and_priced_by_dense_blocks():
    at = {"w": LW[:, :2], "v": np.array([0.4, -1.1])}
    y = det((6,), 2.3, 0.6)
    kfac = evaluate(Problem(untapped), at, LX, y, curvature="kfac")
    assert kfac.untapped == ("v",)
    hidden = LX @ at["w"]
    of_v = np.linalg.slogdet(np.eye(2) + hidden.T @ hidden / 0.25)[1]
    of_w = np.linalg.slogdet(np.eye(6) + np.kron(LX.T @ LX, np.outer(at["v"], at["v"])) / 0.25)[1]
    # B is the same for every row here, so the Kronecker product is exact
    assert float(kfac.log_det_ratio) == pytest.approx(of_v + of_w, rel=1e-9)


def _tapped(make):
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", make(w, x), obs=y)

    return model


def _lie(w, x):
    return dist.Normal(tap("z", x @ w, inputs=x[:, :2], weight="w"), 0.5).to_event(1)


def _split(x, y):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2, 6]).to_event(2))  # neither (3, 4) nor (4, 3)
    z = tap("z", x @ w.reshape(3, 4), inputs=x, weight="w")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


def _by_entry(x, y):
    w = numpyro.sample("w", dist.Normal(0, jnp.arange(1.0, 7.0).reshape(3, 2)).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(tap("z", x @ w, inputs=x, weight="w"), 0.5).to_event(1), obs=y)


def _soft_matrix(x, y):
    rep = (representations.trivial(groups.cyclic(2), 3) * representations.regular(groups.cyclic(2))).reshape(3, 2)
    w = numpyro.sample("w", SoftEquivariantNormal(rep, 1.0, 0.1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(tap("z", x @ w, inputs=x, weight="w"), 0.5).to_event(1), obs=y)


W, T = {"w": LW[:, :2]}, det((6, 2), 2.3, 0.6)


@pytest.mark.parametrize(
    ("model", "params", "y", "options", "error", "message"),
    [
        (_by_entry, W, T, {"curvature": "magic"}, CurvatureError, "unknown curvature 'magic': choose one of full, block"),
        (_by_entry, W, T, {"correction": "cubic"}, OptionError, "correction must be None, 'newton' or 'seen', got 'cubic'"),
        (_by_entry, {}, T, {}, OptionError, r"params lack values for the sites \['w'\]"),
        (_by_entry, W, T, {"optimise": ("w",)}, OptionError, "holds every site"),
        (_by_entry, W, T, {"curvature": "kfac"}, PriorError, r"one scalar variance per site, and the prior of \['w'\] is not"),
        (_soft_matrix, W, T, {"curvature": "kfac"}, PriorError, "one scalar variance per site"),
        (_by_entry, W, T, {"probes": 0}, OptionError, "probes must be 'exact' or a number"),
        (_by_entry, W, T, {"probes": 2}, OptionError, "probes=2 draws random signs: pass key"),
        (_by_entry, W, T, {"curvature": "ntk", "correction": "newton"}, OptionError, "needs a curvature of the weights"),
        (_by_entry, W, T, {"block_size": 0}, OptionError, "must be at least 1"),
        (_by_entry, W, T, {"num_rows": 5}, OptionError, "num_rows=5 is the size of the whole data, but 6 rows were given"),
        (
            _tapped(lambda w, x: dist.Uniform(-50.0, 50 + jnp.exp(x @ w)).to_event(1)),
            W,
            T,
            {},
            CurvatureError,
            "no Fisher root for Uniform",
        ),
        (_tapped(_lie), W, T, {"curvature": "kfac"}, TapError, "has 2 inputs and 2 outputs, but the site has shape"),
        (_split, {"w": LW.reshape(2, 6)}, det((6, 4), 1.1, 0.0), {"curvature": "kfac"}, TapError, r"shape \(2, 6\)"),
    ],
)
def test_errors(model, params, y, options, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda params: log_evidence(Problem(model), params, LX, y, **options), params)


def test_a_tap_whose_bias_is_not_added_per_output_is_refused():
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
        b = numpyro.sample("b", dist.Normal(0, 1))
        with numpyro.plate("data", x.shape[0]):
            f = tap("z", x @ w + b, inputs=x, weight="w", bias="b")
            numpyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)

    with pytest.raises(TapError, match="bias 'b'"):
        jax.eval_shape(lambda w: log_evidence(Problem(model), {"w": w, "b": 0.1}, LX, T, curvature="kfac"), W["w"])


def test_an_indefinite_prior_hessian_is_refused_by_name():
    def model(x, y):
        w = numpyro.sample("w", dist.Cauchy(0.0, 0.1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x[:, 0] * w, 1e3), obs=y)

    with pytest.raises(CurvatureError, match="the Hessian of a prior is indefinite"):
        log_evidence(Problem(model), {"w": 5.0}, LX, T[:, 0])


def test_many_tapped_layers_do_not_hang_the_compiler_or_the_runtime():
    # about twelve independent batched eigendecompositions in one program hang some versions of XLA on few cores
    script = """
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
from bayes_sym import layers
from bayes_sym.inference import Problem, log_evidence

net = layers.Sequential([layers.Dense(4, 4, bias=False) for _ in range(8)])

def model(x, y, strength):
    f = layers.random_module("net", net, prior=dist.Normal(0.0, strength))(x)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)

x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
weights = {f"net.{site.name}": jnp.eye(4) for site in net.sites()}
of = lambda s: log_evidence(Problem(model), weights, x, x, s, curvature="kfac").value
print(jax.jit(jax.vmap(jax.value_and_grad(of)))(jnp.array([0.5, 1.0, 2.0]))[1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 3
