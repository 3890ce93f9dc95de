"""Where a fit met NaN or infinity: the step, and the sites to blame."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import NonFiniteError

from .problem import Problem
from .rows import Data
from .scheme import Scheme


__all__ = ["first_bad", "non_finite"]


def first_bad(losses: np.ndarray, position: dict[str, jax.Array]) -> int | None:
    """The first step with a loss that is not finite, or the last one if it took finite values to others."""
    finite = np.isfinite(losses)
    if not finite.all():
        return int(np.argmin(finite))
    moved_well = all(np.isfinite(value).all() for value in jax.device_get(position).values())
    return None if moved_well else len(losses) - 1


def non_finite(
    problem: Problem, scheme: Scheme, position: dict[str, jax.Array], batch: Data, step: int, loss: float
) -> NonFiniteError:
    """The error for a loss that is not finite, met with the values `position` in unconstrained coordinates."""
    z = position

    def terms(z: dict[str, jax.Array]) -> dict[str, jax.Array]:
        sites, _ = problem.trace(batch, unconstrained=z)
        return {name: jnp.sum(site["fn"].log_prob(site["value"])) for name, site in sites.items() if site["type"] == "sample"}

    def where(values: dict[str, jax.Array]) -> tuple[str, ...]:
        return tuple(name for name, value in values.items() if not bool(jnp.isfinite(value).all()))

    sites = where(z)
    what = "values"
    if not sites:
        what, sites = "log-densities", where(jax.jit(terms)(z))
    if not sites:
        what, sites = "gradients", where(jax.jit(jax.grad(lambda z: sum(terms(z).values())))(z))
    place = (
        f"the {what} of {list(sites)} are not finite"
        if sites
        else f"none at the central values of {list(z)}, so in a random draw"
    )
    return NonFiniteError(
        f"{type(scheme).__name__} met a loss of {loss} at step {step}: {place}. Lower the learning rate, check the scale of the inputs and "
        "of the priors, or run in float64 (jax.config.update('jax_enable_x64', True))",
        step=step,
        sites=sites,
    )
