"""A classifier with a prior scale for its first layer and one for the rest: what the evidence needs to weigh nets beside ranges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_sym.layers import Layer, Site, random_module


__all__ = ["classify"]


def classify(spec: Layer, first: str, x: jax.Array, y: jax.Array | None) -> None:
    """Sites ``scale`` (2,), of the weights of each layer, those of the net, and labels ``y`` of x (batch, ...) in the plate ``data``.

    Args:
        spec: the net, of two layers with weights.
        first: what the sites of its first layer start with.
        x: the inputs.
        y: the labels, or None to draw them.
    """
    scale = numpyro.sample("scale", dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))

    def prior(site: Site) -> dist.Distribution:
        return dist.Normal(0.0, scale[int(not site.name.startswith(first))]).expand(site.shape).to_event(len(site.shape))

    net = random_module("net", spec, prior=prior)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)
