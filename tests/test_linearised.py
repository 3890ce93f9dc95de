"""The linearised model: against closed forms, dense Jacobians, quadrature, and draws of the weights."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import Predictive

from bayes_sym import tap
from bayes_sym.errors import DataError, ModelError, OptionError
from bayes_sym.inference import Laplace, Linearised, Problem, fit, held_out_density, linearised, predict
from bayes_sym.inference.blocks import DenseBlock, DiagonalBlock, KroneckerBlock, Layout
from bayes_sym.inference.posterior import DrawsPosterior, GaussianPosterior, PointPosterior


KEY = jax.random.key(3)


def det(shape, a, b):
    return np.sin(a * np.arange(1.0, math.prod(shape) + 1) + b).reshape(shape)


def spd(n, seed):
    root = np.random.default_rng(seed).standard_normal((n, n))
    return root @ root.T / n + 0.1 * np.eye(n)


# Linear regression, where the model is its own linearisation


SIGMA, PRECISION = 0.6, 0.7
X, NEW = det((20, 5), 1.7, 0.05), det((7, 5), 0.8, 0.3)
Y = X @ det((5,), 0.9, 0.2) + 0.3 * det((20,), 2.9, 0.4)
COVARIANCE = np.linalg.inv(X.T @ X / SIGMA**2 + PRECISION * np.eye(5))
MEAN = COVARIANCE @ X.T @ Y / SIGMA**2


def regression(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, PRECISION**-0.5).expand([5]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)


REGRESSION = Problem(regression)


def gaussian(problem, blocks, point=None, rows=1):
    """A posterior made by hand."""
    blocks = jax.tree.map(jnp.asarray, tuple(blocks))
    return GaussianPosterior(problem, (jnp.asarray(NEW[:rows]),), blocks, point or {}, linearise=True)


def exact():
    return gaussian(REGRESSION, [DenseBlock(Layout(("w",), ((5,),)), MEAN, np.linalg.cholesky(COVARIANCE))])


@pytest.mark.parametrize("joint", [False, True])
def test_linear_regression_has_its_closed_form(joint, x64):
    found = linearised(REGRESSION, exact(), NEW, joint=joint)
    whole = NEW @ COVARIANCE @ NEW.T
    assert found.mean.shape == (7, 1) and np.allclose(found.mean[:, 0], NEW @ MEAN, rtol=0, atol=1e-12)
    expected = whole if joint else np.diagonal(whole).reshape(7, 1, 1)
    assert found.covariance.shape == expected.shape and np.allclose(found.covariance, expected, rtol=1e-10, atol=1e-14)
    assert np.allclose(found.variance, np.diagonal(whole), rtol=1e-10)
    assert np.allclose(found.predictive_variance, np.diagonal(whole) + SIGMA**2, rtol=1e-10)
    assert (found.shape, found.parameter, found.inverse_link, found.joint) == ((), "loc", "identity", joint)


# A classifier of two layers, against a dense Jacobian, for every curvature


def classifier(x, y=None):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    w = numpyro.sample("w", dist.Normal(0, scale).expand([3, 4]).to_event(2))
    b = numpyro.sample("b", dist.Normal(0, 1).expand([4]).to_event(1))
    v = numpyro.sample("v", dist.Normal(0, 1).expand([3, 4]).to_event(2))  # (outputs, inputs)
    h = jnp.tanh(tap("h", x @ w + b[None], inputs=x, weight="w", bias="b"))
    f = tap("f", h @ v.T, inputs=h, weight="v")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=f), obs=y)


CLASSIFIER = Problem(classifier)
CX = det((24, 3), 1.3, 0.1)
CY = np.argmax(CX @ det((3, 3), 0.7, 0.4) + 0.8 * det((24, 3), 2.3, 0.2), axis=1)
CNEW = det((7, 3), 0.9, 0.6)


def logits(z, x):
    return np.tanh(x @ z["w"] + z["b"]) @ z["v"].T


@functools.cache
def fitted():
    return fit(CLASSIFIER, Laplace(optimise=("scale",), burn_in=100), KEY, CX, CY, num_steps=40, progress=False)


@functools.cache
def classified(curvature):
    """The posteriors of all curvatures at the same weights."""
    scheme = Laplace(curvature=curvature, optimise=("scale",))
    return scheme.posterior(KEY, fitted().state, CLASSIFIER, (jnp.asarray(CX), jnp.asarray(CY)), None)


def dense_covariance(block):
    """Of the block's flat vector, from its definition."""
    if isinstance(block, DenseBlock):
        return np.asarray(block.root) @ np.asarray(block.root).T
    if isinstance(block, DiagonalBlock):
        return np.diag(np.asarray(block.scale) ** 2)
    inputs, outputs = block.mean.shape
    basis = np.kron(block.left, block.right)
    covariance = basis @ np.diag(np.asarray(block.scale).ravel() ** 2) @ basis.T
    order = np.arange(inputs * outputs).reshape(inputs, outputs).T.ravel() if block.transposed else slice(None)
    return covariance[order][:, order]


