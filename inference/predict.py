"""Predictions of a posterior, in blocks of draws and rows so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import _numpyro
from bayes_sym._precision import full_precision
from bayes_sym.errors import ModelError, OptionError

from . import rows
from .first_order import first_order
from .fit import Fit
from .footprint import block_sizes, numbers_per_row
from .posterior import Posterior, center_of, fitted_problem
from .problem import Problem, Values
from .rows import Data


__all__ = ["Drawn", "blocks_of", "draw", "means", "predict"]

_SMALL = 1024  # draws times rows of a block that is not worth a look at the model


@full_precision
def predict(
    problem: Problem,
    fit: Fit | Posterior | Mapping[str, jax.Array],
    key: jax.Array,
    *inputs: Any,
    num_draws: int = 100,
    draw_batch: int = 32,
    data_batch: int = 1024,
    site: str | None = None,
    linearise: bool | None = None,
) -> np.ndarray:
    """The mean of the observation for every posterior draw: class probabilities, rates, or locations.

    The same key gives the same draws of the weights, whatever the inputs: draw t of two calls can be compared.

    Args:
        problem: the model.
        fit: a fit, a posterior, or samples of all latent sites by name, (draws, ...).
        key: the random key of the draws.
        inputs: the arguments of the model without the observations.
        num_draws: posterior draws (ignored where samples are given: all are used).
        draw_batch: draws per block, at most.
        data_batch: rows per block, at most: fewer are taken where the model's largest array would exceed 2^21 numbers (2^26 on an
            accelerator), which on a CPU takes three times as long.
        site: the observed site to predict; None if the model has one.
        linearise: whether to linearise the model's distribution parameters around the posterior mean, draw by draw; None
            for what the posterior recommends (True for Laplace). The first-order expansion is what a Gauss-Newton curvature
            is exact for; sampling weights instead is noisier.

    Returns:
        float (draws, rows, ...) on the host: probabilities (draws, rows, classes) for a Categorical.
    """
    if min(num_draws, draw_batch, data_batch) < 1:
        raise OptionError(f"num_draws, draw_batch and data_batch must be at least 1, got {num_draws}, {draw_batch}, {data_batch}")
    data = rows.as_arrays(inputs)
    rows.check_finite(data)
    total = rows.num_rows(data)
    drawn = draw(problem, fit, key, num_draws, linearise)
    draw_batch, size = blocks_of(drawn, site, data, min(draw_batch, drawn.num_draws), min(data_batch, total))
    # Blocks that would be short are filled up with repeated rows, so that one program serves them all.
    blocks = []
    for first in range(0, drawn.num_draws, draw_batch):
        some = {name: value[first : first + draw_batch] for name, value in drawn.values.items()}
        parts = []
        for start in range(0, total, size):
            index = np.minimum(np.arange(start, start + size), total - 1)
            part = np.asarray(_block(drawn.problem, site, some, drawn.center, drawn.problem.take(data, index)))
            parts.append(part[:, : min(size, total - start)])
        blocks.append(np.concatenate(parts, axis=1))
    return np.concatenate(blocks)


class Drawn(NamedTuple):
    """Draws of the weights, (draws, ...) by site, and what a prediction from them needs beside the data.

    Attributes:
        problem: the problem with the modules that the draws are for.
        values: the draws; in unconstrained coordinates if there is a center.
        center: the mean around which to linearise, or None.
    """

    problem: Problem
    values: Values
    center: Values | None

    @property
    def num_draws(self) -> int:
        """The number of draws."""
        return len(next(iter(self.values.values())))


def draw(
    problem: Problem, fit: Fit | Posterior | Mapping[str, jax.Array], key: jax.Array, num_draws: int, linearise: bool | None
) -> Drawn:
    """The draws that `predict` makes for this key; samples are taken as they are.

    Raises:
        OptionError: the model is to be linearised where there is no mean, or the posterior is of another problem.
    """
    posterior = fit.posterior if isinstance(fit, Fit) else fit
    if not isinstance(posterior, Posterior):
        if linearise:
            raise OptionError("linearise=True needs a posterior with a mean, not samples")
        return Drawn(problem, {name: jnp.asarray(value) for name, value in posterior.items()}, None)
    if not problem.modules:
        problem = fitted_problem(posterior, problem)
    center = center_of(posterior, linearise)
    if center is None:
        return Drawn(problem, posterior.sample(key, num_draws), None)
    return Drawn(problem, posterior.sample_unconstrained(key, num_draws), center)


def blocks_of(drawn: Drawn, site: str | None, data: Data, draws: int, rows_at_once: int) -> tuple[int, int]:
    """(draws, rows) per block, at most these: fewer where the model's largest arrays would leave the caches."""
    if draws * rows_at_once <= _SMALL:
        return draws, rows_at_once
    leaves, structure = jax.tree.flatten(rows.shapes(data))
    one = tuple((name, value.shape[1:], value.dtype) for name, value in drawn.values.items())
    numbers = _numbers(drawn.problem, site, one, drawn.center is not None, structure, tuple(leaves))
    return block_sizes(numbers, draws, rows_at_once)


