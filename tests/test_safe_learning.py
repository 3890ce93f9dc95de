"""Learning strengths by evidence without losing the net: trust region, steps taken back, whitened steps, collapse, MacKay."""

import functools
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym.errors import CollapseWarning, OptionError
from bayes_sym.inference import Laplace, PointPosterior, Problem, effective_parameters, fit, hold_evidence, log_evidence
from bayes_sym.inference.chunks import start_state
from bayes_sym.inference.climb import climb_evidence
from bayes_sym.inference.collapse import information
from bayes_sym.inference.curvature.dependence import traced
from bayes_sym.layers import Activation, Conv, Dense, Factored, Flatten, Residual, Sequential, pathways, random_module
from bayes_sym.priors import IndependentScales


pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
SPEC = Sequential(
    (
        Residual({"conv": Conv(1, 2, 3, "CIRCULAR"), "full": Factored(1, 2, (3, 3))}),
        Activation("tanh"),
        Flatten(),
        Dense(18, 3),
    )
)
PATHWAYS = pathways(SPEC)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3, 3, 1))
Y = np.argmax(np.stack([X[:, 0].sum((1, 2)), X[:, 1].sum((1, 2)), X[:, 2].sum((1, 2))]), axis=0).astype(np.int32)


def model(x, y):
    strength = numpyro.sample("strength", dist.LogNormal(0.0, 1.0).expand([len(PATHWAYS)]).to_event(1))
    by_site = {site: strength[i] for i, pathway in enumerate(PATHWAYS) for site in pathway.sites}
    net = random_module("net", SPEC, prior=IndependentScales(by_site))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


PROBLEM, DATA = Problem(model), (jnp.asarray(X), jnp.asarray(Y))


def evidence_of(state, curvature="kfac"):
    params = {**state.z, "strength": jnp.exp(state.hyper["strength"])}
    return float(log_evidence(PROBLEM, params, *DATA, curvature=curvature, optimise=("strength",)).value)


@pytest.mark.parametrize(
    ("optimizer", "gains"),
    [(optax.adam(0.1), True), (optax.sgd(1e3), True), (optax.sgd(-1.0), False)],
    ids=["adam", "too-far", "uphill"],
)
def test_an_update_never_lowers_the_evidence_and_stays_in_its_trust_region(optimizer, gains):
    scheme = Laplace(curvature="kfac", optimise=("strength",), hyper_optimizer=optimizer, hyper_steps=8, trust=0.3)
    with jax.enable_x64(True):
        before = start_state(scheme, PROBLEM, KEY, DATA)
        after = climb_evidence(scheme, PROBLEM, KEY, before, DATA)
    moved = np.abs(np.asarray(after.hyper["strength"] - before.hyper["strength"]))
    assert moved.max() <= 0.3 + 1e-12
    gain = evidence_of(after) - evidence_of(before)
    assert gain > 0.1 if gains else gain == pytest.approx(0.0, abs=1e-9)


def test_a_trust_region_must_be_positive():
    with pytest.raises(OptionError, match="trust is how far"):
        fit(PROBLEM, Laplace(optimise=("strength",), trust=0.0), KEY, X, Y, num_steps=2, progress=False)


@functools.cache
def fitted():
    """Strengths learned with whitened steps whose length goes to zero, and the curvature of the posterior measured exactly."""
    scheme = Laplace(
        optax.adam(optax.cosine_decay_schedule(0.05, 1000, 1e-3)),
        "ekfac",
        ("strength",),
        optax.adam(0.1),
        burn_in=200,
        refresh=25,
        hyper_steps=10,
        whiten=True,
    )
    return fit(PROBLEM, scheme, KEY, X, Y, num_steps=1000, progress=False)


def point():
    return {**fitted().state.z, "strength": jnp.exp(fitted().state.hyper["strength"])}


def test_every_live_group_of_sites_meets_mackays_identity():
    """The evidence is stationary in a strength where sum_i share_i (scatter_i - gamma_i) = 0 over its sites."""
    gamma, params = fitted().posterior.effective_parameters(), point()
    sites = {site.name: site for site in SPEC.sites()}
    live = 0
    for i, pathway in enumerate(PATHWAYS):
        scatter = effective = 0.0
        for name in pathway.sites:
            site = sites[name]
            precision = site.fan_in / params["strength"][i] ** (2 * site.share)
            scatter += site.share * float(precision * (params[f"net.{name}"] ** 2).sum())
            effective += site.share * float(gamma[f"net.{name}"])
        if effective > 0.05:
            live += 1
            assert scatter == pytest.approx(effective, rel=0.05)
    assert live >= 2


