"""The papers' objective as MAP under a log prior, exact starts, sites with a pace of their own, and noise that is fresh at each update."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import _numpyro
from bayes_sym.errors import ModelError, OptionError
from bayes_sym.inference import MAP, Laplace, MeanField, Pace, PerSite, Problem, RegularisedMAP, Variational, fit, paced, predict
from bayes_sym.inference.chunks import start_state
from bayes_sym.inference.climb import climb_evidence
from bayes_sym.inference.posterior import PointPosterior
from bayes_sym.layers import Augment, Dense, Flatten, Selection, Sequential, random_module
from bayes_sym.transforms import Brightness, Invert, Rotate


X = np.random.default_rng(0).uniform(size=(8, 4, 4, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2, 1, 0], np.int32)
SPEC = Augment(
    Sequential([Flatten(), Dense(16, 3)]), (Selection((Rotate(90.0), Brightness()), "blend"), Selection((Invert(),))), copies=2
)
MAGNITUDE, SELECTION = "net.augment.0.magnitude", "net.augment.0.selection"


def classifier(reward=0.0, spec=SPEC, **options):
    def model(x, y=None):
        net = random_module("net", spec)
        if reward:
            numpyro.factor("reward", reward * spec.norm(net.weights))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    return Problem(model, **options)


PLAIN = classifier(starts=(("*.augment.0.magnitude", (0.125, 0.5)), ("*.magnitude", 0.1), ("*.selection", 0.0)))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_reward_is_a_log_prior_of_the_number_of_rows(batch_size, key):
    rewarded = classifier(8 * 0.7, starts=PLAIN.starts)
    schemes = (RegularisedMAP(0.7, optax.sgd(0.1)), MAP(optax.sgd(0.1)))
    found = [
        fit(problem, scheme, key, X, LABELS, num_steps=5, batch_size=batch_size, progress=False)
        for problem, scheme in zip((PLAIN, rewarded), schemes, strict=True)
    ]
    assert np.allclose(found[0].losses, found[1].losses, atol=1e-5)
    for name, value in found[0].state.z.items():
        assert np.allclose(value, found[1].state.z[name], atol=1e-5)
    without = fit(PLAIN, MAP(optax.sgd(0.1)), key, X, LABELS, num_steps=5, batch_size=batch_size, progress=False)
    values = PLAIN.constrain(PLAIN.initial(key, (X, LABELS)), (X, LABELS))
    norm = SPEC.norm({**values, MAGNITUDE: jnp.array([0.125, 0.5])}, module="net")
    assert without.losses[0] - found[0].losses[0] == pytest.approx(
        0.7 * float(norm), rel=0.02
    )  # the third magnitude starts near .1
    assert np.abs(without.state.z[MAGNITUDE] - found[0].state.z[MAGNITUDE]).max() > 1e-3


def test_rewards_may_count_how_far_inputs_are_moved(key):
    units = SPEC.displacements(key, jnp.asarray(X))
    assert len(units) == 3 and units[2] == pytest.approx(
        np.sqrt(((1 - 2 * X) ** 2).mean() / (X**2).mean()), rel=0.5
    )  # half inverted
    values = {MAGNITUDE: jnp.array([0.2, 0.4]), SELECTION: jnp.zeros(2), "net.augment.1.magnitude": jnp.array([0.3])}
    expected = np.sqrt((units[0] * 0.1) ** 2 + (units[1] * 0.2) ** 2 + (units[2] * 0.3) ** 2)
    assert float(SPEC.norm(values, module="net", units=units)) == pytest.approx(expected, rel=1e-6)
    summed = 0.7 * (units[0] * 0.1 + units[1] * 0.2 + units[2] * 0.3)
    assert 0.7 * float(SPEC.norm(values, module="net", units=units, order=1)) == pytest.approx(summed, rel=1e-6)
    several = {name: jnp.stack([value] * 4) for name, value in values.items()}
    assert np.allclose(SPEC.norm(several, module="net", units=units), expected)
    start = {**PLAIN.initial(key, (X, LABELS))}
    found = RegularisedMAP(0.7, units=units).norm(PLAIN, start, (X, LABELS))
    assert found == SPEC.norm(PLAIN.constrain(start, (X, LABELS)), module="net", units=units)
    with pytest.raises(OptionError, match="units are one number per operation, 3 over all layers, got 2"):
        SPEC.norm(values, module="net", units=(1.0, 2.0))


def test_it_is_a_scheme_like_any_other(key):
    assert RegularisedMAP(0.2) == RegularisedMAP(0.2) != RegularisedMAP(0.3) and hash(RegularisedMAP()) == hash(RegularisedMAP())
    done = fit(PLAIN, RegularisedMAP(), key, X, LABELS, num_steps=3, progress=False)
    assert isinstance(done.posterior, PointPosterior) and done.posterior.log_evidence is None
    draws = done.posterior.sample(key, 2)
    assert set(draws) == set(PLAIN.structure(X, LABELS).latent)
    assert np.allclose(predict(PLAIN, done, key, X, num_draws=1).sum(axis=-1), 1, atol=1e-5)


SCHEMES = [MAP(), RegularisedMAP(), Laplace(optimise=("*augment*",)), Variational()]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_sites_start_exactly_where_they_are_told_in_every_scheme(scheme, key):
    z = scheme.position(start_state(scheme, PLAIN, key, (X, LABELS)))
    found = PLAIN.constrain(z, (X, LABELS))
    assert np.allclose(found[MAGNITUDE], [0.125, 0.5], atol=1e-6) and (found[SELECTION] == 0).all()
    assert np.allclose(z["net.1.weight"], classifier().initial(key, (X, LABELS))["net.1.weight"])  # others as before


def test_weights_are_drawn_given_strengths_that_start_elsewhere(key):
    def model(x, y=None):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        net = random_module(
            "net", Dense(3, 1), prior=lambda site: dist.Normal(0, scale).expand(site.shape).to_event(len(site.shape))
        )
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=y)

    x, y = X[:, 0, :3, 0], X[:, 0, 0, 0]
    one, two = (Problem(model, starts=(("scale", s),)).initial(key, (x, y)) for s in (1.0, 2.0))
    assert one["scale"] == 0 and two["scale"] == pytest.approx(np.log(2))
    assert np.allclose(two["net.weight"], 2 * one["net.weight"])
    halved = Problem(model, starts=(("net.bias", 0.25),)).initial(key, (x, y), start=0.5)
    assert np.allclose(halved["net.bias"], 0.25)  # start does not scale what is given


# Paces


def test_paces_scale_updates_and_let_sites_rest():
    start = {"a.magnitude": jnp.ones(2), "b": jnp.ones(())}
    optimizer = paced(optax.sgd(0.1), Pace("*.magnitude", rate=3.0, rest=2), Pace("*", rate=0.5))
    state, slope = optimizer.init(start), {"a.magnitude": jnp.array([1.0, -2.0]), "b": jnp.ones(())}
    seen = []
    for _ in range(4):
        updates, state = optimizer.update(slope, state, start)
        seen.append((np.asarray(updates["a.magnitude"]), float(updates["b"])))
    assert [
        np.allclose(first, factor * np.array([-0.3, 0.6])) for (first, _), factor in zip(seen, (0, 0, 1, 1), strict=True)
    ] == [True] * 4
    assert all(second == pytest.approx(-0.05) for _, second in seen)


def test_paces_reach_the_parameters_of_variational_families(key):
    resting = paced(optax.adam(0.05), Pace("*.magnitude", rest=10))
    for family in (MeanField(), PerSite({"*.magnitude": MeanField(0.5)})):
        scheme = Variational(family, resting)
        start = start_state(scheme, PLAIN, key, (X, LABELS))
        done = fit(PLAIN, scheme, key, X, LABELS, num_steps=5, progress=False)
        moved = {
            jax.tree_util.keystr(path): bool((a != b).any())
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(start.params), jax.tree.leaves(done.state.params), strict=True
            )
        }
        assert {name for name, changed in moved.items() if not changed} == {name for name in moved if "magnitude" in name}


def test_paced_optimisers_are_equal_objects():
    inner = optax.adam(1e-3)
    assert paced(inner, Pace("*.scale", 2.0)) is paced(inner, Pace("*.scale", 2.0)) is not paced(inner, Pace("*.scale", 3.0))


# Noise of the evidence


def test_every_update_of_the_evidence_has_noise_of_its_own(key):
    problem = classifier(spec=replace(SPEC, layers=(Selection((Rotate(90.0),), start=0.5),)))
    scheme = Laplace(curvature="diag", optimise=("*.magnitude",), hyper_steps=2)
    data = (jnp.asarray(X), jnp.asarray(LABELS))
    state = start_state(scheme, problem, key, data)
    first, again, other = (climb_evidence(scheme, problem, jax.random.key(i), state, data).hyper[MAGNITUDE] for i in (1, 1, 2))
    assert first == again != other


def test_noise_reaches_models_by_the_keys_that_they_ask_for(key):
    def draw():
        return jax.random.uniform(numpyro.prng_key())

    def seeded(*extra):
        if not extra:
            return float(numpyro.handlers.seed(draw, 0)())
        with _numpyro.noise(extra[0]):
            return float(numpyro.handlers.seed(draw, 0)())

    values = [seeded(), seeded(jax.random.key(1)), seeded(jax.random.key(2)), seeded()]
    assert values[0] == values[3] and len(set(values)) == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Pace("a", -1.0), OptionError, "rate multiplies the updates of 'a', so it must be 0 or positive, got -1"),
        (lambda: Pace("a", rest=0.5), OptionError, "rest is a number of steps for which 'a' stand still, got 0.5"),
        (lambda: paced(optax.sgd(1.0), Pace("c*")).init({"a": 1.0}), OptionError, r"no site .* matches 'c\*'; there are \['a'\]"),
        (lambda: run(RegularisedMAP(-0.1)), OptionError, "strength is the reward per row and unit of magnitude.*got -0.1"),
        (
            lambda: run(RegularisedMAP(), classifier(spec=SPEC.net)),
            OptionError,
            "no random_module of the model is one: wrap the net",
        ),
        (lambda: run(MAP(), classifier(starts=(("*.magnitud", 0.1),))), ModelError, r"no latent site matches '\*.magnitud'"),
        (
            lambda: run(MAP(), classifier(starts=((MAGNITUDE, (0.1, 0.2, 0.3)),))),
            ModelError,
            r"of shape \(3,\), and it has shape \(2,\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def run(scheme, problem=PLAIN):
    return fit(problem, scheme, jax.random.key(0), X, LABELS, num_steps=2, progress=False)
