"""Distributions whose parameters move to first order, on the scale on which they are free: what a linearised model predicts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints

from bayes_sym import _numpyro


__all__ = ["first_order"]


def first_order(fn: Any, change: Any) -> Any:
    """The distribution `fn` with its parameters moved by `change`, a distribution that holds their derivatives along a step.

        f(v') = f(v) + f'(v) dv

    with f the logarithm of positive parameters and of probabilities of classes, the log-odds of probabilities, and the identity of all
    others. So rates stay positive, and a model gives the same however its output layer is written (as logits or as probabilities).
    """
    found = jax.tree.map(_moved, fn, change)
    inner, at, step = found, fn, change
    while hasattr(inner, "base_dist"):
        inner, at, step = inner.base_dist, at.base_dist, step.base_dist
    for name, constraint in at.arg_constraints.items():
        value, slope = vars(at).get(name), vars(step).get(name)
        if value is None or slope is None or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            continue
        if constraint is constraints.unit_interval:
            vars(inner)[name] = jax.nn.sigmoid(jax.scipy.special.logit(value) + slope / (value * (1 - value)))
        elif constraint is constraints.simplex:
            vars(inner)[name] = jax.nn.softmax(jnp.log(value) + slope / value)
        elif constraint == constraints.nonnegative or _numpyro.is_positive(constraint):
            vars(inner)[name] = value * jnp.exp(slope / jnp.maximum(value, jnp.finfo(value.dtype).tiny))
    return found


def _moved(value: Any, slope: Any) -> Any:
    return value + slope if jnp.issubdtype(jnp.result_type(value), jnp.floating) else value
