"""The orbit mixture: q replaced by the mean of its transforms, which is exactly invariant for any family, net and number of draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import GroupActionError, OptionError
from bayes_sym.representations import Representation

from .families import Family
from .families.family import Reps


__all__ = ["MixtureGain", "mixture_gain", "orbit_mixture"]


class MixtureGain(NamedTuple):
    """How much the ELBO of the mixture is above that of q, in nats, with the standard error of its estimate."""

    gain: float
    se: float


def orbit_mixture(
    predict: Callable[[Any], Any], action: Representation, output: Representation | None = None
) -> Callable[[Any], np.ndarray]:
    """The predictions of the mixture of q's transforms: x -> mean_g rho_out(g) F(g^-1 x).

    Test-time averaging over the group, with the same draws at every element: equivariant even with one draw. With an invariant prior and
    likelihood it never has a smaller ELBO than q, so every symmetrisation should be compared with it.

    Args:
        predict: maps inputs (num_examples, *action.shape, ...) to draws (num_draws, num_examples, *outputs); the same draws at
            every call.
        action: how the group acts on one input.
        output: how it acts on one output, whose first axes are ``output.shape``; None for invariant outputs.

    Raises:
        GroupActionError: `action` and `output` represent different groups.
    """
    if output is not None and output.group != action.group:
        raise GroupActionError(f"the action is of {action.group.name}, but the output representation of {output.group.name}")

    def averaged(x: Any) -> np.ndarray:
        x = jnp.asarray(x)
        total: Any = 0.0
        for g in range(action.group.order):
            there = jnp.asarray(predict(action.transform(int(action.group.inverse[g]), x)))
            if output is not None:
                there = output.act(g, there, tuple(range(2, 2 + len(output.shape))))
            total = total + np.asarray(there)
        return total / action.group.order

    return averaged


def mixture_gain(family: Family, params: Any, reps: Reps, key: jax.Array, *, num_draws: int = 1000) -> MixtureGain:
    """The ELBO of the orbit mixture less that of q: E_q[log q(theta) - log mean_g (g # q)(theta)], between 0 and log|G| nats.

    For an invariant prior and a likelihood that counts whole orbits; it is the generalised Jensen-Shannon divergence of the transforms.

    Args:
        family, params: q.
        reps: how the group acts on each site.
        key: of the draws.
        num_draws: draws of q.

    Raises:
        ClosednessError: the transforms of q are not in the family.
    """
    if num_draws < 2:
        raise OptionError(f"num_draws must be at least 2 for a standard error, got {num_draws}")
    family.check_closed(reps)
    values = np.asarray(_gains(family, tuple(reps.items()), params, key, num_draws), np.float64)
    return MixtureGain(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(num_draws))


@partial(jax.jit, static_argnames=("family", "actions", "num_draws"))
def _gains(
    family: Family, actions: tuple[tuple[str, Representation], ...], params: Any, key: jax.Array, num_draws: int
) -> jax.Array:
    """The gain at every draw, (num_draws,)."""
    reps = dict(actions)
    order = actions[0][1].group.order

    def one(noise: Any) -> jax.Array:
        theta = family.sample(params, noise)
        logs = jax.lax.map(lambda g: family.log_prob(family.push(params, reps, g), theta), jnp.arange(order))
        return logs[0] - jax.scipy.special.logsumexp(logs) + math.log(order)  # element 0 is the identity

    return jax.lax.map(one, family.noise(key, params, num_draws))
