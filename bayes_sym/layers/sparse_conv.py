"""The sparse convolution: filters interpolated from values at a few anchors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..errors import ShapeError
from ..representations import Representation
from ..taps import tap
from .conv import Conv
from .interpolation import Anchors, Interpolation, as_anchors, refit
from .layer import Field, Layer, Role, Site, Stage, Weights, join


__all__ = ["SparseConv"]


@dataclass(frozen=True)
class SparseConv(Layer):
    """A convolution whose filters are smooth: k[t, c, d] = sum_z L[z, t] weight[z, c, d].

    L is the `Interpolation` from the anchors to the filter's pixels t. It is the layer S-CONV of van der Ouderaa et al.
    2023 ("Learning layer-wise equivariances automatically using gradients"), with anchors that are placed, not drawn,
    and with unit output variance at the start. With an anchor on every pixel and little noise it is the plain `Conv`.

    The linear map that curvature sees has the anchor values as its matrix, and patches contracted with L as its inputs.

    Attributes:
        inputs: number of input channels.
        outputs: number of output channels.
        kernel: (height, width) of the filters, or one number for both.
        anchors: how many anchors, or their positions (y, x) in pixels from the centre of the filter.
        padding: as in `Conv`. With ``"CIRCULAR"`` the layer commutes exactly with circular shifts.
        lengthscale: of the interpolation, in pixels.
        noise: of the interpolation.
        learn_lengthscale: whether the lengthscale is a site.
        learn_anchors: whether the anchors' positions are a site.
        bias: whether there is a bias.

    Sites: ``weight`` (anchors, inputs, outputs), ``bias`` (outputs,), and, where learned, ``lengthscale`` () and
    ``anchors`` (anchors, 2).
    """

    inputs: int
    outputs: int
    kernel: int | tuple[int, int] = 3
    anchors: Anchors = 4
    padding: Literal["SAME", "CIRCULAR", "VALID"] = "CIRCULAR"
    lengthscale: float = 1.0
    noise: float = 0.01
    learn_lengthscale: bool = False
    learn_anchors: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", self.plain.kernel)
        object.__setattr__(self, "anchors", as_anchors(self.anchors))
        self.interpolation  # noqa: B018 (refuses options out of their range)

    @cached_property
    def plain(self) -> Conv:
        """The convolution with free filters of the same size."""
        return Conv(self.inputs, self.outputs, self.kernel, self.padding, 1, self.bias)

    @cached_property
    def interpolation(self) -> Interpolation:
        """From the anchors to the filters' pixels."""
        return Interpolation(
            self.plain.window, self.anchors, self.lengthscale, self.noise, self.learn_lengthscale, self.learn_anchors
        )

    def sites(self) -> tuple[Site, ...]:
        """``weight``, ``bias`` if there is one, and what is learned of the interpolation."""
        shape = (self.interpolation.count, self.inputs, self.outputs)
        weight = Site("weight", shape, self.inputs * self.interpolation.power, "weight")
        biases = (Site("bias", (self.outputs,), 1, "bias"),) if self.bias else ()
        return (weight, *biases, *self.interpolation.sites())

    def filters(self, weights: Weights) -> jax.Array:
        """The filters on the grid, (height, width, inputs, outputs)."""
        u = weights["weight"]
        k = jnp.einsum("zt,zcd->tcd", self.interpolation.at(weights, u.dtype), u)
        return k.reshape(*self.plain.window, *u.shape[1:])

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, height, width, inputs) to (batch, height', width', outputs)."""
        u = weights["weight"]
        if x.ndim != 4 or x.shape[-1] != u.shape[1]:
            raise ShapeError(
                f"SparseConv {path!r} takes images (batch, height, width, {u.shape[1]} channels), got an array of shape {x.shape}. "
                f"Arrays are NHWC: add or move the channel axis, or set SparseConv(inputs={x.shape[-1]}, ...)"
            )
        onto = self.interpolation.at(weights, u.dtype)
        patches = self.plain.patches(x)
        z = patches @ jnp.einsum("zt,zcd->tcd", onto, u).reshape(-1, u.shape[-1])
        if self.bias:
            z = z + weights["bias"][None, None, None]
        # building the filters is as fast as contracting the patches, which compiled programs leave out unless a tap reads them
        views = patches.reshape(*patches.shape[:3], -1, x.shape[-1])
        inputs = jnp.einsum("bhwtc,zt->bhwzc", views, onto)
        bias = join(path, "bias") if self.bias else None
        name = path or "sparse_conv"
        return tap(name, z, inputs=inputs.reshape(*patches.shape[:3], -1), weight=join(path, "weight"), bias=bias)

    def reduce(self, weights: Mapping[str, jax.Array], anchors: Any) -> tuple[SparseConv, dict[str, jax.Array]]:
        """The layer with other anchors, and the weights whose filters are closest in least squares to the present ones.

        Where the interpolation is learned, call it outside jit.

        Args:
            weights: of this layer, keyed by site name.
            anchors: how many, or their positions.

        Returns:
            The layer and its weights. A learned lengthscale keeps its value, learned positions start anew.
        """
        layer = replace(self, anchors=as_anchors(anchors))
        u = weights["weight"]
        form = layer.interpolation.start(weights)
        values = self.filters(weights).reshape(-1, *u.shape[1:])
        found = {"weight": refit(values, layer.interpolation.at(form, u.dtype))}
        return layer, found | ({"bias": weights["bias"]} if self.bias else {}) | form

    def output_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """(height', width') for an input of this height and width."""
        return self.plain.output_grid(grid)

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """u(z) -> rho_in(g) u(g^-1 z) rho_out(g)^T, b -> rho_out(g) b, for anchors on a symmetric lattice."""
        what = f"SparseConv({self.inputs}, {self.outputs})"
        reps, after = self.plain.representations(field, outputs)
        lattice = self.interpolation.action(what, field)
        shape = (self.interpolation.count, self.inputs, self.outputs)
        reps["weight"] = (lattice * field.channels * after.channels).reshape(*shape)
        return reps | self.interpolation.form_representations(field), after

    def stages(self) -> tuple[Stage, ...]:
        """This layer."""
        return (Stage(self.outputs, tuple(site.name for site in self.sites())),)

    def expand(self, order: int, roles: Iterator[Role]) -> SparseConv:
        """The layer between `order` copies."""
        role = next(roles)
        inputs = self.inputs * (1 if role.first else order)
        return replace(self, inputs=inputs, outputs=self.outputs * (1 if role.last else order))
