"""The nested-subgroup Gaussian: one variance per level of a chain of groups, from fully symmetric to free directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ..errors import PriorError
from ..groups import FiniteGroup, Subgroup
from ..representations import Representation


if TYPE_CHECKING:
    from ..layers.layer import Site

__all__ = ["NestedEquivariantNormal", "NestedSymmetry"]

Strength = float | jax.Array


class NestedEquivariantNormal(dist.Distribution):
    """The Gaussian N(0, sum_j variances[j] (P_j - P_{j-1})) of a chain of groups G_0 > G_1 > ... > G_k acting on one weight.

    P_j is the projector onto the invariants of G_j, and P_{-1} = 0: level j holds the directions that G_j leaves alone
    and G_{j-1} does not. With D4 > C4 > C2 > trivial, the first variance is that of weights symmetric under D4, the
    second that of what C4 still allows, and so on; the last one is that of the directions that no group but the trivial
    one leaves alone. Symmetry is broken step by step, each step at its own price.

    The trivial group ends every chain, so that every direction has a variance: it is appended where it is not listed, and
    there is one variance per group with it counted. The chain (G, trivial) is the `SoftEquivariantNormal` of G.

    P_j acts by means over orbits; no matrix is formed for permutation representations. With d_j the dimension of level j,

        log p(w) = -1/2 sum_j [d_j log(2 pi variances[j]) + |P_j w - P_{j-1} w|^2 / variances[j]].

    Args:
        representations: orthogonal representations of the groups on arrays of one shape, e.g. ``rep``,
            ``rep.restrict(subgroup)``, ...; every element of a group must act like an element of the group before it.
        variances: positive, one per level: scalars, or an array of shape (levels,).

    Raises:
        PriorError: the representations are not orthogonal, not nested or differ in shape, or the variances are not one
            per level.
    """

    arg_constraints = {"variances": constraints.independent(constraints.positive, 1)}  # noqa: RUF012
    reparametrized_params = ["variances"]  # noqa: RUF012
    pytree_data_fields = ("variances",)
    pytree_aux_fields = ("representations",)

    def __init__(
        self,
        representations: Sequence[Representation],
        variances: Sequence[Strength] | jax.Array,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.representations = _chain(tuple(representations))
        self.variances = _levels(variances, [rep.group for rep in self.representations])
        super().__init__(batch_shape=(), event_shape=self.representations[0].shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """All real arrays of the event shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The dimensions d_j of the levels; they add up to that of the space."""
        return _ranks(self.representations)

    def part(self, level: int, value: jax.Array) -> jax.Array:
        """P_j w - P_{j-1} w of the event axes, for one level j."""
        outer = self._within(level, value)
        return outer - self._within(level - 1, value) if level else outer

    def parts(self, value: jax.Array) -> dict[int, jax.Array]:
        """The parts of the levels that hold any direction; they add up to `value`."""
        found, inner = {}, jnp.zeros_like(value)
        for level, rank in enumerate(self.ranks):
            if rank:  # else the projections agree up to rounding, which a small variance would magnify
                outer = self._within(level, value)
                found[level], inner = outer - inner, outer
        return found

    def _within(self, level: int, value: jax.Array) -> jax.Array:
        """P_j w; the last group is trivial, so P is the identity there."""
        rep = self.representations[level]
        return value if rep.group.order == 1 else rep.project(value, tuple(range(-len(self.event_shape), 0)))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape ``sample_shape + event_shape``."""
        shape = sample_shape + self.event_shape
        # drawn flat: XLA compiles a draw of several axes ten times as long
        return self.root(jax.random.normal(key, (math.prod(shape),), jnp.result_type(float)).reshape(shape))

    def root(self, value: jax.Array) -> jax.Array:
        """The symmetric square root of the covariance, applied to the event axes."""
        return self._combine(value, jnp.sqrt(self.variances))

    def whiten(self, value: jax.Array) -> jax.Array:
        """The inverse of `root`."""
        return self._combine(value, 1 / jnp.sqrt(self.variances))

    def _combine(self, value: jax.Array, factors: jax.Array) -> jax.Array:
        """sum_j factors[j] (P_j - P_{j-1}), applied to the event axes."""
        found = jnp.zeros_like(value)
        for level, part in self.parts(value).items():
            found = found + factors[level] * part
        return found

    def log_prob(self, value: jax.Array) -> jax.Array:
        """The log-density, of the shape that is left of the event axes."""
        axes = tuple(range(-len(self.event_shape), 0))
        energies = [(part**2).sum(axes) / self.variances[level] for level, part in self.parts(value).items()]
        return -0.5 * sum(energies, self.log_det + math.log(2 * math.pi) * math.prod(self.event_shape))

    @property
    def log_det(self) -> jax.Array:
        """The log-determinant of the covariance."""
        return (jnp.asarray(self.ranks, jnp.result_type(float)) * jnp.log(self.variances)).sum()

    @property
    def mean(self) -> jax.Array:
        """Zero."""
        return jnp.zeros(self.event_shape)

    @property
    def variance(self) -> jax.Array:
        """The diagonal of the covariance."""
        return self._diagonal(self.variances)

    @property
    def precision_diagonal(self) -> jax.Array:
        """The diagonal of the inverse covariance."""
        return self._diagonal(1 / self.variances)

    def _diagonal(self, factors: np.ndarray | jax.Array) -> jax.Array:
        diagonals = np.stack([rep.projector_diagonal for rep in self.representations])
        steps = jnp.asarray(np.diff(diagonals, axis=0, prepend=0.0), jnp.result_type(float))
        return (jnp.asarray(factors) @ steps).reshape(self.event_shape)

    def entropy(self) -> jax.Array:
        """The differential entropy in nats."""
        return 0.5 * (math.prod(self.event_shape) * math.log(2 * math.pi * math.e) + self.log_det)


