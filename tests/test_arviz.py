"""The ArviZ bridge: groups, names and shapes; densities against computations of their own; netCDF; both versions."""

import subprocess
import sys

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

from bayes_sym import groups as groups_
from bayes_sym import representations
from bayes_sym.diagnostics import equivariance_error_from_draws
from bayes_sym.errors import GroupActionError, ModelError, OptionError
from bayes_sym.inference import (
    MAP,
    NUTS,
    Laplace,
    MeanFieldLaplace,
    Problem,
    Variational,
    evidence_table,
    fit,
    predict,
    to_arviz,
)
from bayes_sym.layers import Activation, Dense, Sequential, random_module
from bayes_sym.priors import IndependentScales


N = 12


def net_model(x, y=None):
    sigma = numpyro.sample("noise/sigma", dist.HalfNormal(1.0))
    numpyro.deterministic("precision", sigma**-2)
    net = random_module(
        "net", Sequential((Dense(2, 3), Activation("tanh"), Dense(3, 1, bias=False))), prior=IndependentScales(1.0)
    )
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], sigma), obs=y)


def line_model(data, y=None):
    """Linear, so that everything is known in closed form; the argument has the name of the plate."""
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("data", data.shape[0]):
        numpyro.sample("y", dist.Normal(data @ w, 0.5), obs=y)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2)).astype(np.float32)
    return x, (x[:, 0] - 0.5 * x[:, 1] + 0.3 * rng.normal(size=N)).astype(np.float32)


SCHEMES = {
    "map": (MAP(), 20),
    "laplace": (Laplace(optimise=("noise/*",)), 60),
    "variational": (Variational(), 60),
    "family": (Variational(MeanFieldLaplace()), 60),
    "nuts": (NUTS(num_warmup=20, num_chains=2, max_tree_depth=4), 50),
}
DRAWS = {"map": (1, 1), "laplace": (1, 40), "variational": (1, 40), "family": (1, 40), "nuts": (2, 30)}


SWAP = representations.regular(groups_.cyclic(2))  # the two inputs change places


@pytest.fixture(scope="module")
def fits(data):
    problem = Problem(net_model)
    key = jax.random.key(0)
    return {name: fit(problem, scheme, key, *data, num_steps=n, progress=False) for name, (scheme, n) in SCHEMES.items()}


@pytest.fixture(scope="module")
def trees(data, fits):
    problem, key = Problem(net_model), jax.random.key(1)
    return {
        name: to_arviz(found, problem, key, *data, num_draws=40, posterior_predictive=True, inputs=(data[0][:5],), action=SWAP)
        for name, found in fits.items()
    }


def groups(tree):
    """The group names, in both versions."""
    return {name.strip("/") for name in (tree.groups() if callable(tree.groups) else tree.groups)} - {""}


@pytest.mark.parametrize("name", SCHEMES)
def test_groups_and_shapes(name, trees, data):
    tree, draws = trees[name], DRAWS[name]
    assert groups(tree) == {
        "posterior",
        "posterior_predictive",
        "predictions",
        "log_likelihood",
        "sample_stats",
        "observed_data",
        "constant_data",
        "predictions_constant_data",
        "equivariance",
    }
    posterior = tree["posterior"]
    weights = ["net.0.bias", "net.0.weight", "net.2.weight"]
    assert sorted(posterior.data_vars) == sorted(["noise.sigma", *(site + ".rms" for site in weights)])
    assert all(posterior[var].dims == ("chain", "draw") and posterior[var].shape == draws for var in posterior.data_vars)
    for group, rows in [("log_likelihood", N), ("posterior_predictive", N), ("predictions", 5)]:
        assert list(tree[group].data_vars) == ["y"]
        assert tree[group]["y"].dims == ("chain", "draw", "data")
        assert tree[group]["y"].shape == (*draws, rows)
        assert tree[group]["data"].values.tolist() == list(range(rows))
    assert tree["observed_data"]["y"].dims == ("data",)
    np.testing.assert_array_equal(tree["observed_data"]["y"], data[1])
    assert list(tree["constant_data"].data_vars) == ["x"]
    assert tree["constant_data"]["x"].dims == ("data", "x_dim_1")
    np.testing.assert_array_equal(tree["constant_data"]["x"], data[0])
    np.testing.assert_array_equal(tree["predictions_constant_data"]["x"], data[0][:5])
    stats = {
        "map": {"lp"},
        "laplace": {"lp", "log_q"},
        "variational": {"lp", "log_q"},
        "family": {"lp", "log_q"},
        "nuts": {"lp", "acceptance_rate", "diverging", "n_steps"},
    }
    assert set(tree["sample_stats"].data_vars) == stats[name]