@lru_cache(maxsize=64)
def _numbers(problem: Problem, site: str | None, one: tuple[Any, ...], linear: bool, structure: Any, leaves: Any) -> int:
    values = {name: jnp.zeros(shape, dtype) for name, shape, dtype in one}
    data = jax.tree.unflatten(structure, leaves)
    mask = rows.row_mask(data, problem.row_args)

    def of_rows(count: int) -> Data:
        shapes = [
            jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype) if is_row else leaf
            for leaf, is_row in zip(leaves, mask, strict=True)
        ]
        return jax.tree.unflatten(structure, shapes)

    given = {"unconstrained" if linear else "constrained": values}
    return numbers_per_row(lambda data: _mean(_predicted(problem, site, data, **given)), of_rows) * (1 + linear)


@partial(jax.jit, static_argnames=("problem", "site"))
def _block(problem: Problem, site: str | None, draws: Values, center: Values | None, data: Data) -> jax.Array:
    return means(problem, site, draws, center, data)


@full_precision
def means(problem: Problem, site: str | None, draws: Values, center: Values | None, data: Data) -> jax.Array:
    """The mean of the observation at every row for every draw, (draws, rows, ...), in one piece."""
    if center is None:
        return jax.vmap(lambda values: _mean(_predicted(problem, site, data, constrained=values)))(draws)

    def parameters(z: Values) -> Any:
        return _predicted(problem, site, data, unconstrained=z)

    def one(z: Values) -> jax.Array:
        step = {name: z[name] - center[name] for name in center}
        value, tangent = jax.jvp(parameters, (center,), (step,))
        return _mean(first_order(value, tangent))

    return jax.vmap(one)(draws)


def _mean(fn: Any) -> jax.Array:
    """The mean of an observation; the probabilities of a categorical one."""
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    probabilities = base.probs if type(base).__name__.startswith("Categorical") else fn.mean
    return jnp.asarray(probabilities)


def _predicted(problem: Problem, site: str | None, data: Data, **values: Any) -> Any:
    """The distribution of the observation."""
    sites, _ = problem.trace(data, **values)
    given = {name for group in values.values() for name in group}
    open_sites = [
        name
        for name, found in sites.items()
        if found["type"] == "sample" and name not in given and _numpyro.in_plate(found, problem.data_plate)
    ]
    if site is None and len(open_sites) == 1:
        site = open_sites[0]
    if site not in open_sites:
        raise ModelError(
            f"predict needs one site under the data plate {problem.data_plate!r} to predict, got site={site!r} of {open_sites}: pass the "
            "inputs without the observations (their default in the model is None), and site='...' if there are several"
        )
    return sites[site]["fn"]
