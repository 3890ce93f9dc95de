"""Repeated fits of one problem: all seeds in one program, or one after the other where their batches are sharded."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bayes_sym.inference import Fit, Problem, Variational, fit
from bayes_sym.inference.seeds import fit_seeds


__all__ = ["repeats"]


def repeats(
    problem: Problem, scheme: Variational, seed: int, count: int, *data: Any, num_steps: int, mesh: Mesh | None = None
) -> list[Fit]:
    """`count` fits that differ in their keys, which are derived from `seed`.

    Raises:
        OptionError, ClosednessError: the scheme does not suit the problem; before any step.
    """
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(count))
    if mesh is None:
        return fit_seeds(problem, scheme, keys, *data, num_steps=num_steps, progress=False)
    return [fit(problem, scheme, key, *data, num_steps=num_steps, mesh=mesh, progress=False) for key in keys]