@pytest.mark.parametrize("name", SCHEMES)
def test_the_equivariance_group_is_that_of_the_predictions(name, trees, fits, data):
    tree, (chains, draws) = trees[name], DRAWS[name]
    found = tree["equivariance"]
    assert found["member"].dims == ("chain", "draw", "element") and found["member"].shape == (chains, draws, 2)
    assert found["predictive"].dims == ("element",)
    x = data[0][:5]
    problem, fitted = Problem(net_model), fits[name]
    if name == "nuts":  # all its draws, as samples in constrained coordinates
        z = {site: value.reshape(-1, *value.shape[2:]) for site, value in fitted.posterior.draws.items()}
        fitted = jax.vmap(lambda z: problem.constrain(z, data))(z)
    count = chains * draws
    both = predict(problem, fitted, jax.random.key(1), np.concatenate([x, x[:, ::-1]]), num_draws=count).reshape(count, 2, 5)
    expected = equivariance_error_from_draws(both)
    for variable, attribute in [("predictive_error", "predictive"), ("member_error", "member")]:
        for end in ("", "_se"):
            assert float(found[variable + end]) == pytest.approx(getattr(expected, attribute + end), rel=1e-3, abs=1e-9)
    assert float(found["emergence"]) == pytest.approx(expected.emergence, rel=1e-3, abs=1e-6)
    d = (both[:, 1] - both[:, 0]).astype(np.float64)
    np.testing.assert_allclose(found["member"].values.reshape(count, 2)[:, 1], (d**2).mean(axis=1), rtol=1e-3, atol=1e-9)
    assert (found["member"].values[..., 0] == 0).all() and float(found["predictive"][0]) == 0
    assert float(found["predictive"].mean()) == pytest.approx(expected.predictive, rel=1e-3, abs=1e-9)


def test_attributes(trees, fits):
    for name, tree in trees.items():
        assert tree.attrs["scheme"] == type(SCHEMES[name][0]).__name__
        assert tree.attrs["jax_version"] == jax.__version__
        assert {"bayes_sym_version", "numpyro_version", "seconds"} <= set(tree.attrs)
    assert trees["laplace"].attrs["evidence_kind"] == "laplace-ekfac-bound"
    assert trees["laplace"].attrs["log_evidence"] == float(fits["laplace"].posterior.log_evidence)
    assert trees["laplace"].attrs["point_sites"] == "noise.sigma"
    assert trees["variational"].attrs["evidence_kind"] == "elbo"
    assert [bool(trees[name].attrs["linearised"]) for name in SCHEMES] == [False, True, False, False, False]
    assert "log_evidence" not in trees["map"].attrs and "log_evidence" not in trees["nuts"].attrs


def test_draws_are_the_posteriors_own(trees, fits):
    draws = fits["variational"].posterior.sample(jax.random.key(1), 40)
    posterior = trees["variational"]["posterior"]
    np.testing.assert_allclose(posterior["noise.sigma"][0], draws["noise/sigma"], rtol=1e-5)
    rms = np.sqrt((np.asarray(draws["net.0.weight"], np.float64) ** 2).mean(axis=(1, 2)))
    np.testing.assert_allclose(posterior["net.0.weight.rms"][0], rms, rtol=1e-5)
    chains = fits["nuts"].posterior.draws["noise/sigma"]
    np.testing.assert_allclose(trees["nuts"]["posterior"]["noise.sigma"], np.exp(chains), rtol=1e-5)


