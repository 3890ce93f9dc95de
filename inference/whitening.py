"""Optimiser steps on weights in units of their prior, so that one learning rate serves every strength."""

from __future__ import annotations

from typing import Any

import optax

from bayes_sym import _numpyro

from .prior_parts import PriorPart, gaussian_part
from .problem import Problem, Values
from .rows import Data


__all__ = ["gaussian_parts", "whitened_update"]


def gaussian_parts(problem: Problem, z: Values, hyper: Values, data: Data) -> dict[str, PriorPart]:
    """The prior of every site of `z` that is Gaussian and real, given the values of the others (all unconstrained)."""
    sites, _ = problem.latent_trace(data, unconstrained={**z, **hyper})
    found = {}
    for name, value in z.items():
        fn = sites[name]["fn"]
        part = gaussian_part(fn, value.shape) if _numpyro.is_real(fn.support) else None
        if part is not None:
            found[name] = part
    return found


def whitened_update(
    problem: Problem, optimizer: optax.GradientTransformation, gradient: Values, state: Any, z: Values, hyper: Values, data: Data
) -> tuple[Values, Any]:
    """The update of `z` by the optimiser in coordinates y with z = mean + L y, L L' being the prior covariance.

    Its gradient there is L' gradient, and a step dy is a step L dy of z. Sites with other priors keep their coordinates.
    """
    parts = gaussian_parts(problem, z, hyper, data)

    def turned(values: Values, how: str) -> Values:
        return {
            name: getattr(parts[name], how)(value.reshape(-1)).reshape(value.shape) if name in parts else value
            for name, value in values.items()
        }

    updates, state = optimizer.update(turned(gradient, "root_transposed"), state, turned(z, "whiten"))
    return turned(updates, "root"), state