class NestedSymmetry:
    """A nested-subgroup prior for every weight of a net.

    Level j of a weight, as in `NestedEquivariantNormal`, has standard deviation strengths[j] / sqrt(fan_in): equal
    strengths are `IndependentScales` of that strength, and where the strengths after level j go to 0, the net becomes
    equivariant under the group of level j.

    Args:
        representations: how the whole group acts on each site, from ``spec.representations(...)``.
        subgroups: a chain of subgroups of that group, from large to small, e.g. the C4 and the C2 in D4. The trivial
            subgroup is appended where it is not listed.
        strengths: one per level: of the whole group, of every subgroup, and of the trivial group. Each is a number, which
            may be sampled, or a mapping from site names to numbers.

    Raises:
        PriorError: the subgroups are not nested, or the strengths are not one per level.
    """

    def __init__(
        self,
        representations: Mapping[str, Representation],
        subgroups: Iterable[Subgroup],
        strengths: Sequence[Strength | Mapping[str, Strength]] | jax.Array,
    ) -> None:
        found = {rep.group for rep in representations.values()}
        if len(found) != 1:
            raise PriorError(
                f"a nested prior needs representations of one group, got those of {sorted(group.name for group in found)}: take them "
                "from spec.representations(...)"
            )
        self.representations = representations
        self.subgroups = _nested(found.pop(), tuple(subgroups))
        _check_count(len(strengths), [sub.group for sub in self.subgroups], "strengths")
        self.strengths = strengths

    def __call__(self, site: Site) -> dist.Distribution:
        """The distribution of one site."""
        if site.name not in self.representations:
            raise PriorError(f"no representation for site {site.name!r}; there are {sorted(self.representations)}")
        chain = _restricted(self.representations[site.name], self.subgroups)
        own = [_of_site(self.strengths[level], site.name) for level in range(len(chain))]
        if site.share != 1:
            own = [strength**site.share for strength in own]
        return NestedEquivariantNormal(chain, [strength**2 / site.fan_in for strength in own])


def _of_site(strength: Strength | Mapping[str, Strength], name: str) -> Strength:
    if not isinstance(strength, Mapping):
        return strength
    if name not in strength:
        raise PriorError(f"no strength for site {name!r}; there are {sorted(strength)}")
    return strength[name]


