"""Pieces of curvature: each prices a prior (log-determinants), measures a Newton decrement, and gives a posterior block.

With a prior covariance L L' and a curvature G, everything is computed from I + L' G L, which is never smaller than
the identity: the log-determinant ratio log|G + D| - log|D| is stable in float32 for every strength of the prior.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from bayes_sym.errors import PriorError

from ..blocks import Block, DiagonalBlock, Layout
from ..prior_parts import PriorPart


__all__ = ["Diagonal", "Piece"]


class Piece(abc.ABC):
    """The curvature of the sites in `layout`."""

    layout: Layout

    @abc.abstractmethod
    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """log|G + D| - log|D|, with D the prior precision."""

    @abc.abstractmethod
    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """gradient' (G + D)^-1 gradient."""

    def settled(self, prior: PriorPart) -> Piece:
        """The same with what does not depend on the strengths of the prior worked out, to be priced many times.

        It must not be differentiated in anything but the strengths.
        """
        return self

    @abc.abstractmethod
    def posterior(self, prior: PriorPart, mean: jax.Array) -> Block:
        """N(mean, (G + D)^-1)."""


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["layout"])
@dataclass(frozen=True)
class Diagonal(Piece):
    """A diagonal curvature, (size,)."""

    layout: Layout
    values: jax.Array

    def _variances(self, prior: PriorPart) -> jax.Array:
        if prior.variances is None:
            raise PriorError(
                f"a diagonal curvature prices independent priors only, and that of {list(self.layout.names)} is correlated: use "
                "curvature='full' or 'block'"
            )
        return prior.variances

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """sum log(1 + values * variances)."""
        return jnp.log1p(self.values * self._variances(prior)).sum()

    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """sum gradient^2 / (values + 1/variances)."""
        return (gradient**2 / (self.values + 1 / self._variances(prior))).sum()

    def posterior(self, prior: PriorPart, mean: jax.Array) -> DiagonalBlock:
        """Independent coordinates."""
        return DiagonalBlock(self.layout, mean, 1 / jnp.sqrt(self.values + 1 / self._variances(prior)))
