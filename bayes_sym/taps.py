"""Taps mark the pre-activations of linear maps inside a NumPyro model; that is how structured curvature sees a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ._numpyro import Messenger, name_of, send
from .errors import TapError


__all__ = ["TapMeta", "TapRecorder", "tap"]


def tap(name: str, z: jax.Array, *, inputs: jax.Array, weight: str, bias: str | None = None, grouped: bool = False) -> jax.Array:
    """Marks `z` as the output of a linear map of `inputs` with the sampled weight `weight`.

    Outside inference this is the identity. Call it with the whole batch, never under `vmap` or inside `lax.scan`:
    there the recorded arrays would lack the batch axis, and inference raises a `TapError`.

    Args:
        name: a name of its own for this tap, unique in the model.
        z: pre-activations (batch, shared..., out), with the bias already added. The shared axes are those along which
            the weight is used again: pixels of a convolution, copies under a group.
        inputs: what the weight multiplies, (batch, shared..., in); patches for a convolution.
        weight: the name of the weight's sample site. Its entries are those of an (in, out) matrix, or of (out, in), in
            C order after reshaping.
        bias: the name of the bias' sample site, or None.
        grouped: whether the last axis but one of `z` and `inputs` counts linear maps side by side, each with a matrix of its
            own: `z` (batch, shared..., groups, out), `inputs` (batch, shared..., groups, in), and the weight's entries those
            of a (groups, in, out) or (groups, out, in) array. The bias is shared by the groups.

    Returns:
        `z`, perturbed only while curvature is being computed.
    """
    return send("tap", name, z, inputs=inputs, weight=weight, bias=bias, grouped=grouped, written_as=name)


class TapMeta(NamedTuple):
    """What is static about one tap: its sites, the shape and dtype of its pre-activation, and the number of its groups."""

    weight: str
    bias: str | None
    shape: tuple[int, ...]
    dtype: Any
    groups: int = 1


class TapRecorder(Messenger):
    """Records the inputs of every tap, and adds `shifts[name]` to its pre-activation where given.

    Gradients with respect to the shifts are the gradients with respect to the pre-activations.
    """

    def __init__(self, fn: Callable | None = None, shifts: Mapping[str, jax.Array] | None = None) -> None:
        self.shifts = shifts or {}
        self.inputs: dict[str, jax.Array] = {}
        self.meta: dict[str, TapMeta] = {}
        super().__init__(fn)

    def process_message(self, message: dict[str, Any]) -> None:
        """Records a tap; refuses one that stands under vmap or is used twice."""
        if message["type"] != "tap":
            return
        z, name, fields = message["args"][0], name_of(message), message["infer"]
        if type(z).__name__ == "BatchTracer":
            raise TapError(
                f"tap {name!r} stands under vmap: it sees one example of shape {z.shape}, so the batch axis of its inputs is "
                "lost. Write the layer for the whole batch (batch, ..., features) and call it without vmap"
            )
        if name in self.meta:
            raise TapError(f"tap {name!r} occurs twice: give each use of a linear map a tap name of its own")
        if fields["inputs"].shape[:-1] != z.shape[:-1]:
            raise TapError(
                f"tap {name!r} got inputs of shape {fields['inputs'].shape} for pre-activations of shape {z.shape}: all axes but "
                "the last must agree (batch, shared...)"
            )
        if fields["grouped"] and z.ndim < 3:
            raise TapError(f"tap {name!r} is grouped, so its arrays are (batch, shared..., groups, features), got {z.shape}")
        groups = z.shape[-2] if fields["grouped"] else 1
        # A scope handler renames the tap but not the site names that it holds: give them the same prefix.
        prefix = name.removesuffix(fields["written_as"])
        bias = fields["bias"]
        self.inputs[name] = fields["inputs"]
        self.meta[name] = TapMeta(prefix + fields["weight"], bias if bias is None else prefix + bias, z.shape, z.dtype, groups)
        if name in self.shifts:
            message["value"] = z + self.shifts[name]
