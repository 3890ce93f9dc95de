"""Operations that bend or quantise tones: solarize, posterize, auto-contrast, equalize. Images lie in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ..errors import OptionError
from .gate import Gated, share
from .transform import Transform, beside, check_positive


__all__ = ["AutoContrast", "Equalize", "Posterize", "Solarize"]

_LEVELS = 8  # bits of an image


@dataclass(frozen=True)
class Solarize(Transform):
    """Tones above a threshold 1 - t are inverted, t = limit * magnitude.

    The share of a tone x that is inverted has the odds t/(1 - t) exp((x - 1 + t)/softness): nothing at t = 0, everything at
    t = 1, half of it at the threshold for t = 1/2; a gradient reaches every tone.

    Attributes:
        limit: how far the threshold comes down, at most 1.
        softness: the width of the threshold, in tones.
    """

    limit: float = 1.0
    softness: float = 0.05
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "tones"

    def __post_init__(self) -> None:
        check_positive(self, "limit", "softness")
        _at_most(self, 1.0)

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """No noise."""
        return 0

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The blend of every pixel and its negative."""
        t = beside(self.limit * magnitude, x)
        above = (x - 1 + t) / self.softness
        inverted = share(t * jnp.exp(jnp.minimum(above, 0.0)), (1 - t) * jnp.exp(-jnp.maximum(above, 0.0)))
        return x + inverted * (1 - 2 * x)


@dataclass(frozen=True)
class Posterize(Transform):
    """The last bits of every tone are cut off: limit * magnitude of 8.

    Between whole numbers of bits the image is interpolated, so the gradient in the magnitude is exact and never zero where
    bits are lost. In the image it is that of the identity (straight-through), as the floor has none.

    Attributes:
        limit: how many bits are cut off at magnitude 1, at most 8.
    """

    limit: float = 7.0
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "bits"

    def __post_init__(self) -> None:
        check_positive(self, "limit")
        _at_most(self, float(_LEVELS))

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """No noise."""
        return 0

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The sum of what each lost bit takes away; nested floors, so every tone only ever falls."""
        lost = self.limit * magnitude
        steps = [x] + [jnp.floor(x * 2**bits) / 2**bits for bits in range(_LEVELS - 1, -1, -1)]
        drop = jnp.zeros_like(x)
        for cut, (before, after) in enumerate(zip(steps[:-1], steps[1:], strict=True)):
            drop = drop + beside(jnp.clip(lost - cut, 0.0, 1.0), x) * jax.lax.stop_gradient(after - before)
        return x + drop


@dataclass(frozen=True)
class AutoContrast(Gated):
    """Every channel is stretched to [0, 1], with probability ``limit * magnitude``; see `Gated`.

    Attributes:
        limit: the probability at magnitude 1.
    """

    limit: float = 1.0
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "probability"

    def other(self, x: jax.Array) -> jax.Array:
        """(x - min) / (max - min) per image and channel; constant channels stay."""
        low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
        flat = high == low
        return jnp.where(flat, x, (x - low) / jnp.where(flat, 1.0, high - low))


@dataclass(frozen=True)
class Equalize(Gated):
    """The tones of every channel are spread evenly, with probability ``limit * magnitude``; see `Gated`.

    Textbook histogram equalisation, on the tones as they are (no bins): x becomes (F(x) - F(min)) / (n - F(min)), with F(x)
    the number of pixels not above x. The gradient in the image is that of the identity (straight-through), as ranks have none.

    Attributes:
        limit: the probability at magnitude 1.
    """

    limit: float = 1.0
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "probability"

    def other(self, x: jax.Array) -> jax.Array:
        """The ranks per image and channel; constant channels stay."""
        batch, height, width, channels = x.shape
        tones = jnp.moveaxis(jax.lax.stop_gradient(x), -1, 1).reshape(batch * channels, height * width)
        ordered = jnp.sort(tones, axis=-1)
        below = jax.vmap(lambda a, v: jnp.searchsorted(a, v, side="right"))(ordered, tones).astype(x.dtype)
        least = below.min(axis=-1, keepdims=True)
        flat = least == height * width
        even = jnp.where(flat, tones, (below - least) / jnp.where(flat, 1.0, height * width - least))
        even = jnp.moveaxis(even.reshape(batch, channels, height, width), 1, -1)
        return x + jax.lax.stop_gradient(even - x)


def _at_most(transform: Transform, largest: float) -> None:
    if transform.limit > largest:
        raise OptionError(f"limit of {type(transform).__name__} is at most {largest:g}, got {transform.limit}")
