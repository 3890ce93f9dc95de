"""Augmentation: what a group's orbit adds to a batch, with the weight of an orbit made explicit."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from . import rows
from .problem import Problem
from .rows import Data


__all__ = ["Augmentation", "full_orbit", "random_orbit"]


class Augmentation(abc.ABC):
    """Replaces every row of a batch by several transformed copies of it.

    The first argument of the model holds the inputs, the second the targets (where `output` acts on them).
    """

    action: Representation
    output: Representation | None

    @property
    @abc.abstractmethod
    def copies(self) -> int:
        """How many copies of each row there are."""

    @abc.abstractmethod
    def elements(self, key: jax.Array, count: int) -> jax.Array:
        """The group element of every copy of each of `count` rows, (copies, count)."""

    def apply(self, key: jax.Array, batch: Data, problem: Problem) -> Data:
        """The batch with `copies` times as many rows, copy-major."""
        elements = self.elements(key, rows.num_rows(batch))
        mask = rows.row_mask(batch, problem.row_args)
        leaves, structure = jax.tree.flatten(batch)
        acting = {0: self.action, 1: self.output}
        moved = [
            self._copies(leaf, elements, acting.get(position)) if is_row else leaf
            for position, (leaf, is_row) in enumerate(zip(leaves, mask, strict=True))
        ]
        return jax.tree.unflatten(structure, moved)

    def _copies(self, leaf: jax.Array, elements: jax.Array, action: Representation | None) -> jax.Array:
        if action is None:
            return jnp.concatenate([leaf] * self.copies)

        def one(g: jax.Array, row: jax.Array) -> jax.Array:
            return action.transform(g, row[None])[0]

        copies = jax.vmap(jax.vmap(one), in_axes=(0, None))(elements, leaf)
        return copies.reshape(-1, *leaf.shape[1:])


@dataclass(frozen=True)
class _FullOrbit(Augmentation):
    action: Representation
    output: Representation | None = None

    @property
    def copies(self) -> int:
        """The order of the group."""
        return self.action.group.order

    def elements(self, key: jax.Array, count: int) -> jax.Array:
        """Every element for every row."""
        return jnp.broadcast_to(jnp.arange(self.copies)[:, None], (self.copies, count))


@dataclass(frozen=True)
class _RandomOrbit(Augmentation):
    action: Representation
    n: int
    output: Representation | None = None

    @property
    def copies(self) -> int:
        """The number of draws."""
        return self.n

    def elements(self, key: jax.Array, count: int) -> jax.Array:
        """Uniform draws, for every row afresh at every step."""
        return jax.random.randint(key, (self.n, count), 0, self.action.group.order)


def full_orbit(action: Representation, output: Representation | None = None) -> Augmentation:
    """Every row as all its transforms.

    Args:
        action: how the group acts on one input, e.g. ``representations.image(group, (height, width))``.
        output: how it acts on one target; None for targets that do not change.
    """
    return _FullOrbit(action, output)


def random_orbit(action: Representation, n: int = 1, output: Representation | None = None) -> Augmentation:
    """Every row as `n` random transforms of it, drawn afresh at every step.

    Args:
        action: how the group acts on one input.
        n: transforms per row and step.
        output: how it acts on one target; None for targets that do not change.
    """
    if n < 1:
        raise OptionError(f"random_orbit needs n >= 1 transforms per row, got {n}")
    return _RandomOrbit(action, n, output)


def check_targets(augment: Augmentation | None, data: Data) -> None:
    """Refuses data on which the group cannot act."""
    if augment is None:
        return
    leaves: list[Any] = jax.tree.leaves(data)
    jax.eval_shape(lambda leaf: augment.action.transform(0, leaf), leaves[0])
    if augment.output is not None:
        jax.eval_shape(lambda leaf: augment.output.transform(0, leaf), leaves[1])  # type: ignore[union-attr]
