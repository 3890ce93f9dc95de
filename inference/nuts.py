"""NUTS, through NumPyro's kernel: the reference posterior for tiny nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import hmc

from bayes_sym.errors import OptionError

from . import rows
from .posterior import DrawsPosterior
from .problem import Problem, Values
from .rows import Data
from .scheme import Info, Scheme
from .structure import Structure


__all__ = ["NUTS"]

_SITE = "draw."


@dataclass(frozen=True)
class NUTS(Scheme):
    """The No-U-Turn sampler on all rows at once. One step of the fit is one transition of every chain.

    Weights of nets are not identified, so judge convergence by predictions and hyperparameters, not by R-hat of weights.

    Attributes:
        num_warmup: transitions that adapt step size and mass matrix; they count as steps, but are not draws.
        num_chains: chains, vmapped.
        target_accept_prob: acceptance to aim at; raise it against divergences.
        max_tree_depth: at most 2^depth leapfrog steps per transition.
        dense_mass: whether to adapt a full mass matrix.
    """

    takes_batches: ClassVar[bool] = False
    vmaps_seeds: ClassVar[bool] = False

    num_warmup: int = 500
    num_chains: int = 1
    target_accept_prob: float = 0.8
    max_tree_depth: int = 8
    dense_mass: bool = False

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses a fit without draws."""
        if self.num_chains < 1:
            raise OptionError(f"num_chains must be at least 1, got {self.num_chains}")
        if self.num_warmup >= num_steps:
            raise OptionError(
                f"num_warmup={self.num_warmup} leaves no draws of num_steps={num_steps}: num_steps counts warm-up and draws together. Set "
                "NUTS(num_warmup=...) lower or take more steps"
            )

    def init(self, key: jax.Array, problem: Problem, data: Data) -> Any:
        """Every chain at a draw from the prior."""

        def one(key: jax.Array) -> Any:
            key_start, key_chain = jax.random.split(key)
            return self._kernel(problem, data, problem.initial(key_start, data), key_chain)[0]

        return jax.vmap(one)(jax.random.split(key, self.num_chains))

    def _kernel(self, problem: Problem, data: Data, z: Values, key: jax.Array) -> tuple[Any, Any]:
        """A fresh state at `z` and the transition."""

        def potential(z: Values) -> jax.Array:
            density = problem.log_density(z, data)
            return -(density.likelihood + density.prior + density.log_det)

        init, transition = hmc(potential, algo="NUTS")
        state = init(
            z,
            num_warmup=self.num_warmup,
            step_size=0.1,
            dense_mass=self.dense_mass,
            target_accept_prob=self.target_accept_prob,
            max_tree_depth=self.max_tree_depth,
            rng_key=key,
        )
        return state, transition

    def step(self, key: jax.Array, state: Any, problem: Problem, batch: Data, factor: jax.Array) -> tuple[Any, Info]:
        """One transition of every chain."""

        def one(state: Any) -> Any:
            # NumPyro's kernel is a pair of closures that must be set up in the same trace; the fresh state is not used.
            _, transition = self._kernel(problem, batch, state.z, state.rng_key)
            return transition(state)

        state = jax.vmap(one)(state)
        record = {_SITE + name: value for name, value in state.z.items()}
        record |= {"accept_prob": state.accept_prob, "diverging": state.diverging, "num_steps": state.num_steps}
        return state, Info(state.potential_energy.mean() / rows.num_rows(batch), record)

    def posterior(self, key: jax.Array, state: Any, problem: Problem, data: Data, records: Any) -> DrawsPosterior:
        """The draws after warm-up."""
        warmup = self.num_warmup
        draws = {
            name.removeprefix(_SITE): jnp.moveaxis(jnp.asarray(values[warmup:]), 0, 1)
            for name, values in records.items()
            if name.startswith(_SITE)
        }
        info = {name: values[warmup:].T for name, values in records.items() if not name.startswith(_SITE)}
        return DrawsPosterior(problem, problem.take(data, slice(0, 1)), draws, info)

    def position(self, state: Any) -> Values:
        """The first chain."""
        return {name: value[0] for name, value in state.z.items()}
