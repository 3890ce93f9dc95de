"""Convolutional classifiers with independent Gaussian weights: the plain nets that symmetry is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import numpyro
import numpyro.distributions as dist

from bayes_sym.layers import Activation, Conv, Dense, Layer, Pool, Sequential, random_module
from bayes_sym.priors import IndependentScales


__all__ = ["ConvClassifier", "conv_spec"]


def conv_spec(inputs: int, channels: tuple[int, ...], classes: int) -> Sequential:
    """3x3 convolutions with ReLU, maxima over 2x2 pixels between them, a mean over all pixels, and a dense readout."""
    layers: list[Layer] = []
    for i, width in enumerate(channels):
        layers += [Conv((inputs, *channels)[i], width), Activation("relu")]
        layers.append(Pool(2, "max") if i < len(channels) - 1 else Pool(None, "mean"))
    return Sequential((*layers, Dense(channels[-1], classes)))


@dataclass(frozen=True)
class ConvClassifier:
    """A NumPyro model ``model(x, y=None)`` of labels y (batch,) given images x (batch, height, width, inputs).

    Attributes:
        channels: widths of the convolutions.
        inputs: channels of the images.
        classes: number of labels.
        scale: the weights' prior standard deviation is scale/sqrt(fan_in); sqrt(2) keeps the variance through ReLU.
    """

    channels: tuple[int, ...] = (8, 16)
    inputs: int = 1
    classes: int = 10
    scale: float = math.sqrt(2)

    @property
    def spec(self) -> Sequential:
        """The net."""
        return conv_spec(self.inputs, self.channels, self.classes)

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> None:
        """The model: site ``y`` under the plate ``data``, weights ``net.*``."""
        net = random_module("net", self.spec, prior=IndependentScales(self.scale))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)