def test_densities_of_a_mean_field_posterior_against_scipy(data, fits):
    x, y = (np.asarray(array, np.float64) for array in data)
    posterior = fits["variational"].posterior
    tree = to_arviz(
        fits["variational"], Problem(net_model), jax.random.key(1), *data, num_draws=40, var_names=("noise.*", "net.*")
    )
    values = {name: np.asarray(tree["posterior"][name][0], np.float64) for name in tree["posterior"].data_vars}
    sigma = values["noise.sigma"]
    hidden = np.tanh(np.einsum("ni,tij->tnj", x, values["net.0.weight"]) + values["net.0.bias"][:, None])
    means = np.einsum("tnj,tjk->tnk", hidden, values["net.2.weight"])[..., 0]
    likelihood = scipy.stats.norm.logpdf(y, means, sigma[:, None])
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], likelihood, rtol=1e-4, atol=1e-4)
    lp = likelihood.sum(axis=1) + scipy.stats.halfnorm.logpdf(sigma) + np.log(sigma)  # the map is exp, so log|d sigma/dz| = z
    for site, fan_in in [("net.0.weight", 2), ("net.0.bias", 2), ("net.2.weight", 3)]:
        scale = prior_scale(site, fan_in)
        lp += scipy.stats.norm.logpdf(values[site], 0, scale).reshape(40, -1).sum(axis=1)
    np.testing.assert_allclose(tree["sample_stats"]["lp"][0], lp, rtol=1e-4)
    means, scales, flat = [], [], []
    for block in posterior.blocks:
        means.append(np.asarray(block.mean, np.float64))
        scales.append(np.asarray(block.scale, np.float64))
        flat += [np.log(sigma)[:, None] if name == "noise/sigma" else values[name].reshape(40, -1) for name in block.layout.names]
    log_q = scipy.stats.norm.logpdf(np.concatenate(flat, axis=1), np.concatenate(means), np.concatenate(scales)).sum(axis=1)
    np.testing.assert_allclose(tree["sample_stats"]["log_q"][0], log_q, rtol=1e-4)


def prior_scale(site, fan_in):
    """The prior's standard deviation as the model's own trace states it, checked against the rule for weights."""
    with numpyro.handlers.seed(rng_seed=0):
        trace = numpyro.handlers.trace(net_model).get_trace(jnp.zeros((1, 2)))
    scale = np.unique(np.asarray(trace[site]["fn"].variance)) ** 0.5
    assert scale.size == 1
    if site.endswith("weight"):
        np.testing.assert_allclose(scale[0], fan_in**-0.5, rtol=1e-5)
    return float(scale[0])


def test_a_linear_model_has_an_exact_laplace_posterior(x64, data):
    x, y = (np.asarray(array, np.float64) for array in data)
    problem = Problem(line_model)
    found = fit(problem, Laplace(curvature="full"), jax.random.key(0), x, y, num_steps=3000, progress=False)
    tree = to_arviz(found, problem, jax.random.key(1), x, y, num_draws=30)
    assert list(tree["posterior"].data_vars) == ["w"] and list(tree["constant_data"].data_vars) == ["data_"]
    # q is the posterior, so lp - log_q is the log evidence at every draw
    difference = (tree["sample_stats"]["lp"] - tree["sample_stats"]["log_q"]).values
    evidence = scipy.stats.multivariate_normal.logpdf(y, np.zeros(N), 0.25 * np.eye(N) + x @ x.T)
    np.testing.assert_allclose(difference, evidence, atol=1e-5)
    # linearising a linear model changes nothing
    straight = to_arviz(found, problem, jax.random.key(1), x, y, num_draws=30, linearise=False)
    np.testing.assert_allclose(straight["log_likelihood"]["y"], tree["log_likelihood"]["y"], rtol=1e-8)


def test_nuts_lp_is_minus_its_potential_energy(data, fits, trees):
    posterior = fits["nuts"].posterior
    last = {name: value[1, -1] for name, value in posterior.draws.items()}
    density = Problem(net_model).log_density(last, data)
    lp = float(density.likelihood + density.prior + density.log_det)
    assert float(trees["nuts"]["sample_stats"]["lp"][1, -1]) == pytest.approx(lp, rel=1e-4)


def test_linearised_likelihood_agrees_with_predict(data, fits, trees):
    tree, key = trees["laplace"], jax.random.key(1)
    means = predict(Problem(net_model), fits["laplace"], key, data[0], num_draws=40)
    sigma = tree["posterior"]["noise.sigma"].values[0, :, None]
    expected = scipy.stats.norm.logpdf(data[1], means, sigma)
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], expected, rtol=1e-3, atol=1e-3)


def test_replicated_observations_have_the_predictive_moments(data, fits):
    key = jax.random.key(2)
    tree = to_arviz(fits["variational"], Problem(net_model), key, *data, num_draws=4000, posterior_predictive=True)
    means = predict(Problem(net_model), fits["variational"], key, data[0], num_draws=4000)
    sigma = tree["posterior"]["noise.sigma"].values[0]
    replicated = tree["posterior_predictive"]["y"].values[0]
    error = np.sqrt((means.var(axis=0) + (sigma**2).mean()) / 4000)
    assert (np.abs(replicated.mean(axis=0) - means.mean(axis=0)) < 4.5 * error).all()
    assert (replicated - means).std() == pytest.approx(np.sqrt((sigma**2).mean()), rel=0.03)


