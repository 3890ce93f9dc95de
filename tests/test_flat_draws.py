"""First draws: those of the sites one by one, each from a key of its own, whatever is drawn together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_sym.inference import Problem
from bayes_sym.inference.flat_draws import normals
from bayes_sym.inference.structure import LatentSite
from bayes_sym.layers import Dense, random_module


SHAPES = {"a": (3,), "b": (70_000,), "c": (5, 4), "d": (), "e": (17, 20), "f": (5_000,), "g": (16,), "h": (70_000,)}


def site(shape, dtype=jnp.float32):
    return LatentSite(shape, shape, dtype, False, dtype)


def one_by_one(key, shapes):
    found = {}
    for name, shape in shapes.items():
        key, own = jax.random.split(key)
        found[name] = jax.random.normal(own, (int(np.prod(shape, dtype=int)),))
    return found


@pytest.mark.parametrize("apart", [(), ("a", "b", "e")])
def test_sites_drawn_together_are_those_drawn_one_by_one(key, apart):
    found = jax.jit(lambda key: normals(key, {name: site(shape) for name, shape in SHAPES.items()}, apart))(key)
    expected = one_by_one(key, SHAPES)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.allclose(found[name], value, rtol=1e-6, atol=1e-7), name


def test_no_two_sites_share_their_normals(key):
    found = normals(key, {name: site((64,)) for name in "abcdef"})
    assert len(np.unique(np.stack(list(found.values())))) == 6 * 64


def test_every_site_has_its_own_dtype(key):
    with jax.enable_x64(True):
        found = normals(key, {"wide": site((4,), jnp.float64), "narrow": site((4,), jnp.float32)})
    assert found["wide"].dtype == jnp.float64 and found["narrow"].dtype == jnp.float32
    assert normals(key, {}) == {}


def test_weights_start_at_draws_of_their_prior_each_from_its_own_key(key):
    def model(x, y=None):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))  # Gaussian, and no weight
        net = random_module(
            "net", Dense(5, 3), prior=lambda site: dist.Normal(0, scale).expand(site.shape).to_event(len(site.shape))
        )
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(mean + net(x), 1.0).to_event(1), obs=y)

    data = jnp.ones((2, 5)), jnp.zeros((2, 3))
    z = Problem(model, starts=(("scale", 0.5), ("mean", 0.0))).initial(key, data)
    weights = one_by_one(jax.random.split(key)[1], {name: z[name].shape for name in ("net.weight", "net.bias")})
    for name, value in weights.items():
        assert np.allclose(z[name], 0.5 * value.reshape(z[name].shape), rtol=1e-6)
    free = Problem(model).initial(key, data)
    assert abs(float(free["mean"])) < 1.5  # the median of 15 draws
    for name, value in weights.items():
        assert np.allclose(free[name], np.exp(free["scale"]) * value.reshape(z[name].shape), rtol=1e-5)