def dense_jacobian(z, names, x):
    """(rows * C, size) by hand: of tanh(x w + b) v' in w, b and v."""
    h = np.tanh(x @ z["w"] + z["b"])
    slope = 1 - h**2
    by_unit = np.einsum("kj,nj->nkj", z["v"], slope)
    parts = {
        "w": np.einsum("nkj,ni->nkij", by_unit, x).reshape(len(x) * 3, -1),
        "b": by_unit.reshape(len(x) * 3, -1),
        "v": np.einsum("kl,nj->nklj", np.eye(3), h).reshape(len(x) * 3, -1),
    }
    return np.concatenate([parts[name] for name in names], axis=1)


def dense_truth(posterior, x):
    z = {name: np.asarray(value, float) for name, value in posterior.mean.items()}
    joint = 0
    for block in posterior.blocks:
        jacobian = dense_jacobian(z, block.layout.names, x)
        joint = joint + jacobian @ dense_covariance(block) @ jacobian.T
    return logits(z, x), joint


@pytest.mark.parametrize("curvature", ["full", "block", "kfac", "diag"])
def test_every_curvature_matches_the_dense_jacobian(curvature, x64):
    posterior = classified(curvature)
    mean, joint = dense_truth(posterior, CNEW)
    found = linearised(CLASSIFIER, posterior, CNEW, joint=True)
    assert np.allclose(found.mean, mean, atol=1e-12) and np.allclose(found.covariance, joint, rtol=1e-9, atol=1e-12)


def test_rows_by_themselves_are_the_blocks_of_the_joint(x64):
    transposed = {block.layout.names: block.transposed for block in fitted().posterior.blocks if hasattr(block, "transposed")}
    assert transposed == {("v",): True, ("w",): False}
    _, joint = dense_truth(fitted().posterior, CNEW)
    whole, found = linearised(CLASSIFIER, fitted(), CNEW, joint=True), linearised(CLASSIFIER, fitted(), CNEW)
    assert np.allclose(found.covariance, np.einsum("ncnm->ncm", joint.reshape(7, 3, 7, 3)), rtol=1e-9, atol=1e-12)
    assert found.shape == (3,) and (whole.joint, found.joint) == (True, False)
    for method in (Linearised.probit, Linearised.bridge, lambda it: it.variance):
        assert np.allclose(method(whole), method(found), rtol=1e-8)


@pytest.mark.parametrize("joint", [False, True])
def test_rows_in_batches_equal_rows_at_once(joint, x64):
    posterior = classified("kfac")
    whole = linearised(CLASSIFIER, posterior, CNEW, joint=joint)
    for batch in (1, 3):
        parts = linearised(CLASSIFIER, posterior, CNEW, joint=joint, data_batch=batch)
        assert np.allclose(parts.mean, whole.mean, atol=1e-13) and np.allclose(parts.covariance, whole.covariance, atol=1e-13)


def test_a_second_call_traces_nothing(x64):
    calls = []

    def counted(x, y=None):
        calls.append(x.shape)
        regression(x, y)

    problem = Problem(counted)
    posterior = gaussian(problem, exact().blocks)
    linearised(problem, posterior, NEW)
    count = len(calls)
    linearised(problem, posterior, NEW + 1.0)
    assert len(calls) == count <= 4


