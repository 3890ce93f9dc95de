"""Posteriors: pytrees that give samples by site name, a log-density, and the evidence with its kind."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym.errors import OptionError

from .blocks import Block
from .problem import Problem, Values
from .rows import Data
from .whitening import gaussian_parts


__all__ = ["DrawsPosterior", "FamilyPosterior", "GaussianPosterior", "PointPosterior", "Posterior", "center_of", "fitted_problem"]


class Posterior(abc.ABC):
    """What inference knows about the latent sites.

    Attributes:
        problem: the problem it belongs to (after an expansion, the expanded one).
        example: one row of the data, with which samples are mapped to the sites' supports.
        log_evidence: an estimate of log p(data) in nats, or None.
        evidence_kind: what kind of estimate, e.g. ``"laplace-full"`` or ``"elbo"``; never compare different kinds.
    """

    problem: Problem
    example: Data
    log_evidence: jax.Array | None
    evidence_kind: str | None
    linearise: bool = False

    @abc.abstractmethod
    def sample_unconstrained(self, key: jax.Array, n: int) -> Values:
        """`n` draws in unconstrained coordinates, each (n, ...)."""

    @abc.abstractmethod
    def log_prob(self, z: Values) -> jax.Array:
        """The log-density at one point `z` in unconstrained coordinates, of the sites that are not points."""

    def sample(self, key: jax.Array, n: int) -> Values:
        """`n` draws of every latent site in constrained coordinates, each (n, *site shape).

        They feed ``numpyro.infer.Predictive(model, samples)``.
        """
        if n < 1:
            raise OptionError(f"the number of draws must be at least 1, got {n}")
        return _sample(self, key, n)


def fitted_problem(posterior: Posterior, problem: Problem) -> Problem:
    """The problem with the modules that the posterior is over: after an expansion these are the expanded ones.

    Raises:
        OptionError: the posterior belongs to another model.
    """
    fitted = posterior.problem
    if (fitted.model, fitted.data_plate) != (problem.model, problem.data_plate):
        raise OptionError(
            f"the posterior is of the model {fitted.model!r} with data plate {fitted.data_plate!r}, but the problem is {problem.model!r} "
            f"with {problem.data_plate!r}: pass the problem that was fitted"
        )
    return replace(problem, modules=fitted.modules)


@partial(jax.jit, static_argnames=("n",))
def _sample(posterior: Posterior, key: jax.Array, n: int) -> Values:
    draws = posterior.sample_unconstrained(key, n)
    return jax.vmap(lambda z: posterior.problem.constrain(z, posterior.example))(draws)


def _register(cls: type) -> type:
    meta = ("problem", "evidence_kind", "linearise", "family")
    names = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    data = [name for name in names if name not in meta]
    return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=[name for name in names if name in meta])


@_register
@dataclass(frozen=True)
class PointPosterior(Posterior):
    """All mass at one point: ``point`` in unconstrained coordinates."""

    problem: Problem
    example: Data
    point: Values
    log_evidence: jax.Array | None = None
    evidence_kind: str | None = None

    def sample_unconstrained(self, key: jax.Array, n: int) -> Values:
        """The point, `n` times."""
        return {name: jnp.broadcast_to(value, (n, *value.shape)) for name, value in self.point.items()}

    def log_prob(self, z: Values) -> jax.Array:
        """A point has no density: always an error."""
        raise OptionError("a point estimate (MAP) has no density: use Laplace() or Variational() for one")


@_register
@dataclass(frozen=True)
class GaussianPosterior(Posterior):
    """Independent Gaussian blocks over groups of sites, and sites held at a point.

    Attributes:
        blocks: each covers the sites that it names.
        point: unconstrained values of the sites that were optimised (type-II maximum likelihood).
        linearise: whether predictions are best made with the model linearised at the mean, as a Gauss-Newton curvature
            assumes.
    """

    problem: Problem
    example: Data
    blocks: tuple[Block, ...]
    point: Values
    log_evidence: jax.Array | None = None
    evidence_kind: str | None = None
    linearise: bool = False

    @property
    def mean(self) -> Values:
        """The mean of every site in unconstrained coordinates."""
        means = dict(self.point)
        for block in self.blocks:
            means.update(block.center())
        return means

    def sample_unconstrained(self, key: jax.Array, n: int) -> Values:
        """`n` draws of every block, with the points beside them."""
        draws = {name: jnp.broadcast_to(value, (n, *value.shape)) for name, value in self.point.items()}
        for subkey, block in zip(jax.random.split(key, len(self.blocks)), self.blocks, strict=True):
            draws.update(block.sample(subkey, n))
        return draws

    def effective_parameters(self) -> dict[str, jax.Array]:
        """tr(I - D covariance) of every site whose prior N(m, D^-1) is Gaussian: the parameters that the data determine.

        Between 0 and the site's number of parameters; see `bayes_sym.inference.effective_parameters`, which measures them
        anywhere.
        """
        free = {name: value for name, value in self.mean.items() if name not in self.point}
        priors = gaussian_parts(self.problem, free, self.point, self.example)
        found: dict[str, jax.Array] = {}
        for block in self.blocks:
            found.update(block.left_open(priors))
        return {name: priors[name].size - found[name] for name in free if name in found}

    def log_prob(self, z: Values) -> jax.Array:
        """The sum of the blocks' log-densities."""
        return sum((block.log_prob(z) for block in self.blocks), jnp.zeros(()))


