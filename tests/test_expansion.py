"""Orbit expansion is exactly equivariant and equals the group average; augmentation counts every orbit as it says."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import groups, layers, representations
from bayes_sym.errors import GroupActionError, OptionError
from bayes_sym.inference import ARRANGEMENTS, MeanField, Problem, Variational, expand, full_orbit, random_orbit
from bayes_sym.inference.expansion import expand_spec, expand_weights
from bayes_sym.inference.variational import VariationalState
from bayes_sym.layers import Activation, Conv, Dense, Flatten, Pool, Sequential


C2, C4, D4 = groups.cyclic(2), groups.cyclic(4), groups.dihedral(4)
TANH, RELU = Activation("tanh"), Activation("relu")
S3, C5 = groups.symmetric(3), groups.cyclic(5)
PRODUCT = groups.product(groups.cyclic(2), groups.cyclic(3))
LETTERS = representations.quotient(S3, [1])  # elements 0 and 1 fix the first letter
SIGNED = representations.permutation(C4, [[[1, 0], [-1, 1]]])  # a quarter turn of the plane
# name: (small net, action on the inputs, channels, representation of the outputs)
CASES = {
    "dense, 1 layer": (Sequential((Dense(4, 3),)), representations.regular(C4), 1, None),
    "dense, 2 layers": (Sequential((Dense(4, 3), TANH, Dense(3, 2))), representations.regular(C4), 1, None),
    "dense, equivariant": (
        Sequential((Dense(4, 3), TANH, Dense(3, 2), RELU, Dense(2, 4))),
        representations.regular(C4),
        1,
        representations.regular(C4),
    ),
    "dense, 4 layers, D4": (
        Sequential((Dense(8, 3), RELU, Dense(3, 2), RELU, Dense(2, 3), TANH, Dense(3, 2))),
        representations.regular(D4),
        1,
        None,
    ),
    "dense, signed": (Sequential((Dense(2, 3), TANH, Dense(3, 2))), SIGNED, 1, SIGNED),
    "dense, S3, equivariant": (
        Sequential((Dense(3, 4), RELU, Dense(4, 3), TANH, Dense(3, 3))),
        LETTERS,
        1,
        LETTERS,
    ),
    "dense, product group": (
        Sequential((Dense(6, 3), RELU, Dense(3, 6))),
        representations.regular(PRODUCT),
        1,
        representations.regular(PRODUCT),
    ),
    "sequence, C5": (
        Sequential((Dense(10, 3), RELU, Dense(3, 2), RELU, Dense(2, 10))),
        representations.sequence(C5, 10),
        1,
        representations.sequence(C5, 10),
    ),
    "conv, 2 layers": (Sequential((Conv(1, 2), RELU, Pool(), Dense(2, 3))), representations.image(C4, (4, 4)), 1, None),
    "conv, equivariant, D4": (
        Sequential((Conv(2, 2), RELU, Pool(2, "max"), Conv(2, 3, padding="CIRCULAR"), TANH, Pool(), Dense(3, 4))),
        representations.image(D4, (6, 6)),
        2,
        representations.image(D4, (2, 2)).reshape(4),
    ),
    "conv, flat head": (Sequential((Conv(1, 2), TANH, Flatten(), Dense(32, 3))), representations.image(C4, (4, 4)), 1, None),
    "conv, 4 layers": (
        Sequential((Conv(1, 2), RELU, Conv(2, 2), RELU, Conv(2, 3, padding="VALID"), RELU, Pool(), Dense(3, 4))),
        representations.image(C4, (5, 5)),
        1,
        representations.regular(C4),
    ),
}


def inputs(action, channels, dtype=float):
    shape = (3, *action.shape, channels) if len(action.shape) == 2 else (3, *action.shape)
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def weights(spec, dtype=float):
    generator = np.random.default_rng(1)
    means = {s.name: (generator.standard_normal(s.shape) / math.sqrt(s.fan_in)).astype(dtype) for s in spec.sites()}
    return means, {name: (0.1 + generator.random(mean.shape)).astype(dtype) for name, mean in means.items()}


def expanded(name, dtype=float, off_scale=0.02):
    spec, action, channels, output = CASES[name]
    field = layers.Field.of(action, channels)
    means, scales = weights(spec, dtype)
    return jax.jit(lambda m, s: expand_weights(spec, field, output, m, s, off_scale))(means, scales)


def check(name, dtype, tolerance):
    spec, action, channels, output = CASES[name]
    order, x = action.group.order, inputs(action, channels, dtype)
    big, (means, _) = expand_spec(spec, order), expanded(name, dtype)
    moved = np.concatenate([np.asarray(action.transform(g, jnp.asarray(x))) for g in range(order)])
    small, large = jax.jit(lambda m, w, x: (spec.apply(m, x), big.apply(w, x)))(weights(spec, dtype)[0], means, moved)
    small, large = (np.asarray(out).reshape(order, 3, -1) for out in (small, large))  # by element: f(g x)
    turn = [np.eye(small.shape[-1])] * order if output is None else output.matrices()
    average = np.mean([small[action.group.inverse[g]] @ turn[g].T for g in range(order)], axis=0)
    size = np.abs(average).max()
    assert large.dtype == dtype and size > 1e-2
    assert np.abs(large[0] - average).max() < tolerance * size
    assert np.abs(large - np.stack([average @ turn[g].T for g in range(order)])).max() < tolerance * size
    # the small net is not equivariant, so the average has something to do
    assert np.abs(small - np.stack([small[0] @ turn[g].T for g in range(order)])).max() > 1e-2 * size


@pytest.mark.parametrize("name", CASES)
def test_the_mean_net_is_the_group_average_exactly(name, x64):
    check(name, np.float64, 1e-12)


@pytest.mark.parametrize("name", ["dense, equivariant", "conv, 2 layers", "conv, equivariant, D4"])
def test_the_mean_net_is_the_group_average_in_float32(name):
    with jax.default_matmul_precision("highest"):
        check(name, np.float32, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_expanded_weights_fit_the_expanded_net(name, x64):
    spec, action, *_ = CASES[name]
    big = expand_spec(spec, action.group.order)
    means, scales = expanded(name)
    shapes = {site.name: site.shape for site in big.sites()}
    assert {name: mean.shape for name, mean in means.items()} == shapes
    assert {name: scale.shape for name, scale in scales.items()} == shapes
    assert all((np.asarray(scale) > 0).all() for scale in scales.values())


def mean_net_error(spec, action, output, channels=1, **options):
    """How far the expanded mean net is from equivariant, relative to its outputs."""
    field, order = layers.Field.of(action, channels), action.group.order
    means, scales = weights(spec)
    big, _ = expand_weights(spec, field, output, means, scales, 0.02, **options)
    copies = order if options.get("cosets") is None else order // len(options["cosets"].elements)
    x = jnp.asarray(inputs(action, channels))
    moved = jnp.concatenate([action.transform(g, x) for g in range(order)])
    out = np.asarray(jax.jit(lambda w, x: expand_spec(spec, copies).apply(w, x))(big, moved)).reshape(order, 3, -1)
    turn = [np.eye(out.shape[-1])] * order if output is None else output.matrices()
    return np.abs(out - np.stack([out[0] @ turn[g].T for g in range(order)])).max() / np.abs(out[0]).max(), big


CONVS = Sequential((Conv(1, 2), RELU, Conv(2, 2), RELU, Conv(2, 2), RELU, Pool(), Dense(2, 3)))


@pytest.mark.parametrize("group", [C4, D4], ids=["C4", "D4"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_which_arrangements_are_equivariant(arrangement, group, x64):
    error, big = mean_net_error(CONVS, representations.image(group, (4, 4)), None, arrangement=arrangement)
    exact = arrangement in ("diag", "tied", "mix", "gcnn", "fixed") or (arrangement, group) == ("row_rolled", C4)
    assert error < 1e-12 if exact else error > 1e-3
    # the small net's filters have no symmetry, so equal rows of blocks are a property of the arrangement
    order = group.order
    rows = np.asarray(big["2.weight"]).reshape(9, order, 2, order, 2).transpose(3, 0, 1, 2, 4).reshape(order, -1)
    distinct = {"gcnn": order // 2, "row_constant": 1, "fixed": 1}.get(arrangement, order)
    assert len(np.unique(rows.round(12), axis=0)) == distinct


def test_cosets_serve_large_groups(x64):
    for n in (3, 4, 5):
        group = groups.symmetric(n)
        stabiliser = group.subgroup([g for g, p in enumerate(itertools.permutations(range(n))) if p[0] == 0])
        letters = representations.quotient(group, stabiliser)
        spec = Sequential((Dense(n, 3), TANH, Dense(3, 2), TANH, Dense(2, n)))
        error, big = mean_net_error(spec, letters, letters, cosets=stabiliser)
        assert error < 1e-12
        assert big["2.weight"].shape == (3 * n, 2 * n)  # n blocks, not n!
        field = layers.Field.of(letters, 1)
        small, _ = weights(spec)
        x = jnp.asarray(inputs(letters, 1))
        means, _ = expand_weights(spec, field, letters, small, weights(spec)[1], 0.02, cosets=stabiliser)
        out = np.asarray(expand_spec(spec, n).apply(means, x))
        assert np.abs(out - out.mean(axis=1, keepdims=True)).max() > 1e-3 * np.abs(out).max()  # it does not just pool


def test_hidden_blocks_are_diagonal_with_small_noise_between_copies(x64):
    spec = CASES["dense, equivariant"][0]
    means, scales = weights(spec)
    big_means, big_scales = (
        {name: np.asarray(value) for name, value in part.items()} for part in expanded("dense, equivariant", off_scale=0.07)
    )
    hidden, noise = (part["2.weight"].reshape(4, 3, 4, 2) for part in (big_means, big_scales))
    for g in range(4):
        for h in range(4):
            assert np.array_equal(hidden[g, :, h], means["2.weight"] if g == h else np.zeros((3, 2)))
            assert np.array_equal(noise[g, :, h], scales["2.weight"] if g == h else np.full((3, 2), 0.07))
    for part, small in ((big_means, means), (big_scales, scales)):
        lift = part["0.weight"].reshape(4, 4, 3)
        for g in range(4):  # the regular representation of C4 shifts: rho(g) e_h = e_(g + h)
            assert np.array_equal(lift[:, g], np.roll(small["0.weight"], g, axis=0))
        assert np.array_equal(part["0.bias"], np.tile(small["0.bias"], 4))
        assert np.array_equal(part["2.bias"], np.tile(small["2.bias"], 4))
    for part, small, factor in ((big_means, means, 1 / 4), (big_scales, scales, 1 / 2)):
        read = part["4.weight"].reshape(4, 2, 4)
        for g in range(4):
            assert np.allclose(read[g], np.roll(small["4.weight"], g, axis=1) * factor, rtol=1e-14)


def test_signed_actions_move_scales_without_their_sign(x64):
    means, scales = (dict(part) for part in expanded("dense, signed"))
    small_means, small_scales = weights(CASES["dense, signed"][0])
    quarter = np.asarray(scales["0.weight"]).reshape(2, 4, 3)[:, 1]
    assert np.array_equal(quarter, small_scales["0.weight"][::-1])
    turned = np.asarray(means["0.weight"]).reshape(2, 4, 3)[:, 1]
    assert np.array_equal(turned, SIGNED.matrices()[1] @ small_means["0.weight"])


def test_filters_are_turned_with_the_image(x64):
    means, _ = weights(CASES["conv, 2 layers"][0])
    lift = np.asarray(expanded("conv, 2 layers")[0]["0.weight"]).reshape(3, 3, 1, 4, 2)
    x = inputs(representations.image(C4, (3, 3)), 1)[0]
    for g in range(4):
        turned = np.asarray(representations.image(C4, (3, 3)).act(g, jnp.asarray(x), (0, 1)))
        before = np.einsum("hwi,hwio->o", x, means["0.weight"])
        assert np.allclose(np.einsum("hwi,hwio->o", turned, lift[:, :, :, g]), before, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: expand(representations.regular(C4), at=0.0), OptionError, r"expand\(at=0.0\)"),
        (lambda: expand(representations.regular(C4), at=1.0), OptionError, "0 < at < 1"),
        (lambda: expand(representations.regular(C4), at=0), OptionError, "a step number of at least 1"),
        (
            lambda: expand(representations.matrix(C2, [[[0.6, 0.8], [0.8, -0.6]]])),
            GroupActionError,
            "the action .* mixes coordinates",
        ),
        (
            lambda: expand(representations.regular(C2), representations.matrix(C2, [[[0.6, 0.8], [0.8, -0.6]]])),
            GroupActionError,
            "the output .* mixes coordinates",
        ),
        (lambda: expand(representations.regular(C4), arrangement="rows"), OptionError, "arrangement must be one of"),
        (lambda: expand(representations.regular(C4), share=1.5), OptionError, "share must be between 0 and 1"),
        (lambda: expand(representations.regular(C4), off_scale=0.0), OptionError, "it is a standard deviation"),
        (lambda: expand(representations.regular(C4), hold="tight"), OptionError, "hold='tight'"),
        (lambda: expand(representations.regular(C4), cosets=D4.subgroup([1])), GroupActionError, "must be a subgroup of C4"),
        (
            lambda: expand(representations.regular(C4), cosets=C4.subgroup([2]), arrangement="tied"),
            OptionError,
            "in the arrangement 'diag' only",
        ),
        (lambda: random_orbit(representations.regular(C4), 0), OptionError, "n >= 1 transforms"),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(("at", "steps", "expected"), [(0.2, 100, 20), (0.5, 3, 2), (0.01, 10, 1), (7, 100, 7)])
def test_when_the_net_is_expanded(at, steps, expected):
    assert expand(representations.regular(C4), at=at).step(steps) == expected


# Augmentation


def regression(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([4, 4]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.tanh(x @ w), 0.5).to_event(1), obs=y)


PROBLEM = Problem(regression)
REGULAR = representations.regular(C4)
X, Y = np.random.default_rng(2).standard_normal((2, 5, 4))


def brute_orbit(x, copies=range(4)):
    return np.concatenate([np.roll(x, g, axis=1) for g in copies])


@pytest.mark.parametrize("output", [None, REGULAR], ids=["invariant", "equivariant"])
def test_the_full_orbit_matches_a_loop_over_the_group(output, x64, key):
    x, y = full_orbit(REGULAR, output).apply(key, (jnp.asarray(X), jnp.asarray(Y)), PROBLEM)
    assert np.array_equal(x, brute_orbit(X))
    assert np.array_equal(y, np.tile(Y, (4, 1)) if output is None else brute_orbit(Y))


def test_random_orbits_are_keyed_and_move_inputs_and_targets_alike(x64, key):
    augment = random_orbit(REGULAR, 3, REGULAR)
    apply = jax.jit(lambda key: augment.apply(key, (jnp.asarray(X), jnp.asarray(Y)), PROBLEM))
    x, y = apply(key)
    assert x.shape == y.shape == (15, 4)
    elements = set()
    for i in range(15):
        fits = [g for g in range(4) if np.array_equal(x[i], np.roll(X[i % 5], g))]
        assert len(fits) == 1
        assert np.array_equal(y[i], np.roll(Y[i % 5], fits[0]))
        elements.update(fits)
    assert len(elements) > 1
    assert np.array_equal(apply(key)[0], x)
    assert not np.array_equal(apply(jax.random.key(8))[0], x)


def test_images_of_many_channels_are_turned_whole(key):
    images = np.random.default_rng(3).standard_normal((2, 3, 3, 2)).astype(np.float32)
    action = representations.image(C4, (3, 3))
    (x,) = full_orbit(action).apply(key, (jnp.asarray(images),), PROBLEM)
    expected = np.concatenate([np.asarray(action.transform(g, jnp.asarray(images))) for g in range(4)])
    assert np.array_equal(x, expected)
    assert any(np.array_equal(x[2:4], np.rot90(images, k, axes=(1, 2))) for k in (1, 3))


def test_the_weight_of_an_orbit_is_that_of_a_row_or_of_all_copies(x64, key):
    # q is all but a point, so that the bound is the log likelihood minus a KL that we know
    family, rate = MeanField(1e-7), optax.sgd(1e-3)
    w = 0.3 * np.sin(np.arange(16.0)).reshape(4, 4)
    params = family.init({"w": jnp.asarray(w)})
    kl = 0.5 * (w**2 - 1 + 1e-14).sum() - 16 * np.log(1e-7)

    def log_likelihood(x, y):
        return (-0.5 * ((y - np.tanh(x @ w)) / 0.5) ** 2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)).sum()

    orbit = log_likelihood(brute_orbit(X), brute_orbit(Y))
    # the orbit of an orbit is that orbit over and over, so its mean says no more than the orbit itself
    rows = {
        "mean": (full_orbit(REGULAR, REGULAR), "mean", X, Y, orbit / 4, 5),
        "sum": (full_orbit(REGULAR, REGULAR), "sum", X, Y, orbit, 5),
        "mean of the orbit": (full_orbit(REGULAR, REGULAR), "mean", brute_orbit(X), brute_orbit(Y), orbit, 20),
        "none": (None, "mean", brute_orbit(X), brute_orbit(Y), orbit, 20),
    }
    for name, (augment, weight, x, y, expected, count) in rows.items():
        scheme = Variational(family, rate, augment=augment, augment_weight=weight)
        state = VariationalState(params, rate.init(params))
        _, info = jax.jit(lambda s, b, scheme=scheme: scheme.step(key, s, PROBLEM, b, 1.0))(state, (x, y))
        assert float(info.loss) == pytest.approx(-(expected - kl) / count, rel=1e-6), name
    assert abs(orbit / 4 - log_likelihood(X, Y)) > 1