@pytest.mark.parametrize("transposed", [False, True])
def test_half_is_rows_times_a_root_of_the_covariance(transposed, x64):
    scale, rows = np.linspace(0.3, 1.5, 6), det((2, 4, 6), 1.1, 0.3)
    left, right = np.linalg.qr(spd(3, 2))[0], np.linalg.qr(spd(2, 3))[0]
    layout = Layout(("w",), ((2, 3) if transposed else (3, 2),))
    blocks = [
        DenseBlock(layout, scale, spd(6, 0)),
        DiagonalBlock(layout, scale, scale),
        KroneckerBlock(layout, scale.reshape(3, 2), left, right, scale.reshape(3, 2), transposed),
    ]
    for block in jax.tree.map(jnp.asarray, blocks):
        half = block.half(jnp.asarray(rows))
        expected = rows @ dense_covariance(block) @ np.swapaxes(rows, -1, -2)
        assert half.shape == rows.shape and np.allclose(half @ jnp.swapaxes(half, -1, -2), expected, atol=1e-12)


# Draws


def moments_agree(draws, mean, covariance, bound=4.0):
    """Whether mean and covariance of (n, size) draws lie within `bound` standard errors."""
    n, d = len(draws), np.asarray(draws, float) - np.asarray(mean)
    variances = np.diagonal(covariance)
    assert (np.abs(d.mean(axis=0)) / np.sqrt(variances / n)).max() < bound
    se = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    assert (np.abs(d.T @ d / n - covariance) / se).max() < bound


def net(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([5, 2]).to_event(2))
    v = numpyro.sample("v", dist.Normal(0, 1).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.tanh(x @ w) @ v, sigma), obs=y)


def test_sampled_weights_through_the_linearised_model_have_these_moments(x64):
    problem = Problem(net)
    first = DenseBlock(Layout(("w",), ((5, 2),)), det((10,), 0.7, 0.1), 0.4 * np.linalg.cholesky(spd(10, 1)))
    second = DiagonalBlock(Layout(("v", "sigma"), ((2,), ())), det((3,), 1.9, 0.1), np.array([0.3, 0.5, 0.2]))
    posterior = gaussian(problem, [first, second])
    found = linearised(problem, posterior, NEW, joint=True)
    mean, covariance = np.asarray(found.mean[:, 0]), np.asarray(found.covariance)
    assert np.linalg.matrix_rank(covariance) == 6  # of 7 rows: a root must not need a positive definite matrix
    moments_agree(predict(problem, posterior, KEY, NEW, num_draws=4000, draw_batch=4000, linearise=True), mean, covariance)
    draws = found.sample(KEY, 4000)
    assert draws.shape == (4000, 7)
    moments_agree(draws, mean, covariance)
    by_row = by_hand(found.mean, np.diagonal(covariance)[:, None, None], (), "identity").sample(KEY, 4000)
    moments_agree(by_row, mean, np.diag(np.diagonal(covariance)))
    # the noise is that at the mean of sigma's unconstrained coordinate
    assert np.allclose(found.predictive_variance, np.diagonal(covariance) + np.exp(2 * second.mean[2]))
    assert not np.array_equal(draws, found.sample(jax.random.key(4), 4000))


def test_averages_of_the_link_agree_with_draws_of_the_gaussian(x64):
    found = linearised(CLASSIFIER, fitted(), CNEW)
    rng = np.random.default_rng(0)
    rows = zip(np.asarray(found.mean), np.asarray(found.covariance), strict=True)
    drawn = np.exp(np.stack([rng.multivariate_normal(mean, covariance, 20_000) for mean, covariance in rows], axis=1))
    drawn = drawn / drawn.sum(axis=-1, keepdims=True)
    average = np.asarray(found.monte_carlo(KEY, 2010))
    assert (np.abs(average - drawn.mean(axis=0)) / (drawn.std(axis=0) / math.sqrt(2000))).max() < 4
    assert np.abs(found.probit() - drawn.mean(axis=0)).max() < 0.05
    draws = found.sample(KEY, 2000)
    assert draws.shape == (2000, 7, 3)
    moments_agree(draws[:, 2], found.mean[2], np.asarray(found.covariance[2]))


# Approximate averages of the link


def by_hand(mean, covariance, shape, link, joint=False):
    mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)
    return Linearised(mean, covariance, None, shape, joint, "logits", link)


