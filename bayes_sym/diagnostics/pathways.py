"""Which pathway of each layer the data use: effective parameters and output energy, with a verdict per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from .._precision import full_precision
from ..errors import OptionError
from ..layers import Layer, Residual, Sequential, pathways
from ..layers.layer import join, under


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PathwayShare", "PathwayShares", "pathway_shares", "plot_pathway_shares"]

_DEAD = 1e-4  # gamma/parameters below which no pathway of a layer is alive


class PathwayShare(NamedTuple):
    """One pathway of one layer.

    Attributes:
        layer: the layer's name in the net, e.g. ``"2"``.
        pathway: the pathway's name in its `Residual`; ``""`` for a layer that stands alone.
        gamma: effective number of parameters, summed over its sites; nan where it was not given.
        parameters: number of parameters.
        effective: gamma/parameters, the mean over its weight sites (two for a factored layer).
        share: effective relative to the sum over the layer's pathways.
        mean_square: mean square of its output, over examples, pixels and channels.
        energy: mean square relative to the sum over the layer's pathways.
        precision: what the prior gives its first weight site, fan_in/strength^2; nan where strengths were not given.
    """

    layer: str
    pathway: str
    gamma: float
    parameters: int
    effective: float
    share: float
    mean_square: float
    energy: float
    precision: float


@dataclass(frozen=True)
class PathwayShares:
    """The pathways of a net, layer by layer.

    Attributes:
        rows: one per pathway, in the order of `bayes_sym.layers.pathways`.
    """

    rows: tuple[PathwayShare, ...]

    def layers(self) -> tuple[str, ...]:
        """The layers that have several pathways."""
        names = [row.layer for row in self.rows]
        return tuple(name for name in dict.fromkeys(names) if names.count(name) > 1)

    def of(self, pathway: str, what: str = "share") -> dict[str, float]:
        """One number of one pathway by layer, of the layers that have several pathways."""
        several = self.layers()
        return {row.layer: float(getattr(row, what)) for row in self.rows if row.pathway == pathway and row.layer in several}

    def verdicts(self) -> dict[str, str]:
        """By layer the pathway that has more than half of the share (of the energy, without gammas), or ``"mixed"``.

        ``"dead"`` is a layer of whose pathways none has effective parameters.
        """
        found = {}
        for layer in self.layers():
            rows = [row for row in self.rows if row.layer == layer]
            if all(row.effective < _DEAD for row in rows):
                found[layer] = "dead"
                continue
            parts = {row.pathway: row.energy if math.isnan(row.share) else row.share for row in rows}
            best = max(parts, key=lambda name: parts[name])
            found[layer] = best if parts[best] > 0.5 else "mixed"
        return found

    def plot(self) -> Figure:
        """Bars of share and energy, layer by layer."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        layers = self.layers()
        names = list(dict.fromkeys(row.pathway for row in self.rows if row.layer in layers))
        for axis, what, title in zip(axes, ("share", "energy"), ("effective parameters", "output energy"), strict=True):
            bottom = [0.0] * len(layers)
            for name in names:
                values = self.of(name, what)
                heights = [values.get(layer, 0.0) for layer in layers]
                axis.bar(range(1, len(layers) + 1), heights, bottom=bottom, width=0.8, label=name)
                bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
            axis.set(title=title, xlabel="layer", ylim=(0, 1), xticks=range(1, len(layers) + 1))
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("share of the layer")
        axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


