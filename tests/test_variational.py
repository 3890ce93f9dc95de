"""Variational inference lands where closed forms say: natural gradients, conjugate strengths, local noise, bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats

from bayes_sym import representations
from bayes_sym.errors import OptionError
from bayes_sym.groups import cyclic
from bayes_sym.inference import (
    BlockGaussian,
    FullGaussian,
    Gamma,
    LogNormal,
    LowRankGaussian,
    MatrixNormal,
    MeanField,
    MeanFieldLaplace,
    NaturalGradient,
    OrbitGaussian,
    PerSite,
    Point,
    Problem,
    Variational,
    fit,
)
from bayes_sym.inference.chunks import run_chunk
from bayes_sym.inference.families import MeanFieldParams
from bayes_sym.inference.families.dense import triangular
from bayes_sym.inference.local_noise import LocalNoise
from bayes_sym.inference.variational import VariationalState
from bayes_sym.layers import Activation, Conv, Dense, Pool, Sequential, random_module
from bayes_sym.priors import IndependentScales, SoftEquivariantNormal


KEY = jax.random.key(4)
X = np.random.default_rng(0).standard_normal((15, 3))
Y = X @ np.array([1.0, -0.5, 0.3]) + 0.1 * np.sin(np.arange(15.0))
SIGMA, TAU = 0.4, 0.7
PRECISION = X.T @ X / SIGMA**2 + np.eye(3) / TAU**2
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ X.T @ Y / SIGMA**2
_COVARIANCE_OF_Y = SIGMA**2 * np.eye(15) + TAU**2 * X @ X.T
LOG_Z = -0.5 * (Y @ np.linalg.solve(_COVARIANCE_OF_Y, Y) + np.linalg.slogdet(_COVARIANCE_OF_Y)[1] + 15 * np.log(2 * np.pi))
SMALL = optax.adam(optax.cosine_decay_schedule(0.03, 600))


def linear(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, TAU).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)


LINEAR = Problem(linear)


def dense_moments(posterior):
    (block,) = posterior.blocks
    return np.asarray(block.mean), np.asarray(block.root @ block.root.T)


@pytest.mark.parametrize("family", [FullGaussian(), BlockGaussian()], ids=["full", "block"])
def test_one_natural_step_of_rate_one_is_the_exact_posterior(family, x64):
    done = fit(LINEAR, Variational(family, NaturalGradient(1.0, hessian="exact")), KEY, X, Y, num_steps=1, progress=False)
    mean, covariance = dense_moments(done.posterior)
    assert np.abs(mean - MEAN).max() < 1e-10
    assert np.abs(covariance - COVARIANCE).max() < 1e-10
    # log p(data, z) - log q(z) is then the same for every z: the bound is met without Monte-Carlo error
    assert float(done.posterior.log_evidence) == pytest.approx(LOG_Z, abs=1e-9)


def test_a_natural_step_of_rate_r_moves_natural_parameters_by_r(x64):
    rate = 0.3
    done = fit(
        LINEAR, Variational(FullGaussian(0.2), NaturalGradient(rate, hessian="exact")), KEY, X, Y, num_steps=1, progress=False
    )
    mean, covariance = dense_moments(done.posterior)
    assert np.allclose(np.linalg.inv(covariance), (1 - rate) * np.eye(3) / 0.2**2 + rate * PRECISION, rtol=1e-10)
    start = np.asarray(fit_start(FullGaussian(0.2)).mean["w"])
    gradient = PRECISION @ (MEAN - start)
    assert np.allclose(mean, start + rate * covariance @ gradient, rtol=1e-9)


def fit_start(family):
    scheme = Variational(family, NaturalGradient(0.5))
    return scheme.init(jax.random.split(KEY, 5)[0], LINEAR, (X, Y)).params


@pytest.mark.parametrize("family", [MeanField(), MatrixNormal(), FullGaussian()], ids=["mean field", "kronecker", "full"])
def test_natural_steps_from_gradients_alone_come_to_the_optimum_of_the_family(family, x64):
    scheme = Variational(family, NaturalGradient(0.02), num_particles=16)
    done = fit(LINEAR, scheme, KEY, X, Y, num_steps=900, progress=False)
    draws = np.asarray(done.posterior.sample_unconstrained(KEY, 20_000)["w"])
    expected = np.diag(1 / np.diagonal(PRECISION)) if family == MeanField() else COVARIANCE
    # a (1, 3) matrix has a dense covariance of its outputs, so that the Kronecker family holds the exact posterior too
    scale = np.sqrt(np.diagonal(expected))
    assert np.abs((draws.mean(axis=0) - MEAN) / scale).max() < 0.05
    assert np.abs(np.cov(draws.T) - expected).max() < 0.12 * np.diagonal(expected).max()


def test_natural_steps_survive_a_log_joint_that_curves_the_wrong_way(x64):
    def saddle(x, y=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(w[0] * w[1], 0.1), obs=y)

    scheme = Variational(FullGaussian(0.5), NaturalGradient(0.1, hessian="exact", max_step=0.5), num_particles=8)
    done = fit(Problem(saddle), scheme, KEY, np.zeros(20), np.full(20, 2.0), num_steps=200, progress=False)
    mean, covariance = dense_moments(done.posterior)
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    assert mean[0] * mean[1] == pytest.approx(2.0, abs=0.1)


# Bounds


def covariance_of(family, params):
    if isinstance(family, FullGaussian):
        return params.roots[0] @ params.roots[0].T
    if isinstance(family, MatrixNormal):  # one row
        right = triangular(params.right["w"])
        return triangular(params.left["w"])[0, 0] ** 2 * right @ right.T
    if isinstance(family, LowRankGaussian):
        return jnp.diag(jnp.exp(2 * params.log_scale["w"])) + params.factor["w"].T @ params.factor["w"]
    return jnp.diag(family.moments(params).variance["w"])


@functools.cache
def bounds(family):
    """The exact ELBO after a fit, from the first two moments and the entropy of q, and the ELBO that the fit reports."""
    with jax.enable_x64(True):
        done = fit(LINEAR, Variational(family, SMALL), KEY, X, Y, num_steps=600, progress=False)
        params = done.state.params
        m, s = np.asarray(family.moments(params).mean["w"]), np.asarray(covariance_of(family, params))
        likelihood = ((Y - X @ m) ** 2).sum() + np.trace(X.T @ X @ s)
        exact = -0.5 * likelihood / SIGMA**2 - 15 * np.log(SIGMA) - 7.5 * np.log(2 * np.pi)
        exact += -0.5 * (m @ m + np.trace(s)) / TAU**2 - 3 * np.log(TAU) - 1.5 * np.log(2 * np.pi)
        return exact + float(family.entropy(params)), float(done.posterior.log_evidence)


FAMILIES = [MeanField(), MeanFieldLaplace(), LogNormal(), LowRankGaussian(2), MatrixNormal(), FullGaussian()]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_the_elbo_is_below_the_log_evidence(family):
    exact, reported = bounds(family)
    assert exact < LOG_Z
    heavy = isinstance(family, MeanFieldLaplace | LogNormal)  # 64 draws with tails, and no Gaussian control
    assert reported == pytest.approx(exact, abs=0.5 if heavy else 0.05)


def test_richer_families_have_tighter_bounds():
    kl = 0.5 * (np.log(np.diagonal(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])  # of the best factorised Gaussian
    exact = {type(family).__name__: bounds(family)[0] for family in FAMILIES}
    assert exact["MeanField"] == pytest.approx(LOG_Z - kl, abs=5e-3)
    assert exact["FullGaussian"] == pytest.approx(LOG_Z, abs=5e-3)
    assert exact["MatrixNormal"] == pytest.approx(LOG_Z, abs=5e-3)
    assert exact["MeanFieldLaplace"] < exact["MeanField"] < exact["LowRankGaussian"] < LOG_Z


# Strengths


def strength(x, y=None):
    tau = numpyro.sample("tau", dist.Gamma(2.0, 1.5))
    w = numpyro.sample("w", dist.Normal(0, 1 / jnp.sqrt(tau)).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)


def coordinate_ascent():
    """Exact updates of q(w) q(tau) by turns, in numpy."""
    a, b = 3.5, 1.5
    for _ in range(200):
        covariance = np.linalg.inv(X.T @ X / SIGMA**2 + a / b * np.eye(3))
        mean = covariance @ X.T @ Y / SIGMA**2
        a, b = 2.0 + 1.5, 1.5 + 0.5 * (mean @ mean + np.trace(covariance))
    return mean, covariance, a, b


def test_conjugate_strengths_get_their_exact_coordinate_update(x64):
    scheme = Variational(FullGaussian(), NaturalGradient(0.2), conjugate=("tau",))
    with pytest.raises(OptionError, match="NaturalGradient has no step for Gamma"):
        fit(Problem(strength), scheme, KEY, X, Y, num_steps=5, progress=False)
    scheme = Variational(FullGaussian(), optax.adam(optax.cosine_decay_schedule(0.03, 1500)), conjugate=("tau",), num_particles=8)
    done = fit(Problem(strength), scheme, KEY, X, Y, num_steps=1500, progress=False)
    gamma, rest = done.state.params["0"], done.state.params["1"]
    a, b = (float(jnp.exp(field["tau"])) for field in (gamma.log_shape, gamma.log_rate))
    w, (root,) = np.asarray(rest.mean["w"]), rest.roots
    assert a == pytest.approx(3.5, rel=1e-10)
    assert b == pytest.approx(1.5 + 0.5 * (w @ w + np.trace(root @ root.T)), rel=1e-10)
    mean, _, _, best_b = coordinate_ascent()
    assert np.allclose(w, mean, atol=0.01)
    assert b == pytest.approx(best_b, rel=0.03)


def test_conjugate_updates_hold_for_both_strengths_of_a_soft_symmetry(x64):
    rep = representations.regular(cyclic(4))
    rank, target = rep.rank, np.array([1.0, 0.8, 1.1, 0.9])

    def model(x, y=None):
        tau = numpyro.sample("tau", dist.Gamma(jnp.full(2, 1.0), jnp.full(2, 0.1)).to_event(1))
        w = numpyro.sample("w", SoftEquivariantNormal(rep, 1 / tau[0], 1 / tau[1]))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(w[None], 0.1).to_event(1), obs=y)

    data = (np.zeros((3, 1)), np.tile(target, (3, 1)))
    scheme = Variational(PerSite((("w", OrbitGaussian()),)), SMALL, conjugate=("tau",), num_particles=8)
    done = fit(Problem(model), scheme, KEY, *data, num_steps=400, progress=False)
    gamma = done.state.params["0"]
    a, b = (np.exp(np.asarray(field["tau"])) for field in (gamma.log_shape, gamma.log_rate))
    draws = np.asarray(done.posterior.sample_unconstrained(KEY, 20_000)["w"])
    invariant = draws.mean(axis=1, keepdims=True)
    energy = np.array([4 * (invariant**2).mean(), ((draws - invariant) ** 2).sum(axis=1).mean()])
    assert np.allclose(a, 1 + np.array([rank, 4 - rank]) / 2, rtol=1e-9)
    assert np.allclose(b, 0.1 + energy / 2, rtol=0.02)
    assert a[1] / b[1] > 10 * a[0] / b[0]  # the data are nearly invariant


def test_strengths_that_are_not_conjugate_are_refused():
    def scale(x, y=None):
        tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))
        w = numpyro.sample("w", dist.Normal(0, tau).expand([3]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, SIGMA), obs=y)

    with pytest.raises(OptionError, match="conjugate='tau': the model is not conjugate there"):
        fit(Problem(scale), Variational(conjugate=("tau",)), KEY, X, Y, num_steps=5, progress=False)
    with pytest.raises(OptionError, match=r"no latent sites \['nu'\]"):
        fit(Problem(strength), Variational(conjugate=("nu",)), KEY, X, Y, num_steps=5, progress=False)


# Local noise


NETS = {
    "dense": (Sequential((Dense(4, 5), Activation("tanh"), Dense(5, 3))), (6, 4)),
    "conv": (
        Sequential((Conv(1, 3), Activation("relu"), Pool(2, "max"), Conv(3, 2), Activation("relu"), Pool(), Dense(2, 3))),
        (6, 4, 4, 1),
    ),
}


@functools.cache
def net_problem(name):
    spec, shape = NETS[name]

    def model(x, y=None):
        net = random_module("net", spec, prior=IndependentScales(1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    generator = np.random.default_rng(3)
    return Problem(model), (generator.standard_normal(shape), generator.integers(0, 3, shape[0]))


@pytest.mark.parametrize("name", NETS)
def test_local_noise_has_the_same_gradient_with_less_variance(name, x64):
    problem, data = net_problem(name)
    family = MeanField(0.3)
    params = family.init(problem.initial(KEY, data))

    def gradients(noise):
        scheme = Variational(family, noise=noise)

        def one(key):
            return jax.grad(lambda p: scheme.elbo(key, p, problem, data, 1.0, 1))(params)

        # without any optimisation, as the other tests are compiled, XLA's program for this one has infinite gradients
        options = {"xla_backend_optimization_level": 1}
        return jax.jit(lambda keys: jax.lax.map(one, keys), compiler_options=options)(jax.random.split(KEY, 3000))

    weights, local = (
        {
            (field, site): np.asarray(v).reshape(3000, -1)
            for field, values in zip(g._fields, g, strict=True)
            for site, v in values.items()
        }
        for g in (gradients("weights"), gradients("local"))
    )
    spread = {"weights": 0.0, "local": 0.0}
    for entry in weights:
        a, b = weights[entry], local[entry]
        se = np.sqrt(a.var(axis=0) / 3000 + b.var(axis=0) / 3000)
        z = (a.mean(axis=0) - b.mean(axis=0)) / np.maximum(se, 1e-12)
        assert np.abs(z).max() < 4.8, entry  # of some hundred entries
        spread["weights"] += a.var(axis=0).sum()
        spread["local"] += b.var(axis=0).sum()
    assert spread["local"] < 0.6 * spread["weights"]


def test_flipped_noise_keeps_the_correlation_of_pixels_that_share_a_weight(x64):
    problem, data = net_problem("conv")
    family = MeanField(0.3)
    params = family.init(problem.initial(KEY, data))
    # the pre-activations of one row: their covariance over draws must be that of noisy weights, also between pixels
    spec = NETS["conv"][0].layers[0]
    x = jnp.asarray(data[0][:1])
    mean = {name: params.mean[f"net.0.{name}"] for name in ("weight", "bias")}
    patches = np.asarray(spec.patches(x)).reshape(16, 9)
    exact = 0.09 * (np.einsum("pi,qi->pq", patches, patches) + 1)  # of every output channel; 1 for the bias

    means = {f"net.0.{name}": value for name, value in mean.items()}
    scales = {name: jnp.full_like(value, 0.3) for name, value in means.items()}

    @jax.jit
    def draw(key):
        def net(x):
            return spec.apply(mean, x, path="net.0")

        with LocalNoise({"net.0": "net.0.weight"}, means, scales, key, jnp.ones(())):
            return net(x)

    draws = np.asarray(jax.lax.map(draw, jax.random.split(KEY, 20_000)))[:, 0].reshape(-1, 16, 3)
    centred = draws - np.asarray(spec.apply(mean, x)).reshape(16, 3)
    for channel in range(3):
        found = centred[:, :, channel].T @ centred[:, :, channel] / len(draws)
        assert np.abs(found - exact).max() < 0.06 * exact.max()
    across = np.einsum("np,nq->pq", centred[:, :, 0], centred[:, :, 1]) / len(draws)
    assert np.abs(across).max() < 0.06 * exact.max()  # channels have weights of their own


# Options and states


def test_positive_sites_can_have_families_of_their_own(x64):
    scheme = Variational(PerSite((("tau", Gamma()),)), SMALL, num_particles=4)
    done = fit(Problem(strength), scheme, KEY, X, Y, num_steps=600, progress=False)
    draws = done.posterior.sample(KEY, 3000)
    assert (np.asarray(draws["tau"]) > 0).all() and draws["w"].shape == (3000, 3)
    _, _, a, b = coordinate_ascent()
    assert np.asarray(draws["tau"]).mean() == pytest.approx(a / b, rel=0.2)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (lambda: Variational(noise="global"), "noise must be 'weights' or 'local'"),
        (lambda: Variational(noise="local"), "noise='local' needs tapped weights"),
        (lambda: Variational(Gamma()), "Gamma is no family for all sites"),
        (lambda: Variational(MeanFieldLaplace(), NaturalGradient()), "NaturalGradient has no step for MeanFieldLaplace"),
        (lambda: Variational(MeanField(), NaturalGradient(hessian="exact")), "needs FullGaussian"),
        (lambda: Variational(OrbitGaussian()), "takes its orbits from soft-equivariant priors"),
        (lambda: Variational(PerSite((("v*", MeanField()),))), r"no latent site is left for \['v\*'\]"),
        (lambda: Variational(PerSite((("w", Point()),))), "is a Point at every site"),
        (lambda: Variational(Point()), "is a Point at every site"),
        (lambda: Variational(start=0.0), "start multiplies the first weights"),
        (lambda: NaturalGradient(0.0), r"rate=0.0\) must be in"),
        (lambda: NaturalGradient(momentum=1.0), r"momentum=1.0\) must be in"),
        (lambda: NaturalGradient(hessian="diagonal"), "must be 'estimated' or 'exact'"),
        (lambda: NaturalGradient(max_step=0.0), "must be positive"),
    ],
)
def test_options_out_of_range_are_refused_before_any_step(scheme, message):
    with pytest.raises(OptionError, match=message):
        fit(LINEAR, scheme(), KEY, X.astype(np.float32), Y.astype(np.float32), num_steps=2, progress=False)


def test_points_are_the_mode_of_what_the_others_leave_and_the_evidence_is_given_them(x64):
    def model(x, y=None):
        b = numpyro.sample("b", dist.Normal(0.3, 0.9))
        w = numpyro.sample("w", dist.Normal(0, TAU).expand([3]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w + b, SIGMA), obs=y)

    scheme = Variational(PerSite((("w", Point()),)), optax.adam(optax.cosine_decay_schedule(0.03, 2000)), num_particles=32)
    done = fit(Problem(model), scheme, KEY, X, Y, num_steps=2000, progress=False)
    # of a Gaussian posterior, the mode of w with b integrated out is the mean; and q is then the law of b given w
    design = np.column_stack([X, np.ones(15)])
    precision = design.T @ design / SIGMA**2 + np.diag([TAU**-2] * 3 + [0.9**-2])
    w = np.linalg.solve(precision, design.T @ Y / SIGMA**2 + np.array([0, 0, 0, 0.3 * 0.9**-2]))[:3]
    variance = 1 / (15 / SIGMA**2 + 0.9**-2)
    assert np.abs(np.asarray(done.posterior.point["w"]) - w).max() < 2e-3
    assert done.state.params["1"].scale["b"] == pytest.approx(variance**0.5, rel=0.01)
    assert done.posterior.mean["b"] == pytest.approx(variance * ((Y - X @ w).sum() / SIGMA**2 + 0.3 * 0.9**-2), abs=5e-3)
    covariance = SIGMA**2 * np.eye(15) + 0.9**2
    given = scipy.stats.multivariate_normal(X @ w + 0.3, covariance).logpdf(Y)
    assert done.posterior.log_evidence == pytest.approx(given, abs=2e-3)
    assert (np.asarray(done.posterior.sample(KEY, 5)["w"]) == np.asarray(done.posterior.point["w"])).all()


def test_posterior_draws_are_independent_though_those_of_a_step_come_in_pairs(x64):
    done = fit(LINEAR, Variational(MeanFieldLaplace()), KEY, X, Y, num_steps=3, progress=False)
    draws = np.asarray(done.posterior.sample_unconstrained(KEY, 4000)["w"]) - np.asarray(done.state.params.loc["w"])
    paired = (draws[:2000] * draws[2000:]).mean(axis=0) / draws.var(axis=0)
    assert np.abs(paired).max() < 4 / np.sqrt(2000)


def test_a_second_fit_compiles_nothing():
    data = X.astype(np.float32), Y.astype(np.float32)
    scheme = Variational(FullGaussian(), NaturalGradient(0.1))
    fit(LINEAR, scheme, KEY, *data, num_steps=4, progress=False)
    before = run_chunk._cache_size()
    fit(LINEAR, Variational(FullGaussian(), NaturalGradient(0.1)), jax.random.key(9), *data, num_steps=4, progress=False)
    assert run_chunk._cache_size() == before


def test_states_are_pytrees_of_arrays():
    state = Variational(FullGaussian()).init(KEY, LINEAR, (X.astype(np.float32), Y.astype(np.float32)))
    assert isinstance(state, VariationalState)
    assert all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(state))
    assert isinstance(Variational().init(KEY, LINEAR, (X.astype(np.float32), Y.astype(np.float32))).params, MeanFieldParams)