@pytest.mark.parametrize("curvature", ["ekfac", "full", "kfac", "diag"])
def test_a_posterior_knows_its_effective_parameters(curvature):
    scheme = Laplace(curvature=curvature, optimise=("strength",), burn_in=100)
    done = fit(PROBLEM, scheme, KEY, X[:20], Y[:20], num_steps=5, progress=False)
    params = {**done.state.z, "strength": jnp.exp(done.state.hyper["strength"])}
    expected = effective_parameters(PROBLEM, params, X[:20], Y[:20], curvature=curvature, optimise=("strength",))
    found = done.posterior.effective_parameters()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-6, abs=1e-9)


def test_the_evidence_knows_a_factored_layer_only_by_the_product_of_its_factors():
    """U -> a U, V -> V/a with their prior scales leaves the likelihood, the scatter and the log-determinant as they are."""

    def split(x, y, scales):
        net = random_module(
            "net",
            Sequential((Factored(1, 2, (3, 3), bias=False), Flatten(), Dense(18, 3, bias=False))),
            prior={
                "0.input": dist.Normal(0.0, scales[0]).expand([1, 3, 3, 2]).to_event(4),
                "0.output": dist.Normal(0.0, scales[1]).expand([2, 1, 3, 3]).to_event(4),
                "2.weight": dist.Normal(0.0, 0.3).expand([18, 3]).to_event(2),
            },
        )
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    rng, a = np.random.default_rng(1), 3.0
    params = {"net.0.input": (1, 3, 3, 2), "net.0.output": (2, 1, 3, 3), "net.2.weight": (18, 3)}
    params = {name: rng.standard_normal(shape) for name, shape in params.items()}
    other = {**params, "net.0.input": a * params["net.0.input"], "net.0.output": params["net.0.output"] / a}
    for curvature in ("block", "ekfac"):
        values = [
            log_evidence(Problem(split), p, X[:10], Y[:10], jnp.asarray(s), curvature=curvature).value
            for p, s in ((params, [0.5, 0.7]), (other, [0.5 * a, 0.7 / a]))
        ]
        assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-10)


# Whitened steps


def narrow(x, y):
    """A pathway whose prior is so narrow that steps of a usual length jump over it."""
    wide = numpyro.sample("wide", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    thin = numpyro.sample("thin", dist.Normal(0.5, 1e-5).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ (wide + thin), 0.5), obs=y)


@pytest.mark.parametrize("optimizer", [optax.adam(0.03), optax.sgd(0.5, momentum=0.5)], ids=["adam", "sgd"])
def test_whitened_steps_settle_where_the_prior_is_narrow(optimizer):
    x = np.random.default_rng(2).standard_normal((30, 3))
    y = x @ np.array([0.5, -1.0, 2.0])
    found = fit(Problem(narrow), Laplace(optimizer, "full", whiten=True), KEY, x, y, num_steps=600, progress=False)
    design, noise = np.concatenate([x, x], axis=1), 0.25
    prior = np.diag([1.0] * 3 + [1e10] * 3)
    mean = np.linalg.solve(design.T @ design / noise + prior, design.T @ y / noise + prior @ ([0.0] * 3 + [0.5] * 3))
    assert np.allclose(found.state.z["wide"], mean[:3], atol=1e-4)
    assert np.abs(found.state.z["thin"] - mean[3:]).max() < 1e-7  # a hundredth of the prior's width


# Collapse


def test_information_is_what_predictions_say_of_their_own_observations():
    z = {**fitted().state.z, **fitted().state.hyper}
    logits = SPEC.apply({name[4:]: value for name, value in z.items() if name.startswith("net.")}, DATA[0])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    order = np.asarray(jax.random.permutation(jax.random.key(0), len(Y)))
    expected = (log_p[np.arange(len(Y)), Y] - log_p[np.arange(len(Y)), Y[order]]).mean()
    assert float(information(PROBLEM, z, DATA)) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.3


