"""The dense layer: one matrix on the last axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ..errors import GroupActionError, ShapeError
from ..representations import Representation
from ..taps import tap
from .layer import Field, Layer, Role, Site, Stage, Weights, join, next_output


__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Layer):
    """y = x W + b on the last axis.

    Attributes:
        inputs: number of input features.
        outputs: number of output features.
        bias: whether there is a bias.

    Sites: ``weight`` (inputs, outputs) and ``bias`` (outputs,).
    """

    inputs: int
    outputs: int
    bias: bool = True

    def sites(self) -> tuple[Site, ...]:
        """``weight`` and, if there is one, ``bias``."""
        weight = Site("weight", (self.inputs, self.outputs), self.inputs, "weight")
        return (weight, Site("bias", (self.outputs,), 1, "bias")) if self.bias else (weight,)

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, ..., inputs) to (batch, ..., outputs)."""
        weight = weights["weight"]
        if x.shape[-1] != weight.shape[0]:
            raise ShapeError(
                f"Dense {path!r} takes {weight.shape[0]} input features, got an array of shape {x.shape}: its last axis has "
                f"{x.shape[-1]}. Set Dense(inputs={x.shape[-1]}, ...) or put Flatten() before it"
            )
        z = x @ weight
        if self.bias:
            z = z + jnp.expand_dims(weights["bias"], tuple(range(z.ndim - 1)))
        bias = join(path, "bias") if self.bias else None
        return tap(path or "dense", z, inputs=x, weight=join(path, "weight"), bias=bias)

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """W -> rho_in(g) W rho_out(g)^T, b -> rho_out(g) b."""
        if field.grid:
            raise GroupActionError("Dense acts on plain vectors here: put Flatten() or a global Pool() before it")
        if field.channels.dim != self.inputs:
            raise GroupActionError(f"Dense takes {self.inputs} inputs, but the group acts on {field.channels.dim}")
        channels = next_output(outputs, field, self.outputs, f"Dense({self.inputs}, {self.outputs})")
        reps = {"weight": (field.channels * channels).reshape(self.inputs, self.outputs)}
        if self.bias:
            reps["bias"] = channels
        return reps, Field(channels)

    def stages(self) -> tuple[Stage, ...]:
        """This layer."""
        return (Stage(self.outputs, tuple(site.name for site in self.sites())),)

    def expand(self, order: int, roles: Iterator[Role]) -> Dense:
        """The layer between `order` copies."""
        role = next(roles)
        inputs = self.inputs * (1 if role.first else order)
        return Dense(inputs, self.outputs * (1 if role.last else order), self.bias)
