"""Invariant members of a family: geometric and arithmetic means over the group, and the projection of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import ClosednessError, OptionError

from .family import ExponentialFamily, Family, Reps
from .laplace import MeanFieldLaplace
from .log_normal import LogNormal
from .per_site import PerSite


__all__ = ["KINDS", "certificate", "check_average", "symmetrised"]

KINDS = ("geometric", "arithmetic", "parameters")


def check_average(family: Family, reps: Reps, kind: str) -> None:
    """Refuses a mean that leaves the family.

    Raises:
        OptionError: `kind` is unknown.
        ClosednessError: the family is not closed under the action in the sense that the mean needs.
    """
    if kind not in KINDS:
        raise OptionError(f"kind must be one of {KINDS}, got {kind!r}")
    if isinstance(family, PerSite):
        for member, names in zip(family.families(), family.assign(reps), strict=True):
            if names:
                check_average(member, {name: reps[name] for name in names}, kind)
        return
    family.check_closed(reps)
    if kind != "parameters":
        family.check_closed(reps, "log_affine" if kind == "geometric" else "moment")
        if not isinstance(family, ExponentialFamily) and not (kind == "arithmetic" and isinstance(family, MeanFieldLaplace)):
            raise ClosednessError(
                f"the {kind} mean over a group has no closed form for {type(family).__name__}: use kind='parameters', which projects its "
                "parameters onto the invariant ones"
            )


def symmetrised(family: Family, params: Any, reps: Reps, kind: str) -> Any:
    """The invariant member of the family that stands for the transforms of q.

        geometric    the mean of natural parameters: the invariant q' with the smallest KL(q' || q)
        arithmetic   the mean of mean parameters: the invariant q' with the smallest KL(q || q'), so the one closest to the
                     mixture of the transforms
        parameters   the mean of means and of standard deviations (as log standard deviations: see `Family.project`)

    Args:
        family: the family; `check_average` says whether it is closed.
        params: its parameters.
        reps: how the group acts on each site.
        kind: one of these.
    """
    if isinstance(family, PerSite):
        out = {}
        for i, member in family._members(params):
            own = {name: reps[name] for name in family.assign(reps)[int(i)]}
            out[i] = symmetrised(member, params[i], own, kind) if own else params[i]
        return out
    if not reps:
        return params
    if kind == "parameters":
        return family.project(params, reps)
    if isinstance(family, LogNormal) and not isinstance(next(iter(params.sign.values())), jax.core.Tracer):
        family.check_signs(params, reps)
    if isinstance(family, MeanFieldLaplace):
        return family.closest_to_mixture(params, reps)
    assert isinstance(family, ExponentialFamily)
    order = next(iter(reps.values())).group.order
    of: Callable[[Any], Any] = family.natural if kind == "geometric" else family.expectation

    def one(g: jax.Array) -> Any:
        return of(family.push(params, reps, g))

    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), jax.lax.map(one, jnp.arange(order)))
    back = family.from_natural if kind == "geometric" else family.from_expectation
    return back(mean, params)


def certificate(family: Family, params: Any, reps: Reps) -> float:
    """mean_g KL(q || g # q) in nats: how far q is from invariant, without a single draw.

    For outputs that are probability vectors it bounds the predictive defect: Delta <= min(certificate, 2); for outputs of
    diameter R, Delta <= R^2 certificate / 2 (Pinsker's inequality).

    Raises:
        ClosednessError: the transforms of q are not in the family.
    """
    family.check_closed(reps)
    if not reps:
        return 0.0
    order = next(iter(reps.values())).group.order

    @jax.jit
    def each(params: Any) -> jax.Array:
        return jax.lax.map(lambda g: family.kl(params, family.push(params, reps, g)), jnp.arange(order))

    return float(np.mean(np.asarray(each(params), np.float64)))
