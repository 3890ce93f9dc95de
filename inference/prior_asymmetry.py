"""What a prior that is not invariant does to the posterior's symmetry, and its repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bayes_sym import _numpyro
from bayes_sym.errors import GroupActionError, OptionError

from .families.family import Reps
from .posterior import Posterior
from .prior_parts import gaussian_part
from .problem import Values


__all__ = ["PriorAsymmetry", "invariant_prior", "prior_asymmetry"]


class PriorAsymmetry(NamedTuple):
    """mean_g E[log p(theta) - log p(rho(g)^-1 theta)] in nats under the posterior, with its standard error over draws."""

    mean_kl: float
    se: float


def prior_asymmetry(posterior: Posterior, reps: Reps, key: jax.Array, *, num_draws: int = 200) -> PriorAsymmetry:
    """How far the exact posterior is from invariant, if only its prior is to blame: mean_g KL(posterior || g # posterior).

    For an invariant likelihood the evidences cancel, and KL(q* || g # q*) = E_q*[log p(theta) - log p(rho(g)^-1 theta)]: zero if and only
    if the prior is invariant, and of the order of 1/N in the number of rows. Under an approximate posterior it is the prior's
    part of that divergence.

    Args:
        posterior: draws of it stand for q*.
        reps: how the group acts on each weight site, e.g. from `weight_action`.
        key: of the draws.
        num_draws: draws.
    """
    if num_draws < 2:
        raise OptionError(f"num_draws must be at least 2 for a standard error, got {num_draws}")
    problem, example = posterior.problem, posterior.example
    draws = posterior.sample_unconstrained(key, num_draws)
    order = next(iter(reps.values())).group.order

    def log_prior(z: Values) -> jax.Array:
        sites, _ = problem.latent_trace(example, unconstrained=z)
        return sum((_numpyro.log_prob_of(sites[name]) for name in z), jnp.zeros(()))

    @jax.jit
    def values(draws: Values) -> jax.Array:
        def one(z: Values) -> jax.Array:
            def moved(g: jax.Array) -> jax.Array:
                return log_prior({n: reps[n].act(g, v, tuple(range(v.ndim))) if n in reps else v for n, v in z.items()})

            # over all g, the inverses run over the group too
            return log_prior(z) - jax.lax.map(moved, jnp.arange(order)).mean()

        return jax.lax.map(one, draws)

    found = np.asarray(values(draws), np.float64)
    return PriorAsymmetry(float(found.mean()), float(found.std(ddof=1) / np.sqrt(num_draws)))


def invariant_prior(priors: Mapping[str, dist.Distribution], reps: Reps) -> dict[str, dist.Distribution]:
    """The geometric mean over the group of independent Gaussian priors: the repair of priors that are not invariant.

    Precisions are averaged over orbits, and means are averaged with these weights; a prior that is invariant stays as it is. With
    it, the number of rows plays no part in how equivariant the posterior is.

    Args:
        priors: by site; each Normal, of the site's shape.
        reps: how the group acts on each site; must be (signed) permutations.

    Raises:
        GroupActionError: a representation mixes coordinates.
        OptionError: a prior is not an independent Gaussian.
    """
    out: dict[str, dist.Distribution] = dict(priors)
    for name, rep in reps.items():
        if name not in priors:
            raise OptionError(f"reps name the site {name!r}, which has no prior here; there are {list(priors)}")
        fn: Any = priors[name]
        shape = tuple(fn.batch_shape) + tuple(fn.event_shape)
        part = gaussian_part(fn, shape)
        if part is None or part.variances is None:
            raise OptionError(f"the prior of {name!r} is {type(fn).__name__}: the repair is for independent Gaussians")
        if not rep.is_monomial:
            raise GroupActionError(
                f"{rep} on site {name!r} mixes coordinates: the geometric mean of independent Gaussians is correlated"
            )
        axes = tuple(range(len(shape)))
        precision = (1 / part.variances).reshape(shape)
        unsigned = rep if rep.is_permutation else type(rep)(rep.group, rep.shape, rep.source)
        mean_precision = unsigned.project(precision, axes)
        mean = rep.project(precision * part.mean.reshape(shape), axes) / mean_precision
        out[name] = dist.Normal(mean, 1 / jnp.sqrt(mean_precision)).to_event(len(shape))
    return out
