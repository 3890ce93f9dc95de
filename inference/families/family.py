"""What every variational family answers: how q is parametrised, sampled, compared with priors, and moved by a group."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions.distribution import ExpandedDistribution, Independent

from bayes_sym.errors import ClosednessError, GroupActionError, OptionError
from bayes_sym.groups import FiniteGroup
from bayes_sym.representations import Representation

from ..blocks import Block
from ..prior_parts import PriorPart


__all__ = [
    "Closedness",
    "ExponentialFamily",
    "Family",
    "Moments",
    "Reps",
    "Values",
    "base_distribution",
    "closedness",
    "group_of",
]

Values = dict[str, jax.Array]
Params = Any
Statistics = dict[str, tuple[jax.Array, ...]]
Reps = Mapping[str, Representation]
"""How a group acts on each site; sites that are not named do not move."""


class Moments(NamedTuple):
    """The mean and the variance of every coordinate, by site."""

    mean: Values
    variance: Values


class Closedness(NamedTuple):
    """In which sense a family is closed under a representation.

    Attributes:
        push_forward: for every g, the law of rho(g) theta is in the family again. Enough for exact equivariance.
        log_affine: and so is the geometric mean of the transforms (the mean of natural parameters).
        moment: and the member with the moments of the mixture of the transforms has a closed form.
        reason: why not, where one of them fails.
    """

    push_forward: bool
    log_affine: bool
    moment: bool
    reason: str = ""


class Family(abc.ABC):
    """A family of distributions q over the latent sites. Members are frozen dataclasses of options.

    Parameters are a pytree of arrays of its own. Values are by site, in unconstrained coordinates, except for the
    families on the positive numbers and on the unit interval (`support`), whose values lie there.

    Attributes:
        support: ``"real"``, ``"positive"`` or ``"unit"``.
    """

    support: ClassVar[str] = "real"

    @abc.abstractmethod
    def init(self, z: Values) -> Params:
        """Parameters of a q centred at `z`."""

    def resolved(self, priors: Mapping[str, Any]) -> Family:
        """The family with what it takes from the model; `priors` are the sites' NumPyro distributions."""
        return self

    @abc.abstractmethod
    def noise(self, key: jax.Array, params: Params, n: int) -> Any:
        """What `n` draws are made of: a pytree with `n` in front."""

    @abc.abstractmethod
    def sample(self, params: Params, noise: Any) -> Values:
        """One draw, differentiable in the parameters."""

    @abc.abstractmethod
    def log_prob(self, params: Params, values: Values) -> jax.Array:
        """The log-density of all sites together."""

    @abc.abstractmethod
    def entropy(self, params: Params) -> jax.Array:
        """The differential entropy in nats, exact."""

    @abc.abstractmethod
    def moments(self, params: Params) -> Moments:
        """Means and variances."""

    def center(self, params: Params) -> Values:
        """The means, in unconstrained coordinates."""
        return self.moments(params).mean

    def points(self, params: Params) -> Values:
        """The sites that are held at a point and have no density, in unconstrained coordinates: none, for most families."""
        return {}

    def scatter(self, params: Params, name: str, part: PriorPart) -> jax.Array | None:
        """E (v - m)' D (v - m) for a site with a Gaussian prior of mean m and precision D; None where it has no closed form."""
        if part.variances is None:
            return None
        moments = self.moments(params)
        spread = moments.variance[name].reshape(-1)
        return (((moments.mean[name].reshape(-1) - part.mean) ** 2 + spread) / part.variances).sum()

    def kl(self, params: Params, other: Params) -> jax.Array:
        """KL(q_params || q_other) in nats."""
        raise OptionError(f"{type(self).__name__} has no closed form of the KL divergence between two of its members")

    def closedness(self, rep: Representation) -> Closedness:
        """In which sense it is closed under `rep`, acting on one site."""
        return Closedness(False, False, False, f"nothing is known of {type(self).__name__} under group actions")

    def push(self, params: Params, reps: Reps, g: int | jax.Array) -> Params:
        """The parameters of the law of rho(g) theta. `check_closed` comes before."""
        raise ClosednessError(f"{type(self).__name__} is not closed under the push-forward by a group")

    def project(self, params: Params, reps: Reps) -> Params:
        """An invariant member close by: means projected, and scales or covariances averaged over the group. Linear where `is_linear`."""
        raise ClosednessError(f"{type(self).__name__} has no projection onto its invariant members")

    def averaged(self, params: Params, reps: Reps, kind: str) -> Params:
        """The geometric or arithmetic mean of the transforms; `closedness` says at which levels there is one."""
        raise ClosednessError(f"{type(self).__name__} has no closed form of the {kind} mean over a group")

    @property
    def is_linear(self) -> bool:
        """Whether `push` and `project` are linear maps of the parameters, so that gradients may be projected too."""
        return False

    def check_closed(self, reps: Reps, level: str = "push_forward") -> None:
        """Refuses representations under which the family is not closed.

        Args:
            reps: how the group acts on each site.
            level: ``"push_forward"``, ``"log_affine"`` or ``"moment"``.

        Raises:
            ClosednessError: saying which site, and what fails.
        """
        for site, rep in reps.items():
            found = self.closedness(rep)
            if not getattr(found, level):
                raise ClosednessError(
                    f"{type(self).__name__} is not closed under {rep} on site {site!r} ({level.replace('_', ' ')}): {found.reason}"
                )

    def blocks(self, params: Params) -> tuple[Block, ...] | None:
        """q as Gaussian blocks, if it is one."""
        return None


