"""Augmentation layers: noise that belongs to rows, ways to combine operations, exact orbits, and models of every scheme."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import groups, representations
from bayes_sym.errors import GroupActionError, OptionError, ShapeError
from bayes_sym.inference import MAP, Laplace, Problem, Variational, fit, log_evidence, predict
from bayes_sym.layers import Augment, Conv, Dense, Field, Flatten, Layer, Prepared, Selection, Sequential, random_module
from bayes_sym.transforms import (
    Brightness,
    Chain,
    FrequencyShift,
    GaussianNoise,
    GroupAction,
    HorizontalFlip,
    Invert,
    Rotate,
    SamplePairing,
    ShearX,
    TranslateX,
    VerticalFlip,
    copy_uniforms,
    row_ids,
)


NET = Sequential([Flatten(), Dense(16, 3)])
X = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype(np.float32)
OPERATIONS = (Rotate(90.0), TranslateX(), Brightness())


def values_of(spec, seed=1, **given):
    rng = np.random.default_rng(seed)
    found = {site.name: rng.uniform(0.2, 0.8, site.shape) for site in spec.sites()}
    return {name: jnp.asarray(given.get(name, value), jnp.result_type(float)) for name, value in found.items()}


class Identity(Dense):
    """Hands its inputs on, so that a test sees what a net is given."""

    def sites(self):
        return ()

    def apply(self, weights, x, *, path=""):
        return x


NOTHING = Identity(1, 1)


def seen_by_the_net(spec, weights, x, key=0):
    spec = replace(spec, net=NOTHING, average="logits" if spec.exact else None)
    return jax.jit(lambda weights, x: numpyro.handlers.seed(lambda: spec.apply(weights, x), key)())(weights, x)


# Noise


def test_numbers_belong_to_rows_wherever_they_stand(key):
    spec = Augment(NET, OPERATIONS, copies=3)
    x = jnp.concatenate([jnp.asarray(X), jnp.asarray(X[:1]) + 1e-7])
    draws = jax.jit(spec.draw)
    u = draws(key, x)
    assert u.shape == (7, 3, 3) and len(set(np.asarray(row_ids(x)).tolist())) == 7
    order = np.array([4, 0, 2, 6, 1, 5, 3])
    assert (draws(key, x[order]) == u[order]).all()
    assert (jax.jit(jax.vmap(lambda row: spec.draw(key, row[None])[0]))(x) == u).all()
    ids = jax.jit(row_ids)
    assert (ids(jnp.zeros((7, 3))) == ids(-jnp.zeros((7, 3)))).all()
    with jax.enable_x64(True):
        assert (ids(np.asarray(x, np.float64)) == ids(x)).all()
    assert np.abs(draws(jax.random.key(1), x) - u).max() > 0.1
    shared = jax.jit(replace(spec, shared=True).draw)(key, x)
    assert (shared == shared[:1]).all() and np.abs(shared[0, 0] - shared[0, 1]).max() > 0


def test_ids_of_images_with_few_tones_differ():
    images = np.unpackbits(np.arange(4096, dtype=">u2").view(np.uint8).reshape(-1, 2), axis=1).astype(np.float32)
    assert len(np.unique(row_ids(jnp.asarray(images)))) == 4096


@pytest.mark.parametrize("coupling", ["independent", "stratified", "antithetic"])
def test_copies_are_coupled_as_asked_and_uniform(coupling, key):
    coupled = np.array([True, False, True])
    u = np.asarray(copy_uniforms(key, jnp.arange(4000), 4, coupled, coupling))
    assert u.shape == (4000, 4, 3) and 0 < u.min() and u.max() < 1
    for copy in range(4):
        for column in range(3):
            counts = np.histogram(u[:, copy, column], 8, (0, 1))[0]
            assert ((counts - 500) ** 2 / 500).sum() < 24.3  # 99.9 % of chi2(7)
    strata = np.sort(np.floor(4 * u), axis=1) == np.arange(4)[None, :, None]
    if coupling == "stratified":
        assert strata[..., coupled].all() and not strata[..., 1].all()
        assert abs(np.corrcoef(u[:, 0, 0], u[:, 0, 2])[0, 1]) < 0.06
    elif coupling == "antithetic":
        assert (u[:, :2] + u[:, 2:] == 1).all()
        odd = np.asarray(copy_uniforms(key, jnp.arange(4000), 3, coupled, coupling))
        assert (odd == u[:, :3]).all()
    else:
        assert not strata.all() and abs(np.corrcoef(u[:, 0, 0], u[:, 1, 0])[0, 1]) < 0.06


def test_coupled_copies_make_averages_less_noisy(key):
    keys = jax.random.split(key, 200)

    def deviations(operation):
        spec = Augment(NET, operation, copies=4)
        weights = values_of(spec, **{"augment.0.magnitude": [0.5]})

        def apply(noise):
            run = lambda: replace(spec, noise=noise).apply(weights, jnp.asarray(X[:1]))  # noqa: E731
            return jax.vmap(lambda key: numpyro.handlers.seed(run, key)())(keys)

        found = jax.jit(lambda: [apply(noise) for noise in ("independent", "stratified", "antithetic")])()
        return [np.asarray(one).std(axis=0).mean() for one in found]

    independent, stratified, antithetic = deviations(Brightness())
    assert stratified < 0.6 * independent and antithetic < 1e-5  # outputs are linear in its amount
    independent, stratified, _ = deviations(Rotate(90.0))
    assert stratified < 0.6 * independent


def test_predictions_of_more_copies_are_closer_to_those_of_all(key):
    keys, spec = jax.random.split(key, 300), Augment(NET, Rotate(90.0))
    weights = {name: 5 * value - 2.5 for name, value in values_of(spec).items()} | {"augment.0.magnitude": jnp.array([0.8])}

    def probabilities(copies, noise, keys):
        run = lambda: replace(spec, copies=copies, noise=noise).apply(weights, jnp.asarray(X))  # noqa: E731
        return jax.nn.softmax(jax.vmap(lambda key: numpyro.handlers.seed(run, key)())(keys))

    @jax.jit
    def distances():
        exact = probabilities(4096, "stratified", keys[:1])
        return [
            [jnp.abs(probabilities(copies, noise, keys) - exact).sum(axis=-1).mean() / 2 for copies in (1, 4, 16)]
            for noise in ("independent", "stratified")
        ]

    independent, stratified = (np.polyfit(np.log([1, 4, 16]), np.log(row), 1)[0] for row in distances())
    assert independent == pytest.approx(-0.5, abs=0.1)  # the mean over copies is a mean of independent draws
    assert stratified < -0.9


# Ways to combine operations


chained = jax.jit(lambda operations, x, magnitudes, u: Chain(operations).apply(x, magnitudes, u), static_argnums=0)


def test_all_is_a_chain_and_layers_follow_each_other(key):
    spec = Augment(NET, (Selection(OPERATIONS), Selection((Invert(), ShearX()))), copies=2)
    weights = values_of(spec)
    assert [site.name for site in spec.sites()][-2:] == ["augment.0.magnitude", "augment.1.magnitude"]
    u = spec.draw(key, jnp.asarray(X))
    transform = jax.jit(spec.transform)
    transform(values_of(spec, seed=2), jnp.asarray(X), u)
    found = transform(weights, jnp.asarray(X), u)
    assert found.shape == (6, 2, 4, 4, 1) and transform._cache_size() == 1
    for copy in range(2):
        step = chained(OPERATIONS, X, weights["augment.0.magnitude"], u[:, copy, :3])
        step = chained((Invert(), ShearX()), step, weights["augment.1.magnitude"], u[:, copy, 3:])
        assert np.abs(found[:, copy] - step).max() < 1e-5


def test_a_blend_is_the_weighted_sum(key):
    layer = Selection(OPERATIONS, mode="blend", temperature=0.5)
    spec = Augment(NET, layer)
    weights = values_of(spec)
    w = jax.nn.softmax(weights["augment.0.selection"] / 0.5)
    u = spec.draw(key, jnp.asarray(X))
    found = jax.jit(spec.transform)(weights, jnp.asarray(X), u)
    parts = [chained((op,), X, weights["augment.0.magnitude"][k : k + 1], u[:, 0, k : k + 1]) for k, op in enumerate(OPERATIONS)]
    assert np.abs(found[:, 0] - sum(w[k] * part for k, part in enumerate(parts))).max() < 1e-6


def test_gumbel_draws_one_operation_with_its_probability_and_the_soft_gradient(key):
    operations = (Brightness(0.5), Invert(hard=True, limit=1.0), TranslateX(0.25))
    layer = Selection(operations, mode="gumbel", relaxation=0.7)
    spec = Augment(NET, layer)
    weights = values_of(spec, **{"augment.0.magnitude": [0.9] * 3, "augment.0.selection": [0.5, -0.3, 0.1]})
    w = np.asarray(jax.nn.softmax(weights["augment.0.selection"]))
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3000, 2, 4, 1)), jnp.float32)
    u = spec.draw(key, x)
    found = jax.jit(spec.transform)(weights, x, u)[:, 0]
    parts = jnp.stack([chained((op,), x, jnp.full(1, 0.9), u[:, 0, k : k + 1]) for k, op in enumerate(operations)])
    same = np.abs(np.asarray(parts) - np.asarray(found)).max(axis=(2, 3, 4)) < 1e-6
    assert (same.sum(axis=0) == 1).all()
    assert ((same.sum(axis=1) - 3000 * w) ** 2 / (3000 * w)).sum() < 13.8  # 99.9 % of chi2(2)

    def hard(logits):
        return (spec.transform({**weights, "augment.0.selection": logits}, x, u)[:, 0] * x).sum()

    def soft(logits):
        gumbel = -jnp.log(-jnp.log(u[:, 0, 3:]))
        shares = jax.nn.softmax((jax.nn.log_softmax(logits)[None] + gumbel) / 0.7, axis=-1)
        return (shares.T[:, :, None, None, None] * parts * x[None]).sum()

    gradients = jax.jit(lambda z: (jax.grad(hard)(z), jax.grad(soft)(z)))(weights["augment.0.selection"])
    assert np.abs(gradients[0]).max() > 1 and np.allclose(*gradients, rtol=1e-3, atol=1e-2)
    extreme = jax.jit(
        jax.grad(
            lambda z: (
                replace(spec, layers=(replace(layer, temperature=0.01),))
                .transform({**weights, "augment.0.selection": z}, x[:2], u[:2])
                .sum()
            )
        )
    )(jnp.array([5.0, -5.0, 0.0]))
    assert np.isfinite(extreme).all()


def test_averages_of_logits_and_of_probabilities():
    spec = Augment(NET, OPERATIONS, copies=4, average=None)
    weights, x = values_of(spec), jnp.asarray(X)
    run = lambda spec: numpyro.handlers.seed(lambda: spec.apply(weights, x), 0)()  # noqa: E731
    each, logits, mixed = jax.jit(lambda: [run(replace(spec, average=how)) for how in (None, "logits", "probabilities")])()
    assert each.shape == (6, 4, 3)
    assert np.abs(logits - each.mean(axis=1)).max() < 1e-6
    probabilities = jax.nn.softmax(each, axis=-1).mean(axis=1)
    assert np.abs(jnp.exp(mixed) - probabilities).max() < 1e-6
    geometric = jax.nn.softmax(jax.nn.log_softmax(each, axis=-1).mean(axis=1), axis=-1)
    assert np.abs(geometric - jax.nn.softmax(logits, axis=-1)).max() <= 1e-6
    single = jax.jit(lambda: run(replace(spec, copies=1, average="logits")))()
    plain = NET.apply({k: weights[k] for k in ("1.weight", "1.bias")}, seen_by_the_net(replace(spec, copies=1), weights, x)[:, 0])
    assert np.abs(single - plain).max() < 1e-6


def test_prepared_quadratures_and_banks_reach_their_operations(key):
    series = jnp.asarray(np.random.default_rng(0).standard_normal((3, 20, 2)), jnp.float32)
    shift, pairing = FrequencyShift(2.0, 20.0), SamplePairing(0.5)
    spec = Augment(NOTHING, (shift, GaussianNoise(1e-6)), copies=2)
    weights = values_of(spec)
    plain = seen_by_the_net(spec, weights, series)
    given = Prepared(series, {shift: shift.prepare(series)})
    ready = jax.jit(
        lambda x, q: numpyro.handlers.seed(lambda: replace(spec, average=None).apply(weights, Prepared(x, {shift: q})), 0)()
    )(*(given.x, given.given[shift]))
    assert np.abs(ready - plain).max() < 1e-5
    paired = Augment(NOTHING, (Selection((GaussianNoise(1e-6),)), Selection((pairing,))))
    weights = values_of(paired, **{"augment.1.magnitude": [0.8]})
    bank = jnp.full((1, 20, 2), 5.0)
    found = jax.jit(lambda x, bank: paired.transform(weights, x, paired.draw(key, x), {pairing: bank}))(series, bank)
    assert np.abs(found[:, 0] - (0.6 * series + 0.4 * 5)).max() < 1e-4


def test_marginalised_copies_bound_the_likelihood_the_better_the_more_there_are(key):
    spec = Augment(NET, (Rotate(180.0), Brightness()), noise="independent", average="probabilities")
    weights, x = values_of(spec, **{"augment.0.magnitude": [0.8, 0.8]}), jnp.asarray(X)
    keys = jax.random.split(key, 100)

    def log_likelihood(copies):
        run = lambda: replace(spec, copies=copies).apply(weights, x)  # noqa: E731
        logits = jax.vmap(lambda key: numpyro.handlers.seed(run, key)())(keys)
        return jax.nn.log_softmax(logits)[:, np.arange(6), LABELS].sum(axis=1).mean()

    one, few, many = jax.jit(lambda: [log_likelihood(copies) for copies in (1, 3, 30)])()
    assert one < few < many < 0 and many - few < few - one  # log-mean-exp: rows are never counted more than once


# Finite sets, exactly


def test_exact_averages_are_invariant_and_need_no_key(x64):
    spec = Augment(NET, (HorizontalFlip(), VerticalFlip()), average="probabilities", exact=True)
    x = jnp.asarray(np.asarray(X, float))
    apply = jax.jit(spec.apply)
    half, full = (values_of(spec, **{"augment.0.magnitude": [m, m]}) for m in (0.5, 1.0))
    images, probability = spec.outcomes(full, x)
    assert images.shape == (6, 4, 4, 4, 1) and np.allclose(probability, 0.25)
    assert (apply(full, x) == apply(full, x)).all()
    for flipped in (x[:, :, ::-1], x[:, ::-1]):
        assert np.abs(apply(full, x) - apply(full, flipped)).max() <= 1e-6 < np.abs(apply(half, x) - apply(half, flipped)).max()
    assert np.isclose(np.exp(apply(half, x)).sum(axis=1), 1).all()


def test_exact_averages_are_what_draws_have_on_average(key):
    turn = GroupAction(representations.image(groups.cyclic(4), (4, 4)), hard=True)
    layers = (Selection((HorizontalFlip(hard=True), turn), mode="gumbel"), Selection((Invert(hard=True),)))
    exact = Augment(NET, layers, exact=True)
    weights = values_of(exact)
    images, probability = exact.outcomes(weights, jnp.asarray(X))
    assert images.shape[1] == 10 and probability.sum() == pytest.approx(1)
    drawn = Augment(NET, layers, copies=4000, noise="independent", average=None)
    x = jnp.asarray(X[:1])
    each = jax.jit(lambda: numpyro.handlers.seed(lambda: drawn.apply(weights, x), 3)())()[0]
    error = np.asarray(each.mean(axis=0) - exact.apply(weights, x)[0]) / (np.asarray(each.std(axis=0)) / np.sqrt(4000))
    assert np.abs(error).max() < 4


# The penalty and reports


def test_the_norm_is_safe_at_zero_and_has_the_gradient_of_the_papers():
    layers = (Selection(OPERATIONS, mode="blend", temperature=0.3), Selection((Rotate(), ShearX())))
    spec = Augment(NET, layers)
    weights = values_of(spec)
    z, m, n = (weights[f"augment.{name}"] for name in ("0.selection", "0.magnitude", "1.magnitude"))
    w = jax.nn.softmax(z / 0.3)
    value, slope = jax.value_and_grad(spec.norm)(weights)
    norm = np.sqrt(((w * m) ** 2).sum() + (n**2).sum())
    assert value == pytest.approx(norm)
    own = ((w * m) ** 2).sum()
    assert np.abs(slope["augment.0.selection"] - w * (w * m**2 - own) / (0.3 * norm)).max() <= 1e-5
    assert np.allclose(slope["augment.1.magnitude"], n / norm, atol=1e-6)
    value, slope = jax.value_and_grad(spec.norm)({name: 0 * v for name, v in weights.items()})
    assert value == 0 and all((leaf == 0).all() for leaf in slope.values())


def test_reports_are_in_physical_units():
    spec = Augment(NET, (Selection((Rotate(180.0), TranslateX(0.4)), mode="gumbel"), Selection((HorizontalFlip(),))))
    weights = values_of(spec, **{"augment.0.magnitude": [0.25, 0.5], "augment.0.selection": [0, 0], "augment.1.magnitude": [0.5]})
    rows = spec.report(weights)
    assert [(r["layer"], r["operation"], r["unit"]) for r in rows] == [
        (0, "Rotate", "degrees"),
        (0, "TranslateX", "widths"),
        (1, "HorizontalFlip", "probability"),
    ]
    assert [float(r["range"]) for r in rows] == pytest.approx([45, 0.2, 0.25])
    assert [float(r["probability"]) for r in rows] == pytest.approx([0.5, 0.5, 1])
    draws = spec.report({name: jnp.stack([value] * 5) for name, value in weights.items()})
    assert draws[0]["range"].shape == (5,) and draws[1]["probability"].shape == (5,)
    full = {f"net.{name}": value for name, value in weights.items()}
    assert spec.report(full, module="net") == rows and spec.norm(full, module="net") == spec.norm(weights)


# Models


def classifier(spec, scale=1.0):
    def model(x, y=None):
        net = random_module("net", spec, prior=lambda site: dist.Normal(0.0, scale).expand(site.shape).to_event(len(site.shape)))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    return Problem(model)


LABELS = np.array([0, 1, 2, 0, 1, 2], np.int32)


def test_magnitudes_have_priors_of_their_own_and_start_at_their_median():
    spec = Augment(NET, Selection(OPERATIONS, mode="blend", start=(0.1, 0.3, 0.5)))
    problem = classifier(spec)
    structure = problem.structure(X, LABELS)
    assert structure.weights == ("net.1.weight", "net.1.bias")
    assert set(structure.latent) - set(structure.weights) == {"net.augment.0.magnitude", "net.augment.0.selection"}
    prior = {site.name: site.prior for site in spec.sites()}["augment.0.magnitude"]
    draws = np.asarray(jax.vmap(prior.sample)(jax.random.split(jax.random.key(0), 4000)))
    assert np.abs(np.median(draws, axis=0) - [0.1, 0.3, 0.5]).max() < 0.02
    ends = np.stack([prior.log_prob(jnp.full(3, m)) for m in (1e-6, 0.5, 1 - 1e-6)])
    bound = 2 * sum(np.log((1 - s) / s) for s in (0.1, 0.3, 0.5))
    assert np.isfinite(ends).all() and ends[0] - ends[2] == pytest.approx(
        bound, abs=1e-3
    )  # no pull to an end grows without bound
    flat = Selection((Rotate(),), start=0.5).sites()[0].prior
    assert np.allclose([jnp.exp(flat.log_prob(jnp.full(1, m))) for m in (0.01, 0.6, 0.99)], 1, atol=1e-4)


def test_curvature_by_taps_is_curvature_by_rows(x64):
    spec = Augment(Dense(3, 3, bias=False), (GaussianNoise(2.0),), copies=3, average="probabilities")
    problem = classifier(spec)
    x, held = np.asarray(X, float).reshape(6, 16)[:, :3], ("net.augment.*",)
    params = {f"net.{name}": value for name, value in values_of(spec).items()}
    values = {
        kind: log_evidence(problem, params, x, LABELS, curvature=kind, optimise=held).value.item()
        for kind in ("full", "block", "ekfac")
    }
    assert values["block"] == pytest.approx(values["full"], rel=1e-10)
    assert values["ekfac"] <= values["full"] + 1e-9
    likelihood = jax.jit(lambda x, y: problem.log_density({}, (x, y), constrained=params).likelihood)
    batches = [float(likelihood(x[rows], LABELS[rows])) for rows in ([0, 3], [2, 1], [5, 4])]
    assert sum(batches) == pytest.approx(float(likelihood(x, LABELS)), rel=1e-12)  # a row's noise is the same in every batch


def test_the_evidence_has_the_gradient_of_finite_differences_in_the_magnitudes(x64):
    spec = Augment(Sequential([Flatten(), Dense(9, 3)]), (Rotate(180.0), Brightness()), copies=3)
    problem = classifier(spec)
    params = {f"net.{name}": value for name, value in values_of(spec).items()}
    x = np.asarray(X, float)[:, :3, :3]

    @jax.jit
    def value(magnitude):
        return log_evidence(
            problem, {**params, "net.augment.0.magnitude": magnitude}, x, LABELS, curvature="block", optimise=("net.augment.*",)
        ).value

    at = jnp.array([0.3, 0.4])
    slope = jax.jit(jax.grad(value))(at)
    for k in range(2):
        step = 1e-5 * np.eye(2)[k]
        difference = float(value(at + step) - value(at - step)) / 2e-5
        assert float(slope[k]) == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize(
    "scheme",
    [
        MAP(optax.adam(0.02)),
        Laplace(optimise=("*.magnitude", "*.selection"), curvature="diag", hyper_steps=2, burn_in=5),
        Variational(num_particles=1),
    ],
    ids=lambda scheme: type(scheme).__name__,
)
def test_every_scheme_fits_an_augmented_net(scheme, key):
    spec = Augment(NET, Selection((Brightness(), Invert()), mode="blend"), copies=2, average="probabilities")
    problem = classifier(spec)
    found = fit(problem, scheme, key, X, LABELS, num_steps=6, progress=False)
    assert np.isfinite(found.losses).all()
    draws = found.posterior.sample(key, 2)
    assert 0 < draws["net.augment.0.magnitude"].min() and draws["net.augment.0.magnitude"].max() < 1
    if isinstance(scheme, MAP):
        few = predict(problem, draws, key, X)
        assert (few == predict(problem, draws, key, X)).all() and np.allclose(few.sum(axis=-1), 1, atol=1e-5)
        assert np.abs(few[:, [4, 1]] - predict(problem, draws, key, X[[4, 1]])).max() < 1e-6
        many = predict(problem.with_modules({"net": replace(spec, copies=16)}), draws, key, X)
        assert 0 < np.abs(many - few).max() < 0.2
        x, y = jnp.asarray(X), jnp.asarray(LABELS)
        values = {name: value[0] for name, value in draws.items()}
        likelihood = jax.jit(lambda key: problem.log_density(values, (x, y), key=key).likelihood)
        densities = [likelihood(k) for k in (key, key, jax.random.key(5))]
        assert densities[0] == densities[1] != densities[2]


def test_the_model_is_one_of_numpyros(key):
    spec = Augment(NET, OPERATIONS[2:], copies=2)
    model = classifier(spec).model
    values = {f"net.{name}": value for name, value in values_of(spec).items()}
    x, y = jnp.asarray(X), jnp.asarray(LABELS)
    density = jax.jit(lambda values: numpyro.infer.util.log_density(model, (x, y), {}, values)[0])
    assert np.isfinite(density(values))  # without a seed the key is a constant
    predictive = numpyro.infer.Predictive(model, {name: value[None] for name, value in values.items()})
    assert predictive(key, x)["y"].shape == (1, 6)


# What is refused


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Augment(NET, ()), OptionError, "layers of Augment must be Selection layers, or operations"),
        (lambda: Augment(NET, (Selection((Rotate(),)), Rotate())), OptionError, "layers of Augment must be Selection layers"),
        (lambda: Augment(Augment(NET, Rotate()), Rotate()), OptionError, "give all layers of augmentation to one of them"),
        (lambda: Augment(NET, Rotate(), copies=0), OptionError, "copies must be a number of at least 1, got 0"),
        (lambda: Augment(NET, Rotate(), noise="sobol"), OptionError, "noise must be one of independent, stratified, antithetic"),
        (lambda: Augment(NET, Rotate(), average="votes"), OptionError, "average must be 'logits', 'probabilities' or None"),
        (
            lambda: Augment(NET, Rotate(), exact=True),
            OptionError,
            r"enumerates finitely many outcomes, but \['Rotate'\] has none",
        ),
        (lambda: Augment(NET, Selection((Invert(),), "blend"), exact=True), OptionError, "mode 'gumbel' in place of 'blend'"),
        (lambda: Augment(NET, (Invert(),) * 11, exact=True), OptionError, "on 2048 outcomes per example, more than 1024"),
        (lambda: Augment(NET, Invert(), average=None, exact=True), OptionError, "weighs outcomes by their probabilities"),
        (lambda: Selection((Rotate(),), "some"), OptionError, "mode must be 'all', 'blend' or 'gumbel', got 'some'"),
        (lambda: Selection(()), OptionError, "Chain takes one or more operations"),
        (
            lambda: Selection((Rotate(),), start=0.0),
            OptionError,
            r"start must lie in \(0, 1\).*got 0.0: at 0 there is no gradient",
        ),
        (lambda: Selection((Rotate(),), start=(0.1, 0.2)), OptionError, "one for all or one for each of 1 operations"),
        (lambda: Selection((Rotate(),), temperature=0.0), OptionError, "temperature and relaxation must be positive"),
        (lambda: copy_uniforms(jax.random.key(0), jnp.arange(2), 2, np.ones(1, bool), "x"), OptionError, "one of independent"),
        (lambda: Augment(NET, Rotate()).apply({}, X[..., 0]), ShapeError, "Rotate takes .batch, height, width, channels., got"),
        (lambda: Augment(NET, Rotate()).apply({}, X.astype(int)), ShapeError, "Rotate takes floats, got int64"),
        (lambda: seen_by_the_net(Augment(NET, SamplePairing()), {"augment.0.magnitude": jnp.ones(1)}, X), OptionError, "bank"),
        (
            lambda: Augment(Sequential([Conv(1, 2), Flatten(), Dense(32, 1)]), Rotate()).representations(
                Field.of(representations.image(groups.cyclic(4), (4, 4)), 1), iter([])
            ),
            GroupActionError,
            "take the representations of the net inside, spec.net",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_probabilities_need_classes():
    class Total(Identity):
        def apply(self, weights, x, *, path=""):
            return x.sum(axis=(1, 2, 3))

    spec = Augment(Total(1, 1), HorizontalFlip(), average="probabilities", exact=True)
    with pytest.raises(ShapeError, match=r"needs outputs \(batch, classes\), got \(6,\) from the net"):
        spec.apply({"augment.0.magnitude": jnp.ones(1)}, jnp.asarray(X))


def test_specs_are_layers_and_expand():
    spec = Augment(Sequential([Conv(1, 2), Flatten(), Dense(32, 3)]), OPERATIONS)
    assert isinstance(spec, Layer) and hash(spec) == hash(replace(spec)) and spec == replace(spec)
    assert spec.stages() == spec.net.stages() and spec.num_weights() == spec.net.num_weights() + 3
    assert Augment(NET, Rotate()).layers == Augment(NET, (Rotate(),)).layers == (Selection((Rotate(),)),)
