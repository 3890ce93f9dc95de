"""Invariant members of a family: geometric and arithmetic means over the group, and the projection of parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import ClosednessError, OptionError
from bayes_sym.representations import Representation

from .family import Family, Reps, group_of
from .log_normal import LogNormal
from .per_site import PerSite


__all__ = ["KINDS", "certificate", "check_average", "check_signs", "symmetrised"]

KINDS = ("geometric", "arithmetic", "parameters")
_LEVELS = {"geometric": "log_affine", "arithmetic": "moment"}


def check_average(family: Family, reps: Reps, kind: str) -> None:
    """Refuses a mean that leaves the family.

    Raises:
        OptionError: `kind` is unknown.
        GroupActionError: the sites are acted on by different groups.
        ClosednessError: the family is not closed under the action in the sense that the mean needs.
    """
    if kind not in KINDS:
        raise OptionError(f"kind must be one of {KINDS}, got {kind!r}")
    if reps:
        group_of(reps)
    family.check_closed(reps)
    if kind in _LEVELS:
        try:
            family.check_closed(reps, _LEVELS[kind])
        except ClosednessError as error:
            raise ClosednessError(
                f"{error}. So there is no {kind} mean: use kind='parameters', which projects parameters onto invariant ones"
            ) from error


def check_signs(family: Family, params: Any, reps: Reps) -> None:
    """Refuses a LogNormal q whose fixed signs differ along an orbit.

    Raises:
        ClosednessError: naming the site.
    """
    if isinstance(family, PerSite):
        assigned = family.assign(reps)
        for i, member in family._members(params):
            check_signs(member, params[i], {name: reps[name] for name in assigned[int(i)]})
    elif isinstance(family, LogNormal):
        family.check_signs(params, reps)


def symmetrised(family: Family, params: Any, reps: Reps, kind: str) -> Any:
    """The invariant member of the family that stands for the transforms of q.

        geometric    the mean of natural parameters: the invariant q' with the smallest KL(q' || q)
        arithmetic   the mean of mean parameters: the invariant q' with the smallest KL(q || q'), so the one closest to the
                     mixture of the transforms
        parameters   the mean of means and of logarithms of scales; of covariances where a family has them (see `Family.project`)

    Of a factorised Gaussian the scales are ordered: geometric <= parameters <= arithmetic. (The averaged standard deviation of the
    reference implementation would lie between the last two.)

    Args:
        family: the family; `check_average` says whether it is closed.
        params: its parameters.
        reps: how the group acts on each site.
        kind: one of these.
    """
    if not reps:
        return params
    return family.project(params, reps) if kind == "parameters" else family.averaged(params, reps, kind)


def certificate(family: Family, params: Any, reps: Reps) -> float:
    """mean_g KL(q || g # q) in nats: how far q is from invariant, without a single draw.

    For outputs that are probability vectors it bounds the predictive defect: Delta <= min(certificate, 2); for outputs of
    diameter R, Delta <= R^2 certificate / 2 (Pinsker's inequality). Infinite for a LogNormal whose signs differ along an orbit.

    Raises:
        GroupActionError: the sites are acted on by different groups.
        ClosednessError: the transforms of q are not in the family.
    """
    if not reps:
        return 0.0
    group_of(reps)
    family.check_closed(reps)
    divergences = _divergences(family, tuple(sorted(reps.items())), params)
    return max(float(np.mean(np.asarray(divergences, np.float64))), 0.0)  # zero up to rounding where q is invariant


@partial(jax.jit, static_argnames=("family", "reps"))
def _divergences(family: Family, reps: tuple[tuple[str, Representation], ...], params: Any) -> jax.Array:
    """KL(q || g # q) for every g."""
    acting = dict(reps)
    order = jnp.arange(group_of(acting).order)
    return jax.lax.map(lambda g: family.kl(params, family.push(params, acting, g)), order)
