"""The Laplace scheme: hyperparameters by evidence, posteriors over all weights or some, against closed forms."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats

from bayes_sym import groups, layers, representations, tap
from bayes_sym.errors import OptionError
from bayes_sym.inference import Laplace, PointPosterior, Problem, fit, log_evidence, predict
from bayes_sym.inference.blocks import DiagonalBlock, KroneckerBlock, WhitenedBlock
from bayes_sym.priors import SoftEquivariantNormal


pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)


def det(shape, a, b):
    """Numbers that anybody can rebuild."""
    return np.sin(a * np.arange(1, np.prod(shape) + 1) + b).reshape(shape)


# Linear regression, where the evidence is exact: the optimum is known


BLR_X = det((20, 5), 1.7, 0.05)
BLR_Y = BLR_X @ det((5,), 0.9, 0.2) + 0.3 * det((20,), 2.9, 0.4)


def linear(x, y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0.0, scale).expand([5, 1]).to_event(2))
    f = tap("f", x @ w, inputs=x, weight="w")[:, 0]
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, sigma), obs=y)


@pytest.mark.parametrize("update", ["gradient", "mackay"])
@pytest.mark.parametrize("curvature", ["full", "ekfac"])  # one output: the factors are exact
def test_strengths_and_noise_reach_the_known_optimum(update, curvature):
    slow = optax.adam(optax.exponential_decay(0.05, 60, 0.5))
    scheme = Laplace(
        optax.adam(optax.exponential_decay(0.1, 400, 0.5)),
        curvature,
        ("scale", "sigma"),
        slow,
        burn_in=100,
        refresh=50,
        hyper_steps=20,
        update=update,
    )
    done = fit(Problem(linear), scheme, KEY, BLR_X, BLR_Y, num_steps=3000, chunk=1000, progress=False)
    point = {name: float(value[0]) for name, value in done.posterior.sample(KEY, 1).items() if name != "w"}
    assert 1 / point["scale"] ** 2 == pytest.approx(3.7256573493632015, rel=1e-4)
    assert point["sigma"] == pytest.approx(0.2127958164061566, rel=1e-4)
    assert float(done.posterior.log_evidence) == pytest.approx(-2.4223501346167353, rel=1e-6)


def test_mackay_steps_find_strengths_where_gradients_are_slow():
    # from a start five orders of magnitude away, in two updates of ten steps
    def far(x, y):
        scale = numpyro.sample("scale", dist.LogNormal(np.log(300.0), 1.0))
        w = numpyro.sample("w", dist.Normal(0.0, scale).expand([5]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    found = {}
    x = np.random.default_rng(0).standard_normal((30, 5))
    y = x @ det((5,), 0.9, 0.2)
    for update in ("gradient", "mackay"):
        scheme = Laplace(
            optax.adam(1.0), "full", ("scale",), burn_in=1500, refresh=1000, hyper_steps=10, update=update, trust=10.0
        )
        done = fit(Problem(far), scheme, KEY, x, y, num_steps=2000, chunk=1000, progress=False)
        found[update] = float(done.posterior.sample(KEY, 1)["scale"][0])
    assert 0.1 < found["mackay"] < 2.0
    assert found["gradient"] > 40.0  # at most 0.1 nats per step


def test_the_noise_of_a_net_is_recovered():
    def net(x, y):
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        spec = layers.Sequential((layers.Dense(1, 8), layers.Activation("tanh"), layers.Dense(8, 1)))
        f = layers.random_module("net", spec, prior=dist.Normal(0.0, scale))(x)[:, 0]
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(f, sigma), obs=y)

    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (500, 1))
    y = np.sin(2 * x[:, 0]) + 0.25 * rng.standard_normal(500)
    scheme = Laplace(optax.adam(2e-2), "ekfac", ("sigma", "scale"), hyper_steps=10)
    done = fit(Problem(net), scheme, KEY, x, y, num_steps=2500, chunk=500, progress=False)
    assert float(done.posterior.sample(KEY, 1)["sigma"][0]) == pytest.approx(0.25, rel=0.1)


# A planted symmetry


C4 = groups.cyclic(4)
REGULAR = representations.regular(C4)
ACTION = (REGULAR * REGULAR).reshape(4, 4)


def soft(x, y):
    strengths = numpyro.sample("strengths", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    w = numpyro.sample("w", SoftEquivariantNormal(ACTION, strengths[0], strengths[1]))
    f = tap("f", x @ w, inputs=x, weight="w")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)


def test_the_evidence_finds_a_planted_symmetry_and_a_broken_one():
    scheme = Laplace(
        optax.adam(3e-2), "ekfac", ("strengths",), optax.adam(0.2), burn_in=100, refresh=50, hyper_steps=20, update="mackay"
    )
    ratios, better = {}, {}
    for kind in ("kept", "partial", "broken"):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            w = rng.standard_normal((4, 4))
            kept = np.asarray(ACTION.project(jnp.asarray(w), axis=(0, 1)))
            w = {"kept": 2 * kept, "partial": 2 * kept + 0.2 * (w - kept), "broken": w}[kind]
            x = rng.standard_normal((60, 4))
            y = x @ w + 0.1 * rng.standard_normal((60, 4))
            done = fit(Problem(soft), scheme, KEY, x, y, num_steps=1500, chunk=500, progress=False)
            strengths = done.posterior.sample(KEY, 1)["strengths"][0]
            ratios[kind, seed] = float(strengths[1] / strengths[0])
            # the exact evidence prefers the symmetric prior to the isotropic one in the same cases
            params = {"w": done.posterior.mean["w"]}
            exact = [
                float(
                    log_evidence(
                        Problem(soft), {**params, "strengths": s}, x, y, optimise=("strengths",), correction="newton"
                    ).value
                )
                for s in (np.array([1.0, 1e-3]), np.array([1.0, 1.0]))
            ]
            better[kind, seed] = exact[0] > exact[1]
    assert max(ratios["kept", s] for s in range(5)) * 10 < min(ratios["broken", s] for s in range(5))
    assert all(better["kept", s] for s in range(5)) and not any(better["broken", s] for s in range(5))


# The posterior


def classifier(x, y=None):
    spec = layers.Sequential((layers.Dense(3, 4), layers.Activation("tanh"), layers.Dense(4, 3)))
    logits = layers.random_module("net", spec)(x)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


CX, CY = det((12, 3), 1.7, 0.05), np.arange(12, dtype=np.int32) % 3


@pytest.mark.filterwarnings("ignore:the fit has collapsed")  # the labels have nothing to learn
@pytest.mark.parametrize("subset", ["last", ("net.2.*",)])
def test_a_last_layer_posterior_holds_the_other_weights(subset):
    scheme = Laplace(optax.adam(3e-2), "full", subset=subset)
    done = fit(Problem(classifier), scheme, KEY, CX, CY, num_steps=300, progress=False)
    draws = done.posterior.sample(KEY, 5)
    assert np.ptp(draws["net.0.weight"], axis=0).max() == 0 and np.ptp(draws["net.2.weight"], axis=0).min() > 0
    (block,) = done.posterior.blocks
    assert block.layout.names == ("net.2.weight", "net.2.bias")
    point = {name: value[0] for name, value in done.posterior.sample(KEY, 1).items()}
    point |= done.posterior.mean
    expected = log_evidence(Problem(classifier), point, CX, CY, optimise=("net.0.*",))
    assert float(done.posterior.log_evidence) == pytest.approx(float(expected.value), rel=1e-10)
    assert predict(Problem(classifier), done, KEY, CX, num_draws=7).shape == (7, 12, 3)


@pytest.mark.parametrize(("objective", "probes"), [("ntk", 2), ("ekfac", 1)])
def test_any_objective_may_choose_the_strengths(objective, probes):
    def model(x, y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        w = numpyro.sample("w", dist.Normal(0.0, scale).expand([3, 3]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=tap("f", x @ w, inputs=x, weight="w")), obs=y)

    scheme = Laplace(optax.adam(3e-2), optimise=("scale",), objective=objective, probes=probes, block_size=4, hyper_steps=5)
    done = fit(Problem(model), scheme, KEY, CX, CY, num_steps=200, progress=False)
    # labels that do not depend on the inputs: every bound shrinks the weights
    assert float(done.posterior.sample(KEY, 1)["scale"][0]) < 0.8
    assert done.posterior.evidence_kind == "laplace-ekfac-bound"


def test_the_posterior_can_be_measured_by_probes():
    scheme = Laplace(optax.adam(3e-2), posterior_probes=200)
    done, exact = (
        fit(Problem(classifier), some, KEY, CX, CY, num_steps=50, progress=False) for some in (scheme, Laplace(scheme.optimizer))
    )
    assert done.posterior.evidence_kind == "laplace-ekfac-probes" and exact.posterior.evidence_kind == "laplace-ekfac-bound"
    assert np.array_equal(done.losses, exact.losses)
    assert float(done.posterior.log_evidence) == pytest.approx(float(exact.posterior.log_evidence), abs=0.5)
    with pytest.raises(OptionError, match="posterior_probes must be 'exact' or a number of at least 1, got 0"):
        fit(Problem(classifier), Laplace(posterior_probes=0), KEY, CX, CY, num_steps=5, progress=False)


def _blocks():
    key = jax.random.key(1)
    left = jnp.linalg.qr(jax.random.normal(key, (4, 4)))[0]
    right = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (4, 4)))[0]
    scale = jnp.exp(jax.random.normal(jax.random.key(3), (4, 4)) / 2)
    from bayes_sym.inference.blocks import Layout

    layout = Layout(("w",), ((4, 4),))
    mean = jnp.asarray(det((16,), 1.1, 0.2))
    for transposed in (False, True):
        whitened = KroneckerBlock(layout, jnp.zeros((4, 4)), left, right, scale, transposed)
        yield WhitenedBlock(mean, whitened, SoftEquivariantNormal(ACTION, 2.0, 0.3))
        yield KroneckerBlock(layout, mean.reshape(4, 4), left, right, scale, transposed)
    yield DiagonalBlock(layout, mean, scale.reshape(-1))


def test_blocks_are_the_gaussians_that_their_square_roots_say():
    for block in _blocks():
        half = np.asarray(block.half(jnp.eye(16)))
        mean = np.asarray(block.layout.flatten(block.center()))
        gaussian = scipy.stats.multivariate_normal(mean, half @ half.T)
        at = mean + 0.1 * det((16,), 0.7, 0.3)
        assert float(block.log_prob({"w": jnp.asarray(at).reshape(4, 4)})) == pytest.approx(gaussian.logpdf(at), rel=1e-9)
        draws = np.asarray(block.sample(KEY, 100_000)["w"]).reshape(-1, 16)
        spread = np.cov(draws.T)
        assert np.abs(draws.mean(axis=0) - mean).max() < 5 * np.sqrt(np.diag(spread).max() / 1e5)
        assert np.linalg.norm(spread - half @ half.T) < 0.05 * np.linalg.norm(half @ half.T)


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "diag"])
def test_the_posterior_precision_is_prior_plus_curvature(curvature):
    scheme = Laplace(optax.adam(3e-2), curvature)
    done = fit(Problem(classifier), scheme, KEY, CX, CY, num_steps=50, progress=False)
    covariance = np.zeros((31, 31))
    names = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    sizes = dict(zip(names, (12, 4, 12, 3), strict=True))
    place = {name: slice(sum(list(sizes.values())[:i]), sum(list(sizes.values())[: i + 1])) for i, name in enumerate(names)}
    for block in done.posterior.blocks:
        index = np.concatenate([np.arange(31)[place[name]] for name in block.layout.names])
        half = np.asarray(block.half(jnp.eye(block.layout.size)))
        covariance[np.ix_(index, index)] = half @ half.T
    # |posterior covariance| / |prior covariance| is exp(-log-determinant ratio), which other tests compare with dense ones
    prior = np.concatenate([np.full(12, 1 / 3), np.ones(4), np.full(12, 1 / 4), np.ones(3)])
    found = log_evidence(Problem(classifier), done.posterior.mean, CX, CY, curvature=curvature)
    assert np.linalg.slogdet(covariance)[1] - np.log(prior).sum() == pytest.approx(-float(found.log_det_ratio), rel=1e-9)


def test_many_layers_do_not_hang_under_vmap_over_weights():
    # about twelve independent batched eigendecompositions in one program hang some versions of XLA on few cores
    script = """
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
from bayes_sym import layers
from bayes_sym.inference import Problem, log_evidence

