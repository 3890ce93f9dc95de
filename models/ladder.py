"""The ladder: a deep net whose every layer can be equivariant, fully connected, or anything between, by its strengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_sym import groups
from bayes_sym.errors import OptionError
from bayes_sym.layers import (
    Activation,
    Conv,
    Dense,
    Factored,
    Flatten,
    FullyConnected,
    GroupConv,
    GroupPool,
    Layer,
    Polyphase,
    Residual,
    Sequential,
    SparseConv,
    SparseFactored,
    pathways,
    random_module,
)
from bayes_sym.priors import IndependentScales


__all__ = ["VARIANTS", "LadderClassifier", "ladder_spec"]


class Block(NamedTuple):
    """One layer of the ladder: channels in and out (per copy, over a group), input side, stride; whether it lifts; how it subsamples."""

    inputs: int
    outputs: int
    side: int
    stride: int
    lifts: bool
    smooth: int
    choose: str


_CHANNELS = {16: (1, 2, 2, 4, 4, 8), 32: (1, 2, 2, 4, 4, 8, 8, 16)}  # of the blocks' outputs, in widths
_STRIDES = {16: (1, 2, 1, 2, 2, 2), 32: (1, 2, 1, 2, 1, 2, 2, 2)}


def _blocks(image: int, inputs: int, width: int, smooth: int, choose: str) -> list[Block]:
    found: list[Block] = []
    side = image
    for factor, stride in zip(_CHANNELS[image], _STRIDES[image], strict=True):
        found.append(Block(inputs, factor * width, side, stride, not found, smooth, choose))
        inputs, side = factor * width, side // stride
    return found


def _subsampled(layer: Layer, block: Block) -> Layer:
    return layer if block.stride == 1 else Sequential((layer, Polyphase(block.stride, block.choose, block.smooth)))


def _conv(block: Block) -> Layer:
    return _subsampled(Conv(block.inputs, block.outputs, 3, "CIRCULAR"), block)


def _sparse_conv(block: Block, anchors: int) -> Layer:
    return _subsampled(SparseConv(block.inputs, block.outputs, 3, anchors), block)


def _sparse_factored(block: Block) -> Layer:
    return SparseFactored(block.inputs, block.outputs, (block.side, block.side), block.stride)


def _full(block: Block) -> Layer:
    return FullyConnected(block.inputs, block.outputs, (block.side, block.side), block.stride)


def _factored(block: Block) -> Layer:
    return Factored(block.inputs, block.outputs, (block.side, block.side), block.stride)


VARIANTS: dict[str, dict[str, Callable[[Block], Layer]]] = {
    "fc": {"full": _full},
    "conv": {"conv": _conv},
    "both": {"conv": _conv, "full": _full},
    "f_fc": {"full": _factored},
    "f_both": {"conv": _conv, "full": _factored},
    "s_fc": {"full": _sparse_factored},
    "s_conv": {"conv": partial(_sparse_conv, anchors=7)},
    "s_both": {"conv": partial(_sparse_conv, anchors=4), "full": _sparse_factored},
}
"""The pathways of every layer, by variant: convolutions, and dense maps that are full, factored (f) or sparse (s)."""

_TURNS = groups.cyclic(4)


def _group_conv(block: Block) -> Layer:
    return _subsampled(GroupConv(_TURNS, block.inputs, block.outputs, lift=block.lifts), block)


def _over_copies(block: Block) -> Block:
    """The same layer, of maps with four copies of every channel."""
    return block._replace(inputs=block.inputs * (1 if block.lifts else 4), outputs=4 * block.outputs)


MIXED: dict[str, Callable[[Block], Layer]] = {
    "group": _group_conv,
    "conv": lambda block: _conv(_over_copies(block)),
    "full": lambda block: _factored(_over_copies(block)),
}
"""The pathways of the variant ``"mixed"``, nested as linear maps: those that commute with turns, with shifts, with neither."""


def ladder_spec(
    variant: str = "f_both",
    image: int = 16,
    inputs: int = 1,
    classes: int = 10,
    width: int = 4,
    *,
    activation: str = "relu",
    smooth: int = 1,
    choose: str = "energy",
) -> Sequential:
    """The net of van der Ouderaa et al. 2023: residual layers with ReLU down to one pixel, and a head of two dense layers.

    Convolutions are 3x3 with circular padding, and subsample by `Polyphase`: a net of convolutions alone does not see circular
    shifts of its images at all, whatever their length.

    Args:
        variant: one of `VARIANTS`, or ``"mixed"``: maps hold four copies of every channel, one per turn by 90 degrees,
            and each layer has a group convolution, a convolution and a factored map; the copies are averaged at the end.
        image: the side of the images, 16 or 32.
        inputs: channels of the images.
        classes: number of labels.
        width: channels of the first layer; the last has 8 (16 for images of 32) times as many.
        activation: in place of the ReLU; see `Activation`.
        smooth: pixels that are averaged before maps are subsampled; see `Polyphase`.
        choose: what chooses the samples that are kept; see `Polyphase`.
    """
    if variant not in VARIANTS and variant != "mixed":
        raise OptionError(f"unknown variant {variant!r} of the ladder: choose one of {', '.join(VARIANTS)}, mixed")
    if image not in _CHANNELS:
        raise OptionError(f"the ladder takes images of 16 x 16 or 32 x 32 pixels, got {image}: pad or resize them")
    layers: list[Layer] = []
    for block in _blocks(image, inputs, width, smooth, choose):
        makers = MIXED if variant == "mixed" else VARIANTS[variant]
        layers += [Residual({name: make(block) for name, make in makers.items()}), Activation(activation)]
    if variant == "mixed":
        layers.append(GroupPool(_TURNS))
    last = _CHANNELS[image][-1] * width
    return Sequential((*layers, Flatten(), Dense(last, 4 * last), Activation(activation), Dense(4 * last, classes)))


@dataclass(frozen=True)
class LadderClassifier:
    """A NumPyro model ``model(x, y=None)`` of labels given images, with one prior strength per layer and pathway.

    One site ``strength`` (pathways,), in the order of ``pathways(model.spec)``: standard deviations relative to
    1/sqrt(fan_in). Learn it with ``Laplace(optimise=("strength",))``: where the strength of a pathway goes to 0, the layer does
    without it. At their start the pathways of a layer share the variance that keeps signals alive through ReLU, in equal parts
    unless `relative` says otherwise.

    Start the biases of this deep net at 0 and the strengths at `start`, ``Problem(model, starts=(("net.*bias", 0.0), ("strength",
    model.start())))``. Drawn from the prior biases add up to large outputs that are the same for every image, and a fit spends most
    of its time on them; strengths would start at the median of a few draws, up to twice too large or small (docs/decisions.md).

    Attributes:
        variant: one of `VARIANTS`, or ``"mixed"``; see `ladder_spec`.
        image: the side of the images, 16 or 32.
        inputs: channels of the images.
        classes: number of labels.
        width: channels of the first layer.
        scale: total strength of a layer at the start; sqrt(2) keeps the variance through ReLU.
        learned: whether strengths are a site; if not, they stay as they start.
        relative: strength of each pathway of a layer at the start, relative to the one before it, which has more symmetry
            (group, conv, full). Below 1, layers start near the symmetry and leave it where the data ask for that.
        totals: of the strengths of a layer (roots of sums of squares). ``"free"``; ``"shared"``, all layers have one, so that
            ``strength`` says how it is divided within layers and how large it is; or ``"held"``, they stay at `scale`, and it
            says the division alone. The evidence knows the totals of successive ReLU layers by their product alone, and online
            updates let them drift apart without end (docs/decisions.md).
        activation: in place of the ReLU; see `ladder_spec`.
        smooth: pixels that are averaged before maps are subsampled; see `ladder_spec`.
        choose: what chooses the samples that are kept; see `ladder_spec`.
    """

    variant: str = "f_both"
    image: int = 16
    inputs: int = 1
    classes: int = 10
    width: int = 4
    scale: float = math.sqrt(2)
    learned: bool = True
    relative: float = 1.0
    totals: str = "free"
    activation: str = "relu"
    smooth: int = 1
    choose: str = "energy"

    def __post_init__(self) -> None:
        if self.totals not in ("free", "shared", "held"):
            raise OptionError(f"totals must be 'free', 'shared' or 'held', got {self.totals!r}")
        if not self.relative > 0:
            raise OptionError(
                f"relative is the ratio of strengths at the start, so it must be positive, got {self.relative}: a pathway that starts "
                "with no strength stays without; use a variant that lacks it"
            )

    @property
    def spec(self) -> Sequential:
        """The net."""
        sizes = (self.image, self.inputs, self.classes, self.width)
        return ladder_spec(self.variant, *sizes, activation=self.activation, smooth=self.smooth, choose=self.choose)

    def start(self) -> tuple[float, ...]:
        """The strengths at the start, by pathway; their squares add up to scale^2 in every layer."""
        layers = [pathway.layer for pathway in pathways(self.spec)]
        ratios = [self.relative ** layers[:i].count(layer) for i, layer in enumerate(layers)]
        total = {layer: math.hypot(*(r for r, other in zip(ratios, layers, strict=True) if other == layer)) for layer in layers}
        return tuple(self.scale * ratio / total[layer] for ratio, layer in zip(ratios, layers, strict=True))

    def strengths(self, strength: jax.Array) -> jax.Array:
        """The strengths by pathway that a value of the site means: itself, or with the totals that it should have, (pathways,).

        Where they are shared, every layer has the geometric mean of all layers' totals.
        """
        if self.totals == "free":
            return strength
        names = [pathway.layer for pathway in pathways(self.spec)]
        layers = list(dict.fromkeys(names))
        where = jnp.asarray([layers.index(name) for name in names])
        squares = jax.ops.segment_sum(strength**2, where, len(layers))
        total = self.scale if self.totals == "held" else jnp.exp(jnp.log(squares).mean() / 2)
        return strength * total / jnp.sqrt(squares)[where]

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> None:
        """The model: sites ``strength`` and ``y``, weights ``net.*``."""
        strength = jnp.asarray(self.start())
        if self.learned:
            strength = self.strengths(numpyro.sample("strength", dist.LogNormal(jnp.log(strength), 1.0).to_event(1)))
        spec = self.spec
        by_site = {site: strength[i] for i, pathway in enumerate(pathways(spec)) for site in pathway.sites}
        net = random_module("net", spec, prior=IndependentScales(by_site))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)
