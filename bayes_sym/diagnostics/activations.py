"""What every layer of a net puts out."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from .._precision import full_precision
from ..layers.compose import Residual, Sequential
from ..layers.layer import Layer, join, under


__all__ = ["activations"]


@full_precision
def activations(spec: Layer, weights: Mapping[str, jax.Array], x: jax.Array) -> dict[str, jax.Array]:
    """The outputs of all layers by name, in order.

    The layers of a `Sequential` are ``"0"``, ``"1"``, ..., the pathways of a `Residual` ``"1.conv"``, ..., before the layer ``"1"`` that
    sums them. A net that is a single layer has the name ``""``.

    Args:
        spec: the net.
        weights: values of its sites, by their names within the net.
        x: a batch of inputs.
    """
    found: dict[str, jax.Array] = {}

    def walk(layer: Layer, weights: Mapping[str, jax.Array], x: jax.Array, path: str) -> jax.Array:
        if isinstance(layer, Sequential):
            for i, member in enumerate(layer.layers):
                x = walk(member, under(weights, str(i)), x, join(path, str(i)))
            return x
        if isinstance(layer, Residual):
            found.update({join(path, name): member.apply(under(weights, name), x) for name, member in layer.pathways})
        found[path] = layer.apply(weights, x)
        return found[path]

    walk(spec, weights, x, "")
    return found
