"""Layers made of layers: one after the other, or side by side as residual pathways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import jax

from ..errors import GroupActionError, ModelError, ShapeError
from ..representations import Representation
from .layer import Field, Layer, Role, Site, Stage, Weights, join, next_output, under


__all__ = ["Residual", "Sequential"]


def _prefixed(name: str, sites: Iterable[Site]) -> tuple[Site, ...]:
    return tuple(site._replace(name=f"{name}.{site.name}") for site in sites)


@dataclass(frozen=True)
class Sequential(Layer):
    """Layers one after the other; the sites of layer i are named ``i.weight``, ``i.bias``, ...

    Attributes:
        layers: the layers, the first one first; given as any sequence.
    """

    layers: tuple[Layer, ...]

    def __init__(self, layers: Iterable[Layer]) -> None:
        object.__setattr__(self, "layers", tuple(layers))

    def sites(self) -> tuple[Site, ...]:
        """The sites of all layers, in order."""
        return tuple(site for i, layer in enumerate(self.layers) for site in _prefixed(str(i), layer.sites()))

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """The composition."""
        for i, layer in enumerate(self.layers):
            x = layer.apply(under(weights, str(i)), x, path=join(path, str(i)))
        return x

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """Layer by layer."""
        reps: dict[str, Representation] = {}
        for i, layer in enumerate(self.layers):
            of_layer, field = layer.representations(field, outputs)
            reps.update({f"{i}.{name}": rep for name, rep in of_layer.items()})
        return reps, field

    def stages(self) -> tuple[Stage, ...]:
        """Layer by layer."""
        return tuple(
            Stage(stage.width, tuple(f"{i}.{site}" for site in stage.sites))
            for i, layer in enumerate(self.layers)
            for stage in layer.stages()
        )

    def expand(self, order: int, roles: Iterator[Role]) -> Sequential:
        """Layer by layer."""
        return Sequential(tuple(layer.expand(order, roles) for layer in self.layers))


@dataclass(frozen=True)
class Residual(Layer):
    """The sum of pathways that see the same inputs, e.g. an equivariant one and a free one.

    Attributes:
        pathways: a mapping from name to layer (or pairs, or layers, which are then named 0, 1, ...). The sites of a
            pathway are named ``name.weight``, ... Each pathway has one weighted layer, so that its prior prices it.
    """

    pathways: tuple[tuple[str, Layer], ...]

    def __init__(self, pathways: Mapping[str, Layer] | Iterable[Layer | tuple[str, Layer]]) -> None:
        if isinstance(pathways, Mapping):
            pairs = list(pathways.items())
        else:
            pairs = [p if isinstance(p, tuple) else (str(i), p) for i, p in enumerate(pathways)]
        names = [name for name, _ in pairs]
        if not pairs or len(set(names)) < len(names) or any("." in name for name in names):
            raise ModelError(f"Residual needs at least one pathway, with different names without '.', got {names}")
        object.__setattr__(self, "pathways", tuple(pairs))

    def sites(self) -> tuple[Site, ...]:
        """The sites of all pathways, in order."""
        return tuple(site for name, layer in self.pathways for site in _prefixed(name, layer.sites()))

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """The sum of the pathways' outputs."""
        outputs = {name: layer.apply(under(weights, name), x, path=join(path, name)) for name, layer in self.pathways}
        shapes = {name: y.shape for name, y in outputs.items()}
        if len(set(shapes.values())) > 1:
            raise ShapeError(f"the pathways of Residual {path!r} must have outputs of one shape, got {shapes}")
        return sum(outputs.values())  # type: ignore[return-value]

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """Every pathway under the same output representation."""
        channels = next_output(outputs, field, self.stages()[0].width, "Residual")
        reps: dict[str, Representation] = {}
        fields = set()
        for name, layer in self.pathways:
            of_pathway, after = layer.representations(field, iter([channels]))
            reps.update({f"{name}.{site}": rep for site, rep in of_pathway.items()})
            fields.add(after)
        if len(fields) > 1:
            raise GroupActionError(f"the pathways of Residual end in different actions: {fields}")
        return reps, fields.pop()

    def stages(self) -> tuple[Stage, ...]:
        """One stage for all pathways."""
        (width,) = {stage.width for _, layer in self.pathways for stage in layer.stages()}
        return (Stage(width, tuple(site.name for site in self.sites())),)

    def expand(self, order: int, roles: Iterator[Role]) -> Residual:
        """Every pathway in the same role."""
        role = next(roles)
        return Residual(tuple((name, layer.expand(order, iter([role]))) for name, layer in self.pathways))
