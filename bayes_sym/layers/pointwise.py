"""Layers without weights: activations, pooling and flattening."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from ..errors import GroupActionError, OptionError, ShapeError
from ..representations import Representation
from .layer import Field, Layer, Role, Site, Stage, Weights


__all__ = ["Activation", "Flatten", "Pool"]

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "identity": lambda x: x,
}
_ODD = {"tanh", "erf"}


@dataclass(frozen=True)
class Activation(Layer):
    """A pointwise nonlinearity, by name: relu, gelu, softplus, sigmoid, silu, tanh, erf or identity."""

    name: str = "relu"

    def __post_init__(self) -> None:
        if self.name not in _ACTIVATIONS:
            raise OptionError(f"unknown activation {self.name!r}: choose one of {sorted(_ACTIVATIONS)}")

    def sites(self) -> tuple[Site, ...]:
        """No weights."""
        return ()

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """Any shape, unchanged."""
        return _ACTIVATIONS[self.name](x)

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """Commutes with permutations of channels; odd functions also with signs; the identity with everything."""
        channels = field.channels
        if not (channels.is_permutation or self.name == "identity" or (channels.is_monomial and self.name in _ODD)):
            need = "a permutation or signed permutation" if self.name in _ODD else "a permutation"
            raise GroupActionError(
                f"{self.name} is pointwise, so the group must act on its channels by {need} representation, got {channels}: use "
                "regular(group) * trivial(group, n) for hidden channels"
            )
        return {}, field

    def stages(self) -> tuple[Stage, ...]:
        """No weights."""
        return ()

    def expand(self, order: int, roles: Iterator[Role]) -> Activation:
        """Itself."""
        return self


@dataclass(frozen=True)
class Pool(Layer):
    """Pooling over windows of `size` x `size` pixels that do not overlap, or over the whole image if `size` is None.

    Attributes:
        size: the window, or None to pool everything: (batch, height, width, channels) to (batch, channels).
        kind: ``"mean"`` or ``"max"``.
    """

    size: int | None = None
    kind: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if self.kind not in ("mean", "max"):
            raise OptionError(f"kind must be 'mean' or 'max', got {self.kind!r}")

    def sites(self) -> tuple[Site, ...]:
        """No weights."""
        return ()

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, height, width, channels) to (batch, height/size, width/size, channels) or (batch, channels)."""
        reduce = jnp.mean if self.kind == "mean" else jnp.max
        if x.ndim != 4:
            raise ShapeError(f"Pool {path!r} takes images (batch, height, width, channels), got an array of shape {x.shape}")
        if self.size is None:
            return reduce(x, axis=(1, 2))
        batch, height, width, channels = x.shape
        self._check_divides((height, width))
        windows = x.reshape(batch, height // self.size, self.size, width // self.size, self.size, channels)
        return reduce(windows, axis=(2, 4))

    def _check_divides(self, grid: tuple[int, ...]) -> None:
        if self.size is not None and any(n % self.size for n in grid):
            raise ShapeError(
                f"Pool({self.size}) needs a height and width that {self.size} divides, got {grid}: pad the images, or use another size"
            )

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """Commutes with the action on pixels; maxima commute only with permutations of channels."""
        if not field.grid:
            raise GroupActionError("Pool needs images: the group acts on plain vectors here")
        if self.kind == "max" and not field.channels.is_permutation:
            raise GroupActionError(
                f"a maximum commutes with permutations of channels only, got {field.channels}: use kind='mean'"
            )
        self._check_divides(field.grid)
        return {}, Field(field.channels, () if self.size is None else tuple(n // self.size for n in field.grid))

    def stages(self) -> tuple[Stage, ...]:
        """No weights."""
        return ()

    def expand(self, order: int, roles: Iterator[Role]) -> Pool:
        """Itself."""
        return self


@dataclass(frozen=True)
class Flatten(Layer):
    """All axes but the first become one: (batch, ..., channels) to (batch, features)."""

    def sites(self) -> tuple[Site, ...]:
        """No weights."""
        return ()

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, ..., channels) to (batch, features)."""
        return x.reshape(x.shape[0], -1)

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """The features carry the action on pixels times that on channels."""
        return {}, Field(field.representation)

    def stages(self) -> tuple[Stage, ...]:
        """No weights."""
        return ()

    def expand(self, order: int, roles: Iterator[Role]) -> Flatten:
        """Itself."""
        return self
