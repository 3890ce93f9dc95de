"""Blocks of rows give the gradient of all rows at once, and noisy weights per group of rows keep the law of every row."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym.errors import OptionError
from bayes_sym.groups import cyclic
from bayes_sym.inference import MeanField, Problem, Variational, fit
from bayes_sym.inference.local_noise import LocalNoise
from bayes_sym.inference.row_blocks import RowBlocks
from bayes_sym.layers import Activation, Conv, Dense, GroupConv, Pool, Sequential, SparseConv, random_module
from bayes_sym.priors import IndependentScales
from bayes_sym.taps import TapRecorder


KEY = jax.random.key(6)
ROWS = np.random.default_rng(0).standard_normal((12, 4)), np.random.default_rng(1).integers(0, 3, 12)
NET = Sequential((Dense(4, 5), Activation("tanh"), Dense(5, 3)))


def net_model(x, y=None):
    net = random_module("net", NET, prior=IndependentScales(1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


PROBLEM = Problem(net_model)


def test_every_row_is_in_one_block_and_other_arguments_are_in_all():
    x, shared = jnp.arange(24.0).reshape(12, 2), jnp.arange(3.0)
    blocks = RowBlocks((x, {"y": jnp.arange(12)}, shared), 4, (0, 1))
    assert blocks.count == 3
    for i in range(3):
        own = np.arange(i, 12, 3)
        rows, labels, constant = blocks[jnp.asarray(i)]
        assert (np.asarray(rows) == np.asarray(x)[own]).all() and (np.asarray(labels["y"]) == own).all()
        assert (np.asarray(constant) == np.asarray(shared)).all()


@pytest.mark.parametrize("num_particles", [3, 4])
def test_blocks_take_the_step_of_all_rows_at_once(num_particles, x64):
    def step(rows_at_once):
        scheme = Variational(MeanField(0.3), optax.sgd(0.1), num_particles=num_particles, rows_at_once=rows_at_once)
        state = scheme.init(KEY, PROBLEM, ROWS)
        return jax.jit(lambda key: scheme.step(key, state, PROBLEM, ROWS, jnp.asarray(2.5)))(KEY)

    (whole, info), (blocked, found) = step(None), step(4)
    assert found.loss == pytest.approx(float(info.loss), rel=1e-12)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(blocked.params), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-12


def test_local_noise_is_drawn_anew_in_every_block(x64):
    # twelve times the same row: with common noise, blocks of one row would all have the same gradient
    data = np.repeat(ROWS[0][:1], 12, axis=0), np.repeat(ROWS[1][:1], 12)
    family = MeanField(0.5)
    params = family.init(PROBLEM.initial(KEY, ROWS))

    def variance(data):
        scheme = Variational(family, num_particles=1, noise="local", rows_at_once=1)

        def one(key):
            gradient = scheme._gradient(key, params, PROBLEM, data, jnp.asarray(12 / len(data[0])), 12.0, family)[1]
            return gradient.mean["net.2.weight"].ravel()

        return jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(KEY, 400)).var(axis=0).sum()

    single, many = variance((data[0][:1], data[1][:1])), variance(data)
    assert 8 < single / many < 18  # twelve independent rows


def test_a_block_size_must_divide_the_rows():
    with pytest.raises(OptionError, match="rows_at_once=5 does not divide the 12 rows"):
        fit(PROBLEM, Variational(rows_at_once=5), KEY, *ROWS, num_steps=1, progress=False)
    with pytest.raises(OptionError, match="rows_at_once must be None or at least 1, got 0"):
        fit(PROBLEM, Variational(rows_at_once=0), KEY, *ROWS, num_steps=1, progress=False)


# Noisy weights of groups of rows


def noisy_conv(x, scale, bias, key):
    """The outputs of a convolution under noise, and its means."""
    spec = Conv(2, 3)
    generator = np.random.default_rng(2)
    means = {"weight": jnp.asarray(generator.standard_normal((3, 3, 2, 3))), "bias": jnp.asarray(generator.standard_normal(3))}
    scales = {"c.weight": jnp.full((3, 3, 2, 3), scale), "c.bias": jnp.full((3,), bias)}
    with LocalNoise({"c": "c.weight"}, {f"c.{k}": v for k, v in means.items()}, scales, key, jnp.ones(())):
        return spec.apply(means, x, path="c"), spec, means


@pytest.mark.parametrize(
    "spec",
    [
        Conv(4, 4),
        SparseConv(4, 4),
        *(GroupConv(cyclic(2), 4 if lift else 2, 4, lift=lift) for lift in (True, False)),
        *(GroupConv(cyclic(2), 2, 2, form=form) for form in ("pointwise", "separable", "depthwise")),
    ],
    ids=str,
)
def test_without_scale_the_noisy_product_is_the_layer(spec, x64):
    generator = np.random.default_rng(3)
    x = jnp.asarray(generator.standard_normal((32, 4, 4, 4)))
    weights = {site.name: jnp.asarray(generator.standard_normal(site.shape)) for site in spec.sites()}
    recorder = TapRecorder()
    with recorder:
        plain = spec.apply(weights, x, path="c")
    means = {f"c.{name}": value for name, value in weights.items()}
    taps = {name: meta.weight for name, meta in recorder.meta.items() if meta.groups == 1}
    with LocalNoise(taps, means, jax.tree.map(jnp.zeros_like, means), KEY, jnp.ones(())):
        noisy = spec.apply(weights, x, path="c")
    assert taps and np.abs(noisy - plain).max() < 1e-12 * np.abs(plain).max()


def test_groups_of_rows_share_a_weight_and_have_uncorrelated_noise(x64):
    # 64 rows of 16 pixels: groups of 4 rows; rows of the same image show the covariance of their noise
    x = jnp.broadcast_to(jnp.asarray(np.random.default_rng(3).standard_normal((1, 4, 4, 2))), (64, 4, 4, 2))

    def draw(key):
        return noisy_conv(x, 0.3, 0.0, key)[0][:, 1, 1]

    draws = np.asarray(jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(KEY, 4000)))
    centred = draws - draws.mean(axis=0)
    recorder = TapRecorder()
    with recorder:
        noisy_conv(x, 0.3, 0.0, KEY)
    patch = np.asarray(recorder.inputs["c"][0, 1, 1])
    exact = 0.09 * (patch**2).sum()
    assert np.abs(centred.var(axis=0) / exact - 1).max() < 0.15  # standard error 0.022, of 192 entries
    assert np.abs(centred[:, 0] - centred[:, 3]).max() < 1e-12
    across = np.einsum("no,npo->po", centred[:, 0], centred[:, 4:]) / len(centred)
    assert np.abs(across).max() / exact < 4.5 / np.sqrt(len(centred)) * 1.5  # of 180 entries
    assert np.abs(centred[:, 0] - centred[:, 4]).max() > 0.1


def test_blocks_and_groups_train_a_small_convolutional_net():
    spec = Sequential((Conv(1, 3), Activation("relu"), Pool(), Dense(3, 2)))

    def model(x, y=None):
        net = random_module("net", spec, prior=IndependentScales(1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    generator = np.random.default_rng(5)
    y = generator.integers(0, 2, 64)
    x = (generator.standard_normal((64, 4, 4, 1)) + 2.0 * y[:, None, None, None]).astype(np.float32)
    scheme = Variational(optimizer=optax.adam(0.03), num_particles=1, noise="local", rows_at_once=16)
    done = fit(Problem(model), scheme, KEY, x, y, num_steps=150, batch_size=32, progress=False)
    assert done.losses[-20:].mean() < 0.75 * done.losses[:5].mean()
