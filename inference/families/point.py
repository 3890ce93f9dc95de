"""The family of points: sites that a variational scheme optimises, beside a q over the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .factorised import Factorised
from .family import Closedness, Moments, Values


__all__ = ["Point", "PointParams"]


class PointParams(NamedTuple):
    """The values by site, in unconstrained coordinates."""

    mean: Values


@dataclass(frozen=True)
class Point(Factorised):
    """Sites at their most probable point given the q of the others: MAP of these, variational inference of the rest.

    For use in `PerSite`. What is maximised is E_q log p(data, point, rest) + H(q), in unconstrained coordinates: a lower bound on
    log p(data, point), for which a point brings no entropy (its own is minus infinity and does not move with it). It is no bound on
    log p(data). The evidence of the fit is the ELBO given the points, whose priors then do not count, as where `Laplace` optimises sites.
    """

    signed = (True,)

    def init(self, z: Values) -> PointParams:
        """At `z`."""
        return PointParams(dict(z))

    def noise(self, key: jax.Array, params: PointParams, n: int) -> jax.Array:
        """There is none: zeros, to be counted."""
        return jnp.zeros(n)

    def sample(self, params: PointParams, noise: jax.Array) -> Values:
        """The point."""
        return dict(params.mean)

    def log_prob(self, params: PointParams, values: Values) -> jax.Array:
        """0: densities are those of the other sites."""
        return jnp.zeros(())

    def entropy(self, params: PointParams) -> jax.Array:
        """0, in place of minus infinity."""
        return jnp.zeros(())

    def moments(self, params: PointParams) -> Moments:
        """No variance."""
        return Moments(params.mean, {name: jnp.zeros_like(value) for name, value in params.mean.items()})

    def blocks(self, params: PointParams) -> tuple[()]:
        """None: it is what stands beside blocks."""
        return ()

    def points(self, params: PointParams) -> Values:
        """All of its sites."""
        return params.mean

    @property
    def closed_under_permutations(self) -> Closedness:
        """A point moves to a point, and a mixture of points is none."""
        return Closedness(True, False, False, "a mean of several points is no transform of any: use a family of densities")
