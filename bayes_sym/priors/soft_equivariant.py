"""The soft-equivariant Gaussian N(0, a P + b (I - P)): invariant directions have variance a, the others b."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ..errors import PriorError
from ..representations import Representation


if TYPE_CHECKING:
    from ..layers.layer import Site

__all__ = ["SoftEquivariance", "SoftEquivariantNormal"]


class SoftEquivariantNormal(dist.Distribution):
    """The Gaussian N(0, invariant * P + transversal * (I - P)), with P the projector onto a representation's invariants.

    Residual pathway priors in one tensor (Finzi et al. 2021): w = P-part with variance ``invariant`` plus the rest with
    variance ``transversal``. The density is invariant under the group for every pair of strengths. P acts by means
    over orbits; no matrix is formed for permutation representations. With r = rank P and d the dimension,

        log p(w) = -1/2 [r log(2 pi invariant) + (d - r) log(2 pi transversal) + |Pw|^2/invariant + |w - Pw|^2/transversal].

    Args:
        representation: an orthogonal representation; the event shape is its `shape`.
        invariant: variance a > 0 along invariant directions, scalar.
        transversal: variance b > 0 along all others, scalar.
    """

    arg_constraints = {"invariant": constraints.positive, "transversal": constraints.positive}  # noqa: RUF012
    reparametrized_params = ["invariant", "transversal"]  # noqa: RUF012
    pytree_data_fields = ("invariant", "transversal")
    pytree_aux_fields = ("representation",)

    def __init__(
        self,
        representation: Representation,
        invariant: float | jax.Array = 1.0,
        transversal: float | jax.Array = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not representation.is_orthogonal:
            raise PriorError(
                f"a soft-equivariant prior needs an orthogonal representation, got {representation}: change the basis"
            )
        if jnp.ndim(invariant) or jnp.ndim(transversal):
            raise PriorError(
                f"the strengths of a soft-equivariant prior are scalars, got shapes {jnp.shape(invariant)} and "
                f"{jnp.shape(transversal)}: give each site its own"
            )
        self.representation = representation
        self.invariant, self.transversal = invariant, transversal
        super().__init__(batch_shape=(), event_shape=representation.shape, validate_args=validate_args)

    @classmethod
    def from_softness(
        cls, representation: Representation, softness: float | jax.Array, scale: float | jax.Array = 1.0
    ) -> SoftEquivariantNormal:
        """The prior with standard deviations in the ratio `softness` and mean variance `scale` squared.

        ``transversal = softness^2 * invariant`` and ``invariant * r + transversal * (d - r) = scale^2 * d``: softness 0 is
        exactly equivariant, 1 is isotropic, and the total power does not change in between.
        """
        d, r = representation.dim, representation.rank
        ratio = softness**2
        power = scale**2 * d / (r + ratio * (d - r))
        return cls(representation, power, ratio * power)

    @property
    def support(self) -> constraints.Constraint:
        """All real arrays of the event shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def project(self, value: jax.Array) -> jax.Array:
        """P applied to the event axes."""
        return self.representation.project(value, axis=tuple(range(-len(self.event_shape), 0)))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape ``sample_shape + event_shape``: sqrt(b) z + (sqrt(a) - sqrt(b)) P z."""
        shape = sample_shape + self.event_shape
        # drawn flat: XLA compiles a draw of several axes ten times as long
        return self.root(jax.random.normal(key, (math.prod(shape),), jnp.result_type(float)).reshape(shape))

    def root(self, value: jax.Array) -> jax.Array:
        """The symmetric square root of the covariance, applied to the event axes."""
        a, b = jnp.sqrt(self.invariant), jnp.sqrt(self.transversal)
        return b * value + (a - b) * self.project(value)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """The log-density, of the shape that is left of the event axes."""
        axes = tuple(range(-len(self.event_shape), 0))
        d, r = self.representation.dim, self.representation.rank
        symmetric = self.project(value)
        energy = (symmetric**2).sum(axes) / self.invariant + ((value - symmetric) ** 2).sum(axes) / self.transversal
        return -0.5 * (energy + r * jnp.log(2 * jnp.pi * self.invariant) + (d - r) * jnp.log(2 * jnp.pi * self.transversal))

    @property
    def mean(self) -> jax.Array:
        """Zero."""
        return jnp.zeros(self.event_shape)

    @property
    def variance(self) -> jax.Array:
        """The diagonal of the covariance."""
        diagonal = jnp.asarray(self.representation.projector_diagonal.reshape(self.event_shape), jnp.result_type(float))
        return self.invariant * diagonal + self.transversal * (1 - diagonal)

    @property
    def precision_diagonal(self) -> jax.Array:
        """The diagonal of the inverse covariance."""
        diagonal = jnp.asarray(self.representation.projector_diagonal.reshape(self.event_shape), jnp.result_type(float))
        return diagonal / self.invariant + (1 - diagonal) / self.transversal

    def entropy(self) -> jax.Array:
        """The differential entropy in nats."""
        d, r = self.representation.dim, self.representation.rank
        return 0.5 * (d * (1 + jnp.log(2 * jnp.pi)) + r * jnp.log(self.invariant) + (d - r) * jnp.log(self.transversal))


class SoftEquivariance:
    """A soft-equivariant prior for every weight of a net.

    Args:
        representations: how the group acts on each site, from ``spec.representations(...)``.
        softness: ratio of the standard deviations off and on the equivariant weights (see
            `SoftEquivariantNormal.from_softness`): one number, or a mapping from site names to numbers. May be sampled.
        scale: multiplies 1/sqrt(fan_in), as in `IndependentScales`.
    """

    def __init__(
        self,
        representations: Mapping[str, Representation],
        softness: float | jax.Array | Mapping[str, float | jax.Array],
        scale: float | jax.Array = 1.0,
    ) -> None:
        self.representations = representations
        self.softness = softness
        self.scale = scale

    def __call__(self, site: Site) -> dist.Distribution:
        """The distribution of one site."""
        if site.name not in self.representations:
            raise PriorError(f"no representation for site {site.name!r}; there are {sorted(self.representations)}")
        softness = self.softness[site.name] if isinstance(self.softness, Mapping) else self.softness
        return SoftEquivariantNormal.from_softness(self.representations[site.name], softness, self.scale / jnp.sqrt(site.fan_in))
