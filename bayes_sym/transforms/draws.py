"""Uniform numbers that belong to an example, not to its place in the batch, and that are coupled over copies of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import OptionError
from .transform import uniforms


__all__ = ["COUPLINGS", "copy_uniforms", "row_ids"]

COUPLINGS = ("independent", "stratified", "antithetic")
"""How the numbers of several copies of one example depend on each other; see `copy_uniforms`."""


def row_ids(x: jax.Array) -> jax.Array:
    """A number for every example that depends on its content only: a 32-bit hash of its values in float32, (batch,).

    The same example has the same number alone, in any batch, on any device, and under `vmap` over rows. It has no gradient.
    """
    values = jax.lax.stop_gradient(x).astype(jnp.float32).reshape(x.shape[0], -1)
    values = jnp.where(values == 0, 0.0, values)  # one zero; adding 0 would not do, the compiler may drop it
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    place = jnp.arange(bits.shape[1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    return _scrambled(jnp.sum(_scrambled(bits + place[None]), axis=1, dtype=jnp.uint32))


def _scrambled(h: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3 (Appleby, public domain): every bit of the result depends on every bit given."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def copy_uniforms(
    key: jax.Array, ids: jax.Array, copies: int, coupled: np.ndarray, coupling: str, dtype: Any = float
) -> jax.Array:
    """Uniform numbers in (0, 1) for every example, copy and coordinate, (batch, copies, coordinates).

    Every number by itself is uniform, whatever the coupling, and examples are independent of each other.

    Args:
        key: the random key.
        ids: (batch,), what tells examples apart; equal ones get equal numbers.
        copies: at least 1.
        coupled: (coordinates,) booleans: which are stratified; where an operation takes many, nothing is gained by it.
        coupling: ``"independent"``; ``"stratified"``: in each coupled coordinate, one copy in each interval
            (c/copies, (c + 1)/copies), in an order of its own; ``"antithetic"``: pairs of copies with u and 1 - u.
        dtype: of the numbers.

    Raises:
        OptionError: an unknown coupling, or no copies.
    """
    if coupling not in COUPLINGS or copies < 1:
        raise OptionError(f"noise over copies is one of {', '.join(COUPLINGS)}, for at least 1 copy, got {coupling!r}, {copies}")
    count, few = len(coupled), int(coupled.sum())
    antithetic, stratified = coupling == "antithetic" and copies > 1, coupling == "stratified" and copies > 1
    drawn = -(-copies // 2) if antithetic else copies
    near, far = np.flatnonzero(coupled), np.flatnonzero(~coupled)
    back = np.argsort(np.concatenate([near, far]))

    def of_example(index: jax.Array) -> jax.Array:
        flat = uniforms(jax.random.fold_in(key, index), (drawn * count + (copies * few if stratified else 0),), dtype)
        u = flat[: drawn * count].reshape(drawn, count)
        if antithetic:
            return jnp.concatenate([u, 1 - u])[:copies]
        if stratified and few:
            order = jnp.argsort(flat[drawn * count :].reshape(copies, few), axis=0).astype(u.dtype)
            largest = 1 - jnp.finfo(u.dtype).eps / 2
            strata = jnp.minimum((order + u[:, near]) / copies, largest)  # the last sum may round up to 1
            u = jnp.concatenate([strata, u[:, far]], axis=1)[:, back]
        return u

    return jax.vmap(of_example)(ids)