def test_probit_is_within_its_stated_distance_of_the_integral(x64):
    mean, scale = np.meshgrid(np.linspace(-12, 12, 49), np.geomspace(0.05, 30, 25), indexing="ij")
    found = by_hand(mean.reshape(-1, 1), (scale**2).reshape(-1, 1, 1), (), "sigmoid").probit()
    grid = np.linspace(-10, 10, 8001)
    weights = np.exp(-(grid**2) / 2)
    at = mean.reshape(-1, 1) + scale.reshape(-1, 1) * grid
    exact = (weights / weights.sum() / (1 + np.exp(-at))).sum(axis=1)
    error = np.abs(np.asarray(found) - exact)
    assert found.shape == (49 * 25,) and error.max() < 0.02
    assert error[scale.ravel() < 0.1].max() < 1e-4
    several = by_hand(det((2, 3), 1.0, 0.0), np.stack([spd(3, 0), spd(3, 1)]), (3,), "softmax")
    f, v = det((2, 3), 1.0, 0.0), np.stack([np.diagonal(spd(3, s)) for s in (0, 1)])
    expected = np.exp(f / np.sqrt(1 + math.pi / 8 * v))
    assert np.allclose(several.probit(), expected / expected.sum(axis=1, keepdims=True), rtol=1e-12)


def bridged(alpha):
    """The Gaussian of a Dirichlet in the softmax basis: mean (K,) and covariance (K, K)."""
    k = len(alpha)
    mean = np.log(alpha) - np.log(alpha).mean()
    inverse = 1 / alpha
    covariance = np.diag(inverse) - (inverse[:, None] + inverse[None] - inverse.mean()) / k
    return mean, covariance


@pytest.mark.parametrize("alpha", [[3.0, 0.9], [1.0, 2.0, 3.0, 0.2, 11.0]])
def test_the_bridge_maps_back_to_the_dirichlet(alpha, x64):
    alpha = np.array(alpha)
    mean, covariance = bridged(alpha)
    assert np.allclose(covariance.sum(axis=0), 0, atol=1e-14)  # no common uncertainty to condition on
    # a common shift, certain or not, changes no probability: conditioning takes it out again
    for common in (0.0, 0.7):
        found = by_hand(mean[None], (covariance + common)[None], (len(alpha),), "softmax")
        assert np.allclose(found.concentration(), alpha, rtol=1e-10)
        assert np.allclose(found.bridge(), alpha / alpha.sum(), rtol=1e-10)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_bridge_is_its_formula(normalise, x64):
    f, v = det((3,), 1.3, 0.2), spd(3, 5)
    total = v.sum()
    mean, covariance = np.zeros(3), np.zeros((3, 3))
    for i in range(3):
        mean[i] = f[i] - v[i].sum() * f.sum() / total
        for j in range(3):
            covariance[i, j] = v[i, j] - v[i].sum() * v[:, j].sum() / total
    variances = np.diagonal(covariance)
    if normalise:
        c = variances.mean() / math.sqrt(3 / 2)
        mean, variances = mean / math.sqrt(c), variances / c
    alpha = [(1 - 2 / 3 + math.exp(mean[k]) / 9 * sum(math.exp(-m) for m in mean)) / variances[k] for k in range(3)]
    # two positions of one row, and both rows together
    rows = by_hand(np.tile(f, (2, 2)), np.stack([np.kron(np.eye(2), v)] * 2), (2, 3), "softmax")
    joint = by_hand(np.tile(f, (2, 1)), np.kron(np.ones((2, 2)), v), (3,), "softmax", joint=True)
    assert np.allclose(rows.concentration(normalise=normalise), np.broadcast_to(alpha, (2, 2, 3)), rtol=1e-10)
    assert np.allclose(joint.concentration(normalise=normalise), np.broadcast_to(alpha, (2, 3)), rtol=1e-10)
    assert np.allclose(joint.bridge(normalise=normalise).sum(axis=-1), 1)


def test_the_bridge_survives_extremes():
    mean = np.array([[90.0, 0.0, -90.0], [1.0, 0.0, -1.0]], np.float32)
    covariance = np.stack([np.eye(3), np.zeros((3, 3))]).astype(np.float32)
    found = np.asarray(by_hand(mean, covariance, (3,), "softmax").bridge())
    assert np.allclose(found[0], [1, 0, 0], atol=1e-6)
    assert np.allclose(found[1], jax.nn.softmax(mean[1]), atol=1e-6)


# Other parametrisations and distributions


def outputs(make, shape=(5, 3)):
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand(shape).to_event(len(shape)))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", make(x @ w), obs=y)

    return Problem(model)


def of_outputs(make, shape=(5, 3)):
    problem = outputs(make, shape)
    size = math.prod(shape)
    block = DenseBlock(Layout(("w",), (shape,)), det((size,), 0.6, 0.5), 0.5 * np.linalg.cholesky(spd(size, 4)))
    return linearised(problem, gaussian(problem, [block]), NEW, joint=True)


