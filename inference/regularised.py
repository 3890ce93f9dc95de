"""The papers' objective for learned augmentation: the loss less a reward for wide ranges, as MAP under a log prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bayes_sym.errors import OptionError
from bayes_sym.layers import Augment

from . import rows
from .map import ADAM, MAP, MAPState
from .posterior import PointPosterior
from .problem import Problem, Values
from .rows import Data
from .scheme import Info, Scheme
from .structure import Structure


__all__ = ["RegularisedMAP"]


@dataclass(frozen=True)
class RegularisedMAP(Scheme):
    """MAP under the additional log prior N * strength * |w * m| on the selection weights w and magnitudes m of augmentation.

    So the loss per row is the papers' (Benton et al. 2020, Rommel et al. 2022): cross-entropy less strength * |w * m|, the norm over
    all layers and operations of every `layers.Augment` in the model (`Augment.norm`), less (log prior)/N. This prior is the stronger
    the more rows there are: with a fixed one, the likelihood alone decides in the end, and it has no use for width. The same
    prior in the model, ``numpyro.factor("reward", N * strength * spec.norm(net.weights))``, serves every other scheme.

    Let the magnitudes stand still until the net is trained (`paced`), and start them where you want (`Problem.starts`).

    Attributes:
        strength: lambda, in nats per row and unit of magnitude.
        optimizer: an optax optimiser of the negative log joint per row.
        whiten, start: as for `MAP`.
        units: what magnitude 1 of every operation counts in the norm, layer by layer, or None for 1 each; see `Augment.norm`.
        order: of the norm, 2, or 1 for a reward that operations do not share.
    """

    strength: float = 0.1
    optimizer: optax.GradientTransformation = ADAM
    whiten: bool = False
    start: float = 1.0
    units: tuple[float, ...] | None = None
    order: int = 2
    _map: MAP = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_map", MAP(self.optimizer, self.whiten, self.start))

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses a strength that is no reward, and models without augmentation."""
        self._map.check(problem, structure, num_steps)
        if not 0 <= self.strength < math.inf:
            raise OptionError(f"strength is the reward per row and unit of magnitude, 0 or positive, got {self.strength}")
        if self.order not in (1, 2):
            raise OptionError(f"order of the norm must be 1 or 2, got {self.order!r}")
        if not _augments(structure):
            raise OptionError(
                "RegularisedMAP rewards the ranges of layers.Augment, and no random_module of the model is one: wrap the net, "
                f"Augment(net, ...), or use MAP (modules {list(structure.modules)})"
            )

    def init(self, key: jax.Array, problem: Problem, data: Data) -> MAPState:
        """As for `MAP`."""
        return self._map.init(key, problem, data)

    def step(self, key: jax.Array, state: MAPState, problem: Problem, batch: Data, factor: jax.Array) -> tuple[MAPState, Info]:
        """One optimiser step on -(log likelihood + log prior)/N - strength * norm."""
        total = factor * rows.num_rows(batch)

        def log_prior(z: Values) -> jax.Array:
            return total * self.strength * self.norm(problem, z, batch)

        return self._map.descend(key, state, problem, batch, factor, log_prior)

    def norm(self, problem: Problem, z: Values, data: Data) -> jax.Array:
        """The sum of the norms of weight times magnitude over the model's `Augment` modules, at unconstrained values."""
        values = problem.constrain(z, data)
        augments = _augments(problem.structure(*data))
        return sum(
            (spec.norm(values, module=name, units=self.units, order=self.order) for name, spec in augments.items()), jnp.zeros(())
        )

    def posterior(self, key: jax.Array, state: MAPState, problem: Problem, data: Data, records: Any) -> PointPosterior:
        """All mass at the last point."""
        return self._map.posterior(key, state, problem, data, records)

    def position(self, state: MAPState) -> Values:
        """The point."""
        return state.z


def _augments(structure: Structure) -> dict[str, Augment]:
    return {name: spec for name, spec in structure.modules.items() if isinstance(spec, Augment)}
