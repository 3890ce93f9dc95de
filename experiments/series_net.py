"""Layers without weights that make a net for series: windows cut out of them, and the mean over time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import GroupActionError
from bayes_sym.layers import Activation, Dense, Field, Layer, Role, Sequential, Site, Stage
from bayes_sym.layers.layer import Weights
from bayes_sym.representations import Representation


__all__ = ["Frames", "OverTime", "series_net"]


@dataclass(frozen=True)
class Weightless(Layer):
    """A layer without weights on which no group acts."""

    def sites(self) -> tuple[Site, ...]:
        """No weights."""
        return ()

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """None.

        Raises:
            GroupActionError: always.
        """
        raise GroupActionError(f"no group acts on {type(self).__name__}")

    def stages(self) -> tuple[Stage, ...]:
        """No weights."""
        return ()

    def expand(self, order: int, roles: Iterator[Role]) -> Layer:
        """Itself."""
        return self


@dataclass(frozen=True)
class Frames(Weightless):
    """Windows of `size` samples every `hop` samples: (batch, time, channels) to (batch, windows, size * channels).

    A `Dense` layer after it is a convolution along time with this stride.
    """

    size: int
    hop: int

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """Windows that fit, from the first sample on."""
        first = np.arange(0, x.shape[1] - self.size + 1, self.hop)
        place = first[:, None] + np.arange(self.size)[None]
        return jnp.take(x, place.reshape(-1), axis=1).reshape(x.shape[0], len(first), -1)


@dataclass(frozen=True)
class OverTime(Weightless):
    """The mean over windows: (batch, windows, channels) to (batch, channels)."""

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """The mean over the second axis."""
        return x.mean(axis=1)


def series_net(inputs: int, width: int, classes: int, *, size: int, hop: int) -> Sequential:
    """Two convolutions along time with relu, the mean over time, and a dense layer: logits of series with `inputs` channels."""
    relu = Activation("relu")
    layers = (Frames(size, hop), Dense(size * inputs, width), relu, Dense(width, width), relu, OverTime(), Dense(width, classes))
    return Sequential(layers)
