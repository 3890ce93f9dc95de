"""Families as NumPyro guides and site by site: SVI's bounds, supports, and entropies in unconstrained coordinates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.special
import scipy.stats
from numpyro.infer import SVI, Predictive, Trace_ELBO

from bayes_sym import representations
from bayes_sym.errors import OptionError
from bayes_sym.groups import cyclic
from bayes_sym.inference import (
    Beta,
    BlockGaussian,
    FullGaussian,
    Gamma,
    LogNormal,
    MatrixNormal,
    MeanField,
    MeanFieldLaplace,
    OrbitGaussian,
    PerSite,
    Problem,
    as_guide,
)
from bayes_sym.inference.families.log_gamma import log_gamma
from bayes_sym.priors import SoftEquivariantNormal


KEY = jax.random.key(3)
X = np.random.default_rng(0).standard_normal((15, 3))
Y = X @ np.array([1.0, -0.5, 0.3]) + 0.1 * np.sin(np.arange(15.0))
SIGMA, TAU = 0.4, 0.7


def linear(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, TAU).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)


def exact_bound(mean, covariance):
    """log Z - KL(q || posterior) of the linear model."""
    precision = X.T @ X / SIGMA**2 + np.eye(3) / TAU**2
    centre = np.linalg.solve(precision, X.T @ Y) / SIGMA**2
    of_y = SIGMA**2 * np.eye(15) + TAU**2 * X @ X.T
    log_z = -0.5 * (Y @ np.linalg.solve(of_y, Y) + np.linalg.slogdet(of_y)[1] + 15 * np.log(2 * np.pi))
    gap = mean - centre
    log_dets = -np.linalg.slogdet(precision)[1] - np.linalg.slogdet(covariance)[1]
    return log_z - 0.5 * (log_dets + np.trace(precision @ covariance) + gap @ precision @ gap - 3)


@pytest.mark.parametrize("family", [MeanField(0.2), FullGaussian(0.2)], ids=["mean_field", "full"])
def test_svi_sees_the_exact_bound_and_climbs_it(family, x64):
    guide = as_guide(family, Problem(linear), KEY, X, Y)
    count = 4000
    svi = SVI(linear, guide, optax.adam(0.05), Trace_ELBO(num_particles=count))
    state = svi.init(KEY, X, Y)
    params = {name: np.asarray(value) for name, value in svi.get_params(state).items()}
    covariance = 0.04 * np.eye(3)
    expected = -exact_bound(params["q.0"], covariance)
    # the spread of log p(y, w) - log q(w) over draws gives the standard error of the estimate
    rng = np.random.default_rng(1)
    w = params["q.0"] + 0.2 * rng.standard_normal((count, 3))
    log_joint = -0.5 * ((Y - w @ X.T) ** 2).sum(axis=1) / SIGMA**2 - 0.5 * (w**2).sum(axis=1) / TAU**2
    error = (log_joint + 0.5 * ((w - params["q.0"]) ** 2).sum(axis=1) / 0.04).std() / np.sqrt(count)
    assert abs(float(svi.evaluate(state, X, Y)) - expected) < 4 * error
    step = jax.jit(svi.update)
    losses = []
    for _ in range(60):
        state, loss = step(state, X, Y)
        losses.append(float(loss))
    fitted = svi.get_params(state)
    root = np.diag(np.exp(fitted["q.1"])) if isinstance(family, MeanField) else np.asarray(fitted["q.1"])
    if isinstance(family, FullGaussian):
        root = np.tril(root, -1) + np.diag(np.exp(np.diagonal(root)))
    after = -exact_bound(np.asarray(fitted["q.0"]), root @ root.T)
    assert after < expected - 1 and losses[-1] == pytest.approx(after, abs=0.3)
    draws = Predictive(linear, guide=guide, params=fitted, num_samples=50)(KEY, X)
    assert draws["y"].shape == (50, 15) and np.ptp(np.asarray(draws["y"])[:, 0]) > 0
    assert np.abs(np.asarray(draws["y"]).mean(axis=0) - X @ np.asarray(fitted["q.0"])).max() < 5 * 0.6 / np.sqrt(50)


def mixed(x, y=None):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    precision = numpyro.sample("precision", dist.Gamma(2.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0, scale).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 1 / jnp.sqrt(precision)), obs=y)


MIXED = PerSite({"precision": Gamma(), "w": FullGaussian(0.1)}, MeanField(0.1))


def test_guides_respect_supports_and_count_the_change_of_coordinates(x64):
    guide = as_guide(MIXED, Problem(mixed), KEY, X, Y)
    svi = SVI(mixed, guide, optax.adam(0.02), Trace_ELBO(num_particles=4))
    state = jax.jit(svi.init)(KEY, X, Y)
    params = svi.get_params(state)

    @jax.jit
    def densities(key):
        """log q of a draw by the guide's own trace."""
        trace = numpyro.handlers.trace(numpyro.handlers.seed(numpyro.handlers.substitute(guide, params), key)).get_trace(X, Y)
        sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
        total = sum(site["fn"].log_prob(site["value"]).sum() for site in sites.values())
        return {name: site["value"] for name, site in sites.items()}, total

    values, total = densities(jax.random.key(8))
    assert values["scale"] > 0 and values["precision"] > 0
    # the same density on the supports, by scipy
    leaves = [np.asarray(params[f"q.{i}"]) for i in range(len(params))]
    start = MIXED.init({"scale": jnp.zeros(()), "precision": jnp.zeros(()), "w": jnp.zeros(3)})
    gamma, full, normal = (jax.tree.unflatten(jax.tree.structure(start), leaves)[str(i)] for i in range(3))
    shape, rate = np.exp(gamma.log_shape["precision"]), np.exp(gamma.log_rate["precision"])
    expected = scipy.stats.gamma(shape, scale=1 / rate).logpdf(values["precision"])
    expected += scipy.stats.norm(full.mean["w"], 0.1).logpdf(values["w"]).sum()
    expected += scipy.stats.lognorm(0.1, scale=np.exp(normal.mean["scale"])).logpdf(values["scale"])
    assert float(total) == pytest.approx(expected, abs=1e-9)
    step = jax.jit(svi.update)
    losses = []
    for _ in range(40):
        state, loss = step(state, X, Y)
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    draws = Predictive(mixed, guide=guide, params=svi.get_params(state), num_samples=20)(KEY, X)
    assert draws["y"].shape == (20, 15) and np.isfinite(draws["y"]).all()


