"""Adaptive polyphase subsampling: the sample grid follows the image, so that shifts of the image stay shifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import GroupActionError, OptionError, ShapeError
from ..representations import Representation
from .layer import Field, Layer, Role, Site, Stage, Weights


__all__ = ["Polyphase"]


@dataclass(frozen=True)
class Polyphase(Layer):
    """Keeps one of the `stride`^2 polyphase components x[:, i::stride, j::stride]: that with the largest energy, or at its centre.

    Plain subsampling keeps i = j = 0, whatever the image shows. Here every example chooses for itself (adaptive polyphase
    sampling, Chaman and Dokmanic 2021), so a circular shift of the map by any number of pixels is a circular shift of the
    result. The choice depends on the example alone, not on its batch, and is constant under differentiation. Unless it is made by
    the centroid, it commutes with rotations and mirrors of maps with even sides; it always does with permutations of channels.

    Attributes:
        stride: step between samples; must divide the height and width.
        choose: ``"energy"`` takes the component with the largest sum of max(x, 0)^2 over pixels and channels: what a
            ReLU lets through. ``"max"`` takes the one that holds the largest entry, as published with residual
            pathways; one entry decides less reliably (docs/decisions.md). ``"centroid"`` takes the component of the pixel at the
            circular centroid of the energy, arg(sum_u e_u exp(2 pi i u / n)) n / (2 pi) along either axis, rounded down after
            a quarter of a pixel is added: images that are alike then keep like samples. It needs energy that lies somewhere; of a
            map whose energy has no first harmonic it keeps an arbitrary component.
        smooth: pixels along either axis whose mean, wrapping around, each pixel takes first, so that what lies between the samples
            is not lost (Zhang 2019, "Making convolutional networks shift-invariant again"): 1, 2, or 3 with the weights
            (1, 2, 1)/4. Means of two lie between pixels: turned, they are those of the turned map a pixel further on, which
            is one more shift.
    """

    stride: int = 2
    choose: str = "energy"
    smooth: int = 1

    def __post_init__(self) -> None:
        if self.choose not in ("energy", "max", "centroid"):
            raise OptionError(f"choose must be 'energy', 'max' or 'centroid', got {self.choose!r}")
        if self.smooth not in (1, 2, 3):
            raise OptionError(f"smooth is the number of pixels to average, 1, 2 or 3, got {self.smooth!r}")
        if self.stride < 1:
            raise OptionError(f"the stride of Polyphase must be at least 1, got {self.stride}")

    def sites(self) -> tuple[Site, ...]:
        """No weights."""
        return ()

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, height, width, channels) to (batch, height/stride, width/stride, channels)."""
        s = self.stride
        if x.ndim != 4 or x.shape[1] % s or x.shape[2] % s:
            raise ShapeError(
                f"Polyphase({s}) {path!r} takes maps (batch, height, width, channels) whose sides {s} divides, got an array of shape "
                f"{x.shape}: pad the images, or use another stride"
            )
        if s == 1:
            return x
        for axis in (1, 2):
            if self.smooth > 1:
                x = (x + jnp.roll(x, -1, axis)) / 2
            if self.smooth > 2:
                x = (x + jnp.roll(x, 1, axis)) / 2
        batch, height, width, channels = x.shape
        pixels = np.arange(height * width).reshape(height // s, s, width // s, s).transpose(1, 3, 0, 2)
        components = jnp.take(x.reshape(batch, -1, channels), pixels.reshape(-1), axis=1, mode="clip")
        components = components.reshape(batch, s * s, -1, channels)
        if self.choose == "centroid":
            energy = (jnp.maximum(jax.lax.stop_gradient(x), 0) ** 2).sum(axis=3)
            best = _centroid(energy.sum(axis=2)) % s * s + _centroid(energy.sum(axis=1)) % s
        else:
            seen = jax.lax.stop_gradient(components)
            score = (jnp.maximum(seen, 0) ** 2).sum(axis=(2, 3)) if self.choose == "energy" else seen.max(axis=(2, 3))
            best = score.argmax(axis=1)
        # a product with the choice: a gather of other pixels for every example is slow, forwards and backwards
        chosen = jax.nn.one_hot(best, s * s, dtype=x.dtype)
        return jnp.einsum("bk,bkpc->bpc", chosen, components).reshape(batch, height // s, width // s, channels)

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """Commutes with rotations and mirrors where the sides are even multiples, and with permutations of channels."""
        if not field.grid:
            raise GroupActionError("Polyphase needs images: the group acts on plain vectors here")
        if any(n % self.stride for n in field.grid):
            raise GroupActionError(f"Polyphase({self.stride}) needs sides that {self.stride} divides, got {field.grid}")
        if not field.channels.is_permutation:
            raise GroupActionError(f"the choice of a component commutes with permutations of channels only, got {field.channels}")
        if self.choose == "centroid":
            raise GroupActionError(
                "the pixel at the centroid is rounded down, so turned and mirrored maps may keep other samples: choose by 'energy'"
            )
        if self.smooth == 2:
            raise GroupActionError(
                "means of two pixels commute with turns and mirrors up to a shift only: smooth by 3 pixels, or not at all"
            )
        return {}, Field(field.channels, tuple(n // self.stride for n in field.grid))

    def stages(self) -> tuple[Stage, ...]:
        """No weights."""
        return ()

    def expand(self, order: int, roles: Iterator[Role]) -> Polyphase:
        """Itself."""
        return self


def _centroid(energy: jax.Array) -> jax.Array:
    """The pixel at the circular centroid of (batch, pixels), (batch,) of integers modulo the pixels."""
    n = energy.shape[1]
    angles = 2 * np.pi * np.arange(n) / n
    cos, sin = (jnp.asarray(side, energy.dtype) for side in (np.cos(angles), np.sin(angles)))
    # two pixels have the angles 0 and pi, so the quarter keeps rounding errors off the step
    return jnp.floor(jnp.arctan2(energy @ sin, energy @ cos) * n / (2 * np.pi) + 0.25).astype(int)
