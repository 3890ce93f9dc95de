"""The toy of two experiments: four numbers on a cycle, a label that shifts leave alone, and a small dense net."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayes_sym import groups, representations
from bayes_sym.datasets import Labelled
from bayes_sym.inference import Problem, weight_action
from bayes_sym.layers import Activation, Dense, Sequential, random_module
from bayes_sym.priors import IndependentScales
from bayes_sym.representations import Representation


__all__ = ["ACTION", "PROBLEM", "CycleNet", "cycles", "weights_move"]

ACTION = representations.regular(groups.cyclic(4))
"""Shifts of the four numbers."""


def cycles(num_train: int, num_test: int, seed: int) -> tuple[Labelled, Labelled]:
    """Training and test rows: x (N, 4) normal, y 1 where (x0 + x2) (x1 + x3) < 0, which a shift by one does not change."""
    x = np.random.default_rng([seed, 4]).standard_normal((num_train + num_test, 4)).astype(np.float32)
    y = ((x[:, 0] + x[:, 2]) * (x[:, 1] + x[:, 3]) < 0).astype(np.int32)
    return Labelled(x[:num_train], y[:num_train]), Labelled(x[num_train:], y[num_train:])


@dataclass(frozen=True)
class CycleNet:
    """A NumPyro model ``model(x, y=None)``: one hidden layer of tanh units.

    Attributes:
        width: of the hidden layer, a multiple of 4 for regular representations.
        scale: the prior standard deviation of the weights, times sqrt(fan_in).
    """

    width: int = 8
    scale: float = 4.0

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> None:
        """The model: sites ``net.*`` and ``y``."""
        spec = Sequential((Dense(4, self.width), Activation("tanh"), Dense(self.width, 2)))
        net = random_module("net", spec, prior=IndependentScales(self.scale))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


PROBLEM = Problem(CycleNet())
"""The net with its default width."""


@cache
def weights_move(hidden: Literal["trivial", "regular"]) -> dict[str, Representation]:
    """How shifts move the weights of `PROBLEM`, if they move its hidden units like this."""
    example = np.zeros((1, 4), np.float32), np.zeros(1, np.int32)
    return weight_action(PROBLEM, example, ACTION, hidden=hidden)
