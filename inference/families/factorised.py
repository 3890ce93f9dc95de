"""Families of independent coordinates: what follows from the family of one coordinate."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from bayes_sym.representations import Representation

from ..prior_parts import PriorPart
from .family import Closedness, ExponentialFamily, Family, Reps, Statistics, Values


__all__ = ["Factorised", "FactorisedExponential", "by_site", "moved", "precision_diagonal", "projected", "total", "unsigned"]


def by_site(function: Callable[..., Any], *fields: Values) -> dict[str, Any]:
    """`function` of the arrays of every site."""
    return {name: function(*(field[name] for field in fields)) for name in fields[0]}


def unsigned(rep: Representation) -> Representation:
    """The permutation of coordinates under a signed one: how scales move."""
    return rep if rep.is_permutation else Representation(rep.group, rep.shape, rep.source)


def moved(values: Values, reps: Reps, g: int | jax.Array, *, signed: bool) -> Values:
    """rho(g) applied to every site, or its permutation only."""
    return {
        name: (reps[name] if signed else unsigned(reps[name])).act(g, value, tuple(range(value.ndim))) if name in reps else value
        for name, value in values.items()
    }


def projected(values: Values, reps: Reps, *, signed: bool) -> Values:
    """The mean of `moved` over the group, by sums over orbits."""
    return {
        name: (reps[name] if signed else unsigned(reps[name])).project(value, tuple(range(value.ndim))) if name in reps else value
        for name, value in values.items()
    }


def precision_diagonal(part: PriorPart) -> jax.Array | None:
    """The diagonal of a Gaussian prior's precision as a vector; None where it would take dense algebra that the prior does not do."""
    if part.variances is not None:
        return jnp.broadcast_to(1 / part.variances, (part.size,))
    if isinstance(part.fn, dist.MultivariateNormal):
        return jnp.diagonal(part.fn.precision_matrix)
    found = getattr(part.fn, "precision_diagonal", None)
    return None if found is None else found.reshape(-1)


class Factorised(Family):
    """Independent coordinates. Parameters are a NamedTuple of values by site.

    Attributes:
        signed: per field of the parameters, whether it changes its sign with its coordinate (a mean does, a scale does not).
    """

    signed: tuple[bool, ...]

    def scatter(self, params: Any, name: str, part: PriorPart) -> jax.Array | None:
        """(m - m')' D (m - m') + sum_i D_ii variance_i, so also of correlated priors with a known diagonal of D."""
        diagonal = precision_diagonal(part)
        if diagonal is None:
            return None
        moments = self.moments(params)
        return part.scatter(moments.mean[name].reshape(-1)) + (diagonal * moments.variance[name].reshape(-1)).sum()

    def push(self, params: Any, reps: Reps, g: int | jax.Array) -> Any:
        """Every field moves with its coordinates."""
        fields = (moved(field, reps, g, signed=signed) for field, signed in zip(params, self.signed, strict=True))
        return type(params)(*fields)

    def project(self, params: Any, reps: Reps) -> Any:
        """Every field is averaged over the orbits of its coordinates."""
        fields = (projected(field, reps, signed=signed) for field, signed in zip(params, self.signed, strict=True))
        return type(params)(*fields)

    @property
    def is_linear(self) -> bool:
        """Fields are permuted, up to sign."""
        return True

    def closedness(self, rep: Representation) -> Closedness:
        """Under permutations always, if all coordinates have one family; under signs if it is symmetric."""
        if not rep.is_monomial:
            reason = "independent coordinates do not stay independent when they are mixed: use BlockGaussian() or FullGaussian()"
            return Closedness(False, False, False, reason)
        if not rep.is_permutation and not any(self.signed):
            reason = "a sign change leaves the support of the family"
            return Closedness(False, False, False, reason)
        return self.closed_under_permutations

    @property
    def closed_under_permutations(self) -> Closedness:
        """Which levels hold where coordinates are only moved."""
        return Closedness(True, True, True)


class FactorisedExponential(Factorised, ExponentialFamily):
    """Independent coordinates of one exponential family, which members give for one array.

    Statistic number i changes its sign with its coordinate where `signed[i]` says so of the parameters' field.
    """

    @abc.abstractmethod
    def _natural(self, *fields: jax.Array) -> tuple[jax.Array, ...]: ...

    @abc.abstractmethod
    def _sufficient(self, value: jax.Array) -> tuple[jax.Array, ...]: ...

    @abc.abstractmethod
    def _expectation(self, *fields: jax.Array) -> tuple[jax.Array, ...]: ...

    @abc.abstractmethod
    def _log_partition(self, *fields: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _log_base(self, *statistics: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _from_natural(self, *eta: jax.Array) -> tuple[jax.Array, ...]: ...

    @abc.abstractmethod
    def _from_expectation(self, *mean: jax.Array) -> tuple[jax.Array, ...]: ...

    def natural(self, params: Any) -> Statistics:
        """By site, one array per statistic."""
        return by_site(self._natural, *params)

    def sufficient(self, values: Values) -> Statistics:
        """By site, one array per statistic."""
        return by_site(self._sufficient, values)

    def expectation(self, params: Any) -> Statistics:
        """By site, one array per statistic."""
        return by_site(self._expectation, *params)

    def log_partition(self, params: Any) -> jax.Array:
        """The sum over coordinates."""
        return total(by_site(self._log_partition, *params))

    def log_base(self, statistics: Statistics) -> jax.Array:
        """The sum over coordinates."""
        return total({name: self._log_base(*of_site) for name, of_site in statistics.items()})

    def from_natural(self, eta: Statistics, like: Any) -> Any:
        """Coordinate by coordinate."""
        return _regrouped({name: self._from_natural(*of_site) for name, of_site in eta.items()}, like)

    def from_expectation(self, mean: Statistics, like: Any) -> Any:
        """Coordinate by coordinate."""
        return _regrouped({name: self._from_expectation(*of_site) for name, of_site in mean.items()}, like)

    def averaged(self, params: Any, reps: Reps, kind: str) -> Any:
        """By sums over orbits: statistics move as the parameters do."""
        of, back = (self.natural, self.from_natural) if kind == "geometric" else (self.expectation, self.from_expectation)
        columns = zip(*of(params).values(), strict=True)  # per statistic, the arrays of all sites
        by_name = [
            projected(dict(zip(params[0], column, strict=True)), reps, signed=signed)
            for column, signed in zip(columns, self.signed, strict=False)
        ]
        return back({name: tuple(column[name] for column in by_name) for name in params[0]}, params)


def total(values: Values) -> jax.Array:
    """The sum over all coordinates of all sites."""
    return sum((value.sum() for value in values.values()), jnp.zeros(()))


def _regrouped(fields: dict[str, tuple[jax.Array, ...]], like: Any) -> Any:
    """From one tuple per site to one field per parameter; further fields come from `like`."""
    count = len(next(iter(fields.values())))
    columns = [{name: of_site[i] for name, of_site in fields.items()} for i in range(count)]
    return type(like)(*columns, *like[count:])
