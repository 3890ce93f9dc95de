"""The two-dimensional convolution, as a matrix product on patches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import GroupActionError, OptionError, ShapeError
from ..representations import Representation
from ..taps import tap
from .layer import Field, Layer, Role, Site, Stage, Weights, join, next_output
from .winograd import minimal_filtering


__all__ = ["Conv"]

_WIDE = 32  # channels from which on minimal filtering pays


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution of NHWC feature maps.

    Attributes:
        inputs: number of input channels.
        outputs: number of output channels.
        kernel: (height, width) of the filters, or one number for both.
        padding: ``"SAME"`` (zeros), ``"CIRCULAR"`` (the image wraps around) or ``"VALID"``.
        stride: step between outputs.
        bias: whether there is a bias.

    Sites: ``weight`` (height, width, inputs, outputs) and ``bias`` (outputs,).
    """

    inputs: int
    outputs: int
    kernel: int | tuple[int, int] = 3
    padding: Literal["SAME", "CIRCULAR", "VALID"] = "SAME"
    stride: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        if self.padding not in ("SAME", "CIRCULAR", "VALID"):
            raise OptionError(f"padding must be 'SAME', 'CIRCULAR' or 'VALID', got {self.padding!r}")
        if isinstance(self.kernel, int):
            object.__setattr__(self, "kernel", (self.kernel, self.kernel))

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of the filters."""
        assert isinstance(self.kernel, tuple)
        return self.kernel

    def sites(self) -> tuple[Site, ...]:
        """``weight`` and, if there is one, ``bias``."""
        shape = (*self.window, self.inputs, self.outputs)
        weight = Site("weight", shape, math.prod(shape[:3]), "weight")
        return (weight, Site("bias", (self.outputs,), 1, "bias")) if self.bias else (weight,)

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, height, width, inputs) to (batch, height', width', outputs)."""
        weight = weights["weight"]
        if x.ndim != 4 or x.shape[-1] != weight.shape[2]:
            raise ShapeError(
                f"Conv {path!r} takes images (batch, height, width, {weight.shape[2]} channels), got an array of shape {x.shape}. "
                f"Arrays are NHWC: add or move the channel axis, or set Conv(inputs={x.shape[-1]}, ...)"
            )
        patches = self.patches(x)
        if self._is_minimal(weight):
            z = minimal_filtering(self.padded(x), weight)
        else:
            # On a CPU the gradient of this product in the weight is up to five times as fast with one axis of rows as with three.
            z = patches.reshape(-1, patches.shape[-1]) @ weight.reshape(-1, weight.shape[-1])
            z = z.reshape(*patches.shape[:3], weight.shape[-1])
        if self.bias:
            z = z + weights["bias"][None, None, None]
        bias = join(path, "bias") if self.bias else None
        return tap(path or "conv", z, inputs=patches, weight=join(path, "weight"), bias=bias)

    def _is_minimal(self, weight: jax.Array) -> bool:
        """Whether fewer products pay for the additions that they cost, which was measured on CPUs (docs/decisions.md)."""
        wide = min(weight.shape[2:]) >= _WIDE
        return wide and self.window == (3, 3) and self.stride == 1 and jax.default_backend() == "cpu"

    def patches(self, x: jax.Array) -> jax.Array:
        """What each output sees: (batch, height', width', kernel height * kernel width * inputs)."""
        batch, *grid, channels = x.shape
        self._check_fits(grid)
        rows, columns = (self._seen(size, k) for size, k in zip(grid, self.window, strict=True))
        pixel = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]
        outside = (rows < 0)[:, None, :, None] | (columns < 0)[None, :, None, :]
        flat = x.reshape(batch, -1, channels)
        if outside.any():
            flat = jnp.pad(flat, ((0, 0), (0, 1), (0, 0)))
            pixel = np.where(outside, math.prod(grid), pixel)
        # One gather compiles four times as fast as nine slices put side by side, and runs two to five times as fast.
        return jnp.take(flat, pixel.reshape(-1), axis=1, mode="clip").reshape(batch, len(rows), len(columns), -1)

    def _seen(self, size: int, k: int) -> np.ndarray:
        """Along one axis, the pixels that each output sees, (outputs, k); -1 for what is beyond the border."""
        first = np.arange(0, size if self.padding != "VALID" else size - k + 1, self.stride)
        seen = first[:, None] + np.arange(k)[None] - (0 if self.padding == "VALID" else (k - 1) // 2)
        return seen % size if self.padding == "CIRCULAR" else np.where((seen < 0) | (seen >= size), -1, seen)

    def padded(self, x: jax.Array) -> jax.Array:
        """The image with its borders: what the filters slide over."""
        self._check_fits(x.shape[1:3])
        if self.padding != "VALID":
            before = tuple((k - 1) // 2 for k in self.window)
            widths = ((0, 0), *((b, k - 1 - b) for b, k in zip(before, self.window, strict=True)), (0, 0))
            x = jnp.pad(x, widths, mode="wrap" if self.padding == "CIRCULAR" else "constant")
        return x

    def _check_fits(self, grid: Sequence[int]) -> None:
        if self.padding == "VALID" and any(size < k for size, k in zip(grid, self.window, strict=True)):
            raise ShapeError(
                f"Conv with filters {self.window} does not fit an image of shape {tuple(grid)}: use a smaller kernel"
            )

    def output_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """(height', width') for an input of this height and width."""
        lost = (0, 0) if self.padding != "VALID" else tuple(k - 1 for k in self.window)
        return tuple(-(-(size - less) // self.stride) for size, less in zip(grid, lost, strict=True))

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """K(u) -> rho_in(g) K(g^-1 u) rho_out(g)^T, b -> rho_out(g) b."""
        if not field.grid:
            raise GroupActionError("Conv needs images: the group acts on plain vectors here")
        if field.channels.dim != self.inputs:
            raise GroupActionError(f"Conv takes {self.inputs} channels, but the group acts on {field.channels.dim}")
        if field.group.order > 1:
            self._check_symmetric(field)
        channels = next_output(outputs, field, self.outputs, f"Conv({self.inputs}, {self.outputs})")
        reps = {"weight": field.on_grid(self.window) * field.channels * channels}
        if self.bias:
            reps["bias"] = channels
        return reps, Field(channels, self.output_grid(field.grid))

    def _check_symmetric(self, field: Field) -> None:
        if self.padding != "VALID" and any(k % 2 == 0 for k in self.window):
            raise GroupActionError(
                f"Conv with an even kernel {self.window} and padding {self.padding!r} shifts the image by half a pixel to one side, "
                f"so {field.group.name} cannot act on it: use an odd kernel, or padding 'VALID'"
            )
        left = [n - k if self.padding == "VALID" else n - 1 for n, k in zip(field.grid, self.window, strict=True)]
        if self.stride > 1 and any(n % self.stride for n in left):
            raise GroupActionError(
                f"Conv with stride {self.stride} on a grid {field.grid} samples one side of the image but not the other, so "
                f"{field.group.name} cannot act on it: use stride 1 and Pool({self.stride}), or a size at which the samples are "
                "symmetric"
            )

    def stages(self) -> tuple[Stage, ...]:
        """This layer."""
        return (Stage(self.outputs, tuple(site.name for site in self.sites())),)

    def expand(self, order: int, roles: Iterator[Role]) -> Conv:
        """The layer between `order` copies."""
        role = next(roles)
        inputs = self.inputs * (1 if role.first else order)
        outputs = self.outputs * (1 if role.last else order)
        return Conv(inputs, outputs, self.kernel, self.padding, self.stride, self.bias)