net = layers.Sequential([layers.Dense(3 + i, 4 + i, bias=False) for i in range(8)])

def model(x, y, strength):
    f = layers.random_module("net", net, prior=dist.Normal(0.0, strength))(x)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)

rng = np.random.default_rng(0)
x, y = rng.standard_normal((8, 3)).astype(np.float32), rng.standard_normal((8, 11)).astype(np.float32)
weights = {f"net.{site.name}": rng.standard_normal((3, *site.shape)).astype(np.float32) for site in net.sites()}
for curvature in ("kfac", "ekfac"):
    of = lambda w, s: log_evidence(Problem(model), w, x, y, s, curvature=curvature).value
    print(jax.jit(jax.vmap(jax.grad(of, 1), (0, None)))(weights, 0.5))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout and len(done.stdout.split()) >= 6


# No Gaussian, only the mode


def test_without_a_gaussian_the_mode_is_the_same():
    options = {"optimise": ("scale", "sigma"), "objective": "diag", "burn_in": 10, "refresh": 10, "hyper_steps": 3}
    runs = [Laplace(optax.adam(0.03), curvature, **options) for curvature in ("diag", None)]
    problem = Problem(linear)
    full, alone = (fit(problem, scheme, KEY, BLR_X, BLR_Y, num_steps=30, progress=False).posterior for scheme in runs)
    assert isinstance(alone, PointPosterior) and alone.log_evidence is None
    assert alone.point.keys() == full.mean.keys()
    for name, value in full.mean.items():
        np.testing.assert_array_equal(alone.point[name], value)
    assert float(alone.point["sigma"]) != pytest.approx(float(problem.initial(KEY, (BLR_X, BLR_Y))["sigma"]))


def test_without_a_gaussian_the_evidence_that_moves_sites_must_be_named():
    problem = Problem(linear)
    with pytest.raises(
        OptionError, match=r"curvature=None has no evidence to choose optimise=\('scale',\) by: name the one to climb"
    ):
        fit(problem, Laplace(curvature=None, optimise=("scale",)), KEY, BLR_X, BLR_Y, num_steps=3)
    done = fit(problem, Laplace(curvature=None), KEY, BLR_X, BLR_Y, num_steps=3, progress=False)  # nothing moves: a MAP
    assert isinstance(done.posterior, PointPosterior)