def test_a_guide_takes_its_orbits_from_the_model(x64):
    rep = representations.regular(cyclic(3))

    def soft(x, y=None):
        w = numpyro.sample("w", SoftEquivariantNormal(rep, 1.0, 1e-2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)

    guide = as_guide(PerSite({"w": OrbitGaussian()}), Problem(soft), KEY, X, Y)
    with numpyro.handlers.seed(rng_seed=0):
        trace = numpyro.handlers.trace(guide).get_trace(X, Y)
    assert trace["w"]["value"].shape == (3,) and trace["q"]["infer"]["is_auxiliary"]
    family = trace["q"]["fn"].family
    assert family.family_of("w") == OrbitGaussian({"w": rep})
    # draws asked for together are independent of each other, not antithetic
    several = np.asarray(trace["q"]["fn"].sample(KEY, (4,)))
    centre = np.asarray(trace["q"]["fn"].params["0"].mean["w"])
    assert several.shape == (4, 3) and np.abs(several[:2] + several[2:] - 2 * centre).min() > 1e-6


# PerSite


SITES = PerSite({"scale*": Gamma(), "share": Beta(), "w?": MatrixNormal(0.3), "*.bias": MeanFieldLaplace(0.3)}, LogNormal(0.3))
Z = {"scale.a": (2,), "share": (2,), "w1": (2, 2), "net.bias": (3,), "rest": (2,)}


def test_the_first_pattern_that_matches_takes_a_site():
    assert SITES.assign(Z) == (("scale.a",), ("share",), ("w1",), ("net.bias",), ("rest",))
    assert SITES.family_of("scale.bias") == Gamma() and SITES.family_of("w12") == LogNormal(0.3)
    z = {name: jnp.zeros(shape) for name, shape in Z.items()}
    with pytest.raises(OptionError, match=r"no latent site is left for \['late'\]; the model has \['scale.a'"):
        PerSite({"*": MeanField(), "late": Gamma()}).init(z)
    with pytest.raises(OptionError, match="must be a family on the reals"):
        PerSite({}, Gamma())


def test_entropies_are_in_unconstrained_coordinates(x64):
    """H = -E log q(z) for z = log theta and z = logit theta, by draws; and the mean of every site in those coordinates."""
    rng = np.random.default_rng(0)
    z = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in Z.items()}
    params = SITES.init(z)

    @jax.jit
    def draw(params):
        noise = SITES.noise(KEY, params, 8000)
        values = jax.vmap(functools.partial(SITES.sample, params))(noise)
        return values, jax.vmap(functools.partial(SITES.log_prob, params))(values), SITES.entropy(params)

    values, log_prob, entropy = draw(params)
    pairs = (np.asarray(log_prob)[:4000] + np.asarray(log_prob)[4000:]) / 2
    assert abs(pairs.mean() + float(entropy)) < 4 * pairs.std() / np.sqrt(4000)
    assert pairs.std() > 0.5
    assert {name: value.shape[1:] for name, value in values.items()} == Z
    center = SITES.center(params)
    for name in ("scale.a", "share", "w1", "net.bias"):  # families start with their mean there
        assert np.abs(center[name] - z[name]).max() < 1e-12
    assert np.isnan(SITES.moments(params).mean["rest"]).sum() == 0 and "share" not in SITES.moments(params).mean


