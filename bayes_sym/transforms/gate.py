"""Operations that either happen or not: relaxed draws of whether they do, and sets of outcomes that can be enumerated."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import OptionError
from .transform import Transform, beside, check_positive


__all__ = ["Finite", "Gated", "check_probability", "gate", "share"]


def share(a: jax.Array, b: jax.Array, power: float = 1.0) -> jax.Array:
    """a^power / (a^power + b^power) for non-negative a and b, not both 0: exactly 0 or 1 where one of them is 0.

    Values and gradients are finite everywhere: only the ratio of a and b counts, so the larger is scaled to 1 first.
    """
    top = jax.lax.stop_gradient(jnp.maximum(a, b))
    a, b = (a / top) ** power, (b / top) ** power
    return a / (a + b)


def gate(probability: jax.Array, u: jax.Array, temperature: float = 0.1, *, hard: bool = False) -> jax.Array:
    """A relaxed Bernoulli draw, from u uniform on (0, 1).

        b = sigmoid((logit(probability) + logit(u)) / temperature)

    (Maddison et al. 2017, "The Concrete Distribution", eq. 9), written so that it is exactly 0 at probability 0, exactly 1 at 1,
    and finite with its gradient at both. It grows with the probability for each u, and ``b > 1/2`` has that probability.

    Args:
        probability: in [0, 1], of any shape.
        u: of the same shape.
        temperature: positive; the smaller, the closer to 0 or 1, and the noisier the gradient.
        hard: whether to draw 0 or 1, with the gradient of the relaxed draw (straight-through, which is biased).
    """
    soft = share(probability * u, (1 - probability) * (1 - u), 1 / temperature)
    if not hard:
        return soft
    return soft + jax.lax.stop_gradient(jnp.round(soft) - soft)


def check_probability(transform: Any) -> None:
    """Refuses a `limit` that is no probability, and a `temperature` that is not positive."""
    check_positive(transform, "limit", "temperature")
    if transform.limit > 1:
        raise OptionError(f"limit of {type(transform).__name__} is a probability, so at most 1, got {transform.limit}")


class Finite(Transform):
    """An operation with finitely many outcomes, which can be enumerated instead of drawn."""

    @abc.abstractmethod
    def outcomes(self, x: jax.Array) -> jax.Array:
        """All outcomes, the unchanged batch first: (outcomes, *x.shape)."""

    @abc.abstractmethod
    def probabilities(self, magnitude: jax.Array) -> jax.Array:
        """The probability of every outcome, (outcomes, *magnitude.shape): exact and smooth in the magnitude."""


@dataclass(frozen=True)
class Gated(Finite):
    """An operation that happens to an example with probability ``limit * magnitude``.

    A draw blends both outcomes, (1 - b) x + b other(x), with b the relaxed draw of `gate`. For an involution the default
    limit 1/2 makes magnitude 1 the average over {identity, other}, so that the average over draws is exactly invariant.

    Attributes:
        limit: the probability at magnitude 1.
        temperature: of the relaxed draw.
        hard: whether to draw 0 or 1, with the gradient of the relaxed draw.
    """

    limit: float = 0.5
    temperature: float = 0.1
    hard: bool = False

    def __post_init__(self) -> None:
        check_probability(self)

    @abc.abstractmethod
    def other(self, x: jax.Array) -> jax.Array:
        """The batch with the operation done to every example."""

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The blend of both outcomes."""
        b = beside(gate(self.limit * magnitude, u[:, 0], self.temperature, hard=self.hard), x)
        return (1 - b) * x + b * self.other(x)

    def outcomes(self, x: jax.Array) -> jax.Array:
        """The batch as it is, and with the operation done."""
        return jnp.stack([x, self.other(x)])

    def probabilities(self, magnitude: jax.Array) -> jax.Array:
        """1 - limit * magnitude and limit * magnitude."""
        return jnp.stack([1 - self.limit * magnitude, self.limit * magnitude])
