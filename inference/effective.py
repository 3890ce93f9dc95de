"""Effective numbers of parameters: how many of a site's weights the data determine, rather than the prior."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bayes_sym._precision import full_precision
from bayes_sym.errors import CurvatureError

from . import rows
from .curvature.measure import measure
from .curvature.pieces import Piece
from .curvature.site_priors import prior_parts
from .curvature.tapped import Basis
from .curvature.view import Probes
from .evidence import as_probes, check_options, split_sites, unconstrained
from .problem import Problem, Values
from .rows import Data


__all__ = ["effective_parameters", "gammas"]


@full_precision
def effective_parameters(
    problem: Problem,
    params: Values,
    *data: Any,
    curvature: str = "ekfac",
    probes: int | str = "exact",
    key: jax.Array | None = None,
    optimise: Sequence[str] = (),
    basis: Basis | None = None,
    chunk: int | None = None,
) -> dict[str, jax.Array]:
    """gamma = tr[G (G + D)^-1] of every site: between 0 and its number of parameters (MacKay 1992).

    Worked out as the derivative of log|I + D^-1 G| with respect to the logarithm of the site's prior covariance, so it
    is whatever the curvature says it is. Where the evidence is stationary in the strength of a group of sites, their
    scatter (theta - mean)' D (theta - mean) equals their gamma.

    Args:
        problem: the model.
        params: constrained values of all latent sites.
        data: the arguments of the model.
        curvature, probes, key, optimise, basis, chunk: as in `log_evidence`; ``"ntk"`` gives none by site.

    Returns:
        A number by site, of the sites that are not in `optimise`.

    Raises:
        CurvatureError: ``"ntk"``, or an unknown curvature.
        OptionError: sites that are missing from `params`, or an option out of its range.
    """
    data = rows.as_arrays(data)
    free, fixed = split_sites(problem, params, data, optimise)
    check_options(curvature, None, 1, chunk)
    if curvature == "ntk":
        raise CurvatureError("curvature='ntk' has no curvature of the weights to count them by: use 'ekfac' or 'full'")
    return _gammas_at(problem, free, fixed, data, curvature, as_probes(probes, key), basis, chunk)


@partial(jax.jit, static_argnames=("problem", "curvature", "chunk"))
def _gammas_at(
    problem: Problem,
    free: Values,
    fixed: Values,
    data: Data,
    curvature: str,
    probes: Probes,
    basis: Basis | None,
    chunk: int | None,
) -> dict[str, jax.Array]:
    z = unconstrained(problem, free, fixed, data)
    return gammas(problem, z, fixed, data, measure(problem, z, fixed, data, curvature, probes=probes, basis=basis, chunk=chunk))


def gammas(problem: Problem, z: Values, fixed: Values, data: Data, pieces: tuple[Piece, ...]) -> dict[str, jax.Array]:
    """The same from a curvature that was measured before, at unconstrained `z`."""

    def log_det_ratio(log_scales: dict[str, jax.Array]) -> jax.Array:
        scales = {name: jnp.exp(value) for name, value in log_scales.items()}
        parts = prior_parts(problem, z, fixed, data, tuple(piece.layout for piece in pieces), scales)
        return sum((piece.log_det_ratio(part) for piece, (part, _) in zip(pieces, parts, strict=True)), jnp.zeros(()))

    found = jax.grad(log_det_ratio)({name: jnp.zeros(()) for name in z})
    return {name: jnp.maximum(gamma, 0) for name, gamma in found.items()}  # rounding can take a dead site below
