"""How a group is declared to act on the outputs of every layer of a net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .. import representations
from ..errors import GroupActionError, OptionError
from ..groups import FiniteGroup
from ..layers.compose import Residual, Sequential
from ..layers.layer import Field, Layer, join
from ..representations import Representation


__all__ = ["Declared", "channel_representations", "declared_actions", "input_field"]


def input_field(action: Representation, channels: int | Representation | None) -> Field:
    """The field of inputs on which `action` moves pixels or the entries of a vector.

    Args:
        action: the representation on inputs; one on two axes acts on images.
        channels: how many channels come after its axes, or the representation on them; None: one for images, and no channel axis
            otherwise.
    """
    if channels is None and len(action.shape) == 2:
        channels = 1
    if channels is None:
        return Field(action)
    if len(action.shape) == 2:
        return Field.of(action, channels)
    return Field(action * (representations.trivial(action.group, channels) if isinstance(channels, int) else channels))


def channel_representations(
    spec: Layer, group: FiniteGroup, hidden: Sequence[Representation] | None, output: Representation | None
) -> list[Representation]:
    """The representations on the output channels of the weighted layers: those given, and trivial ones for the others.

    Raises:
        OptionError: `hidden` has not one representation per weighted layer but the last, or no layer has weights.
    """
    widths = tuple(stage.width for stage in spec.stages())
    if output is not None and not widths:
        raise OptionError("output= is the action on the channels of the last weighted layer, but no layer has weights")
    if hidden is not None and len(hidden) != max(len(widths) - 1, 0):
        raise OptionError(
            f"hidden= takes one representation per weighted layer but the last, so {max(len(widths) - 1, 0)} for the output "
            f"widths {widths}, got {len(hidden)}"
        )
    found = [representations.trivial(group, width) for width in widths]
    if hidden is not None:
        found[:-1] = hidden
    if output is not None:
        found[-1] = output
    return found


class Declared(NamedTuple):
    """How a group acts on the outputs of one layer.

    Attributes:
        kind: the layer's class.
        action: the representation on one example's outputs, or None where a layer refuses the group.
        refusal: why; empty otherwise.
    """

    kind: str
    action: Representation | None
    refusal: str = ""


def declared_actions(spec: Layer, field: Field, outputs: Iterator[Representation]) -> dict[str, Declared]:
    """How the group acts on the outputs of all layers, by the names of `activations`; unknown from the first refusal on.

    Args:
        spec: the net.
        field: the action on the inputs.
        outputs: the representations on the output channels of the weighted layers, taken one by one.
    """
    found: dict[str, Declared] = {}

    def walk(layer: Layer, field: Field | str, path: str) -> Field | str:
        if isinstance(layer, Sequential):
            for i, member in enumerate(layer.layers):
                field = walk(member, field, join(path, str(i)))
            return field
        if isinstance(field, Field):
            try:
                _, field = layer.representations(field, outputs)
            except GroupActionError as refusal:
                field = f"{type(layer).__name__} {path!r}: {refusal}"
        action, refusal_ = (field.representation, "") if isinstance(field, Field) else (None, field)
        if isinstance(layer, Residual):
            found.update({join(path, name): Declared(type(member).__name__, action, refusal_) for name, member in layer.pathways})
        found[path] = Declared(type(layer).__name__, action, refusal_)
        return field

    walk(spec, field, "")
    return found
