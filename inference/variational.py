"""Variational inference: the reparametrised ELBO with exact KL, augmentation, and symmetrisation on the way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayes_sym import _numpyro
from bayes_sym.errors import OptionError

from . import rows
from .augment import Augmentation, check_targets
from .blocks import DiagonalBlock, Layout
from .chunks import start_state
from .expansion import OrbitExpansion, expand_weights
from .families import MeanField, MeanFieldParams, kl_to_prior
from .map import ADAM
from .posterior import GaussianPosterior
from .problem import Problem, Structure, Values
from .rows import Data
from .scheme import Info, Scheme


__all__ = ["Variational"]

_EVIDENCE_DRAWS = 64


class VariationalState(NamedTuple):
    """The variational parameters and the optimiser's state."""

    params: MeanFieldParams
    optimizer: Any


@dataclass(frozen=True)
class Variational(Scheme):
    """Maximises E_q[log p(data | z)] - KL(q || prior) by reparametrised gradients.

    KL terms to Gaussian and soft-equivariant priors are exact given the sampled strengths; others are estimated.

    Attributes:
        family: the form of q.
        optimizer: an optax optimiser of the parameters of q.
        augment: None, `full_orbit(action)` or `random_orbit(action, n)`.
        augment_weight: ``"mean"`` counts every row once, however many copies of it there are; ``"sum"`` counts every copy
            (a posterior tempered by the number of copies, as in the reference implementation of the paper).
        symmetrise: None or `expand(action, ...)`.
        num_particles: draws of z per step, in antithetic pairs if even.
    """

    family: MeanField = MeanField()
    optimizer: optax.GradientTransformation = ADAM
    augment: Augmentation | None = None
    augment_weight: str = "mean"
    symmetrise: OrbitExpansion | None = None
    num_particles: int = 2

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses options out of range."""
        if self.augment_weight not in ("mean", "sum"):
            raise OptionError(f"augment_weight must be 'mean' or 'sum', got {self.augment_weight!r}")
        if self.num_particles < 1:
            raise OptionError(f"num_particles must be at least 1, got {self.num_particles}")
        if self.symmetrise is not None:
            self.symmetrise.target(structure)
            step = self.symmetrise.step(num_steps)
            if step >= num_steps:
                raise OptionError(f"expand(at={self.symmetrise.at}) comes at step {step}, but there are only {num_steps} steps")

    def check_data(self, problem: Problem, data: Data) -> None:
        """Refuses data on which the group cannot act, and nets or priors that cannot be expanded."""
        check_targets(self.augment, data)
        if self.symmetrise is not None:
            state = jax.eval_shape(partial(start_state, self, problem), jax.random.key(0), data)
            jax.eval_shape(partial(_expand, self, problem), state, data)
            self.symmetrise.problem(problem, data).structure(*data)

    def init(self, key: jax.Array, problem: Problem, data: Data) -> VariationalState:
        """q centred at a draw from the prior."""
        params = self.family.init(problem.initial(key, data))
        return VariationalState(params, self.optimizer.init(params))

    def step(
        self, key: jax.Array, state: VariationalState, problem: Problem, batch: Data, factor: jax.Array
    ) -> tuple[VariationalState, Info]:
        """One optimiser step on -ELBO/N."""
        key_augment, key_noise = jax.random.split(key)
        total = factor * rows.num_rows(batch)
        if self.augment is not None:
            batch = self.augment.apply(key_augment, batch, problem)
            factor = factor / self.augment.copies if self.augment_weight == "mean" else factor

        def loss(params: MeanFieldParams) -> jax.Array:
            return -self.elbo(key_noise, params, problem, batch, factor, self.num_particles) / total

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
        return VariationalState(optax.apply_updates(state.params, updates), optimizer), Info(value)

    def elbo(
        self, key: jax.Array, params: MeanFieldParams, problem: Problem, data: Data, factor: Any, num_particles: int
    ) -> jax.Array:
        """The evidence lower bound in nats, estimated with `num_particles` draws."""
        # one draw for all sites: a random program per site would cost seconds of compilation
        layout = Layout.of(params.mean)
        dtype = jnp.result_type(*params.mean.values())
        if num_particles % 2 == 0:
            half = jax.random.normal(key, (num_particles // 2, layout.size), dtype)
            noise = jnp.concatenate([half, -half])
        else:
            noise = jax.random.normal(key, (num_particles, layout.size), dtype)

        def one(noise: Values, key: jax.Array) -> jax.Array:
            z = self.family.sample(params, noise)
            sites, at = problem.trace(data, unconstrained=z, factor=factor, key=key)
            bound = jnp.zeros(())
            for name, site in sites.items():
                if site["type"] != "sample":
                    continue
                if name not in z:
                    bound = bound + _numpyro.log_prob_of(site)
                    continue
                kl = None
                if _numpyro.is_real(site["fn"].support):
                    kl = kl_to_prior(site["fn"], params.mean[name], jnp.exp(params.log_scale[name]))
                if kl is None:
                    log_prior = _numpyro.log_prob_of(site) + at.log_det.get(name, 0.0)
                    kl = self.family.log_prob(params, z, name) - log_prior
                bound = bound - kl
            return bound

        return jax.vmap(one)(layout.unflatten(noise), jax.random.split(key, num_particles)).mean()

    def boundaries(self, num_steps: int) -> tuple[int, ...]:
        """The step before which the net is expanded."""
        return () if self.symmetrise is None else (self.symmetrise.step(num_steps),)

    def problem_at(self, problem: Problem, data: Data, step: int, num_steps: int) -> Problem:
        """The problem on the expanded net from the expansion on."""
        if self.symmetrise is None or step < self.symmetrise.step(num_steps):
            return problem
        return self.symmetrise.problem(problem, data)

    def cross(self, key: jax.Array, state: VariationalState, problem: Problem, data: Data, step: int) -> VariationalState:
        """The expanded parameters, with a new optimiser state: an old one would be stale."""
        return _expand(self, problem, state, data)

    def posterior(self, key: jax.Array, state: VariationalState, problem: Problem, data: Data, records: Any) -> GaussianPosterior:
        """q, with its ELBO on the data without augmentation as evidence (64 draws)."""
        value = _final_elbo(self, problem, key, state.params, data)
        layout = Layout.of(state.params.mean)
        block = DiagonalBlock(layout, layout.flatten(state.params.mean), layout.flatten(state.params.scale))
        return GaussianPosterior(problem, problem.take(data, slice(0, 1)), (block,), {}, value, "elbo")

    def position(self, state: VariationalState) -> Values:
        """The means."""
        return state.params.mean


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _expand(scheme: Variational, problem: Problem, state: VariationalState, data: Data) -> VariationalState:
    assert scheme.symmetrise is not None
    expansion = scheme.symmetrise
    name, spec = expansion.target(problem.structure(*data))
    prefix = name + "."

    def within(values: Values) -> Values:
        return {site.removeprefix(prefix): value for site, value in values.items() if site.startswith(prefix)}

    means, scales = expand_weights(
        spec, expansion.field(data), expansion.output, within(state.params.mean), within(state.params.scale), expansion.off_scale
    )
    params = MeanFieldParams(
        {**state.params.mean, **{prefix + site: value for site, value in means.items()}},
        {**state.params.log_scale, **{prefix + site: jnp.log(value) for site, value in scales.items()}},
    )
    return VariationalState(params, scheme.optimizer.init(params))


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _final_elbo(scheme: Variational, problem: Problem, key: jax.Array, params: MeanFieldParams, data: Data) -> jax.Array:
    draws = jax.lax.map(lambda k: scheme.elbo(k, params, problem, data, 1.0, 2), jax.random.split(key, _EVIDENCE_DRAWS // 2))
    return draws.mean()
