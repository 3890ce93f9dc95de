"""The pathways of a net: which weight sites share a strength, because together they are one way through one layer."""

from __future__ import annotations

from typing import NamedTuple

from .compose import Residual, Sequential
from .layer import Layer, join


__all__ = ["Pathway", "pathways"]


class Pathway(NamedTuple):
    """One way through one weighted layer.

    Attributes:
        layer: the name of the layer in the net, e.g. ``"2"``.
        name: the name of the pathway in its `Residual`; ``""`` for a layer that stands alone.
        sites: the names of its weight sites.
    """

    layer: str
    name: str
    sites: tuple[str, ...]


def pathways(spec: Layer) -> tuple[Pathway, ...]:
    """All pathways of a net, layer by layer; `Sequential` is looked into, layers without weights are left out."""
    return _under("", spec)


def _under(path: str, spec: Layer) -> tuple[Pathway, ...]:
    if isinstance(spec, Sequential):
        return tuple(found for i, layer in enumerate(spec.layers) for found in _under(join(path, str(i)), layer))
    members = spec.pathways if isinstance(spec, Residual) else (("", spec),)
    found = []
    for name, layer in members:
        place = join(path, name) if name else path
        sites = tuple(join(place, site.name) for site in layer.sites() if site.kind != "form")
        if sites:
            found.append(Pathway(path, name, sites))
    return tuple(found)
