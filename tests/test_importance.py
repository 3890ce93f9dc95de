"""Importance-sampled evidence: against closed forms and quadrature, and a diagnostic that sees a bad proposal."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats

from bayes_sym.errors import DataError, ModelError, OptionError
from bayes_sym.inference import MAP, Fit, ImportanceEvidence, Problem, Status, importance_evidence
from bayes_sym.inference.blocks import DenseBlock, DiagonalBlock, Layout
from bayes_sym.inference.posterior import DrawsPosterior, GaussianPosterior, PointPosterior


KEY = jax.random.key(11)


def det(shape, a, b):
    return np.sin(a * np.arange(1.0, math.prod(shape) + 1) + b).reshape(shape)


# Linear regression


X = det((20, 5), 1.7, 0.05)
Y = X @ det((5,), 0.9, 0.2) + 0.3 * det((20,), 2.9, 0.4)
PRECISION = 0.7
COVARIANCE = np.linalg.inv(X.T @ X + PRECISION * np.eye(5))
MEAN = COVARIANCE @ X.T @ Y
LOG_Z = -22.56030089774405


def regression(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, PRECISION**-0.5).expand([5]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def with_scale(x, y=None):
    scale = numpyro.sample("scale", dist.LogNormal(0.3, 0.5))
    w = numpyro.sample("w", dist.Normal(0, scale).expand([5]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


REGRESSION, WITH_SCALE = Problem(regression), Problem(with_scale)


def gaussian(problem, mean, root, names=("w",), point=None):
    """A posterior made by hand, of one flat vector."""
    mean, root = jnp.asarray(mean), jnp.asarray(root)
    shapes = tuple((5,) if name == "w" else () for name in names)
    return GaussianPosterior(
        problem, (jnp.asarray(X[:1]), jnp.asarray(Y[:1])), (DenseBlock(Layout(names, shapes), mean, root),), point or {}
    )


def exact(problem=REGRESSION, point=None):
    return gaussian(problem, MEAN, np.linalg.cholesky(COVARIANCE), point=point)


def within(found, truth, bound=3.0):
    """Whether the estimate lies within `bound` of its own standard errors, which must not be idle."""
    assert 0 < float(found.standard_error) < 0.2
    assert abs(float(found.value) - truth) < bound * float(found.standard_error)


def test_the_exact_posterior_gives_the_exact_evidence_without_variance(x64):
    truth = scipy.stats.multivariate_normal(np.zeros(20), X @ X.T / PRECISION + np.eye(20)).logpdf(Y)
    assert truth == pytest.approx(LOG_Z, abs=1e-12)
    found = importance_evidence(REGRESSION, exact(), KEY, X, Y, num_draws=2000)
    assert isinstance(found, ImportanceEvidence) and (found.kind, found.num_draws) == ("importance-sampled", 2000)
    assert float(found.value) == pytest.approx(LOG_Z, abs=1e-10)
    assert float(found.standard_error) < 1e-12 and float(found.effective_draws) == pytest.approx(2000)
    assert float(found.k_hat) == -math.inf
    doubled = jax.jit(lambda found: jax.tree.map(lambda leaf: 2 * leaf, found))(found)
    assert float(doubled.value) == pytest.approx(2 * LOG_Z) and doubled.kind == "importance-sampled"


def test_optimised_sites_are_conditioned_on(x64):
    # the prior scale at its point makes the model above; its own prior, and the log-determinant of its map, do not count
    point = {"scale": jnp.asarray(-0.5 * math.log(PRECISION))}
    found = importance_evidence(WITH_SCALE, exact(WITH_SCALE, point), KEY, X, Y, num_draws=50)
    assert float(found.value) == pytest.approx(LOG_Z, abs=1e-10)


def test_a_wrong_proposal_is_corrected_and_reports_its_error(x64):
    proposal = gaussian(REGRESSION, MEAN + 0.1, 1.2 * np.linalg.cholesky(COVARIANCE))
    found = importance_evidence(REGRESSION, proposal, KEY, X, Y, num_draws=2000)
    within(found, LOG_Z)
    assert float(found.k_hat) < 0.5 and 200 < float(found.effective_draws) < 1900
    # the variance of the weights has a closed form: that of a ratio of Gaussians
    target, drawn = np.linalg.inv(COVARIANCE), np.linalg.inv(1.44 * COVARIANCE)
    both = 2 * target - drawn
    shift = 2 * target @ MEAN - drawn @ (MEAN + 0.1)
    exponent = shift @ np.linalg.solve(both, shift) - 2 * MEAN @ target @ MEAN + (MEAN + 0.1) @ drawn @ (MEAN + 0.1)
    log_det = 2 * np.linalg.slogdet(target)[1] - np.linalg.slogdet(drawn)[1] - np.linalg.slogdet(both)[1]
    second = math.exp(0.5 * (exponent + log_det))  # E w^2 / (E w)^2
    assert float(found.standard_error) == pytest.approx(math.sqrt((second - 1) / 2000), rel=0.1)
    assert float(found.effective_draws) == pytest.approx(2000 / second, rel=0.1)
    again = importance_evidence(REGRESSION, proposal, KEY, X, Y, num_draws=2000, draw_batch=300)
    assert float(again.value) == pytest.approx(float(found.value), abs=1e-12)
    other = importance_evidence(REGRESSION, proposal, jax.random.key(1), X, Y, num_draws=2000)
    assert float(other.value) != float(found.value)


def test_a_proposal_that_misses_mass_has_a_large_k_hat_and_a_t_repairs_it(x64):
    narrow = gaussian(REGRESSION, MEAN, 0.4 * np.linalg.cholesky(COVARIANCE))
    found = importance_evidence(REGRESSION, narrow, KEY, X, Y, num_draws=2000)
    assert float(found.k_hat) > 0.7 and float(found.effective_draws) < 100
    heavy = importance_evidence(REGRESSION, narrow, KEY, X, Y, num_draws=2000, degrees=3.0)
    within(heavy, LOG_Z)
    assert float(heavy.k_hat) < 0.7
    # from the exact posterior, weights are the ratio of a Gaussian to a t, which is bounded
    bounded = importance_evidence(REGRESSION, exact(), KEY, X, Y, num_draws=2000, degrees=5.0)
    within(bounded, LOG_Z)
    assert float(bounded.k_hat) < 0.5


# Models with one unknown, against quadrature


X1 = det((15,), 1.1, 0.3) + 0.2
LABELS = (X1 * 1.5 + det((15,), 2.7, 0.1) > 0).astype(np.int32)
COUNTS = np.round(np.exp(0.8 + 0.6 * X1 + 0.3 * det((15,), 3.1, 0.2))).astype(np.int32)
VALUES = 0.4 * det((15,), 2.3, 0.7)


def logistic(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=w * x), obs=y)


def poisson(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(0.8 + w * x)), obs=y)


def noise(x, y=None):
    scale = numpyro.sample("w", dist.Gamma(2.0, 3.0))  # positive, so a log-determinant counts
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(0.0 * x, scale), obs=y)


# name: (model, observations, log joint on a grid (G, 1), the grid's ends, the proposal's mean and scale, degrees)
ONE_UNKNOWN = {
    "logistic": (
        logistic,
        LABELS,
        lambda w: scipy.stats.norm.logpdf(w, 0, 2)[:, 0] + scipy.stats.bernoulli.logpmf(LABELS, 1 / (1 + np.exp(-w * X1))).sum(1),
        (-15, 15),
        (1.5, 1.2),
        None,
    ),
    "poisson": (
        poisson,
        COUNTS,
        lambda w: scipy.stats.norm.logpdf(w)[:, 0] + scipy.stats.poisson.logpmf(COUNTS, np.exp(0.8 + w * X1)).sum(1),
        (-5, 5),
        (0.6, 0.25),
        4.0,
    ),
    "noise": (
        noise,
        VALUES,
        lambda s: scipy.stats.gamma.logpdf(s, 2, scale=1 / 3)[:, 0] + scipy.stats.norm.logpdf(VALUES, 0, s).sum(1),
        (1e-3, 8),
        (-1.1, 0.25),
        None,
    ),
}


@pytest.mark.parametrize("name", ONE_UNKNOWN)
def test_models_with_one_unknown_match_quadrature(name, x64):
    model, y, log_joint, (low, high), (mean, scale), degrees = ONE_UNKNOWN[name]
    grid = np.linspace(low, high, 8001)
    values = log_joint(grid[:, None])
    peak = values.max()
    integral, coarse = (scipy.integrate.simpson(np.exp(values - peak)[::k], x=grid[::k]) for k in (1, 2))
    assert coarse == pytest.approx(integral, rel=1e-8)
    block = DiagonalBlock(Layout(("w",), ((),)), jnp.asarray([mean]), jnp.asarray([scale]))
    posterior = GaussianPosterior(Problem(model), (jnp.asarray(X1[:1]), jnp.asarray(y[:1])), (block,), {})
    found = importance_evidence(Problem(model), posterior, KEY, X1, y, num_draws=4000, draw_batch=4000, degrees=degrees)
    within(found, peak + math.log(integral))
    assert float(found.standard_error) < 0.03 and float(found.k_hat) < 0.7


def test_a_fit_is_as_good_as_its_posterior(x64):
    done = Fit(REGRESSION, MAP(), exact(), np.zeros(1), None, 0.0, Status(True, "finished", 1))
    found = importance_evidence(REGRESSION, done, KEY, X, Y, num_draws=2000)
    assert float(found.value) == pytest.approx(LOG_Z, abs=1e-10)


# Errors


def undefined(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([5]).to_event(1))
    numpyro.factor("never", jnp.sqrt(-1.0 - w[0] ** 2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def evidence(posterior, problem=REGRESSION, y=Y, **options):
    return importance_evidence(problem, posterior, KEY, X, y, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: evidence(PointPosterior(REGRESSION, (X, Y), {"w": MEAN})), OptionError, "a point estimate .MAP. has no density"),
        (
            lambda: evidence(DrawsPosterior(REGRESSION, (X, Y), {"w": jnp.zeros((1, 2, 5))}, {})),
            OptionError,
            "a sampler's draws have no density",
        ),
        (lambda: evidence({"w": MEAN}), OptionError, "needs a posterior with a density, got dict"),
        (lambda: evidence(exact(), WITH_SCALE), OptionError, "pass the problem that was fitted"),
        (lambda: evidence(exact(), num_draws=24), OptionError, "num_draws must be at least 25.*got 24 and 32"),
        (lambda: evidence(exact(), draw_batch=0), OptionError, "draw_batch at least 1, got 1000 and 0"),
        (lambda: evidence(exact(), degrees=-1.0), OptionError, "degrees=-1.0 .* needs a positive number"),
        (
            lambda: evidence(PointPosterior(REGRESSION, (X, Y), {"w": MEAN}), degrees=3.0),
            OptionError,
            "needs .* the posterior of Laplace.*got PointPosterior",
        ),
        (lambda: evidence(exact(), y=np.where(Y > 1, np.nan, Y)), DataError, "NaN"),
        (lambda: evidence(exact(), y=None), ModelError, "latent site 'y' stands inside the data plate"),
        (
            lambda: evidence(exact(Problem(undefined)), Problem(undefined)),
            ModelError,
            "log weights of 1000 of 1000 draws are NaN or infinite",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
