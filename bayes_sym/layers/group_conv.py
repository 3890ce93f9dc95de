"""Group convolutions: equivariant under translations and exact rotations and mirrors, with all copies in one frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from .. import representations
from ..errors import GroupActionError, OptionError, ShapeError
from ..groups import FiniteGroup
from ..representations import Representation
from ..taps import tap
from .conv import Conv
from .group_pool import check_channels, copies_of, refuse_expansion
from .layer import Field, Layer, Role, Site, Stage, Weights, join, next_output


__all__ = ["GroupConv"]

_FORMS = ("pointwise", "full", "separable", "depthwise")


@dataclass(frozen=True)
class GroupConv(Layer):
    """A convolution of NHWC feature maps over translations and over a finite group of rotations and mirrors.

    Feature maps hold one copy of their channels per group element: the last axis has group.order * channels entries, copy
    by copy, on which the group acts by ``regular(group) * trivial(group, channels)``. All copies stay in the frame of the
    image, and the filters are turned (Cohen and Welling 2016), so every form commutes with circular shifts too:

        z[p, g, d] = sum_{t, h, c} k[t, h, c, d] x[p + R_g t, g h, c] + b[d]      between copies
        z[p, g, d] = sum_{t, c} k[t, c, d] x[p + R_g t, c] + b[d]                 with lift, from plain channels

    The forms restrict the filters k (van der Ouderaa et al. 2023 compare them):

    - ``"full"``: none; k^2 * order * inputs * outputs weights.
    - ``"pointwise"``: copies do not mix, k[t, h] = 0 but at the identity h; k^2 * inputs * outputs.
    - ``"separable"``: one spatial filter per channel, turned as its copy is, then a mix of copies and channels,
      k[t, h, c, d] = spatial[c, R_h^-1 t] weight[h, c, d]; k^2 * inputs + order * inputs * outputs.
    - ``"depthwise"``: that mix in two steps, k[t, h, c, d] = spatial[c, R_h^-1 t] copies[c, h] weight[c, d]; k^2 *
      inputs + order * inputs + inputs * outputs.

    With lift there are no copies to mix: ``"pointwise"`` and ``"full"`` are the same, and both other forms are a spatial
    filter per channel followed by `weight` (inputs, outputs).

    Attributes:
        group: one that `representations.image` knows: cyclic(n) or dihedral(n), n in {1, 2, 4}.
        inputs: number of input channels per group element; of plain channels with lift.
        outputs: number of output channels per group element.
        kernel: (height, width) of the filters, or one number for both.
        padding: ``"CIRCULAR"``, ``"SAME"`` (zeros, so that shifts are lost at the borders) or ``"VALID"``.
        lift: whether the inputs are plain channels, on which the group acts trivially.
        form: ``"full"``, ``"pointwise"``, ``"separable"`` or ``"depthwise"``.
        bias: whether every step has a bias per channel.

    Sites: ``weight`` and ``bias`` (outputs,) of the last step, after ``spatial`` (inputs, height, width) and
    ``spatial_bias`` (inputs,), and ``copies`` (inputs, order) and ``copies_bias`` (inputs,), where the form has them. The
    steps of a form share a strength, so that at strength s the outputs scale by s.

    Raises:
        GroupActionError: the group does not act on the filters, or an even kernel shifts the image to one side.
        OptionError: unknown form or padding.
    """

    group: FiniteGroup
    inputs: int
    outputs: int
    kernel: int | tuple[int, int] = 3
    padding: Literal["SAME", "CIRCULAR", "VALID"] = "CIRCULAR"
    lift: bool = False
    form: Literal["pointwise", "full", "separable", "depthwise"] = "full"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise OptionError(f"form must be one of {', '.join(map(repr, _FORMS))}, got {self.form!r}")
        object.__setattr__(self, "kernel", self.plain.window)
        representations.image(self.group, self.plain.window)  # refuses groups and kernels that do not fit
        if self.group.order > 1 and self.padding != "VALID" and any(k % 2 == 0 for k in self.plain.window):
            raise GroupActionError(
                f"GroupConv with an even kernel {self.kernel} and padding {self.padding!r} shifts the image by half a pixel to one "
                f"side, so it does not commute with {self.group.name}: use an odd kernel, or padding 'VALID'"
            )

    @cached_property
    def plain(self) -> Conv:
        """The unrestricted convolution between the same feature maps."""
        inputs = self.inputs * (1 if self.lift else self.group.order)
        return Conv(inputs, self.outputs * self.group.order, self.kernel, self.padding, bias=self.bias)

    @property
    def _steps(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """The shape of the weight and the number of biases of every step, by the name of its weight."""
        mixed = () if self.lift else (self.group.order,)
        channels = (self.inputs, self.outputs)
        if self.form in ("pointwise", "full"):
            return {"weight": ((*self.plain.window, *(mixed if self.form == "full" else ()), *channels), self.outputs)}
        spatial = {"spatial": ((self.inputs, *self.plain.window), self.inputs)}
        if self.form == "separable" or self.lift:
            return spatial | {"weight": ((*mixed, *channels), self.outputs)}
        return spatial | {"copies": ((self.inputs, *mixed), self.inputs), "weight": (channels, self.outputs)}

    def sites(self) -> tuple[Site, ...]:
        """The weight of every step, each followed by its bias if there are biases."""
        found = []
        for i, (name, (shape, width)) in enumerate(self._steps.items()):
            fan_in = math.prod(shape[:-1] if name == "weight" else shape[1:])
            found.append(Site(name, shape, fan_in, "weight", 1 / len(self._steps)))
            if self.bias:  # what the weights that come after it lack for the whole strength
                found.append(Site(_bias(name), (width,), 1, "bias", (i + 1) / len(self._steps)))
        return tuple(found)

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, height, width, [order *] inputs) to (batch, height', width', order * outputs)."""
        if x.ndim != 4 or x.shape[-1] != self.plain.inputs:
            kind = f"{self.inputs} plain" if self.lift else f"{self.group.order} x {self.inputs} = {self.plain.inputs}"
            fix = "lift=False if they come from a GroupConv" if self.lift else "lift=True if they are plain channels"
            raise ShapeError(
                f"GroupConv {path!r} takes feature maps (batch, height, width, {kind} channels), got an array of shape {x.shape}: set "
                f"inputs= to the number of channels per group element, and {fix}"
            )
        image, regular = representations.image(self.group, self.plain.window), representations.regular(self.group)
        weight = weights["weight"]
        if self.form == "pointwise" and not self.lift:
            z, seen = self._copy_by_copy(x, weight)
        elif self.form in ("pointwise", "full"):
            z, seen = self._by_filters(self.plain.patches(x), weight, image if self.lift else image * regular)
        else:
            maps = self._spatial(weights, x, path)
            if self.form == "separable" and not self.lift:
                z, seen = self._by_filters(maps.reshape(*maps.shape[:3], -1), weight, regular)
            else:
                seen = maps if self.lift else self._copies(weights, maps, path)
                z = seen @ weight
        if self.bias:
            z = z + weights["bias"][None, None, None, None]
        bias = join(path, "bias") if self.bias else None
        z = tap(path or "group_conv", z, inputs=seen, weight=join(path, "weight"), bias=bias)
        return z.reshape(*z.shape[:3], -1)

    # Every map below is <rho(g) k, v> for each copy g, with v what one output pixel sees and rho moving the window and the
    # copies in it. That is one product with a bank of moved filters. Taps want the weight itself, as <k, rho(g)^-1 v>: `seen`
    # holds the moved v, up to `order` times as large as the patches; under jit it is computed only where curvature is measured.

    def _by_filters(self, patches: jax.Array, weight: jax.Array, moves: Representation) -> tuple[jax.Array, jax.Array]:
        """Pre-activations (batch, height, width, order, outputs), and what each copy sees (..., order, in)."""
        filters = weight.reshape(moves.dim, -1, self.outputs)
        bank = jnp.moveaxis(filters[moves.source], 0, 2)  # (window [copies], inputs, order, outputs)
        z = patches @ bank.reshape(patches.shape[-1], -1)
        slots = patches.reshape(*patches.shape[:3], moves.dim, -1)
        seen = slots[..., _back(moves), :]
        lead = (*z.shape[:3], self.group.order)
        return z.reshape(*lead, self.outputs), seen.reshape(*lead, -1)

    def _copy_by_copy(self, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The same for filters that see one copy each, in `order` smaller products."""
        moves, order = representations.image(self.group, self.plain.window), self.group.order
        apart = jnp.moveaxis(x.reshape(*x.shape[:3], order, self.inputs), 3, 0)
        patches = self.plain.patches(apart.reshape(-1, *apart.shape[2:]))
        patches = patches.reshape(order, x.shape[0], *patches.shape[1:3], moves.dim, self.inputs)
        bank = weight.reshape(moves.dim, self.inputs, self.outputs)[moves.source]
        z = jnp.einsum("gbhwtc,gtcd->bhwgd", patches, bank)
        seen = jnp.stack([patches[g][..., moved, :] for g, moved in enumerate(_back(moves))], axis=3)
        return z, seen.reshape(*z.shape[:4], -1)

    def _spatial(self, weights: Weights, x: jax.Array, path: str) -> jax.Array:
        """One filter per channel, (batch, height', width', order, inputs)."""
        moves, order = representations.image(self.group, self.plain.window), self.group.order
        rows, columns = self.plain.window
        filters = weights["spatial"].reshape(self.inputs, -1)[:, moves.source]  # (inputs, order, window)
        bank = filters.transpose(2, 1, 0).reshape(rows, columns, 1, 1, 1, -1)
        every = jnp.tile(x, (1, 1, 1, order)) if self.lift else x
        padded = self.plain.padded(every)
        height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
        # sums of shifted products: on a CPU ten times as fast as patches or a grouped convolution, twice with gradients
        along = [reduce(add, [padded[:, i : i + height] * bank[i, j] for i in range(rows)]) for j in range(columns)]
        z = reduce(add, [total[:, :, j : j + width] for j, total in enumerate(along)])
        z = z.reshape(*z.shape[:3], order, self.inputs, 1)
        slots = self.plain.patches(every).reshape(*z.shape[:3], moves.dim, order, self.inputs)
        seen = slots[..., _back(moves), np.arange(order)[:, None], :]  # (..., order, window, inputs)
        name = join(path, "spatial")
        z = tap(name, z, inputs=jnp.swapaxes(seen, -1, -2), weight=name, grouped=True)
        return self._biased(weights, z[..., 0], "spatial", path)

    def _copies(self, weights: Weights, maps: jax.Array, path: str) -> jax.Array:
        """One filter over the copies per channel, (batch, height, width, order, inputs)."""
        regular = representations.regular(self.group)
        z = jnp.einsum("bhwkc,cgk->bhwgc", maps, weights["copies"][:, regular.source])
        seen = jnp.swapaxes(maps[..., _back(regular), :], -1, -2)
        name = join(path, "copies")
        z = tap(name, z[..., None], inputs=seen, weight=name, grouped=True)
        return self._biased(weights, z[..., 0], "copies", path)

    def _biased(self, weights: Weights, z: jax.Array, name: str, path: str) -> jax.Array:
        """Adds the bias per channel: a linear map of the number 1, since the channels are groups of the tap before it."""
        if not self.bias:
            return z
        site = join(path, _bias(name))
        shift = jnp.broadcast_to(weights[_bias(name)], z.shape)
        return z + tap(site, shift, inputs=jnp.ones((*z.shape[:-1], 1), z.dtype), weight=site)

    def output_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """(height', width') for an input of this height and width."""
        return self.plain.output_grid(grid)

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """The weights stay as they are: the map commutes with the group whatever they are."""
        what = f"GroupConv({self.group.name}, {self.inputs}, {self.outputs})"
        if not field.grid:
            raise GroupActionError(f"{what} needs images: the group acts on plain vectors here")
        if self.lift:
            before, fix = representations.trivial(self.group, self.inputs), "lift=True is for plain channels"
        else:
            before, fix = copies_of(self.group, self.inputs), "start from plain channels with lift=True"
        check_channels(what, self.group, field, before, fix)
        channels = next_output(outputs, field, self.plain.outputs, what)
        if channels != copies_of(self.group, self.outputs):
            raise GroupActionError(
                f"the outputs of {what} are copies by construction, got {channels} for them: give regular(group) * trivial(group, "
                f"{self.outputs}) as their representation"
            )
        reps = {s.name: representations.trivial(self.group, math.prod(s.shape)).reshape(*s.shape) for s in self.sites()}
        return reps, Field(channels, self.output_grid(field.grid))

    def stages(self) -> tuple[Stage, ...]:
        """This layer."""
        return (Stage(self.plain.outputs, tuple(site.name for site in self.sites())),)

    def expand(self, order: int, roles: Iterator[Role]) -> NoReturn:
        """Refused: there is nothing to expand."""
        refuse_expansion(f"GroupConv over {self.group.name}")


def _bias(name: str) -> str:
    """The name of the bias of a step."""
    return "bias" if name == "weight" else f"{name}_bias"


def _back(moves: Representation) -> np.ndarray:
    """Gathers that move an array by the inverse of each element, (order, dim)."""
    assert moves.source is not None
    return moves.source[moves.group.inverse]