def test_probabilities_and_rates_are_taken_to_the_real_line(x64):
    for given, link, probs in (
        (lambda f: dist.Bernoulli(logits=f), "sigmoid", lambda f: dist.Bernoulli(probs=jax.nn.sigmoid(f))),
        (lambda f: dist.Normal(f, 0.3), "identity", lambda f: dist.Laplace(f, 0.3)),
    ):
        one, other = of_outputs(given, (5,)), of_outputs(probs, (5,))
        assert one.inverse_link == other.inverse_link == link and one.shape == other.shape == ()
        assert np.allclose(one.mean, other.mean, atol=1e-10) and np.allclose(one.covariance, other.covariance, atol=1e-10)
    rates = of_outputs(lambda f: dist.Poisson(jnp.exp(f)), (5,))
    locations = of_outputs(lambda f: dist.Normal(f, 0.3), (5,))
    assert (rates.parameter, rates.inverse_link, rates.noise) == ("log rate", "exp", None)
    assert np.allclose(rates.covariance, locations.covariance, atol=1e-10)
    variance = np.asarray(rates.variance)
    exact, second = np.exp(rates.mean[:, 0] + variance / 2), np.exp(2 * rates.mean[:, 0] + 2 * variance)
    error = np.abs(rates.monte_carlo(KEY, 4000) - exact) / np.sqrt((second - exact**2) / 4000)
    assert error.max() < 4
    # logits and log probabilities differ by a shift of a whole row only
    logits = of_outputs(lambda f: dist.Categorical(logits=f))
    probs = of_outputs(lambda f: dist.Categorical(probs=jax.nn.softmax(f)))
    contrast = np.kron(np.eye(7), np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]))
    assert probs.inverse_link == logits.inverse_link == "softmax"
    assert np.allclose(contrast @ logits.mean.ravel(), contrast @ probs.mean.ravel(), atol=1e-10)
    assert np.allclose(contrast @ logits.covariance @ contrast.T, contrast @ probs.covariance @ contrast.T, atol=1e-10)


def test_events_and_their_axes(x64):
    event = of_outputs(lambda f: dist.Normal(f, jnp.array([0.1, 0.2, 0.3])).to_event(1))
    root = jnp.diag(jnp.array([0.1, 0.2, 0.3]))
    vector = of_outputs(lambda f: dist.MultivariateNormal(f, scale_tril=root))
    assert event.shape == vector.shape == (3,) and event.covariance.shape == (21, 21)
    assert np.allclose(event.covariance, vector.covariance) and np.allclose(event.noise[0], [0.01, 0.04, 0.09])
    assert np.allclose(event.predictive_variance, vector.predictive_variance)
    other = of_outputs(lambda f: dist.Gamma(jnp.exp(f[..., 0]), jnp.exp(f[..., 1])))
    assert (other.parameter, other.inverse_link, other.mean.shape) == ("concentration, rate", "unknown", (7, 2))
    single = of_outputs(lambda f: dist.Gamma(2.0, jnp.exp(f)), (5,))
    assert (single.parameter, single.shape, single.sample(KEY, 3).shape) == ("rate", (), (3, 7))


def plates(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([5, 3]).to_event(2))
    with numpyro.plate("outputs", 3, dim=-2), numpyro.plate("data", x.shape[0], dim=-1):
        numpyro.sample("y", dist.Normal((x @ w).T, 0.2), obs=y)


def test_rows_come_first_wherever_the_plate_stands(x64):
    problem = Problem(plates)
    block = DenseBlock(Layout(("w",), ((5, 3),)), det((15,), 0.6, 0.5), 0.5 * np.linalg.cholesky(spd(15, 4)))
    found = linearised(problem, gaussian(problem, [block]), NEW, joint=True)
    expected = of_outputs(lambda f: dist.Normal(f, 0.2).to_event(1))
    assert found.shape == (3,) and np.allclose(found.mean, expected.mean) and np.allclose(found.noise, 0.04)
    assert np.allclose(found.covariance, expected.covariance)
    assert Predictive(plates, posterior_samples={"w": jnp.ones((1, 5, 3))})(KEY, NEW)["y"].shape == (1, 3, 7)


def test_it_is_a_pytree(x64):
    found = linearised(REGRESSION, exact(), NEW)
    doubled = jax.jit(lambda found: jax.tree.map(lambda leaf: 2 * leaf, found))(found)
    assert isinstance(doubled, Linearised) and doubled.shape == () and np.allclose(doubled.mean, 2 * found.mean)


