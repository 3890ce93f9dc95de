"""A convolutional classifier whose every layer is as equivariant as the data want it: softness is a sample site."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import numpyro
import numpyro.distributions as dist

from bayes_sym import groups, representations
from bayes_sym.errors import GroupActionError
from bayes_sym.groups import FiniteGroup
from bayes_sym.layers import Field, Sequential, random_module
from bayes_sym.priors import SoftEquivariance
from bayes_sym.representations import Representation

from .conv import conv_spec


__all__ = ["SoftConvClassifier"]


@dataclass(frozen=True)
class SoftConvClassifier:
    """A NumPyro model like `ConvClassifier`, with a soft-equivariant prior on every layer.

    Hidden channels are fields of the regular representation, so each width must be a multiple of the group's order. One
    site ``softness`` (layers,) holds the ratio of standard deviations off and on the equivariant weights of each layer:
    0 is exactly equivariant, 1 not equivariant at all. Fit it with ``Laplace(optimise=("softness",))``, or
    integrate it out with `Variational()` or `NUTS()`.

    Attributes:
        group: the group, which acts on images of `image` (height, width) exactly.
        image: (height, width) of the images.
        channels: widths of the convolutions.
        inputs: channels of the images.
        classes: number of labels, which do not change under the group.
        scale: as in `ConvClassifier`.
        softness_scale: scale of the half-normal prior of the softness.
    """

    group: FiniteGroup = field(default_factory=lambda: groups.cyclic(4))
    image: tuple[int, int] = (8, 8)
    channels: tuple[int, ...] = (8, 16)
    inputs: int = 1
    classes: int = 10
    scale: float = math.sqrt(2)
    softness_scale: float = 0.5

    def __post_init__(self) -> None:
        if any(width % self.group.order for width in self.channels):
            raise GroupActionError(
                f"channels {self.channels} must be multiples of the order {self.group.order} of {self.group.name}: hidden channels are "
                "fields of its regular representation"
            )

    @property
    def spec(self) -> Sequential:
        """The net."""
        return conv_spec(self.inputs, self.channels, self.classes)

    def representations(self) -> dict[str, Representation]:
        """How the group acts on each weight site of the net."""
        regular = representations.regular(self.group)
        hidden = [regular * representations.trivial(self.group, width // self.group.order) for width in self.channels]
        field = Field.of(representations.image(self.group, self.image), self.inputs)
        return self.spec.representations(field, iter([*hidden, representations.trivial(self.group, self.classes)]))[0]

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> None:
        """The model: sites ``softness`` and ``y``, weights ``net.*``."""
        stages = self.spec.stages()
        softness = numpyro.sample("softness", dist.HalfNormal(self.softness_scale).expand([len(stages)]).to_event(1))
        by_site = {site: softness[i] for i, stage in enumerate(stages) for site in stage.sites}
        net = random_module("net", self.spec, prior=SoftEquivariance(self.representations(), by_site, self.scale))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)
