"""The sparse factored map: both patterns of every pair of channels interpolated from values at a few anchors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import GroupActionError, OptionError
from ..representations import Representation
from ..taps import tap
from .interpolation import Anchors, Interpolation, as_anchors, refit
from .layer import Field, Layer, Role, Site, Stage, Weights, join, next_output
from .maps import check_map, check_maps_field, output_grid


__all__ = ["SparseFactored"]


@dataclass(frozen=True)
class SparseFactored(Layer):
    """The factored map W[p, c, q, d] = V[d, c, q] U[c, p, d] with smooth patterns over space:

        U[c, p, d] = sum_z input[c, z, d] L_in[z, p],     V[d, c, q] = sum_z output[d, c, z] L_out[z, q].

    L_in and L_out are `Interpolation` maps, each in pixels of its own map. The layer S-FC of van der Ouderaa et al. 2023
    ("Learning layer-wise equivariances automatically using gradients"), with anchors that are placed, not drawn, and with
    unit output variance at the start. U and V are never built: inputs are projected on the anchors, mixed, and the
    outputs interpolated,

        z[c, d] = sum_z input[c, z, d] (L_in x)[z, c] + input_bias[d]
        y[q, d] = sum_z L_out[z, q] sum_c output[d, c, z] z[c, d].

    Attributes:
        inputs: number of input channels.
        outputs: number of output channels.
        grid: (height, width) of the input map.
        stride: the output map has ceil(height/stride) x ceil(width/stride) pixels.
        anchors: those of the input and of the output map, each a number or positions (y, x) in pixels from the centre.
            None: half as many as pixels on either side.
        lengthscale: of both interpolations, in pixels.
        noise: of both interpolations.
        learn_lengthscale: whether the lengthscales are sites.
        learn_anchors: whether the anchors' positions are sites.
        bias: whether there is a bias, after the first factor.

    Sites: ``input`` (inputs, anchors, outputs), ``input_bias`` (outputs,), ``output`` (outputs, inputs, anchors'), and, where
    learned, ``input_lengthscale`` (), ``input_anchors`` (anchors, 2) and the same for ``output``. The two factors share a
    strength: each has its square root.
    """

    inputs: int
    outputs: int
    grid: tuple[int, int]
    stride: int = 1
    anchors: tuple[Anchors, Anchors] | None = None
    lengthscale: float = 1.0
    noise: float = 0.01
    learn_lengthscale: bool = False
    learn_anchors: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        if self.anchors is not None:
            object.__setattr__(self, "anchors", _pair(self.anchors))
        self.interpolations  # noqa: B018 (refuses options out of their range)

    def output_grid(self, grid: tuple[int, ...] | None = None) -> tuple[int, int]:
        """(height', width')."""
        return output_grid(self.grid, self.stride)

    @cached_property
    def interpolations(self) -> tuple[Interpolation, Interpolation]:
        """From the anchors to the pixels of the input map, and of the output map."""
        grids = (self.grid, self.output_grid())
        anchors = self.anchors or (max(round(0.5 * math.prod(grids[0])), 1), max(round(0.5 * math.prod(grids[1])), 1))
        form = (self.lengthscale, self.noise, self.learn_lengthscale, self.learn_anchors)
        return Interpolation(grids[0], anchors[0], *form), Interpolation(grids[1], anchors[1], *form)

    def sites(self) -> tuple[Site, ...]:
        """``input``, ``input_bias`` if there is one, ``output``, and what is learned of the interpolations."""
        first, second = self.interpolations
        spread = self.inputs * second.power / math.prod(self.output_grid())
        biases = (Site("input_bias", (self.outputs,), 1, "bias", 0.5),) if self.bias else ()
        return (
            Site("input", (self.inputs, first.count, self.outputs), first.power, "weight", 0.5),
            *biases,
            Site("output", (self.outputs, self.inputs, second.count), spread, "weight", 0.5),
            *first.sites("input_"),
            *second.sites("output_"),
        )

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, height, width, inputs) to (batch, height', width', outputs)."""
        first, second = weights["input"], weights["output"]
        check_map("SparseFactored", path, x, self.grid, first.shape[0])
        onto, back = (
            form.at(weights, x.dtype, f"{name}_") for form, name in zip(self.interpolations, ("input", "output"), strict=True)
        )
        seen = jnp.einsum("bpc,zp->bcz", x.reshape(x.shape[0], -1, x.shape[-1]), onto)
        z = jnp.einsum("bcz,czd->bcd", seen, first)
        if self.bias:
            z = z + weights["input_bias"][None, None]
        name, bias = join(path, "input"), join(path, "input_bias") if self.bias else None
        z = tap(name, z, inputs=seen, weight=name, bias=bias, grouped=True)
        mixed = jnp.swapaxes(z, 1, 2)  # (batch, outputs, inputs)
        name = join(path, "output")
        t = tap(name, jnp.einsum("bdc,dcz->bdz", mixed, second), inputs=mixed, weight=name, grouped=True)
        return jnp.einsum("bdz,zq->bqd", t, back).reshape(x.shape[0], *self.output_grid(), -1)

    def reduce(self, weights: Mapping[str, jax.Array], anchors: Any) -> tuple[SparseFactored, dict[str, jax.Array]]:
        """The layer with other anchors, and the weights whose patterns are closest in least squares to the present ones.

        Where the interpolation is learned, call it outside jit.

        Args:
            weights: of this layer, keyed by site name.
            anchors: those of the input and of the output map, each a number or positions.

        Returns:
            The layer and its weights. Learned lengthscales keep their values, learned positions start anew.
        """
        layer = replace(self, anchors=_pair(anchors))
        found = {name: value for name, value in weights.items() if name == "input_bias"}
        for name, axis, old, new in zip(("input", "output"), (1, 2), self.interpolations, layer.interpolations, strict=True):
            u, prefix = weights[name], f"{name}_"
            form = new.start(weights, prefix)
            values = jnp.tensordot(old.at(weights, u.dtype, prefix).T, u, axes=(1, axis))  # pixels first
            found[name] = jnp.moveaxis(refit(values, new.at(form, u.dtype, prefix)), 0, axis)
            found |= form
        return layer, {site.name: found[site.name] for site in layer.sites()}

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """Both factors move with their anchors and the channels of both maps; needs symmetric lattices of anchors."""
        what = f"SparseFactored({self.inputs}, {self.outputs})"
        check_maps_field("SparseFactored", field, self.grid, self.inputs)
        channels = next_output(outputs, field, self.outputs, what)
        for rep in (field.channels, channels):
            if not rep.is_permutation:
                raise GroupActionError(
                    f"{what} has one pattern per pair of channels, so the group must act on channels by permutations, got {rep}: use "
                    "regular(group) * trivial(group, n)"
                )
        first, second = self.interpolations
        reps = {
            "input": (field.channels * first.action(what, field) * channels).reshape(self.inputs, first.count, self.outputs),
            "output": (channels * field.channels * second.action(what, field)).reshape(self.outputs, self.inputs, second.count),
        }
        if self.bias:
            reps["input_bias"] = channels
        reps |= first.form_representations(field, "input_") | second.form_representations(field, "output_")
        return reps, Field(channels, self.output_grid())

    def stages(self) -> tuple[Stage, ...]:
        """This layer."""
        return (Stage(self.outputs, tuple(site.name for site in self.sites())),)

    def expand(self, order: int, roles: Iterator[Role]) -> SparseFactored:
        """The layer between `order` copies."""
        role = next(roles)
        inputs = self.inputs * (1 if role.first else order)
        return replace(self, inputs=inputs, outputs=self.outputs * (1 if role.last else order))


def _pair(anchors: Any) -> tuple[Anchors, Anchors]:
    if not isinstance(anchors, (tuple, list)) or len(anchors) != 2:
        raise OptionError(
            f"anchors must be a pair, those of the input and of the output map, each a number or positions, got {anchors!r}"
        )
    return as_anchors(anchors[0]), as_anchors(anchors[1])
