"""Sharper or softer images: the sharpness of imaging libraries, and a Gaussian blur that is exact at every width."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .transform import Transform, beside, signed


__all__ = ["Blur", "Sharpness"]


@dataclass(frozen=True)
class Sharpness(Transform):
    """x + t (x - smooth), with t uniform on (-limit m, limit m): softer for negative t, sharper for positive t.

    The smooth image has the weights 5 in the centre and 1 at each of the 8 neighbours, over 13; images are mirrored at the border.

    Attributes:
        limit: the largest |t|.
    """

    limit: float = 1.0
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "relative change"

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Away from the smooth image or towards it."""
        height, width = x.shape[1:3]
        around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect" if min(height, width) > 1 else "edge")
        rows = around[:, :-2] + around[:, 1:-1] + around[:, 2:]
        block = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
        smooth = (block + 4 * x) / 13
        return x + beside(signed(self.limit * magnitude, u[:, 0]), x) * (x - smooth)


@dataclass(frozen=True)
class Blur(Transform):
    """A Gaussian blur of variance v pixels^2 along both axes, with v uniform on (0, limit m).

    The kernel is the discrete analogue of the Gaussian, exp(-v) I_k(v) (Lindeberg 1990, "Scale-space for discrete signals"):
    diffusion on the grid, with images mirrored at the border. It is the identity at v = 0, with a gradient, and two blurs are
    one of the summed variance, exactly. It is diagonal under the cosine transform: two constant matrices per axis.

    Attributes:
        limit: the largest variance, in pixels^2.
    """

    limit: float = 2.0
    kind: ClassVar[str] = "image"
    unit: ClassVar[str] = "pixels^2"

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Cosine transform, damping, and back."""
        variance = self.limit * magnitude * u[:, 0]
        (of_rows, slow), (of_columns, fast) = (_cosines(size) for size in x.shape[1:3])
        rows, columns = jnp.asarray(of_rows, x.dtype), jnp.asarray(of_columns, x.dtype)
        frequencies = jnp.asarray((slow[:, None] + fast[None, :])[None, :, :, None], x.dtype)
        waves = jnp.einsum("rk,nrcd,cl->nkld", rows, x, columns, precision="highest")
        # what is taken away, so that nothing is lost to rounding at v = 0
        waves = waves * jnp.expm1(-beside(variance, x) * frequencies)
        return x + jnp.einsum("rk,nkld,cl->nrcd", rows, waves, columns, precision="highest")


@lru_cache(maxsize=64)
def _cosines(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The orthonormal cosines of one axis, (size, size) by frequency, and 1 - cos(frequency)."""
    k = np.arange(size)
    waves = np.cos(np.pi * (k[:, None] + 0.5) * k[None, :] / size)
    return waves / np.linalg.norm(waves, axis=0), 1 - np.cos(np.pi * k / size)
