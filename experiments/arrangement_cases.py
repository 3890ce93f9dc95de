"""The small nets that are expanded: convolutional ones with invariant outputs, dense ones whose outputs move as the inputs do."""

from __future__ import annotations

from dataclasses import dataclass

from bayes_sym import groups, representations
from bayes_sym.groups import FiniteGroup
from bayes_sym.layers import Activation, Conv, Dense, Layer, Pool, Sequential
from bayes_sym.representations import Representation


__all__ = ["CASES", "Case", "convolutions"]


@dataclass(frozen=True)
class Case:
    """A small net and what acts on its inputs and outputs.

    Attributes:
        name: of the row.
        spec: the small net; its inputs have one channel.
        action: on the inputs.
        output: on the outputs; None for invariant outputs.
    """

    name: str
    spec: Layer
    action: Representation
    output: Representation | None = None

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.action.group


def convolutions(group: FiniteGroup, count: int, side: int = 8) -> Case:
    """Convolutions of 3 channels with tanh and pooling, and a readout of 3 outputs."""
    layers: list[Layer] = []
    for i in range(count):
        layers += [Conv(3 if i else 1, 3), Activation("tanh"), Pool(2, "max") if i < count - 1 else Pool()]
    net = Sequential((*layers, Dense(3, 3)))
    return Case(f"{group.name}, {count} convolutions", net, representations.image(group, (side, side)))


def _denses(action: Representation) -> Case:
    layers = (Dense(action.dim, 4), Activation("relu"), Dense(4, 3), Activation("tanh"), Dense(3, action.dim))
    return Case(f"{action.group.name}, 3 dense layers", Sequential(layers), action, action)


_C4, _D4, _S3 = groups.cyclic(4), groups.dihedral(4), groups.symmetric(3)
CASES = (
    *(convolutions(group, count) for group in (_C4, _D4) for count in (2, 3)),
    _denses(representations.quotient(_S3, [1])),  # three letters; elements 0 and 1 fix the first
    _denses(representations.regular(groups.cyclic(5))),
)
"""Two and three convolutions under a commutative group and another one, and dense nets under two others."""
