"""Closed-form coordinate updates of Gamma-distributed prior precisions, found without knowing how the model writes them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import _numpyro
from bayes_sym.errors import OptionError

from .families import Gamma, PerSite
from .families.gamma import GammaParams
from .families.prior_terms import expected_log_prior
from .problem import Problem, Values
from .rows import Data


__all__ = ["check_conjugate", "conjugate_family", "conjugate_update"]


def conjugate_family(family: Any, sites: tuple[str, ...]) -> Any:
    """The family with a Gamma distribution for each of these sites."""
    if not sites:
        return family
    members = family.members if isinstance(family, PerSite) else ()
    rest = family.otherwise if isinstance(family, PerSite) else family
    return PerSite((*((site, Gamma()) for site in sites), *members), rest)


def conjugate_update(problem: Problem, family: PerSite, params: Any, sites: tuple[str, ...], z: Values, data: Data) -> Any:
    """The parameters with the optimal Gamma distribution at each of `sites`, given the rest of q.

    For a precision t the terms of the ELBO that contain it are E_q[log p(w | t)] + log p(t) = (a - 1) log t - b t + const, elementwise, if
    the model is conjugate: Gaussian weights whose precision is proportional to t, and a Gamma prior. Then q(t) = Gamma(a, b) is
    optimal. Both numbers are read off the first two derivatives of that sum at any one t: a - 1 = -t^2 f'', b = (a - 1)/t - f'.

    Args:
        problem: the model.
        family, params: q.
        sites: the precisions.
        z: a draw of q in unconstrained coordinates; other strengths are taken from it.
        data: the arguments of the model.
    """
    out = dict(params)
    for site in sites:
        at = str(family._index(site))
        found = _gamma_of(problem, family, params, site, z, data, jnp.exp(z[site]))
        own = out[at]
        log_shape = {**own.log_shape, site: jnp.log(found[0])}
        log_rate = {**own.log_rate, site: jnp.log(found[1])}
        out[at] = GammaParams(log_shape, log_rate)
    return out


def _gamma_of(
    problem: Problem, family: PerSite, params: Any, site: str, z: Values, data: Data, value: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Shape and rate from the derivatives at `value`."""

    def terms(t: jax.Array) -> jax.Array:
        sites, _ = problem.latent_trace(data, unconstrained={**z, site: jnp.log(t)})
        total = jnp.zeros(())
        for name, found in sites.items():
            if found["type"] != "sample" or name not in z:
                continue
            if name == site:
                total = total + _numpyro.log_prob_of(found)
                continue
            exact = expected_log_prior(family, params, name, found["fn"], found["value"].shape)
            total = total + (_numpyro.log_prob_of(found) if exact is None else exact)
        return total

    first, second = jax.jvp(jax.grad(terms), (value,), (jnp.ones_like(value),))
    less_one = -(value**2) * second
    return 1 + less_one, less_one / value - first


def check_conjugate(problem: Problem, family: PerSite, params: Any, sites: tuple[str, ...], z: Values, data: Data) -> None:
    """Refuses sites of which the model is not conjugate: the two numbers must not depend on where they are read off.

    Raises:
        OptionError: naming the site.
    """
    for site in sites:

        @jax.jit
        def both(params: Any, z: Values, data: Data, site: str = site) -> list[tuple[jax.Array, jax.Array]]:
            value = jnp.exp(z[site])
            return [_gamma_of(problem, family, params, site, z, data, factor * value) for factor in (0.5, 2.0)]

        first, second = both(params, z, data)
        same = all(np.allclose(a, b, rtol=1e-2) for a, b in zip(first, second, strict=True))
        if not same or not all(bool((jnp.asarray(leaf) > 0).all()) for leaf in first):
            raise OptionError(
                f"conjugate={site!r}: the model is not conjugate there. A Gamma prior on a precision, and Gaussian weights with variances "
                "proportional to its inverse, would be: Normal(0, 1/sqrt(precision)). Leave the site out, and it is fitted by gradients"
            )