@lru_cache(maxsize=256)
def _nested(group: FiniteGroup, subgroups: tuple[Subgroup, ...]) -> tuple[Subgroup, ...]:
    """The chain from `group` itself to its trivial subgroup, checked."""
    chain = [group.subgroup(group.generators, group.name), *subgroups]
    for before, after in zip(chain[:-1], chain[1:], strict=True):
        if after.parent != group or not set(after.elements) < set(before.elements):
            raise PriorError(
                f"{after.group.name} is no smaller subgroup of {before.group.name} within {group.name}: list subgroups of {group.name} "
                f"from large to small, each inside the one before, built by group.subgroup(elements); got {list(subgroups)}"
            )
    if chain[-1].group.order > 1:
        chain.append(group.subgroup((), "trivial"))
    return tuple(chain)


@lru_cache(maxsize=256)
def _restricted(representation: Representation, subgroups: tuple[Subgroup, ...]) -> tuple[Representation, ...]:
    """One action for every group of the chain; kept, because its orbits are worked out once."""
    return tuple(representation.restrict(subgroup) for subgroup in subgroups)


@lru_cache(maxsize=256)
def _chain(representations: tuple[Representation, ...]) -> tuple[Representation, ...]:
    """The representations, checked, down to the trivial group."""
    if not representations:
        raise PriorError("a nested prior needs at least one representation, from the largest group to the smallest, got none")
    for rep in representations:
        if not rep.is_orthogonal or rep.shape != representations[0].shape:
            raise PriorError(
                "a nested prior needs orthogonal representations on arrays of one shape, got "
                f"{list(representations)}: use rep and rep.restrict(subgroup), or change the basis"
            )
    for before, after in zip(representations[:-1], representations[1:], strict=True):
        if not _acts_within(after, before):
            raise PriorError(
                f"the groups of a nested prior form a chain from large to small, but {after} moves arrays in ways that {before} does "
                "not: use rep.restrict(subgroup), with each subgroup inside the one before"
            )
    last = representations[-1]
    return representations if last.group.order == 1 else (*representations, last.restrict(last.group.subgroup((), "trivial")))


@lru_cache(maxsize=256)
def _ranks(representations: tuple[Representation, ...]) -> tuple[int, ...]:
    """The dimension of every level."""
    ranks = [rep.rank for rep in representations]
    return tuple(after - before for before, after in zip([0, *ranks[:-1]], ranks, strict=True))


def _acts_within(inner: Representation, outer: Representation) -> bool:
    """Whether every element of `inner` acts like an element of `outer`."""
    if inner.is_monomial and outer.is_monomial:
        return _moves(inner) <= _moves(outer)
    matrices = outer.matrices()
    return all(bool((np.abs(matrices - m).max(axis=(1, 2)) < 1e-6).any()) for m in inner.matrices())


def _moves(rep: Representation) -> set[bytes]:
    """The different ways in which the elements of a monomial form move coordinates and their signs."""
    assert rep.source is not None
    signs = np.ones(rep.source.shape) if rep.sign is None else rep.sign
    return {source.tobytes() + sign.tobytes() for source, sign in zip(rep.source, signs, strict=True)}


def _levels(values: Sequence[Strength] | jax.Array, groups: list[FiniteGroup]) -> np.ndarray | jax.Array:
    """The variances as one array (levels,); of numpy where nothing is traced, so that it can be validated."""
    _check_count(len(values), groups, "variances")
    if any(jnp.ndim(value) for value in values):
        raise PriorError(
            f"the variances of a nested prior are scalars, got shapes {[jnp.shape(value) for value in values]}: give each site its own"
        )
    if isinstance(values, jax.Array):
        return values
    if any(isinstance(value, jax.Array) for value in values):
        return jnp.stack([jnp.asarray(value, jnp.result_type(float)) for value in values])
    return np.array(values, float)


def _check_count(count: int, groups: list[FiniteGroup], what: str) -> None:
    if count != len(groups):
        raise PriorError(
            f"a nested prior takes one of its {what} per level, {len(groups)} for {', '.join(group.name for group in groups)}, got "
            f"{count}: the last one is for the directions that only the trivial group leaves alone"
        )
