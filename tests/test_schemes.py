"""Every scheme keeps the same promises, and on conjugate models agrees with the exact posterior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, SVI, Predictive, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoNormal

from bayes_sym import tap
from bayes_sym.errors import CurvatureError, ModelError, OptionError
from bayes_sym.inference import MAP, NUTS, Laplace, MeanField, Problem, Variational, fit, log_evidence, predict
from bayes_sym.inference.blocks import DenseBlock, DiagonalBlock, KroneckerBlock, Layout
from bayes_sym.inference.chunks import start_state
from bayes_sym.inference.posterior import DrawsPosterior, PointPosterior
from bayes_sym.models import ConvClassifier, SoftConvClassifier


KEY = jax.random.key(5)
X = np.random.default_rng(0).standard_normal((15, 3)).astype(np.float32)
Y = (np.tanh(X @ np.array([1.0, -0.5, 0.3])) + 0.1 * np.sin(np.arange(15.0))).astype(np.float32)
SHAPES = {"scale": (), "w": (3, 2), "v": (2,)}


def net(x, y=None):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    w = numpyro.sample("w", dist.Normal(0, scale).expand([3, 2]).to_event(2))
    v = numpyro.sample("v", dist.Normal(0, 1).expand([2]).to_event(1))
    f = numpyro.deterministic("f", jnp.tanh(tap("z", x @ w, inputs=x, weight="w")) @ v)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 0.4), obs=y)


PROBLEM = Problem(net)
# name: (how to build the scheme, the kind of its evidence); a new scheme is one row
TABLE = {
    "map": (lambda: MAP(), None),
    "laplace": (lambda: Laplace(), "laplace-ekfac-bound"),
    "laplace-full": (lambda: Laplace(curvature="full", optimise=("scale",)), "laplace-full"),
    "variational": (lambda: Variational(), "elbo"),
    "nuts": (lambda: NUTS(num_warmup=30, max_tree_depth=4), None),
}
every_scheme = pytest.mark.parametrize("name", TABLE)


@functools.cache
def fitted(name):
    return fit(PROBLEM, TABLE[name][0](), KEY, X, Y, num_steps=60, progress=False)


@jax.jit
def predictive(draws):
    return Predictive(net, draws)(KEY, X)


# Conformance


@every_scheme
def test_schemes_are_values(name):
    build = TABLE[name][0]
    assert build() == build() and hash(build()) == hash(build())
    assert len({other() for other, _ in TABLE.values()}) == len(TABLE)


@every_scheme
def test_samples_have_the_models_names_and_shapes_and_feed_predictive(name):
    posterior = fitted(name).posterior
    draws = posterior.sample(KEY, 7)
    assert {site: value.shape for site, value in draws.items()} == {site: (7, *shape) for site, shape in SHAPES.items()}
    assert all(np.isfinite(value).all() for value in draws.values()) and (np.asarray(draws["scale"]) > 0).all()
    again, other = posterior.sample(KEY, 7), posterior.sample(jax.random.key(6), 7)
    assert all(np.array_equal(draws[site], again[site]) for site in draws)
    fixed = isinstance(posterior, PointPosterior | DrawsPosterior)  # a point; draws evenly spread
    assert np.array_equal(draws["w"], other["w"]) == fixed
    found = predictive(draws)
    assert found["y"].shape == (7, 15) and np.isfinite(found["y"]).all()
    assert np.allclose(predict(PROBLEM, draws, KEY, X), found["f"], atol=1e-5)


@pytest.mark.parametrize("scheme", [MAP, Laplace])
def test_the_first_weights_are_draws_from_the_prior_times_start(scheme):
    plain, smaller = (start_state(scheme(start=start), PROBLEM, KEY, (X, Y)).z for start in (1.0, 0.25))
    assert {name for name in plain if not np.array_equal(plain[name], smaller[name])} == {"w"}  # a tapped weight
    assert np.allclose(smaller["w"], 0.25 * plain["w"])
    with pytest.raises(OptionError, match="start multiplies the first weights, so it must be positive, got 0"):
        fit(PROBLEM, scheme(start=0.0), KEY, X, Y, num_steps=5, progress=False)


@every_scheme
def test_evidence_comes_with_its_kind(name):
    posterior = fitted(name).posterior
    assert posterior.evidence_kind == TABLE[name][1]
    assert (posterior.log_evidence is None) == (TABLE[name][1] is None)
    assert posterior.log_evidence is None or -200 < float(posterior.log_evidence) < 0


@pytest.mark.parametrize("name", ["laplace", "laplace-full", "variational"])
def test_gaussian_posteriors_have_the_density_of_their_covariance(name):
    posterior = fitted(name).posterior
    z = jax.tree.map(lambda mean: mean + 0.05, posterior.mean)
    expected = 0.0
    for block in posterior.blocks:
        draws = block.layout.flatten(jax.jit(lambda key, block=block: block.sample(key, 20_000))(KEY))
        mean, covariance = np.mean(draws, axis=0), np.atleast_2d(np.cov(draws, rowvar=False))
        expected += scipy.stats.multivariate_normal(mean, covariance).logpdf(block.layout.flatten(z))
    assert {site for block in posterior.blocks for site in block.layout.names} == set(SHAPES) - set(posterior.point)
    assert float(jax.jit(posterior.log_prob)(z)) == pytest.approx(expected, abs=0.15)


def test_optimised_sites_are_points_chosen_by_evidence():
    posterior = fitted("laplace-full").posterior
    assert set(posterior.point) == {"scale"}
    draws = posterior.sample(KEY, 5)
    assert np.unique(draws["scale"]).size == 1 and np.unique(draws["w"]).size == 30
    mean = jax.jit(lambda z: PROBLEM.constrain(z, (X, Y)))(posterior.mean)
    found = log_evidence(PROBLEM, mean, X, Y, optimise=("scale",))
    assert float(posterior.log_evidence) == pytest.approx(float(found.value), rel=1e-4)
    start = log_evidence(PROBLEM, {**mean, "scale": 1.0}, X, Y, optimise=("scale",))
    assert float(found.value) > float(start.value)


# Blocks


def _spd(n, seed):
    root = np.random.default_rng(seed).standard_normal((n, n))
    return root @ root.T + np.eye(n)


def _blocks():
    mean = np.arange(6.0) / 5
    layout = Layout(("a", "b"), ((2, 2), (2,)))
    dense = np.linalg.cholesky(_spd(6, 0)) @ np.linalg.qr(_spd(6, 1))[0]  # a root need not be triangular
    scale = np.linspace(0.3, 1.5, 6)
    left, right = np.linalg.qr(_spd(3, 2))[0], np.linalg.qr(_spd(2, 3))[0]
    basis = np.kron(left, right)  # of vec in C order of (inputs, outputs)
    kron = basis @ np.diag(scale**2) @ basis.T
    order = np.arange(6).reshape(3, 2).T.ravel()
    args = (mean.reshape(3, 2), left, right, scale.reshape(3, 2))
    return {
        "dense": (DenseBlock(layout, mean, dense), mean, dense @ dense.T),
        "diagonal": (DiagonalBlock(layout, mean, scale), mean, np.diag(scale**2)),
        "kronecker": (KroneckerBlock(Layout(("w",), ((3, 2),)), *args, False), mean, kron),
        "transposed": (KroneckerBlock(Layout(("w",), ((2, 3),)), *args, True), mean[order], kron[np.ix_(order, order)]),
    }


@pytest.mark.parametrize("kind", ["dense", "diagonal", "kronecker", "transposed"])
def test_blocks_match_the_dense_gaussian(kind, x64):
    block, mean, covariance = _blocks()[kind]
    n = 20_000

    @jax.jit
    def run(key, x):
        z = block.layout.unflatten(x)
        return block.log_prob(z), block.layout.flatten(block.center()), block.layout.flatten(block.sample(key, n))

    x = mean + np.linspace(-1, 1, 6)
    log_prob, center, draws = run(KEY, x)
    assert float(log_prob) == pytest.approx(scipy.stats.multivariate_normal(mean, covariance).logpdf(x), rel=1e-10)
    assert np.allclose(center, mean)
    d = np.asarray(draws) - mean
    se = np.sqrt((np.outer(np.diagonal(covariance), np.diagonal(covariance)) + covariance**2) / n)
    assert (np.abs(d.T @ d / n - covariance) / se).max() < 5
    assert (np.abs(d.mean(axis=0)) / np.sqrt(np.diagonal(covariance) / n)).max() < 5


# The conjugate model


SIGMA, PRIOR = 0.4, 0.8
MIX = np.array([[1.0, 0.6, 0.0], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
CX = (X @ MIX).astype(np.float64)
PRECISION = CX.T @ CX / SIGMA**2 + np.eye(3) / PRIOR**2
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ CX.T @ Y / SIGMA**2
LOG_Z = scipy.stats.multivariate_normal(np.zeros(15), PRIOR**2 * CX @ CX.T + SIGMA**2 * np.eye(15)).logpdf(Y)


def conjugate(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, PRIOR).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)


CONJUGATE = Problem(conjugate)
ADAM = optax.adam(optax.exponential_decay(0.05, 100, 0.6))


@pytest.mark.parametrize("curvature", ["full", "kfac"])
def test_laplace_is_exact_on_the_conjugate_model(curvature, x64):
    done = fit(CONJUGATE, Laplace(ADAM, curvature=curvature), KEY, CX, Y.astype(float), num_steps=1500, progress=False)
    (block,) = done.posterior.blocks
    assert np.allclose(block.mean, MEAN, atol=1e-6)
    assert np.allclose(block.root @ block.root.T, COVARIANCE, rtol=1e-8, atol=1e-12)
    assert float(done.posterior.log_evidence) == pytest.approx(LOG_Z, abs=1e-6)


def test_mean_field_has_the_exact_mean_and_the_diagonal_of_the_precision():
    scheme = Variational(MeanField(0.2), ADAM, num_particles=16)
    done = fit(CONJUGATE, scheme, KEY, CX.astype(np.float32), Y, num_steps=1500, progress=False)
    (block,) = done.posterior.blocks
    mean, variances = np.asarray(block.mean, float), np.asarray(block.scale, float) ** 2
    assert np.allclose(mean, MEAN, atol=2e-3)
    assert np.allclose(variances, 1 / np.diagonal(PRECISION), rtol=0.04)
    assert np.abs(variances - np.diagonal(COVARIANCE)).max() > 0.1 * np.diagonal(COVARIANCE).max()  # not the marginals
    # the exact bound: log Z - KL(q || posterior)
    kl = 0.5 * (np.trace(PRECISION @ np.diag(variances)) + (mean - MEAN) @ PRECISION @ (mean - MEAN) - 3)
    kl += 0.5 * (-np.log(variances).sum() - np.linalg.slogdet(PRECISION)[1])
    assert kl > 0.01
    # 32 antithetic pairs, so that only the quadratic part of the log likelihood is random
    spread = CX.T @ CX / SIGMA**2 @ np.diag(variances)
    se = np.sqrt(np.trace(spread @ spread) / 2 / 32)
    assert float(done.posterior.log_evidence) == pytest.approx(LOG_Z - kl, abs=5 * se)


def test_nuts_draws_have_the_exact_moments():
    done = fit(CONJUGATE, NUTS(num_warmup=400, num_chains=2), KEY, CX.astype(np.float32), Y, num_steps=2400, progress=False)
    draws = np.asarray(done.posterior.draws["w"], float)
    assert draws.shape == (2, 2000, 3) and done.posterior.num_draws == 4000
    assert {name: value.shape for name, value in done.posterior.info.items()}["diverging"] == (2, 2000)
    effective = effective_sample_size(draws)
    assert (effective > 400).all()
    sd = np.sqrt(np.diagonal(COVARIANCE))
    flat = draws.reshape(-1, 3)
    assert (np.abs(flat.mean(axis=0) - MEAN) / (sd / np.sqrt(effective))).max() < 5
    spread = effective_sample_size((draws - MEAN) ** 2)
    assert (np.abs(flat.var(axis=0) / sd**2 - 1) / np.sqrt(2 / spread)).max() < 5
    correlation = COVARIANCE / np.outer(sd, sd)
    assert np.abs(np.corrcoef(flat, rowvar=False) - correlation).max() < 0.15
    assert np.abs(correlation[0, 1]) > 0.3
    many = done.posterior.sample(KEY, 5000)["w"]  # more than there are: with replacement
    assert many.shape == (5000, 3)


# The models that come with the package, under plain NumPyro


IMAGES = np.random.default_rng(1).standard_normal((6, 4, 4, 1)).astype(np.float32)
LABELS = np.arange(6) % 3
MODELS = {
    "plain": ConvClassifier(channels=(4,), classes=3),
    "soft": SoftConvClassifier(image=(4, 4), channels=(4,), classes=3),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_fit_under_plain_numpyro(name):
    model = MODELS[name]
    sites = Problem(model).structure(IMAGES, LABELS).latent
    expected = set(sites)
    # a start of our own: NumPyro's draws take longer to compile than all the rest
    start = {site: np.full(shape.shape, 0.2, np.float32) for site, shape in sites.items()}
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=start))
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    run = svi.run(KEY, 3, IMAGES, LABELS, progress_bar=False)
    assert np.isfinite(run.losses).all() and run.losses[0] != run.losses[-1]
    assert {name.removesuffix("_auto_loc") for name in run.params if name.endswith("_auto_loc")} == expected
    sampler = MCMC(numpyro.infer.NUTS(model, max_tree_depth=2), num_warmup=3, num_samples=3, progress_bar=False)
    sampler.run(KEY, IMAGES, LABELS, init_params=start)  # in unconstrained coordinates
    draws = sampler.get_samples()
    assert set(draws) == expected and all(np.isfinite(value).all() for value in draws.values())
    probabilities = predict(Problem(model), draws, KEY, IMAGES)
    assert probabilities.shape == (3, 6, 3) and np.allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


# Predictions


def test_one_key_draws_the_same_weights_for_all_inputs_and_blocks():
    whole = predict(PROBLEM, fitted("variational"), KEY, X, num_draws=10)
    assert whole.shape == (10, 15) and whole.std(axis=0).min() > 1e-4
    part = predict(PROBLEM, fitted("variational").posterior, KEY, X[4:7], num_draws=10)
    assert np.allclose(part, whole[:, 4:7], atol=1e-6)
    blocks = predict(PROBLEM, fitted("variational"), KEY, X, num_draws=10, draw_batch=4, data_batch=6)
    assert np.allclose(blocks, whole, atol=1e-6)
    assert not np.allclose(predict(PROBLEM, fitted("variational"), jax.random.key(9), X, num_draws=10), whole, atol=1e-3)


@pytest.mark.parametrize("name", ["laplace", "laplace-full"])
def test_linearised_predictions_match_the_dense_jacobian(name):
    posterior = fitted(name).posterior
    found = predict(PROBLEM, posterior, KEY, X, num_draws=6)

    def f(z):
        return jnp.tanh(X @ z["w"]) @ z["v"]

    draws, mean = posterior.sample_unconstrained(KEY, 6), posterior.mean
    jacobian = jax.jit(jax.jacobian(f))({site: mean[site] for site in ("w", "v")})
    expected = np.asarray(f(mean)) + sum(
        np.einsum("ni,ti->tn", jacobian[site].reshape(15, -1), (draws[site] - mean[site][None]).reshape(6, -1))
        for site in ("w", "v")
    )
    assert np.allclose(found, expected, atol=1e-5)
    sampled = predict(PROBLEM, posterior, KEY, X, num_draws=6, linearise=False)
    assert np.allclose(sampled, jax.vmap(f)(draws), atol=1e-5)
    assert np.abs(sampled - found).max() > 1e-3


def two_outputs(x, y=None, k=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)
        numpyro.sample("k", dist.Bernoulli(logits=x @ w), obs=k)


def test_one_of_several_outputs_is_predicted_by_name():
    draws = {"w": np.array([[1.0, 0.0, -1.0], [0.5, 0.2, 0.0]], np.float32)}
    f = draws["w"] @ X.T
    assert np.allclose(predict(Problem(two_outputs), draws, KEY, X, site="y"), f, atol=1e-6)
    assert np.allclose(predict(Problem(two_outputs), draws, KEY, X, site="k"), 1 / (1 + np.exp(-f)), atol=1e-6)
    with pytest.raises(ModelError, match=r"site=None of \['y', 'k'\]"):
        predict(Problem(two_outputs), draws, KEY, X)


def heavy(x, y=None):
    w = numpyro.sample("w", dist.Cauchy(jnp.zeros(3), 0.2).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fitted("map").posterior.sample(KEY, 0), OptionError, "number of draws must be at least 1, got 0"),
        (lambda: fitted("map").posterior.log_prob({}), OptionError, "a point estimate .MAP. has no density"),
        (lambda: fitted("nuts").posterior.log_prob({}), OptionError, "a sampler's draws have no density"),
        (lambda: predict(PROBLEM, fitted("map"), KEY, X, linearise=True), OptionError, "needs a Gaussian posterior"),
        (lambda: predict(PROBLEM, {"w": 1}, KEY, X, linearise=True), OptionError, "needs a posterior with a mean, not samples"),
        (lambda: predict(PROBLEM, fitted("map"), KEY, X, num_draws=0), OptionError, "must be at least 1, got 0, 32, 1024"),
        (lambda: predict(PROBLEM, fitted("map"), KEY, X, site="w"), ModelError, r"site='w' of \['y'\]"),
        (lambda: MeanField(0.0), OptionError, "init_scale must be positive"),
        (
            lambda: fit(Problem(heavy), Laplace(ADAM, "full"), KEY, CX.astype(np.float32), Y, num_steps=200, progress=False),
            CurvatureError,
            "indefinite Hessian",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
