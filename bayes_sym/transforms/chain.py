"""Operations one after the other, with every run of affine ones as a single warp."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import OptionError, ShapeError
from .affine import Affine, warp_by
from .transform import Transform, uniforms


__all__ = ["Chain"]


@dataclass(frozen=True)
class Chain:
    """Operations one after the other, the first one first, each with a magnitude of its own.

    Affine operations that follow each other are composed into one matrix and one warp: faster, and without repeated blur.

    Attributes:
        operations: at least one.
    """

    operations: tuple[Transform, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        wrong = [operation for operation in self.operations if not isinstance(operation, Transform)]
        if wrong or not self.operations:
            raise OptionError(f"Chain takes one or more operations of bayes_sym.transforms, got {self.operations}")

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """How many uniform numbers one example takes, for a batch of this shape."""
        return sum(operation.num_uniforms(shape) for operation in self.operations)

    def prepare(self, x: jax.Array) -> tuple[Any, ...]:
        """What depends on the data only: that of the first operation, since the others see transformed data."""
        return (self.operations[0].prepare(x), *(None for _ in self.operations[1:]))

    def draw(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """Independent uniform numbers for every example, (batch, num_uniforms)."""
        return uniforms(key, (x.shape[0], self.num_uniforms(x.shape)), x.dtype)

    def apply(self, x: jax.Array, magnitudes: jax.Array, u: jax.Array, prepared: Sequence[Any] | None = None) -> jax.Array:
        """All operations.

        Args:
            x: a batch.
            magnitudes: (operations,), or (batch, operations).
            u: (batch, num_uniforms), the first operation's first.
            prepared: one entry per operation, or None.

        Raises:
            ShapeError: the shapes do not fit.
        """
        x, magnitudes = jnp.asarray(x), jnp.asarray(magnitudes)
        count, wanted = len(self.operations), (x.shape[0], self.num_uniforms(x.shape))
        if magnitudes.shape not in ((count,), (x.shape[0], count)) or u.shape != wanted:
            raise ShapeError(
                f"a chain of {count} operations takes magnitudes ({count},) or ({x.shape[0]}, {count}) and uniform numbers {wanted} for a "
                f"batch of shape {x.shape}, got {magnitudes.shape} and {u.shape}"
            )
        magnitudes = jnp.broadcast_to(magnitudes.astype(x.dtype), (x.shape[0], count))
        us = split(u, [operation.num_uniforms(x.shape) for operation in self.operations])
        given = [None] * count if prepared is None else list(prepared)
        for affine, run in itertools.groupby(range(count), lambda k: isinstance(self.operations[k], Affine)):
            members = list(run)
            if affine:
                moves = [operation for k in members if isinstance(operation := self.operations[k], Affine)]
                for operation in moves:
                    operation.check_batch(x)
                x = warp_by(moves, x, [magnitudes[:, k] for k in members], [us[k].astype(x.dtype) for k in members])
            else:
                for k in members:
                    x = self.operations[k].apply(x, magnitudes[:, k], us[k], given[k])
        return x

    def __call__(self, key: jax.Array, x: jax.Array, magnitudes: Any) -> jax.Array:
        """All operations with fresh noise for every example."""
        x = jnp.asarray(x)
        return self.apply(x, jnp.asarray(magnitudes, x.dtype), self.draw(key, x))


def split(u: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Uniform numbers (..., sum of sizes) by operation."""
    ends = list(itertools.accumulate(sizes))
    return [u[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]