class ExponentialFamily(Family):
    """A family h(theta) exp(<eta, T(theta)> - A(eta)), with all its parts in closed form."""

    @abc.abstractmethod
    def natural(self, params: Params) -> Any:
        """The natural parameters eta."""

    @abc.abstractmethod
    def sufficient(self, values: Values) -> Any:
        """The sufficient statistics T at one point, in the structure of `natural`."""

    @abc.abstractmethod
    def expectation(self, params: Params) -> Any:
        """The mean parameters E T, in the structure of `natural`."""

    @abc.abstractmethod
    def log_partition(self, params: Params) -> jax.Array:
        """A(eta)."""

    @abc.abstractmethod
    def log_base(self, statistics: Any) -> jax.Array:
        """log h. For every family here it is affine in T, so E log h is its value at the mean parameters."""

    @abc.abstractmethod
    def from_natural(self, eta: Any, like: Params) -> Params:
        """The parameters with these natural parameters; `like` gives what is not one (signs, layouts)."""

    @abc.abstractmethod
    def from_expectation(self, mean: Any, like: Params) -> Params:
        """The parameters with these mean parameters."""

    def log_prob(self, params: Params, values: Values) -> jax.Array:
        """<eta, T> - A + log h."""
        statistics = self.sufficient(values)
        return _dot(self.natural(params), statistics) - self.log_partition(params) + self.log_base(statistics)

    def averaged(self, params: Params, reps: Reps, kind: str) -> Params:
        """The mean of natural parameters (geometric) or of mean parameters (arithmetic), by a loop over the group."""
        of, back = (self.natural, self.from_natural) if kind == "geometric" else (self.expectation, self.from_expectation)
        several = jax.lax.map(lambda g: of(self.push(params, reps, g)), jnp.arange(group_of(reps).order))
        return back(jax.tree.map(lambda leaf: leaf.mean(axis=0), several), params)

    def entropy(self, params: Params) -> jax.Array:
        """A - <eta, E T> - E log h."""
        mean = self.expectation(params)
        return self.log_partition(params) - _dot(self.natural(params), mean) - self.log_base(mean)

    def kl(self, params: Params, other: Params) -> jax.Array:
        """<eta - eta', E T> - A + A'."""
        gap = jax.tree.map(jnp.subtract, self.natural(params), self.natural(other))
        return _dot(gap, self.expectation(params)) - self.log_partition(params) + self.log_partition(other)


def _dot(a: Any, b: Any) -> jax.Array:
    return sum((jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)), jnp.zeros(()))


def base_distribution(fn: Any) -> Any:
    """A site's distribution without the wrappers that only reshape it."""
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def group_of(reps: Reps) -> FiniteGroup:
    """The group that acts.

    Raises:
        GroupActionError: it is not the same at all sites.
    """
    groups = {rep.group for rep in reps.values()}
    if len(groups) != 1:
        raise GroupActionError(
            f"the representations on the sites {list(reps)} must be of one group, got {sorted(group.name for group in groups)}"
        )
    return groups.pop()


def closedness(family: Family, rep: Representation) -> Closedness:
    """In which sense a variational family is closed under a representation of a group on one site.

    Three levels: the push-forward of every member is a member; the geometric mean of the transforms is; the member that matches
    the moments of their mixture has a closed form. `Family.check_closed` raises a `ClosednessError` with the reason.
    """
    return family.closedness(rep)
