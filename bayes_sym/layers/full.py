"""The fully connected map between feature maps: every output pixel has a weight for every input pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax

from ..representations import Representation
from ..taps import tap
from .layer import Field, Layer, Role, Site, Stage, Weights, join, next_output
from .maps import check_map, check_maps_field, output_grid


__all__ = ["FullyConnected"]


@dataclass(frozen=True)
class FullyConnected(Layer):
    """y[q, d] = sum_{p, c} W[p, c, q, d] x[p, c] + b[q, d], from one feature map to another.

    It contains every convolution of the same sizes, at `pixels` times the number of weights: the pathway that shares
    nothing. `stride` only makes the output map smaller.

    Attributes:
        inputs: number of input channels.
        outputs: number of output channels.
        grid: (height, width) of the input map.
        stride: the output map has ceil(height/stride) x ceil(width/stride) pixels.
        bias: whether there is a bias per output pixel and channel.

    Sites: ``weight`` (height, width, inputs, height', width', outputs) and ``bias`` (height', width', outputs).
    """

    inputs: int
    outputs: int
    grid: tuple[int, int]
    stride: int = 1
    bias: bool = True

    def output_grid(self, grid: tuple[int, ...] | None = None) -> tuple[int, int]:
        """(height', width')."""
        return output_grid(self.grid, self.stride)

    def sites(self) -> tuple[Site, ...]:
        """``weight`` and, if there is one, ``bias``."""
        out = (*self.output_grid(), self.outputs)
        weight = Site("weight", (*self.grid, self.inputs, *out), math.prod(self.grid) * self.inputs, "weight")
        return (weight, Site("bias", out, 1, "bias")) if self.bias else (weight,)

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, height, width, inputs) to (batch, height', width', outputs)."""
        weight = weights["weight"]
        check_map("FullyConnected", path, x, self.grid, weight.shape[2])
        flat = x.reshape(x.shape[0], -1)
        z = flat @ weight.reshape(flat.shape[1], -1)
        if self.bias:
            z = z + weights["bias"].reshape(1, -1)
        bias = join(path, "bias") if self.bias else None
        z = tap(path or "fully_connected", z, inputs=flat, weight=join(path, "weight"), bias=bias)
        return z.reshape(x.shape[0], *weight.shape[3:])

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """W -> rho_in(g) W rho_out(g)^T with the actions on pixels and channels of both maps, b -> rho_out(g) b."""
        check_maps_field("FullyConnected", field, self.grid, self.inputs)
        channels = next_output(outputs, field, self.outputs, f"FullyConnected({self.inputs}, {self.outputs})")
        out = Field(channels, self.output_grid())
        reps = {"weight": field.representation * out.representation}
        if self.bias:
            reps["bias"] = out.representation
        return reps, out

    def stages(self) -> tuple[Stage, ...]:
        """This layer."""
        return (Stage(self.outputs, tuple(site.name for site in self.sites())),)

    def expand(self, order: int, roles: Iterator[Role]) -> FullyConnected:
        """The layer between `order` copies."""
        role = next(roles)
        inputs = self.inputs * (1 if role.first else order)
        outputs = self.outputs * (1 if role.last else order)
        return FullyConnected(inputs, outputs, self.grid, self.stride, self.bias)
