"""Different families for different sites, independent of each other."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from ..blocks import Block
from ..prior_parts import PriorPart
from .family import Closedness, Family, Moments, Reps, Values
from .mean_field import MeanField


__all__ = ["PerSite"]


@dataclass(frozen=True)
class PerSite(Family):
    """The first family whose pattern matches a site's name; `otherwise` for the rest.

    Families on the positive numbers or the unit interval serve sites with that support; the values of `PerSite` are in
    unconstrained coordinates all the same (logarithms and logits).

    Attributes:
        members: (pattern, family) pairs, with ``*`` and ``?`` as in file names; a mapping is turned into pairs.
        otherwise: the family of all other sites.
    """

    members: tuple[tuple[str, Family], ...]
    otherwise: Family = MeanField()

    def __post_init__(self) -> None:
        if isinstance(self.members, Mapping):
            object.__setattr__(self, "members", tuple(self.members.items()))
        if self.otherwise.support != "real":
            raise OptionError(f"PerSite(otherwise={self.otherwise!r}) must be a family on the reals")

    def families(self) -> tuple[Family, ...]:
        """One per pattern, and the one for the rest."""
        return (*(family for _, family in self.members), self.otherwise)

    def assign(self, names: Any) -> tuple[tuple[str, ...], ...]:
        """The sites of every family, in order."""
        taken: list[list[str]] = [[] for _ in self.families()]
        for name in names:
            taken[self._index(name)].append(name)
        return tuple(tuple(group) for group in taken)

    def _split(self, values: Values) -> list[tuple[int, Family, Values]]:
        """The families that have sites, with those, in the coordinates of the family."""
        parts = []
        for i, (family, names) in enumerate(zip(self.families(), self.assign(values), strict=True)):
            if names:
                parts.append((i, family, {name: _OUT[family.support](values[name]) for name in names}))
        return parts

    def resolved(self, priors: Mapping[str, Any]) -> PerSite:
        """With every member resolved by the priors of its own sites."""
        own = [{name: priors[name] for name in names} for names in self.assign(priors)]
        families = [family.resolved(sites) if sites else family for family, sites in zip(self.families(), own, strict=True)]
        pairs = zip(self.members, families[:-1], strict=True)
        return PerSite(tuple((pattern, family) for (pattern, _), family in pairs), families[-1])

    def init(self, z: Values) -> dict[str, Any]:
        """The members' parameters by number.

        Raises:
            OptionError: a pattern matches no site that is left for it.
        """
        empty = [pattern for (pattern, _), names in zip(self.members, self.assign(z), strict=False) if not names]
        if empty:
            raise OptionError(
                f"PerSite: no latent site is left for {empty}; the model has {list(z)}, and the first pattern that matches takes a site"
            )
        return {str(i): family.init(values) for i, family, values in self._split(z)}

    def _members(self, params: dict[str, Any]) -> list[tuple[str, Family]]:
        families = self.families()
        return [(i, families[int(i)]) for i in params]

    def noise(self, key: jax.Array, params: dict[str, Any], n: int) -> dict[str, Any]:
        """That of every member."""
        keys = jax.random.split(key, len(params))
        pairs = zip(self._members(params), keys, strict=True)
        return {i: family.noise(subkey, params[i], n) for (i, family), subkey in pairs}

    def sample(self, params: dict[str, Any], noise: dict[str, Any]) -> Values:
        """The members' values in unconstrained coordinates."""
        values: Values = {}
        for i, family in self._members(params):
            drawn = family.sample(params[i], noise[i])
            values |= {name: _IN[family.support](value) for name, value in drawn.items()}
        return values

    def log_prob(self, params: dict[str, Any], values: Values) -> jax.Array:
        """The sum, with the log-determinants of the maps between coordinates."""
        total = jnp.zeros(())
        for i, family, own in self._split(values):
            total = total + family.log_prob(params[str(i)], own)
            total = total + sum((_LOG_DET[family.support](value).sum() for value in own.values()), jnp.zeros(()))
        return total

    def entropy(self, params: dict[str, Any]) -> jax.Array:
        """The sum, in unconstrained coordinates: H(theta) - E log|d theta / dz|, which sufficient statistics give."""
        total = jnp.zeros(())
        for i, family in self._members(params):
            total = total + family.entropy(params[i])
            if family.support != "real":
                statistics = family.expectation(params[i])  # type: ignore[attr-defined]
                # d theta/dz is theta for logarithms (first statistic log theta), theta (1 - theta) for logits (both statistics)
                used = 1 if family.support == "positive" else 2
                total = total - sum((t.sum() for of_site in statistics.values() for t in of_site[:used]), jnp.zeros(()))
        return total

    def kl(self, params: dict[str, Any], other: dict[str, Any]) -> jax.Array:
        """The sum."""
        return sum((family.kl(params[i], other[i]) for i, family in self._members(params)), jnp.zeros(()))

    def moments(self, params: dict[str, Any]) -> Moments:
        """Of members on the reals only."""
        mean: Values = {}
        variance: Values = {}
        for i, family in self._members(params):
            if family.support == "real":
                found = family.moments(params[i])
                mean |= found.mean
                variance |= found.variance
        return Moments(mean, variance)

    def _index(self, name: str) -> int:
        found = (i for i, (pattern, _) in enumerate(self.members) if fnmatch.fnmatchcase(name, pattern))
        return next(found, len(self.members))

    def family_of(self, name: str) -> Family:
        """The family of one site."""
        return self.families()[self._index(name)]

    def owner(self, params: dict[str, Any], name: str) -> tuple[Family, Any]:
        """The family of one site, and its parameters."""
        return self.family_of(name), params[str(self._index(name))]

    def center(self, params: dict[str, Any]) -> Values:
        """The mean of every member, in unconstrained coordinates."""
        values: Values = {}
        for i, family in self._members(params):
            values |= {name: _IN[family.support](value) for name, value in family.center(params[i]).items()}
        return values

    def points(self, params: dict[str, Any]) -> Values:
        """Those of the members."""
        values: Values = {}
        for i, family in self._members(params):
            values |= family.points(params[i])
        return values

    def blocks(self, params: dict[str, Any]) -> tuple[Block, ...] | None:
        """Those of the members, if every one has them."""
        found = [family.blocks(params[i]) for i, family in self._members(params)]
        return None if any(blocks is None for blocks in found) else tuple(block for blocks in found for block in blocks or ())

    def scatter(self, params: dict[str, Any], name: str, part: PriorPart) -> jax.Array | None:
        """That of the site's family."""
        family, own = self.owner(params, name)
        return family.scatter(own, name, part) if family.support == "real" else None

    def closedness(self, rep: Representation) -> Closedness:
        """What holds on every site, whichever family it has; `check_closed` asks the families of the sites that move."""
        found = [family.closedness(rep) for family in self.families()]
        reasons = (f"{type(f).__name__}: {c.reason}" for f, c in zip(self.families(), found, strict=True) if c.reason)
        push_forward, log_affine, moment = (all(each[level] for each in found) for level in range(3))
        return Closedness(push_forward, log_affine, moment, next(reasons, ""))

    def push(self, params: dict[str, Any], reps: Reps, g: int | jax.Array) -> dict[str, Any]:
        """Every member with its sites' representations."""
        return self._each("push", params, reps, g)

    def project(self, params: dict[str, Any], reps: Reps) -> dict[str, Any]:
        """Every member with its sites' representations."""
        return self._each("project", params, reps)

    def averaged(self, params: dict[str, Any], reps: Reps, kind: str) -> dict[str, Any]:
        """Every member with its sites' representations."""
        return self._each("averaged", params, reps, kind)

    def _each(self, what: str, params: dict[str, Any], reps: Reps, *more: Any) -> dict[str, Any]:
        assigned = dict(zip(range(len(self.families())), self.assign(reps), strict=True))
        out = {}
        for i, family in self._members(params):
            own = {name: reps[name] for name in assigned[int(i)]}
            out[i] = getattr(family, what)(params[i], own, *more) if own else params[i]
        return out

    @property
    def is_linear(self) -> bool:
        """If every member is."""
        return all(family.is_linear for family in self.families())

    def check_closed(self, reps: Reps, level: str = "push_forward") -> None:
        """Every member with its sites' representations."""
        for family, names in zip(self.families(), self.assign(reps), strict=True):
            family.check_closed({name: reps[name] for name in names}, level)


_Map = Callable[[jax.Array], jax.Array]


def _same(value: jax.Array) -> jax.Array:
    return value


# from unconstrained coordinates to the family's, back, and log|d theta / dz| at theta
_OUT: dict[str, _Map] = {"real": _same, "positive": jnp.exp, "unit": jax.nn.sigmoid}
_IN: dict[str, _Map] = {"real": _same, "positive": jnp.log, "unit": jax.scipy.special.logit}
_LOG_DET: dict[str, _Map] = {"real": jnp.zeros_like, "positive": jnp.log, "unit": lambda t: jnp.log(t) + jnp.log1p(-t)}
