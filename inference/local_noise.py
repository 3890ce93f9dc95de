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
from .problem import Values
from .structure import Structure


__all__ = ["LocalNoise", "local_sites"]

_POSITIONS = 256


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
    there every few rows get a noisy weight of their own, scale * base times a rank-one pattern of signs (flipout: Wen et al. 2018),
    which gives every row the exact law, and rows that are nearly independent. Adding the noise to the weight takes one product
    per tap where flipout row by row takes two; see `_group_size` for how many rows share a weight.

    Args:
        taps: the taps to treat, by name.
        means: means of all sites.
        scales: standard deviations of all sites.
        key: the noise.
        sign: +1 or -1, for antithetic pairs.
    """

    def __init__(self, taps: dict[str, str], means: Values, scales: Values, key: jax.Array, sign: jax.Array) -> None:
        self.taps, self.means, self.scales, self.sign = taps, means, scales, sign
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
        a, site, key = fields["inputs"], self.taps[name], self.keys[name]
        scale = _as_matrix(self.scales[site], a.shape[-1], z.shape[-1])
        bias = None if fields["bias"] is None else name.removesuffix(fields["written_as"]) + fields["bias"]
        scale_bias = None if bias is None else self.scales[bias].reshape(1, -1)
        if z.ndim == 2:
            message["value"] = z + self.sign * _row_noise(key, a, z, scale, scale_bias)
            return
        key_weight, key_bias = jax.random.split(key)
        mean = _as_matrix(self.means[site], a.shape[-1], z.shape[-1])
        noisy = _grouped_product(key_weight, a, mean, self.sign * scale)
        if bias is not None and scale_bias is not None:
            own = jax.random.normal(key_bias, (z.shape[0], z.shape[-1]), z.dtype) * (self.sign * scale_bias)
            own = own + self.means[bias].reshape(1, -1)
            noisy = noisy + own.reshape(z.shape[0], *(1,) * (z.ndim - 2), z.shape[-1])
        message["value"] = noisy


def _as_matrix(scale: jax.Array, inputs: int, outputs: int) -> jax.Array:
    return scale.reshape(inputs, outputs) if scale.shape[-1] == outputs else scale.reshape(outputs, inputs).T


def _row_noise(key: jax.Array, a: jax.Array, z: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    variance = a**2 @ scale**2
    if bias is not None:
        variance = variance + bias**2
    # the square root has no derivative where a row is dead; the smallest normal number keeps it finite there
    return jnp.sqrt(variance + jnp.finfo(z.dtype).tiny) * jax.random.normal(key, z.shape, z.dtype)


def _grouped_product(key: jax.Array, a: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """a @ (mean + scale * base * signs), the signs anew for every group of rows."""
    rows, shared = a.shape[0], math.prod(a.shape[1:-1])
    groups = rows // _group_size(rows, shared)
    key_base, key_in, key_out = jax.random.split(key, 3)
    base = scale * jax.random.normal(key_base, (math.prod(scale.shape),), a.dtype).reshape(scale.shape)
    flip_in = jax.random.rademacher(key_in, (groups, scale.shape[0], 1), a.dtype)
    flip_out = jax.random.rademacher(key_out, (groups, 1, scale.shape[1]), a.dtype)
    weights = mean[None] + base[None] * (flip_in * flip_out)
    return (a.reshape(groups, -1, a.shape[-1]) @ weights).reshape(*a.shape[:-1], scale.shape[1])


def _group_size(rows: int, shared: int) -> int:
    """How many rows share a noisy weight: the largest divisor of `rows` that leaves 16 groups, and products no larger than need be.

    A product of `_POSITIONS` rows is about as fast per row as a large one, while every group costs the making of a weight.
    """
    most = max(1, min(rows // 16, _POSITIONS // shared))
    return max(size for size in range(1, most + 1) if rows % size == 0)
