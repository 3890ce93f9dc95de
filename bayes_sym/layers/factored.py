"""The factored fully connected map: for every pair of channels, one input pattern times one output pattern."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ..errors import GroupActionError
from ..representations import Representation
from ..taps import tap
from .layer import Field, Layer, Role, Site, Stage, Weights, join, next_output
from .maps import check_map, check_maps_field, output_grid


__all__ = ["Factored"]


@dataclass(frozen=True)
class Factored(Layer):
    """The dense map W[p, c, q, d] = output[d, c, q] input[c, p, d]: rank one over space for each pair of channels.

    The factored layer of van der Ouderaa et al. 2023 ("Learning layer-wise equivariances automatically using
    gradients", F-FC), as two products:

        z[c, d] = sum_p input[c, p, d] x[p, c] + input_bias[d]
        y[q, d] = sum_c output[d, c, q] z[c, d] + output_bias[q]

    It costs inputs * outputs * (pixels + pixels') products and weights, where the dense map takes inputs * outputs *
    pixels * pixels'. It breaks translation symmetry, and holds no convolution: put it beside one in a `Residual`.

    Attributes:
        inputs: number of input channels.
        outputs: number of output channels.
        grid: (height, width) of the input map.
        stride: the output map has ceil(height/stride) x ceil(width/stride) pixels.
        bias: whether there are biases.

    Sites: ``input`` (inputs, height, width, outputs), ``input_bias`` (outputs,), ``output`` (outputs, inputs, height',
    width') and ``output_bias`` (height', width'). The two factors share a strength: each has its square root.
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
        """``input`` and ``output``, each followed by its bias if there are biases."""
        first = Site("input", (self.inputs, *self.grid, self.outputs), math.prod(self.grid), "weight", 0.5)
        second = Site("output", (self.outputs, self.inputs, *self.output_grid()), self.inputs, "weight", 0.5)
        if not self.bias:
            return first, second
        return (
            first,
            Site("input_bias", (self.outputs,), 1, "bias", 0.5),
            second,
            Site("output_bias", self.output_grid(), 1, "bias"),
        )

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, height, width, inputs) to (batch, height', width', outputs)."""
        first, second = weights["input"], weights["output"]
        check_map("Factored", path, x, self.grid, first.shape[0])
        seen = jnp.swapaxes(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2)  # (batch, inputs, pixels)
        z = jnp.einsum("bcp,cpd->bcd", seen, first.reshape(first.shape[0], -1, first.shape[-1]))
        if self.bias:
            z = z + weights["input_bias"][None, None]
        biases = [join(path, f"{name}_bias") if self.bias else None for name in ("input", "output")]
        name = join(path, "input")
        z = tap(name, z, inputs=seen, weight=name, bias=biases[0], grouped=True)
        mixed = jnp.swapaxes(z, 1, 2)  # (batch, outputs, inputs)
        y = jnp.einsum("bdc,dcq->bdq", mixed, second.reshape(*second.shape[:2], -1))
        if self.bias:
            y = y + weights["output_bias"].reshape(1, 1, -1)
        name = join(path, "output")
        y = tap(name, y, inputs=mixed, weight=name, bias=biases[1], grouped=True)
        return jnp.swapaxes(y, 1, 2).reshape(x.shape[0], *second.shape[2:], -1)

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """Both factors move with the pixels of their map and the channels of both; needs permutations of channels."""
        check_maps_field("Factored", field, self.grid, self.inputs)
        channels = next_output(outputs, field, self.outputs, f"Factored({self.inputs}, {self.outputs})")
        for rep in (field.channels, channels):
            if not rep.is_permutation:
                raise GroupActionError(
                    f"Factored has one pattern per pair of channels, so the group must act on channels by permutations, got {rep}: use "
                    "regular(group) * trivial(group, n), or FullyConnected"
                )
        out = self.output_grid()
        reps = {
            "input": (field.channels * field.on_grid(self.grid) * channels).reshape(self.inputs, *self.grid, self.outputs),
            "output": (channels * field.channels * field.on_grid(out)).reshape(self.outputs, self.inputs, *out),
        }
        if self.bias:
            reps |= {"input_bias": channels, "output_bias": field.on_grid(out)}
        return reps, Field(channels, out)

    def stages(self) -> tuple[Stage, ...]:
        """This layer."""
        return (Stage(self.outputs, tuple(site.name for site in self.sites())),)

    def expand(self, order: int, roles: Iterator[Role]) -> Factored:
        """The layer between `order` copies."""
        role = next(roles)
        inputs = self.inputs * (1 if role.first else order)
        outputs = self.outputs * (1 if role.last else order)
        return Factored(inputs, outputs, self.grid, self.stride, self.bias)