@pytest.mark.filterwarnings("ignore")  # of ArviZ, about few draws and high k-hat
def test_arviz_reads_it(trees):
    for name in ("laplace", "variational", "family", "nuts"):
        loo = az.loo(trees[name])
        assert np.isfinite(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd)
        summary = az.summary(trees[name])
        assert "noise.sigma" in summary.index and "net.0.weight.rms" in summary.index
    assert "noise.sigma" in az.summary(trees["map"]).index
    table = az.compare({name: trees[name] for name in ("variational", "nuts")})
    assert sorted(table.index) == ["nuts", "variational"]


@pytest.mark.parametrize("name", SCHEMES)
def test_netcdf_round_trip(name, trees, tmp_path):
    tree = trees[name]
    tree.to_netcdf(str(tmp_path / "fit.nc"))
    back = az.from_netcdf(str(tmp_path / "fit.nc"))
    assert groups(back) == groups(tree)
    for group in groups(tree):
        assert set(back[group].data_vars) == set(tree[group].data_vars)
        for var in tree[group].data_vars:
            assert back[group][var].equals(tree[group][var]), (group, var)
    assert {name: back.attrs[name] for name in tree.attrs} == tree.attrs


def test_names_and_patterns(data, fits):
    def names(*patterns):
        tree = to_arviz(fits["map"], Problem(net_model), jax.random.key(0), *data, var_names=patterns)
        return sorted(tree["posterior"].data_vars)

    assert names("noise/sigma") == names("noise.sigma") == ["noise.sigma"]
    assert names("precision", "net.2.weight") == ["net.2.weight", "precision"]
    assert names("*.rms") == ["net.0.bias.rms", "net.0.weight.rms", "net.2.weight.rms"]
    with pytest.raises(ModelError, match="nothing matches 'softness'.*noise/sigma"):
        names("softness")
    with pytest.raises(OptionError, match="var_names=\\('softness',\\)"):
        to_arviz(fits["map"], Problem(net_model), jax.random.key(0), *data, var_names="softness")


def test_refusals(data, fits):
    problem, key = Problem(net_model), jax.random.key(0)
    with pytest.raises(OptionError, match="num_draws"):
        to_arviz(fits["variational"], problem, key, *data, num_draws=0)
    with pytest.raises(OptionError, match="pass the problem that was fitted"):
        to_arviz(fits["variational"], Problem(line_model), key, *data)
    with pytest.raises(OptionError, match="linearise=True needs a Gaussian"):
        to_arviz(fits["map"], problem, key, *data, linearise=True)
    with pytest.raises(GroupActionError, match="the action is of C2, but the output representation of C3"):
        to_arviz(fits["map"], problem, key, *data, action=SWAP, output=representations.trivial(groups_.cyclic(3), 1))


def test_several_plates_name_their_axes(data):
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2))
        with numpyro.plate("outputs", 3, dim=-1), numpyro.plate("data", x.shape[0], dim=-2):
            numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x, y = data[0], np.zeros((N, 3), np.float32)
    found = fit(Problem(model), MAP(), jax.random.key(0), x, y, num_steps=2, progress=False)
    tree = to_arviz(found, Problem(model), jax.random.key(0), x, y)
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "data", "outputs")
    assert tree["observed_data"]["y"].dims == ("data", "outputs")
    assert tree["posterior"]["w"].dims == ("chain", "draw", "w_dim_0", "w_dim_1")


def test_evidence_table_ranks_within_kinds_only(data, fits):
    other = fit(Problem(net_model), SCHEMES["laplace"][0], jax.random.key(5), *data, num_steps=3, progress=False)
    table = evidence_table({**fits, "short": other})
    assert list(table.columns) == ["scheme", "evidence_kind", "log_evidence", "rank", "difference"]
    assert table.loc["variational", "rank"] == 1 and table.loc["variational", "difference"] == 0
    pair = table.loc[["laplace", "short"]]
    assert sorted(pair["rank"]) == [1, 2]
    best, worst = pair.sort_values("rank")["log_evidence"]
    assert best > worst and pair["difference"].min() == pytest.approx(worst - best)
    assert table.loc[["map", "nuts"], "rank"].isna().all() and list(table.index[-2:]) == ["map", "nuts"]
    only = evidence_table({"map": fits["map"]})
    assert only["rank"].isna().all()
    with pytest.raises(OptionError, match="no fits"):
        evidence_table({})


def test_inference_does_not_import_arviz():
    script = "import sys, bayes_sym.inference; assert not {'arviz', 'xarray', 'pandas'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