@full_precision
def pathway_shares(
    spec: Layer,
    params: Mapping[str, jax.Array],
    x: Any,
    *,
    module: str = "net",
    gamma: Mapping[str, Any] | None = None,
    strengths: Sequence[Any] | None = None,
) -> PathwayShares:
    """Effective parameters and output energy of every pathway, layer by layer.

    Neither says everything. A strength alone says least: that of a factored layer is shared by two factors, whose own
    precisions mean nothing (a factor can grow while the other shrinks).

    Args:
        spec: the net.
        params: values of the sites, named ``module.site``.
        x: inputs of the net, (batch, ...); the energies are means over them.
        module: the name that `random_module` was given.
        gamma: effective parameters by site, from `bayes_sym.inference.effective_parameters`; None leaves shares out.
        strengths: prior strengths in the order of `bayes_sym.layers.pathways`; None leaves precisions out.

    Raises:
        OptionError: params or gamma lack a site, or there is not one strength per pathway.
    """
    sites = {site.name: site for site in spec.sites()}
    found = pathways(spec)
    for what, given in (("params", params), ("gamma", gamma)):
        lacking = [] if given is None else [name for p in found for name in p.sites if join(module, name) not in given]
        if given is not None and lacking:
            raise OptionError(f"{what} lacks the sites {lacking[:3]} of module {module!r}; it has {list(given)[:5]}...")
    if strengths is not None and len(strengths) != len(found):
        raise OptionError(
            f"got {len(strengths)} strengths for {len(found)} pathways: give one each, in the order of pathways(spec)"
        )
    squares = _energies(spec, under(params, module), jnp.asarray(x))
    rows = []
    for i, pathway in enumerate(found):
        weights = [name for name in pathway.sites if sites[name].kind == "weight"]
        count = sum(math.prod(sites[name].shape) for name in pathway.sites)
        gammas = {name: math.nan if gamma is None else float(gamma[join(module, name)]) for name in pathway.sites}
        effective = sum(gammas[name] / math.prod(sites[name].shape) for name in weights) / len(weights)
        first = sites[weights[0]]
        precision = math.nan if strengths is None else first.fan_in / float(strengths[i]) ** (2 * first.share)
        square = float(squares[pathway.layer, pathway.name])
        rows.append(
            PathwayShare(
                pathway.layer, pathway.name, sum(gammas.values()), count, effective, math.nan, square, math.nan, precision
            )
        )
    return PathwayShares(tuple(_shared(row, [other for other in rows if other.layer == row.layer]) for row in rows))


def _shared(row: PathwayShare, layer: Sequence[PathwayShare]) -> PathwayShare:
    def part(what: str) -> float:
        total = sum(getattr(other, what) for other in layer)
        return getattr(row, what) / total if total > 0 else math.nan

    return row._replace(share=part("effective"), energy=part("mean_square"))


def _energies(spec: Layer, weights: Mapping[str, jax.Array], x: jax.Array) -> dict[tuple[str, str], jax.Array]:
    """In one compiled program; its results come back in the order of pathways."""
    names = [(pathway.layer, pathway.name) for pathway in pathways(spec)]
    values = _compiled(spec, dict(weights), x)
    return dict(zip(names, values, strict=True))


@partial(jax.jit, static_argnames=("spec",))
def _compiled(spec: Layer, weights: Mapping[str, jax.Array], x: jax.Array) -> list[jax.Array]:
    found = _mean_squares(spec, weights, x)
    return [found[pathway.layer, pathway.name] for pathway in pathways(spec)]


def _mean_squares(spec: Layer, weights: Mapping[str, jax.Array], x: jax.Array) -> dict[tuple[str, str], jax.Array]:
    """Mean square of every pathway's output, by (layer, pathway)."""
    found: dict[tuple[str, str], jax.Array] = {}

    def walk(layer: Layer, weights: Mapping[str, jax.Array], x: jax.Array, path: str) -> jax.Array:
        if isinstance(layer, Sequential):
            for i, member in enumerate(layer.layers):
                x = walk(member, under(weights, str(i)), x, join(path, str(i)))
            return x
        members = layer.pathways if isinstance(layer, Residual) else (("", layer),)
        for name, member in members:
            if member.sites():
                found[path, name] = jnp.mean(member.apply(under(weights, name) if name else weights, x) ** 2)
        return layer.apply(weights, x)

    walk(spec, weights, x, "")
    return found


def plot_pathway_shares(
    history: Sequence[tuple[int, PathwayShares]], what: str = "share", figure: Figure | None = None
) -> Figure:
    """One panel per layer with several pathways: what each pathway has of it, over training.

    Args:
        history: (step, shares) in the order of training.
        what: ``"share"`` (of effective parameters) or ``"energy"``.
        figure: an empty figure to draw on; None makes one.
    """
    if what not in ("share", "energy") or not history:
        raise OptionError(
            f"what must be 'share' or 'energy' and history must not be empty, got {what!r} and {len(history)} entries"
        )
    from matplotlib.figure import Figure

    layers = history[-1][1].layers()
    if figure is None:
        figure = Figure(figsize=(1.6 * len(layers) + 1.2, 2.2), layout="constrained")
    axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    steps = [step for step, _ in history]
    for i, (axis, layer) in enumerate(zip(axes, layers, strict=True)):
        for name in [row.pathway for row in history[-1][1].rows if row.layer == layer]:
            axis.plot(steps, [shares.of(name, what).get(layer, math.nan) for _, shares in history], label=name)
        axis.set(title=f"layer {i + 1}", xlabel="step", ylim=(0, 1))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("effective parameters" if what == "share" else "output energy")
    axes[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
