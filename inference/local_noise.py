"""Noise of the pre-activations in place of noise of the weights: the same expectation with less variance per draw."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro
from bayes_sym._numpyro import Messenger

from .families import Family, MeanField, PerSite
from .problem import Structure, Values


__all__ = ["LocalNoise", "local_sites"]


def local_sites(family: Family, structure: Structure) -> dict[str, str]:
    """The taps whose noise can be drawn locally, with their weight sites: factorised Gaussians that one tap alone uses."""
    uses = Counter(meta.weight for meta in structure.taps.values())
    uses.update(meta.bias for meta in structure.taps.values() if meta.bias is not None)
    found = {}
    for name, meta in structure.taps.items():
        sites = [meta.weight] if meta.bias is None else [meta.weight, meta.bias]
        if meta.groups == 1 and all(
            uses[site] == 1 and site in structure.latent and _is_gaussian(family, site) for site in sites
        ):
            found[name] = meta.weight
    return found


def _is_gaussian(family: Family, site: str) -> bool:
    if isinstance(family, PerSite):
        return isinstance(family.family_of(site), MeanField)
    return isinstance(family, MeanField)


class LocalNoise(Messenger):
    """Adds to every tap the noise that its weight's noise would have given it. The weights themselves stand at their means.

    Where every row has a pre-activation of its own (no shared axes), z is Gaussian given the inputs, with independent coordinates, and
    is drawn from just that law (the local reparametrisation of Kingma, Salimans and Welling 2015). Where a weight is used at
    several places of a row (the pixels of a convolution), their pre-activations are correlated, which independent noise would deny;
    there one noisy weight is shared by the batch and its signs are flipped per row by a rank-one pattern (flipout: Wen et al.
    2018), which gives every row the exact law, and rows that are nearly independent.

    Args:
        taps: the taps to treat, by name.
        scales: standard deviations of all sites.
        key: the noise.
        sign: +1 or -1, for antithetic pairs.
    """

    def __init__(self, taps: dict[str, str], scales: Values, key: jax.Array, sign: jax.Array) -> None:
        self.taps, self.scales, self.sign = taps, scales, sign
        self.keys = dict(zip(taps, jax.random.split(key, max(len(taps), 1)), strict=False))
        super().__init__(None)

    def process_message(self, message: dict[str, Any]) -> None:
        """Replaces the value of a tap."""
        if message["type"] != "tap":
            return
        name = _numpyro.name_of(message)
        if name not in self.taps:
            return
        z, fields = message["args"][0], message["infer"]
        prefix = name.removesuffix(fields["written_as"])
        bias = None if fields["bias"] is None else self.scales[prefix + fields["bias"]]
        scale = _as_matrix(self.scales[self.taps[name]], fields["inputs"].shape[-1], z.shape[-1])
        message["value"] = z + self.sign * _noise(self.keys[name], fields["inputs"], z, scale, bias)


def _as_matrix(scale: jax.Array, inputs: int, outputs: int) -> jax.Array:
    return scale.reshape(inputs, outputs) if scale.shape[-1] == outputs else scale.reshape(outputs, inputs).T


def _noise(key: jax.Array, a: jax.Array, z: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    if z.ndim == 2:
        variance = a**2 @ scale**2
        if bias is not None:
            variance = variance + bias.reshape(1, -1) ** 2
        # the square root has no derivative where a row is dead; the smallest normal number keeps it finite there
        return jnp.sqrt(variance + jnp.finfo(z.dtype).tiny) * jax.random.normal(key, z.shape, z.dtype)
    key_base, key_in, key_out, key_bias = jax.random.split(key, 4)
    shared = (z.shape[0],) + (1,) * (z.ndim - 2)
    base = scale * jax.random.normal(key_base, (math.prod(scale.shape),), z.dtype).reshape(scale.shape)
    flip_in = jax.random.rademacher(key_in, (z.shape[0], a.shape[-1]), z.dtype).reshape(*shared, a.shape[-1])
    flip_out = jax.random.rademacher(key_out, (z.shape[0], z.shape[-1]), z.dtype).reshape(*shared, z.shape[-1])
    noise = ((a * jnp.broadcast_to(flip_in, a.shape)) @ base) * jnp.broadcast_to(flip_out, z.shape)
    if bias is not None:
        own = jax.random.normal(key_bias, (z.shape[0], z.shape[-1]), z.dtype) * bias.reshape(1, -1)
        noise = noise + jnp.broadcast_to(own.reshape(*shared, z.shape[-1]), z.shape)
    return noise
