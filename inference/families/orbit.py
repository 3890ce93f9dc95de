"""The two-level orbit Gaussian: for priors that are soft about a symmetry, a variance on and a variance off each orbit's mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym.errors import ClosednessError, OptionError
from bayes_sym.priors import SoftEquivariantNormal
from bayes_sym.representations import Representation

from ..prior_parts import PriorPart
from .factorised import moved, projected, unsigned
from .family import Closedness, Family, Moments, Reps, Values, base_distribution
from .mean_field import check_scale, flat_normals


__all__ = ["OrbitGaussian", "OrbitParams"]

_FOREIGN = "its orbits there are not those of this action, with which its covariance need not commute"


class OrbitParams(NamedTuple):
    """By site: means, log standard deviations along each orbit's mean direction, and across it (constant on orbits when used)."""

    mean: Values
    log_along: Values
    log_across: Values


@dataclass(frozen=True)
class OrbitGaussian(Family):
    """N(mean, a P + b (I - P)) with P the projection onto the invariant weights, and a and b constant on every orbit.

    A factorised Gaussian under a soft-equivariant prior N(0, A P + B (I - P)) with small B must be narrow in every coordinate, and
    so loses the width along P. Here the two are apart, at the same cost, and the KL to that prior is exact.

    Attributes:
        representations: pairs of site and representation; None takes those of the model's `SoftEquivariantNormal` priors. Other
            sites are factorised.
        init_scale: standard deviation at the start.
    """

    representations: tuple[tuple[str, Representation], ...] | None = None
    init_scale: float = 0.05

    def __post_init__(self) -> None:
        check_scale(self.init_scale)
        if isinstance(self.representations, Mapping):
            object.__setattr__(self, "representations", tuple(self.representations.items()))
        for name, rep in self.representations or ():
            if not rep.is_monomial:
                raise OptionError(
                    f"OrbitGaussian needs orbits of coordinates, but {rep} on site {name!r} mixes them: use FullGaussian()"
                )

    def resolved(self, priors: Mapping[str, Any]) -> OrbitGaussian:
        """The family with the representations of these priors, if it was given none.

        Raises:
            OptionError: it was given none, and no prior has one.
        """
        if self.representations is not None:
            return self
        found = []
        for name, fn in priors.items():
            base = base_distribution(fn)
            if isinstance(base, SoftEquivariantNormal) and base.representation.is_monomial:
                found.append((name, base.representation))
        if not found:
            raise OptionError(
                "OrbitGaussian() takes its orbits from soft-equivariant priors, and the model has none on a permutation representation: "
                "pass representations=((site, representation), ...)"
            )
        return OrbitGaussian(tuple(found), self.init_scale)

    @property
    def reps(self) -> dict[str, Representation]:
        """The representations by site."""
        if self.representations is None:
            raise OptionError(
                "OrbitGaussian() does not know its orbits yet: Variational resolves it, or pass representations=..."
            )
        return dict(self.representations)

    def init(self, z: Values) -> OrbitParams:
        """Centred at `z`, with independent coordinates."""
        start = {name: jnp.full_like(value, math.log(self.init_scale)) for name, value in z.items()}
        return OrbitParams(dict(z), start, dict(start))

    def noise(self, key: jax.Array, params: OrbitParams, n: int) -> Values:
        """Standard normals."""
        return flat_normals(key, params.mean, n)

    def _scales(self, params: OrbitParams, name: str) -> tuple[jax.Array, jax.Array]:
        """Standard deviations along and across, equal on each orbit."""
        along, across = params.log_along[name], params.log_across[name]
        if name not in self.reps:
            return jnp.exp(along), jnp.exp(along)
        rep = unsigned(self.reps[name])
        axes = tuple(range(along.ndim))
        return jnp.exp(rep.project(along, axes)), jnp.exp(rep.project(across, axes))

    def _project(self, name: str, value: jax.Array) -> jax.Array:
        return self.reps[name].project(value, tuple(range(value.ndim))) if name in self.reps else value

    def sample(self, params: OrbitParams, noise: Values) -> Values:
        """mean + across * noise + (along - across) * P noise."""
        values = {}
        for name, mean in params.mean.items():
            along, across = self._scales(params, name)
            values[name] = mean + across * noise[name] + (along - across) * self._project(name, noise[name])
        return values

    def log_prob(self, params: OrbitParams, values: Values) -> jax.Array:
        """By splitting what is left of the mean into its parts along and across."""
        total = -self.entropy(params)
        for name, mean in params.mean.items():
            along, across = self._scales(params, name)
            gap = values[name] - mean
            part = self._project(name, gap)
            total = total - 0.5 * (((part / along) ** 2).sum() + (((gap - part) / across) ** 2).sum() - gap.size)
        return total

    def _share(self, name: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The diagonal of P."""
        if name not in self.reps:
            return jnp.ones(shape, dtype)
        return jnp.asarray(self.reps[name].projector_diagonal.reshape(shape), dtype)

    def entropy(self, params: OrbitParams) -> jax.Array:
        """One log standard deviation along per orbit, and one across for each of its other directions."""
        total = jnp.zeros(())
        for name, mean in params.mean.items():
            along, across = self._scales(params, name)
            share = self._share(name, mean.shape, mean.dtype)
            total = total + (share * jnp.log(along) + (1 - share) * jnp.log(across)).sum()
            total = total + 0.5 * mean.size * (1 + math.log(2 * math.pi))
        return total

    def kl(self, params: OrbitParams, other: OrbitParams) -> jax.Array:
        """The two levels share their directions, so the KL is a sum over them."""
        total = jnp.zeros(())
        for name, mean in params.mean.items():
            share = self._share(name, mean.shape, mean.dtype)
            gap = mean - other.mean[name]
            part = self._project(name, gap)
            for weight, energy, scale, scale_ in zip(
                (share, 1 - share), (part, gap - part), self._scales(params, name), self._scales(other, name), strict=True
            ):
                ratio = (scale / scale_) ** 2
                total = total + 0.5 * (weight * (ratio - 1 - jnp.log(ratio)) + (energy / scale_) ** 2).sum()
        return total

    def moments(self, params: OrbitParams) -> Moments:
        """The diagonal of a P + b (I - P)."""
        variance = {}
        for name, mean in params.mean.items():
            along, across = self._scales(params, name)
            share = self._share(name, mean.shape, mean.dtype)
            variance[name] = share * along**2 + (1 - share) * across**2
        return Moments(params.mean, variance)

    def scatter(self, params: OrbitParams, name: str, part: PriorPart) -> jax.Array | None:
        """Exact for independent priors and for the soft-equivariant prior with the same projection."""
        if part.variances is not None:
            return super().scatter(params, name, part)
        fn = base_distribution(part.fn)
        if not isinstance(fn, SoftEquivariantNormal) or fn.representation != self.reps.get(name):
            return None
        mean = params.mean[name]
        along, across = self._scales(params, name)
        share = self._share(name, mean.shape, mean.dtype)
        spread = (share * along**2).sum() / fn.invariant + ((1 - share) * across**2).sum() / fn.transversal
        return part.scatter(mean.reshape(-1)) + spread

    def center(self, params: OrbitParams) -> Values:
        """The means, which are known before the orbits are."""
        return params.mean

    def closedness(self, rep: Representation) -> Closedness:
        """Under the action that its orbits belong to: a P + b (I - P) commutes with it, and only the mean moves."""
        if all(rep != own for _, own in self.representations or ()):
            return Closedness(False, False, False, _FOREIGN)
        return Closedness(True, True, True)

    def check_closed(self, reps: Reps, level: str = "push_forward") -> None:
        """Every site under its own representation only."""
        for site, rep in reps.items():
            if self.reps.get(site) != rep:
                raise ClosednessError(f"OrbitGaussian is not closed under {rep} on site {site!r}: {_FOREIGN}")

    def push(self, params: OrbitParams, reps: Reps, g: int | jax.Array) -> OrbitParams:
        """Only the mean moves."""
        return params._replace(mean=moved(params.mean, reps, g, signed=True))

    def project(self, params: OrbitParams, reps: Reps) -> OrbitParams:
        """The mean projected; the covariance is invariant already."""
        return params._replace(mean=projected(params.mean, reps, signed=True))

    def averaged(self, params: OrbitParams, reps: Reps, kind: str) -> OrbitParams:
        """An exponential family in T = (theta, |P theta|^2, |theta - P theta|^2) of every orbit.

        The transforms share their covariance, so the geometric mean is `project`; the arithmetic one adds what the mean loses to the
        variance across.
        """
        found = self.project(params, reps)
        if kind == "geometric":
            return found
        across = dict(params.log_across)
        for name in reps:
            axes = tuple(range(params.mean[name].ndim))
            on_orbits = unsigned(self.reps[name]).project
            lost = on_orbits((params.mean[name] - found.mean[name]) ** 2, axes)
            free = on_orbits(1 - self._share(name, lost.shape, lost.dtype), axes)  # directions across per coordinate
            variance = self._scales(params, name)[1] ** 2 + jnp.where(free > 0, lost / jnp.where(free > 0, free, 1), 0)
            across[name] = 0.5 * jnp.log(variance)
        return found._replace(log_across=across)

    @property
    def is_linear(self) -> bool:
        """Only means move."""
        return True