def test_gaussian_members_give_gaussian_blocks(x64):
    z = {"a": jnp.ones(2), "b": jnp.zeros(3), "c": jnp.zeros(1)}
    family = PerSite({"a": BlockGaussian(), "b": MeanField()}, FullGaussian())
    params = family.init(z)
    blocks = family.blocks(params)
    assert [block.layout.names for block in blocks] == [("a",), ("b",), ("c",)]
    total = sum(block.log_prob(z) for block in blocks)
    assert float(total) == pytest.approx(float(family.log_prob(params, z)), abs=1e-10)
    assert SITES.blocks(SITES.init({name: jnp.zeros(shape) for name, shape in Z.items()})) is None


def test_draws_stay_inside_their_supports_in_float32():
    """Tiny shapes underflow: the coordinates log theta and logit theta stay finite all the same, and so do their gradients."""
    family = PerSite({"p": Gamma(), "u": Beta()})
    params = family.init({"p": jnp.zeros(3), "u": jnp.zeros(3)})
    small = jax.tree.map(lambda leaf: jnp.full_like(leaf, -5.0), params)

    @jax.jit
    def draw(params):
        noise = family.noise(KEY, params, 200)
        total = lambda params, e: sum(v.sum() for v in family.sample(params, e).values())  # noqa: E731
        return jax.vmap(functools.partial(family.sample, params))(noise), jax.vmap(lambda e: jax.grad(total)(params, e))(noise)

    for leaf in jax.tree.leaves(draw(small)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("shape", [0.007, 0.05, 0.8, 3.0])
def test_logarithms_of_gamma_draws_have_the_derivative_of_their_quantile(shape, x64):
    a = jnp.full(40, shape)
    draws, slopes = jax.jvp(lambda a: log_gamma(KEY, a), (a,), (jnp.ones(40),))
    seen = np.asarray(draws) > -600  # smaller ones have no distribution function in float64
    assert seen.sum() > 30 and (shape > 0.1 or (draws < -30).any())
    level = scipy.special.gammainc(shape, np.exp(draws))
    step = 1e-5 * shape
    above, below = (np.log(scipy.special.gammaincinv(shape + h, level)) for h in (step, -step))
    np.testing.assert_allclose(slopes[seen], ((above - below) / (2 * step))[seen], rtol=1e-5)
    assert np.isfinite(slopes).all()