# Errors


def two(x, y=None, k=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([5]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)
        numpyro.sample("k", dist.Bernoulli(logits=x @ w), obs=k)
        numpyro.sample("still", dist.Normal(0, 1))


def of_two(site):
    problem = Problem(two)
    return linearised(problem, gaussian(problem, exact().blocks), NEW, site=site)


def test_one_of_several_outputs_is_named(x64):
    assert of_two("y").inverse_link == "identity" and of_two("k").inverse_link == "sigmoid"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: linearised(REGRESSION, PointPosterior(REGRESSION, (NEW,), {"w": MEAN}), NEW),
            OptionError,
            "needs a Gaussian posterior.*got PointPosterior",
        ),
        (lambda: linearised(REGRESSION, DrawsPosterior(REGRESSION, (NEW,), {}, {}), NEW), OptionError, "got DrawsPosterior"),
        (lambda: linearised(REGRESSION, {"w": MEAN}, NEW), OptionError, "got dict"),
        (lambda: linearised(CLASSIFIER, exact(), NEW), OptionError, "pass the problem that was fitted"),
        (lambda: linearised(REGRESSION, exact(), NEW, data_batch=0), OptionError, "data_batch must be at least 1, got 0"),
        (lambda: linearised(REGRESSION, exact(), NEW * np.nan), DataError, "NaN"),
        (lambda: linearised(REGRESSION, exact(), NEW, site="w"), ModelError, r"site='w' of \['y'\]"),
        (lambda: of_two(None), ModelError, r"site=None of \['y', 'k', 'still'\]"),
        (lambda: of_two("still"), ModelError, r"Normal names no parameter that moves with the sites \['w'\]"),
        (
            lambda: linearised(REGRESSION, exact(), np.zeros((40_000, 5), np.float32), joint=True),
            OptionError,
            r"\(40000, 40000\), would take 6.0 GiB .at most 2 GiB.*joint=False",
        ),
        (lambda: linearised(REGRESSION, exact(), NEW).probit(), OptionError, "probit.. is for the logits"),
        (lambda: linearised(REGRESSION, exact(), NEW).bridge(), OptionError, "use mean, covariance and sample"),
        (lambda: of_two("k").bridge(), OptionError, "whatever the variance; use probit"),
        (lambda: of_two("k").predictive_variance, OptionError, "is for locations with noise"),
        (lambda: of_two("k").sample(KEY, 0), OptionError, "number of draws must be at least 1, got 0"),
        (lambda: of_two("k").monte_carlo(KEY, 0), OptionError, "number of draws must be at least 1, got 0"),
        (
            lambda: of_outputs(lambda f: dist.Gamma(2.0, jnp.exp(f)), (5,)).monte_carlo(KEY, 9),
            OptionError,
            "does not know the mean of the observation given 'rate'",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


EXACT = {
    "rate": lambda z: dist.Poisson(jnp.exp(z[:, 0])),
    "scale": lambda z: dist.Normal(0.0, jnp.exp(z[:, 0])),
    "probability": lambda z: dist.Bernoulli(probs=jax.nn.sigmoid(z[:, 0])),
    "probabilities": lambda z: dist.Categorical(probs=jax.nn.softmax(z)),
    "logits": lambda z: dist.Categorical(logits=z),
    "vectors": lambda z: dist.Gamma(jnp.exp(z), 1.0).to_event(1),
}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_move_on_the_scale_on_which_they_are_free(name):
    # where that scale is linear in the weights, the linearised model is the model
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", EXACT[name](x @ w), obs=y)

    x = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    y = np.ones((6, 3), np.float32) if name == "vectors" else np.ones(6, np.float32 if name == "scale" else np.int32)
    problem, key = Problem(model), jax.random.key(1)
    found = fit(problem, Laplace(curvature="diag"), jax.random.key(0), x, y, num_steps=3, progress=False)
    plain, moved = (predict(problem, found, key, x, num_draws=5, linearise=flag) for flag in (False, True))
    np.testing.assert_allclose(moved, plain, rtol=2e-4)
    densities = [held_out_density(problem, found, key, x, y, num_draws=5, linearise=flag).mean for flag in (False, True)]
    assert densities[0] == pytest.approx(densities[1], rel=1e-4)
