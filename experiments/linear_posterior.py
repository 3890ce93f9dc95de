"""The exact posterior of a linear regression on full orbits: how far a prior without symmetry makes it from invariant."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bayes_sym import datasets, groups, representations
from bayes_sym.inference import invariant_prior
from bayes_sym.representations import Representation


__all__ = ["PRIORS", "exact_posterior", "linear"]

PRIORS = ("invariant", "random", "repaired")
"""A prior with mean 0, one whose means and scales differ from weight to weight, and that one's geometric mean over the group."""

_FROM = 320  # where slopes begin: below, the prior still decides directions that the data do not show


def exact_posterior(
    orbits: np.ndarray, y: np.ndarray, noise: float, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of w for y = x w + noise on full orbits (order, N, dim), each counted as one row; w ~ N(mean, scale^2)."""
    order = len(orbits)
    gram = np.einsum("gni,gnj->ij", orbits, orbits) / (order * noise**2)
    precision = gram + np.diag(scale**-2.0)
    weighted = np.einsum("gni,n->i", orbits, y) / (order * noise**2) + mean / scale**2
    return np.linalg.solve(precision, weighted), np.linalg.inv(precision)


def linear(rows: tuple[int, ...], seed: int) -> list[dict[str, Any]]:
    """The closed forms for every prior and number of rows, in float64."""
    action = representations.regular(groups.cyclic(4)) * representations.trivial(groups.cyclic(4), 2)
    data = datasets.linear_gaussian(action, max(rows), seed=seed)
    found = []
    for name, (mean, scale) in _linear_priors(action, seed).items():
        own = []
        for count in rows:
            m, covariance = exact_posterior(data.orbits[:, :count], data.y[:count], data.noise, mean, scale)
            moved = [(g @ m, g @ covariance @ g.T) for g in action.matrices()]
            own.append(
                {
                    "part": "linear",
                    "prior": name,
                    "num_train": count,
                    "kl": float(np.mean([_gaussian_kl(m, covariance, *other) for other in moved])),
                    "kl_by_prior": _prior_gap(m, covariance, mean, scale, action),
                    # of white inputs: E (g x . m - x . m)^2 = |g^-1 m - m|^2
                    "defect": float(np.mean([((other - m) ** 2).sum() for other, _ in moved])),
                }
            )
        own[-1] |= {"kl_slope": _slope(own, "kl"), "defect_slope": _slope(own, "defect")}
        found += own
    return found


def _linear_priors(action: Representation, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Means and scales of each of the `PRIORS`."""
    generator = np.random.default_rng([seed, 1])
    mean, scale = generator.standard_normal(action.dim), np.exp(0.3 * generator.standard_normal(action.dim))
    with jax.enable_x64(True):
        repaired: Any = invariant_prior({"w": dist.Normal(jnp.asarray(mean), jnp.asarray(scale)).to_event(1)}, {"w": action})["w"]
        base = np.asarray(repaired.base_dist.loc), np.asarray(repaired.base_dist.scale)
    zero = np.zeros(action.dim), np.ones(action.dim)
    return dict(zip(PRIORS, (zero, (mean, scale), base), strict=True))


def _gaussian_kl(m: np.ndarray, covariance: np.ndarray, m_: np.ndarray, covariance_: np.ndarray) -> float:
    ratio, gap = np.linalg.solve(covariance_, covariance), m_ - m
    log_det = np.linalg.slogdet(covariance_)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * float(np.trace(ratio) + gap @ np.linalg.solve(covariance_, gap) - len(m) + log_det)


def _prior_gap(m: np.ndarray, covariance: np.ndarray, mean: np.ndarray, scale: np.ndarray, action: Representation) -> float:
    """mean_g E_q[log p(w) - log p(g^-1 w)] for q = N(m, covariance) and the prior p = N(mean, scale^2)."""

    def expected_square(turn: np.ndarray) -> float:
        return float(((((turn @ m) - mean) / scale) ** 2).sum() + (np.diag(turn @ covariance @ turn.T) / scale**2).sum())

    every = [expected_square(g) for g in action.matrices()]  # over all g, the inverses run over the group too
    return 0.5 * float(np.mean(every) - every[0])


def _slope(rows: list[dict[str, Any]], key: str) -> float | None:
    """Of log(key) against log N from `_FROM` rows on; None where the values are rounding errors of 0."""
    used = [row for row in rows if row["num_train"] >= _FROM]
    values = np.array([row[key] for row in used])
    if len(used) < 2 or values.min() < 1e-11:
        return None
    return float(np.polyfit(np.log([row["num_train"] for row in used]), np.log(values), 1)[0])
