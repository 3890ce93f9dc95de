"""Noticing a fit that has given up: its predictions do not depend on the inputs any more."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro
from bayes_sym.errors import CollapseWarning

from . import rows
from .posterior import GaussianPosterior
from .problem import Problem, Values
from .rows import Data


__all__ = ["information", "warn_if_collapsed"]

_LEAST = 1e-3  # nats per row that predictions must tell about their own observation, and one nat in all


def warn_if_collapsed(problem: Problem, mode: Values, data: Data, gaussian: Callable[[], GaussianPosterior]) -> None:
    """Warns where the mode's predictions fit other rows' observations as well as their own, and names the dead sites.

    Which sites are dead the Gaussian says; it is asked for only where predictions are no good.
    """
    if rows.num_rows(data) < 2:
        return
    told = float(information(problem, mode, data))
    if told >= max(_LEAST, 1 / rows.num_rows(data)):
        return
    # without a site that was given up this is a fit that has not learned yet, which the losses show
    dead = [name for name, gamma in gaussian().effective_parameters().items() if float(gamma) < 1e-3 * mode[name].size]
    if not dead:
        return
    warnings.warn(
        f"the fit has collapsed: its predictions tell {told:.1e} nats per row about the observations, no more than a constant would. "
        f"Effective parameters are below 0.001 in {dead[:6]}{' and others' if len(dead) > 6 else ''}. Train longer before the "
        "strengths move (burn_in), move them less at a time (trust, hyper_optimizer), or check the inputs and labels",
        CollapseWarning,
        stacklevel=4,
    )


@partial(jax.jit, static_argnames=("problem",))
def information(problem: Problem, z: Values, data: Data) -> jax.Array:
    """Nats per row by which predictions fit their own observations better than those of other rows, at unconstrained `z`."""
    sites, _ = problem.trace(data, unconstrained=z)
    order = jax.random.permutation(jax.random.key(0), rows.num_rows(data))
    told = jnp.zeros(())
    for site in sites.values():
        if site["type"] == "sample" and site["is_observed"] and _numpyro.in_plate(site, problem.data_plate):
            own, other = (site["fn"].log_prob(value) for value in (site["value"], site["value"][order]))
            told = told + (own - other).sum() / rows.num_rows(data)
    return told
