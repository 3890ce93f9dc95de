"""A linear-Gaussian regression under a group, in which what a prior without symmetry costs is known in closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import OptionError
from ..representations import Representation
from .sets import between, whole_number


__all__ = ["LinearGaussian", "linear_gaussian"]


class LinearGaussian(NamedTuple):
    """Rows of a linear regression, and the prior of its weights.

    The model is w ~ N(prior_mean, prior_sd^2 I), y | x, w ~ N(x w, noise^2).

    Attributes:
        x: inputs (N, dim), float64.
        y: outputs (N,), float64.
        orbits: all inputs under all elements, (order, N, dim): ``orbits[g, n]`` is rho(g) x[n]. Each row of them stands for
            1/order of a row.
        weights: the weights that made the outputs, (dim,): invariant, so that outputs are the same along orbits.
        prior_mean: (dim,).
        prior_sd: the standard deviation of the prior.
        noise: the standard deviation of the outputs.
    """

    x: np.ndarray
    y: np.ndarray
    orbits: np.ndarray
    weights: np.ndarray
    prior_mean: np.ndarray
    prior_sd: float
    noise: float


def linear_gaussian(
    representation: Representation,
    num_rows: int,
    *,
    seed: int = 0,
    prior: str = "invariant",
    prior_sd: float = 1.0,
    noise: float = 0.5,
) -> LinearGaussian:
    """White inputs, invariant weights, and a prior whose mean is invariant or random.

    With full augmentation the posterior is N(m*, L^-1) with

        L = sum_n mean_g (rho(g) x_n)(rho(g) x_n)' / noise^2 + I / prior_sd^2,
        L m* = sum_n mean_g (rho(g) x_n) y_n / noise^2 + prior_mean / prior_sd^2,

    whose first parts are invariant. So the posterior q is invariant exactly if the prior's mean is, and otherwise

        mean_g KL(q || g q) = <(I - P) m*, (I - P) prior_mean> / prior_sd^2,

    with P the projector on invariant weights: proportional to 1/N for many rows.

    Args:
        representation: an orthogonal representation on the inputs; the weights move the same way.
        num_rows: N, at least 1. More rows contain the fewer of the same seed.
        seed: draws everything.
        prior: ``"random"`` for a mean drawn from N(0, prior_sd^2 I), or ``"invariant"`` for its projection.
        prior_sd: the standard deviation of the prior.
        noise: the standard deviation of the outputs.

    Raises:
        DataError: `num_rows` is not a whole number of at least 1.
        OptionError: another prior, an option out of range, or a representation that is not orthogonal.
    """
    whole_number("num_rows", num_rows, 1)
    between("prior_sd", prior_sd, 1e-6, 1e6)
    between("noise", noise, 1e-6, 1e6)
    if prior not in ("invariant", "random"):
        raise OptionError(f"prior must be 'invariant' or 'random', got {prior!r}")
    if not representation.is_orthogonal:
        raise OptionError("the representation must be orthogonal: white inputs are not invariant under another")
    generator, dim, projector = np.random.default_rng(seed), representation.dim, representation.projector
    weights = projector @ generator.standard_normal(dim)
    mean = prior_sd * generator.standard_normal(dim)
    rows = generator.standard_normal((num_rows, dim + 1))
    x = rows[:, :dim]
    y = x @ weights + noise * rows[:, dim]
    orbits = np.einsum("gij,nj->gni", representation.matrices(), x)
    return LinearGaussian(x, y, orbits, weights, projector @ mean if prior == "invariant" else mean, prior_sd, noise)
