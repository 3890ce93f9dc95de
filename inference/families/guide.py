"""Any family as a NumPyro guide, for NumPyro's own SVI, ELBOs and Predictive."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ..blocks import Layout
from ..problem import Problem
from .family import Family


__all__ = ["as_guide"]


class _Joint(dist.Distribution):
    """The family's law of all sites in unconstrained coordinates, as one vector."""

    support = constraints.real_vector
    pytree_data_fields = ("params",)
    pytree_aux_fields = ("family", "layout")
    reparametrized_params: list[str] = []  # noqa: RUF012 - numpyro reads it from the class

    def __init__(self, family: Family, params: Any, layout: Any) -> None:
        self.family, self.params, self.layout = family, params, layout
        super().__init__(batch_shape=(), event_shape=(layout.size,))

    @property
    def has_rsample(self) -> bool:
        """Draws are differentiable in the parameters."""
        return True

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape sample_shape + (size,)."""

        def draw(key: jax.Array) -> jax.Array:  # a key each, since several at once may be antithetic
            noise = jax.tree.map(lambda leaf: leaf[0], self.family.noise(key, self.params, 1))
            return self.layout.flatten(self.family.sample(self.params, noise))

        draws = jax.vmap(draw)(jax.random.split(key, math.prod(sample_shape)))
        return draws.reshape(*sample_shape, self.layout.size)

    def rsample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """The same draws."""
        return self.sample(key, sample_shape)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """The log-density of one vector."""
        return self.family.log_prob(self.params, self.layout.unflatten(value))


def as_guide(family: Family, problem: Problem, key: jax.Array, *data: Any) -> Callable[..., None]:
    """A guide for ``numpyro.infer.SVI(problem.model, guide, ...)`` whose q is `family`.

    Its parameters are one ``numpyro.param`` per array of the family, named ``q.0``, ``q.1``, ... All sites are drawn together at the
    auxiliary site ``q``, in unconstrained coordinates, and then handed to the model's sites.

    Args:
        family: the form of q.
        problem: the model.
        key: draws the starting values.
        data: the arguments of the model.

    Returns:
        The guide, a function of the model's arguments.
    """
    data = tuple(jax.tree.map(jnp.asarray, data))
    z = problem.initial(key, data)
    sites, _ = problem.latent_trace(data, unconstrained=z)
    supports = {name: sites[name]["fn"].support for name in z}
    family = family.resolved({name: sites[name]["fn"] for name in z})
    leaves, structure = jax.tree.flatten(family.init(z))
    layout = Layout.of(z)

    def guide(*args: Any, **kwargs: Any) -> None:
        found = [numpyro.param(f"q.{i}", leaf) for i, leaf in enumerate(leaves)]
        joint = _Joint(family, jax.tree.unflatten(structure, found), layout)
        vector = numpyro.sample("q", joint, infer={"is_auxiliary": True})
        for name, value in layout.unflatten(vector).items():
            transform = dist.biject_to(supports[name])
            inside = transform(value)
            event = len(inside.shape)
            log_det = transform.log_abs_det_jacobian(value, inside)
            numpyro.sample(name, dist.Delta(inside, log_density=-jnp.sum(log_det), event_dim=event))

    return guide