def test_labels_without_a_pattern_collapse_the_effective_parameters_and_that_is_named():
    shuffled = np.random.default_rng(5).permutation(np.arange(len(Y), dtype=np.int32) % 3)
    scheme = fitted().scheme
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = fit(PROBLEM, scheme, KEY, X, shuffled, num_steps=1000, progress=False)
        alone = replace(scheme, curvature=None, objective="ekfac").posterior(KEY, done.state, PROBLEM, (X, shuffled), None)
    gamma = sum(float(g) for g in done.posterior.effective_parameters().values())
    kept = sum(float(g) for g in fitted().posterior.effective_parameters().values())
    assert gamma < 0.1 * kept
    named = [str(w.message) for w in caught if w.category is CollapseWarning]
    assert len(named) == 2 and isinstance(alone, PointPosterior)  # named also where there is no Gaussian
    assert "net.0.full.input" in named[1]
    assert "Train longer before the strengths move (burn_in)" in named[0]
    assert "net.0.full.input" in named[0]
    assert float(done.posterior.log_evidence) == pytest.approx(-len(Y) * np.log(3), rel=0.05)


def test_the_training_loss_alone_finds_no_symmetry():
    """Its gradient in a strength, with the weights at their mode, only asks for room: every pathway's prior grows without end."""
    params = point()

    def loss(log_strength):
        density = PROBLEM.log_density(
            {k: v for k, v in params.items() if k != "strength"}, DATA, constrained={"strength": jnp.exp(log_strength)}
        )
        return -density.likelihood - 0.5 * jnp.zeros(())

    gradient = jax.jit(jax.grad(loss))(jnp.log(params["strength"]))
    assert np.abs(gradient).max() == 0.0  # the likelihood does not even see strengths

    def penalised(log_strength):  # with the penalty of the weights, but without the volume that the evidence takes
        sites = {site.name: site for site in SPEC.sites()}
        total = 0.0
        for i, pathway in enumerate(PATHWAYS):
            for name in pathway.sites:
                precision = sites[name].fan_in / jnp.exp(2 * sites[name].share * log_strength[i])
                total = total + 0.5 * precision * (params[f"net.{name}"] ** 2).sum()
        return total

    assert (jax.jit(jax.grad(penalised))(jnp.log(params["strength"])) < 0).all()


# What makes it cheap


def test_dependence_is_seen_through_loops_and_calls():
    def fn(x):
        def body(carry, i):
            dead = x * 2.0  # noqa: F841
            return (carry[0] + i, carry[1] + x * carry[0], carry[2] + 1.0), carry[1]

        loop = jax.lax.scan(body, (0.0, 0.0, 0.0), jnp.arange(3.0))
        late = jax.lax.scan(lambda c, _: ((c[1], c[2], x), None), (0.0, 0.0, 0.0), jnp.arange(4.0))
        called = jax.jit(lambda a, b: (a * 2, b))(x, jnp.ones(()))
        again = jax.checkpoint(lambda a, b: (a * 2, b))(x, jnp.ones(()))
        return loop, late[0], called, again

    depends, replay = traced(fn, 1.0)
    assert depends == (((False, True, False), True), (True, True, True), (True, False), (True, False))
    jax.tree.map(np.testing.assert_array_equal, replay(3.0), fn(3.0))


def test_evidence_in_chunks_of_rows_can_be_held():
    whole, parts = (
        hold_evidence(PROBLEM, point(), X, Y, optimise=("strength",), curvature="kfac", chunk=chunk)(
            {"strength": jnp.ones(len(PATHWAYS))}
        ).value
        for chunk in (None, 17)
    )
    assert float(whole) == pytest.approx(float(parts), rel=1e-10)


def test_priors_are_read_without_running_the_net():
    calls = []

    def counted(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        calls.append(1)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    problem, data = Problem(counted), (jnp.ones((4, 3)), jnp.ones(4))
    problem.structure(*data)
    calls.clear()
    sites, _ = problem.latent_trace(data, unconstrained={"w": jnp.arange(3.0)})
    assert list(sites) == ["w"]
    assert np.array_equal(sites["w"]["value"], np.arange(3.0))
    assert calls == []