@_register
@dataclass(frozen=True)
class FamilyPosterior(Posterior):
    """A member of a variational family that is no product of Gaussian blocks.

    Attributes:
        family: the family.
        params: its parameters.
    """

    problem: Problem
    example: Data
    family: Any
    params: Any
    log_evidence: jax.Array | None = None
    evidence_kind: str | None = None

    @property
    def point(self) -> Values:
        """Unconstrained values of the sites of a `Point`."""
        return self.family.points(self.params)

    def sample_unconstrained(self, key: jax.Array, n: int) -> Values:
        """`n` independent draws of q: the noise of one key would come in antithetic pairs."""

        def one(key: jax.Array) -> Values:
            noise = jax.tree.map(lambda leaf: leaf[0], self.family.noise(key, self.params, 1))
            return self.family.sample(self.params, noise)

        return jax.vmap(one)(jax.random.split(key, n))

    def log_prob(self, z: Values) -> jax.Array:
        """log q."""
        return self.family.log_prob(self.params, z)


@_register
@dataclass(frozen=True)
class DrawsPosterior(Posterior):
    """Draws from a sampler.

    Attributes:
        draws: by site, (chains, draws, ...) in unconstrained coordinates.
        info: what the sampler says of every draw, (chains, draws): acceptance, divergences, leapfrog steps.
    """

    problem: Problem
    example: Data
    draws: Values
    info: Values
    log_evidence: jax.Array | None = None
    evidence_kind: str | None = None

    @property
    def num_draws(self) -> int:
        """All draws of all chains."""
        chains, draws = next(iter(self.draws.values())).shape[:2]
        return chains * draws

    def sample_unconstrained(self, key: jax.Array, n: int) -> Values:
        """`n` of the draws, evenly spread over the chains; drawn with replacement if there are fewer."""
        total = self.num_draws
        index = jnp.round(jnp.linspace(0, total - 1, n)).astype(int) if n <= total else jax.random.randint(key, (n,), 0, total)
        return {name: value.reshape(total, *value.shape[2:])[index] for name, value in self.draws.items()}

    def log_prob(self, z: Values) -> jax.Array:
        """Draws have no density: always an error."""
        raise OptionError("a sampler's draws have no density: its log joint is problem.log_density(z, data)")


def center_of(posterior: Posterior, linearise: bool | None) -> Values | None:
    """The mean around which a model is linearised, or None if it is not; `linearise` None asks the posterior.

    Raises:
        OptionError: the model is to be linearised where there is no mean.
    """
    if not (posterior.linearise if linearise is None else linearise):
        return None
    if not isinstance(posterior, GaussianPosterior):
        raise OptionError("linearise=True needs a Gaussian posterior with a mean: that of Laplace() or Variational()")
    return posterior.mean
