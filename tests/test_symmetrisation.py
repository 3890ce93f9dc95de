"""Averaging, projecting, tying and mixing over a group; what keeps q invariant under which optimiser, and what does not."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import equivariance_error
from bayes_sym.errors import ClosednessError, GroupActionError, OptionError
from bayes_sym.inference import (
    FullGaussian,
    LogNormal,
    MeanField,
    MeanFieldLaplace,
    NaturalGradient,
    Problem,
    TrainingAccuracy,
    Variational,
    average,
    expand,
    fit,
    full_orbit,
    invariant_prior,
    mixture_gain,
    orbit_mixture,
    predict,
    prior_asymmetry,
    project,
    tie,
    weight_action,
)
from bayes_sym.inference.families import certificate
from bayes_sym.inference.variational import VariationalState
from bayes_sym.layers import Activation, Dense, Sequential, random_module
from bayes_sym.priors import IndependentScales


KEY = jax.random.key(2)
C4 = groups.cyclic(4)
ACTION = representations.regular(C4)
SPEC = Sequential((Dense(4, 8), Activation("tanh"), Dense(8, 8), Activation("tanh"), Dense(8, 2)))
GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((12, 4))
Y = (X.max(axis=1) - X.min(axis=1) > 2.0).astype(int)  # does not change under shifts
ORBIT = np.concatenate([np.roll(X, g, axis=1) for g in range(4)]), np.tile(Y, 4)


def model(x, y=None):
    net = random_module("net", SPEC, prior=IndependentScales(1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


PROBLEM = Problem(model)


@functools.cache
def reps(hidden="regular"):
    return weight_action(PROBLEM, (X, Y), ACTION, hidden=hidden)


def asymmetry(params):
    """|(I - P) mean| / |mean| over all weights."""
    off = on = 0.0
    for name, rep in reps().items():
        mean = params.mean[name]
        off += float(((mean - rep.project(mean, tuple(range(mean.ndim)))) ** 2).sum())
        on += float((mean**2).sum())
    return math.sqrt(off / on)


def run(symmetrise, optimizer, *, steps=600, dtype=np.float32, augment=None, particles=2, family=None, key=KEY):
    scheme = Variational(family or MeanField(0.05), optimizer, augment=augment, symmetrise=symmetrise, num_particles=particles)
    return fit(PROBLEM, scheme, key, X.astype(dtype), Y, num_steps=steps, progress=False)


SGD, ADAM = optax.sgd(0.05, momentum=0.9, nesterov=True), optax.adam(1e-2)


# What holds an invariant q


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("hold", ["gradient", "update", "tie"])
def test_projections_hold_q_in_float32(hold, optimizer):
    assert asymmetry(run(project(ACTION, at=1, hold=hold), optimizer).state.params) < 1e-6


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_projections_hold_q_in_float64(optimizer, x64):
    params = run(project(ACTION, at=1, hold="gradient"), optimizer, dtype=float).state.params
    assert asymmetry(params) < 1e-12
    assert certificate(MeanField(0.05), params, reps()) < 1e-12


def means_only(optimizer):
    """Leaves the scales of q as they are."""

    def others(params):
        return type(params)(jax.tree.map(lambda _: False, params.mean), jax.tree.map(lambda _: True, params.log_scale))

    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), others))


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_full_orbits_with_exact_gradients_keep_symmetry_under_any_elementwise_optimizer(optimizer, x64):
    # a q that is all but a point has no noise, so its gradient is that of the mean net
    point = MeanField(1e-14)
    done = run(project(ACTION, at=1), means_only(optimizer), dtype=float, augment=full_orbit(ACTION), family=point)
    assert asymmetry(done.state.params) < 1e-12


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_noise_of_the_weights_breaks_symmetry_even_on_full_orbits(optimizer):
    assert asymmetry(run(project(ACTION, at=1), optimizer, augment=full_orbit(ACTION)).state.params) > 1e-3


def test_the_drift_under_noise_goes_as_the_root_of_the_learning_rate():
    rates = [0.04, 0.01, 0.0025]
    optimizer = means_only(optax.inject_hyperparams(optax.sgd)(1.0))
    family, data = MeanField(0.05), (jnp.asarray(X, jnp.float32), Y)
    scheme = Variational(family, optimizer, augment=full_orbit(ACTION))
    params = family.project(family.init(PROBLEM.initial(KEY, data)), reps())

    @jax.jit
    def drifted(rate, steps, key):
        first, rest = optimizer.init(params)
        state = VariationalState(params, (first._replace(hyperparams={"learning_rate": rate}), rest))

        def step(i, state):
            return scheme.step(jax.random.fold_in(key, i), state, PROBLEM, data, 1.0)[0]

        return jax.lax.fori_loop(0, steps, step, state).params

    def mean_asymmetry(rate):
        ends = [drifted(jnp.float32(rate), round(6 / rate), jax.random.key(seed)) for seed in range(6)]
        return np.mean([asymmetry(end) for end in ends])

    slope = np.polyfit(np.log(rates), np.log([mean_asymmetry(rate) for rate in rates]), 1)[0]
    assert slope == pytest.approx(0.5, abs=0.1)


def test_stale_momentum_breaks_symmetry_and_a_new_state_does_not(x64):
    before = run(None, SGD, steps=30, dtype=float).state
    family, data = MeanField(0.05), (jnp.asarray(X), Y)
    params = family.project(before.params, reps())
    scheme = Variational(family, SGD, symmetrise=project(ACTION, at=1, hold="gradient"), _crossed=True)

    def after(optimizer):
        state, _ = jax.jit(lambda s: scheme.step(KEY, s, PROBLEM, data, 1.0))(type(before)(params, optimizer))
        return asymmetry(state.params)

    assert after(before.optimizer) > 1e-4
    assert after(SGD.init(params)) < 1e-12


def test_a_projected_gradient_is_that_of_the_full_orbit_with_common_noise(x64):
    family = MeanField(0.3)
    params = family.project(family.init(PROBLEM.initial(KEY, (jnp.asarray(X), Y))), reps())
    noise = family.noise(jax.random.key(8), params, 1)
    noise = {name: value[0] for name, value in noise.items()}

    def loss(params, noise, x):
        return PROBLEM.log_density(family.sample(params, noise), (x, Y)).likelihood

    def moved(values, g):
        return {name: reps()[name].act(g, v, tuple(range(v.ndim))) for name, v in values.items()}

    gradient = jax.jit(jax.grad(loss))
    raw = family.project(gradient(params, noise, jnp.asarray(X)), reps())
    orbit = [gradient(params, moved(noise, g), ACTION.transform(g, jnp.asarray(X))) for g in range(4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *orbit)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.allclose(a, b, atol=1e-12)), raw, mean))
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(mean))
    assert size > 0.1


def rotation_loss(w, x):
    """A net from the plane through copies of the regular representation of C3 back to the plane."""
    y = jax.nn.softplus(x @ w["first"]) @ w["second"]
    target = x @ jnp.array([[0.3, -0.9], [0.9, 0.3]]).T * (x**2).sum(axis=1, keepdims=True)
    return ((y - target) ** 2).mean()


@pytest.mark.parametrize(
    ("optimizer", "projected", "bounds"),
    [
        (optax.sgd(0.02, momentum=0.9), "nothing", (0, 1e-10)),
        (optax.adam(1e-2), "nothing", (1e-2, 2)),
        (optax.adam(1e-2), "gradient", (1e-3, 2)),
        (optax.adam(1e-2), "update", (0, 1e-10)),
    ],
    ids=["sgd", "adam", "adam, gradient", "adam, update"],
)
def test_under_actions_that_mix_coordinates_adam_needs_projected_updates(optimizer, projected, bounds, x64):
    angle = 2 * np.pi / 3
    turn = representations.matrix(groups.cyclic(3), [np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])])
    hidden = representations.regular(groups.cyclic(3)) * representations.trivial(groups.cyclic(3), 4)
    rep = {"first": (turn * hidden).reshape(2, 12), "second": (hidden * turn).reshape(12, 2)}
    draw = np.random.default_rng(7)
    start = {name: r.project(jnp.asarray(draw.standard_normal(r.shape)) * 0.7, (0, 1)) for name, r in rep.items()}
    x = jnp.concatenate([turn.transform(g, jnp.asarray(X[:, :2])) for g in range(3)])

    def keep(tree, what):
        return {name: rep[name].project(value, (0, 1)) for name, value in tree.items()} if projected == what else tree

    def step(_, carry):
        w, state = carry
        gradient = keep(jax.grad(rotation_loss)(w, x), "gradient")
        updates, state = optimizer.update(gradient, state, w)
        return optax.apply_updates(w, keep(updates, "update")), state

    w, _ = jax.jit(lambda w: jax.lax.fori_loop(0, 600, step, (w, optimizer.init(w))))(start)
    off = math.sqrt(sum(float(((v - rep[name].project(v, (0, 1))) ** 2).sum()) for name, v in w.items()))
    low, high = bounds
    assert low <= off / math.sqrt(sum(float((v**2).sum()) for v in w.values())) < high
    assert float(rotation_loss(w, x)) < 0.5 * float(rotation_loss(start, x))


# What an invariant q is good for


def probabilities(done, num_draws=400):
    return lambda x: predict(done.problem, done, KEY, x, num_draws=num_draws)


@pytest.mark.parametrize("steps", [1, 300], ids=["untrained", "trained"])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_tied_q_has_an_equivariant_predictive_and_members_that_are_not(optimizer, steps):
    done = run(tie(ACTION), optimizer, steps=steps, family=MeanField(0.3))
    assert asymmetry(done.state.params) < 1e-6
    error = equivariance_error(probabilities(done), X.astype(np.float32), ACTION)
    assert abs(error.predictive) < 3 * error.predictive_se
    assert error.member > 100 * abs(error.predictive) or error.member > 100 * error.predictive_se
    # coupled draws: g theta at g x says just what theta says at x
    draws = done.posterior.sample(KEY, 20)
    moved = {name: jnp.stack([reps()[name].act(1, v, tuple(range(v.ndim))) for v in value]) for name, value in draws.items()}
    here = predict(PROBLEM, draws, KEY, X.astype(np.float32))
    there = predict(PROBLEM, moved, KEY, np.asarray(ACTION.transform(1, jnp.asarray(X, np.float32))))
    assert np.abs(here - there).max() < 1e-5


def test_the_mixture_of_transforms_is_equivariant_with_a_single_draw(x64):
    done = run(None, ADAM, steps=40, dtype=float)
    output = representations.trivial(C4, 2)
    for given in (None, output):
        mixture = orbit_mixture(probabilities(done, num_draws=1), ACTION, given)
        here = mixture(X)
        for g in range(4):
            assert np.abs(mixture(np.asarray(ACTION.transform(g, jnp.asarray(X)))) - here).max() < 1e-12
    plain = probabilities(done, num_draws=1)
    assert np.abs(plain(np.asarray(ACTION.transform(1, jnp.asarray(X)))) - plain(X)).max() > 1e-3
    other = representations.regular(groups.cyclic(2))
    with pytest.raises(GroupActionError, match="the action is of C4, but the output representation of C2"):
        orbit_mixture(plain, ACTION, other)


def test_the_mixture_permutes_equivariant_outputs(x64):
    moved = orbit_mixture(lambda x: jnp.tanh(x)[None] * jnp.arange(1.0, 5.0)[None, None], ACTION, ACTION)
    for g in range(4):
        turned = moved(np.roll(X, g, axis=1))
        assert np.abs(turned[0] - np.roll(moved(X)[0], g, axis=1)).max() < 1e-12


def test_the_mixture_gains_between_nothing_and_the_log_of_the_order(x64):
    family = MeanField(0.1)
    start = family.init(PROBLEM.initial(KEY, (jnp.asarray(X), Y)))
    symmetric = family.project(start, reps())
    gains = []
    for share in (0.0, 0.05, 1.0):
        mean = jax.tree.map(lambda a, b, share=share: a + share * (b - a), symmetric.mean, start.mean)
        found = mixture_gain(family, start._replace(mean=mean), reps(), KEY, num_draws=300)
        gains.append(found.gain)
        assert -4 * found.se - 1e-9 <= found.gain <= math.log(4) + 4 * found.se + 1e-9
    assert gains[0] == pytest.approx(0, abs=1e-9)
    assert gains[0] < gains[1] < gains[2]
    assert gains[2] == pytest.approx(math.log(4), abs=0.02)
    with pytest.raises(OptionError, match="at least 2"):
        mixture_gain(family, start, reps(), KEY, num_draws=1)


# Priors


def regression(prior):
    def model(x, y=None):
        w = numpyro.sample("w", prior)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    return Problem(model)


def exact(problem, x, y):
    scheme = Variational(FullGaussian(), NaturalGradient(1.0, hessian="exact"))
    return fit(problem, scheme, KEY, x, y, num_steps=1, progress=False)


def test_the_asymmetry_of_an_exact_posterior_is_that_of_its_prior(x64):
    prior = dist.Normal(jnp.array([0.5, -1.0, 0.2, 0.9]), jnp.array([0.7, 0.5, 1.0, 0.6])).to_event(1)
    rows = ORBIT[0]
    data = rows, rows.sum(axis=1) + 0.1 * np.tile(np.sin(np.arange(12.0)), 4)  # whole orbits: the likelihood is invariant
    done = exact(regression(prior), *data)
    kl = certificate(FullGaussian(), done.state.params, {"w": ACTION})
    found = prior_asymmetry(done.posterior, {"w": ACTION}, KEY, num_draws=4000)
    assert kl > 0.05
    assert found.mean_kl == pytest.approx(kl, abs=4 * found.se)
    repaired = invariant_prior({"w": prior}, {"w": ACTION})["w"]
    precision = (1 / np.asarray(prior.base_dist.scale) ** 2).mean()
    assert np.allclose(repaired.base_dist.scale, precision**-0.5, rtol=1e-12)
    weighted = (np.asarray(prior.base_dist.loc) / np.asarray(prior.base_dist.scale) ** 2).mean() / precision
    assert np.allclose(repaired.base_dist.loc, weighted, rtol=1e-12)
    mended = exact(regression(repaired), *data)
    assert certificate(FullGaussian(), mended.state.params, {"w": ACTION}) < 1e-12
    assert abs(prior_asymmetry(mended.posterior, {"w": ACTION}, KEY, num_draws=50).mean_kl) < 1e-12
    assert invariant_prior({"w": repaired}, {"w": ACTION})["w"].base_dist.loc == pytest.approx(np.asarray(repaired.base_dist.loc))


def test_the_repair_refuses_what_it_cannot_repair():
    turn = representations.matrix(groups.cyclic(2), [[[0.6, 0.8], [0.8, -0.6]]])
    normal = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    with pytest.raises(GroupActionError, match="mixes coordinates"):
        invariant_prior({"w": normal}, {"w": turn})
    with pytest.raises(OptionError, match="has no prior here"):
        invariant_prior({"v": normal}, {"w": turn})
    with pytest.raises(OptionError, match="is for independent Gaussians"):
        invariant_prior({"w": dist.Laplace(jnp.zeros(4), 1.0).to_event(1)}, {"w": ACTION})


# When and what


@pytest.mark.parametrize("hidden", ["trivial", "regular"])
@pytest.mark.parametrize(
    ("family", "kind"), [(MeanField(), "geometric"), (MeanField(), "arithmetic"), (MeanFieldLaplace(), "arithmetic")]
)
def test_averages_are_invariant_right_after_they_are_taken(family, kind, hidden, x64):
    scheme = Variational(family, ADAM, symmetrise=average(ACTION, kind=kind, hidden=hidden, at=20))
    before = fit(PROBLEM, Variational(family, ADAM), KEY, X, Y, num_steps=20, progress=False).state
    after = scheme.cross(KEY, before, PROBLEM, (X, Y), 20)
    assert certificate(family, after.params, reps(hidden)) < 1e-10
    assert certificate(family, before.params, reps(hidden)) > 1e-3
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after.optimizer, ADAM.init(after.params)))


def test_an_expanded_q_can_be_held(x64):
    done = run(expand(ACTION, at=10, hold="gradient"), ADAM, steps=60, dtype=float)
    held = done.scheme.symmetrise.reps(done.problem, (X, Y))
    assert done.state.params.mean["net.0.weight"].shape == (4, 32)
    assert certificate(MeanField(0.05), done.state.params, held) < 1e-9
    loose = run(expand(ACTION, at=10), ADAM, steps=60, dtype=float)
    assert certificate(MeanField(0.05), loose.state.params, held) > 1e-3


def test_it_can_wait_for_the_training_accuracy_and_resumes_at_the_same_step(tmp_path):
    quick = optax.adam(0.05)
    scheme = Variational(MeanField(0.02), quick, symmetrise=expand(ACTION, at=TrainingAccuracy(0.9, latest=0.9)))
    data = np.tile(X.astype(np.float32), (20, 1)), np.tile(Y, 20)  # enough rows for q to leave the prior
    widths = []

    def look(progress):
        widths.append((progress.step, progress.state.params.mean["net.0.weight"].shape[1]))

    options = {"num_steps": 400, "chunk": 20, "progress": False}
    whole = fit(PROBLEM, scheme, KEY, *data, callbacks=(look,), **options)
    first = next(step for step, width in widths if width == 32)
    assert 20 < first < 360  # neither at once nor at the latest
    before = next(step for step, _ in reversed(widths) if step < first)
    reached = fit(PROBLEM, Variational(MeanField(0.02), quick), KEY, *data, num_steps=before, chunk=20, progress=False)
    means = {name: value[None] for name, value in reached.state.params.mean.items()}
    assert (predict(PROBLEM, means, KEY, data[0])[0].argmax(axis=1) == data[1]).mean() >= 0.9
    file = tmp_path / "fit.npz"
    fit(PROBLEM, scheme, KEY, *data, checkpoint=file, callbacks=(lambda p: p.step >= first,), **options)
    resumed = fit(PROBLEM, scheme, KEY, *data, resume=file, **options)
    assert np.array_equal(resumed.losses, whole.losses)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), resumed.state.params, whole.state.params))


@pytest.mark.parametrize(
    ("scheme", "error", "message"),
    [
        (lambda: Variational(FullGaussian(), symmetrise=tie(ACTION)), OptionError, "on whose parameters the group acts linearly"),
        (lambda: Variational(MeanFieldLaplace(), symmetrise=average(ACTION)), ClosednessError, "log affine"),
        (lambda: Variational(FullGaussian(), symmetrise=expand(ACTION)), OptionError, r"it needs MeanField\(\)"),
        (lambda: Variational(symmetrise=project(ACTION, module="head")), OptionError, r"the model has the modules \['net'\]"),
        (
            lambda: Variational(symmetrise=project(representations.regular(groups.cyclic(3)))),
            GroupActionError,
            "on inputs of shape",
        ),
        (lambda: Variational(symmetrise=tie(ACTION, hidden=(ACTION,))), GroupActionError, "2 hidden weighted layers"),
        (lambda: Variational(symmetrise=tie(ACTION, hidden="irreducible")), OptionError, "'trivial', 'regular' or a tuple"),
        (lambda: Variational(symmetrise=project(ACTION, at=99)), OptionError, "only 5 steps"),
        (lambda: Variational(symmetrise=expand(ACTION, arrangement="row_constant", hold="tie")), OptionError, "nothing to hold"),
        (lambda: average(ACTION, kind="harmonic"), OptionError, "kind='harmonic'"),
        (lambda: average(ACTION, at=0.0), OptionError, r"average\(at=0.0\)"),
        (lambda: TrainingAccuracy(1.2), OptionError, "0 < accuracy <= 1"),
        (lambda: Variational(LogNormal(), symmetrise=average(ACTION)), ClosednessError, "fixed signs"),
    ],
)
def test_what_cannot_be_symmetrised_is_refused_before_any_step(scheme, error, message):
    with pytest.raises(error, match=message):
        fit(PROBLEM, scheme(), KEY, X.astype(np.float32), Y, num_steps=5, progress=False)


def test_widths_that_hold_no_regular_representation_are_refused():
    def narrow(x, y=None):
        net = random_module("net", Sequential((Dense(4, 6), Activation("tanh"), Dense(6, 2))), prior=IndependentScales(1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    with pytest.raises(GroupActionError, match="a hidden layer of width 6 does not hold regular representations of C4"):
        fit(Problem(narrow), Variational(symmetrise=tie(ACTION)), KEY, X.astype(np.float32), Y, num_steps=5, progress=False)
