"""The equivariance defect of a posterior, block by block: memory does not grow with the number of examples."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from tqdm import tqdm

from bayes_sym._precision import full_precision
from bayes_sym.diagnostics import DefectSweep, EquivarianceError, SampledRotations, defect_sweep
from bayes_sym.diagnostics.margins import defect_from_margins
from bayes_sym.errors import GroupActionError, OptionError, ShapeError
from bayes_sym.representations import Representation

from . import rows
from .fit import Fit
from .orbit_sums import Accumulated, OrbitSums, sums_of_block
from .posterior import PointPosterior, Posterior
from .predict import Drawn, blocks_of, draw, means
from .problem import Problem, Values
from .rows import Data


__all__ = ["PosteriorEquivariance", "equivariance_of_draws", "posterior_equivariance"]

_HELD = 2**23  # numbers of predictions that are held at once


class PosteriorEquivariance(NamedTuple):
    """What `posterior_equivariance` finds.

    Attributes:
        error: the predictive and the member defect, with standard errors over examples and draws.
        sweep: the defect against the number of draws, or None if it was not asked for.
        member_of: mean_x |d_t(x, g)|^2 of every draw at every element, (num_draws, order); their mean is ``error.member``.
        predictive_of: the predictive defect at every element, (order,); their mean is ``error.predictive``.
    """

    error: EquivarianceError
    sweep: DefectSweep | None
    member_of: np.ndarray
    predictive_of: np.ndarray


@full_precision
def posterior_equivariance(
    problem: Problem,
    fit: Fit | Posterior | Mapping[str, jax.Array],
    key: jax.Array,
    x: ArrayLike,
    action: Representation | SampledRotations,
    output: Representation | None = None,
    *,
    num_draws: int = 100,
    draw_batch: int = 16,
    data_batch: int | None = None,
    sizes: Sequence[int] | None = None,
    repeats: int | None = None,
    clusters: ArrayLike | None = None,
    site: str | None = None,
    linearise: bool | None = None,
    progress: bool = True,
) -> PosteriorEquivariance:
    """The equivariance defects of a posterior's predictions, as `equivariance_error_from_draws` gives them.

    Predictions are those of `predict` for the same key. They are never all held: a block of B examples is predicted at all
    transforms by all draws, and reduced to sums. With T draws, |G| elements and C outputs per example, memory holds

        the draws of the weights, and T |G| B C <= 2^23 numbers (32 MiB) of predictions with two more arrays of that size,

    whatever the number of examples (or T |G| C where that alone is more), beside the model's own arrays for draw_batch |G| B rows.
    Sums over blocks are in float64.

    Args:
        problem: the model, a function of `x` and the observations.
        fit: a fit, a posterior, or samples of all latent sites by name, (draws, ...).
        key: the random key of the draws.
        x: inputs (num_examples, *action.shape, ...).
        action: the representation on the inputs, or `SampledRotations`.
        output: the representation on the predicted means, whose first axes are ``output.shape``; None for invariant outputs.
        num_draws: posterior draws; a point is one draw, and samples are all used.
        draw_batch: draws per program, at most.
        data_batch: B, examples per block, at most; None for what the bound above leaves. Both are lowered where the model's arrays
            would leave the caches, as in `predict`.
        sizes: numbers of draws per set, for a sweep from the same predictions, as in `defect_sweep`.
        repeats: sets per size, as in `defect_sweep`.
        clusters: identifiers of the originals that examples were made from, as in `defect`.
        site: the observed site to predict; None if the model has one.
        linearise: as in `predict`.
        progress: whether to show a bar over examples on stderr.

    Returns:
        The defects, and the sweep if `sizes` are given.

    Raises:
        OptionError: an option is out of range, there are two draws only, or the sizes of the sweep do not fit the draws.
        GroupActionError: `action` and `output` represent different groups.
        ShapeError: the inputs or the outputs do not have the shape that is acted on.
        DataError: the inputs or a prediction are not finite.
    """
    if min(num_draws, draw_batch, 1 if data_batch is None else data_batch) < 1:
        raise OptionError(f"num_draws, draw_batch and data_batch must be at least 1, got {num_draws}, {draw_batch}, {data_batch}")
    point = isinstance(fit.posterior if isinstance(fit, Fit) else fit, PointPosterior)
    drawn = draw(problem, fit, key, 1 if point else num_draws, linearise)
    return equivariance_of_draws(
        drawn,
        x,
        action,
        output,
        draw_batch=draw_batch,
        data_batch=data_batch,
        sizes=sizes,
        repeats=repeats,
        clusters=clusters,
        site=site,
        progress=progress,
    )


@full_precision
def equivariance_of_draws(
    drawn: Drawn,
    x: ArrayLike,
    action: Representation | SampledRotations,
    output: Representation | None,
    *,
    draw_batch: int = 16,
    data_batch: int | None = None,
    sizes: Sequence[int] | None = None,
    repeats: int | None = None,
    clusters: ArrayLike | None = None,
    site: str | None = None,
    progress: bool = True,
) -> PosteriorEquivariance:
    """As `posterior_equivariance`, from draws that are made already."""
    if output is not None and output.group != action.group:
        raise GroupActionError(f"the action is of {action.group.name}, but the output representation of {output.group.name}")
    data = rows.as_arrays((x,))
    rows.check_finite(data)
    total, order = rows.num_rows(data), action.group.order
    if drawn.num_draws == 2:
        raise OptionError("two draws are too few for a jackknife over draws: ask for at least 3, or 1 for a point estimate")
    # An empty run of the sweep, so that sizes that do not fit are refused before any compute.
    plan = None if sizes is None else defect_sweep(np.zeros((drawn.num_draws, 1, 1)), sizes, repeats)
    shape = _checked_outputs(drawn, site, data, action, output)
    bound = max(1, _HELD // (drawn.num_draws * order * math.prod(shape)))
    examples = min(total, bound if data_batch is None else min(bound, data_batch))
    at_once, on_orbits = blocks_of(drawn, site, data, min(draw_batch, drawn.num_draws), order * examples)
    examples = max(1, on_orbits // order)
    values = _in_blocks(drawn.values, at_once)
    sets = () if plan is None else tuple((size, plan.repeats) for size in plan.sizes)
    sums = Accumulated.zeros(drawn.num_draws, order, total, sets)
    with tqdm(total=total, desc="examples on their orbits", disable=not progress, file=sys.stderr, leave=False) as bar:
        waiting: tuple[int, OrbitSums] | None = None
        for start in range(0, total, examples):
            index = np.minimum(np.arange(start, start + examples), total - 1)
            valid = np.arange(start, start + examples) < total
            found = sums_of_block(
                drawn.problem,
                site,
                action,
                output,
                drawn.num_draws,
                sets,
                values,
                drawn.center,
                data[0][index],
                jnp.asarray(valid),
            )
            if waiting is not None:  # added up while the next block is under way
                bar.update(sums.add(*waiting))
            waiting = start, found
        assert waiting is not None
        bar.update(sums.add(*waiting))
    squares, squares_of, cross, cross_of, elements = (part / order for part in sums.margins)
    error = defect_from_margins(squares.sum(axis=1), squares_of, cross, cross_of, clusters=clusters)
    if isinstance(action, SampledRotations):
        error = replace(error, floor=action.floor(data[0]))
    member_of = np.pad(squares * order / total, ((0, 0), (1, 0)))
    pairs = max(1, drawn.num_draws * (drawn.num_draws - 1))
    predictive_of = member_of[0] if drawn.num_draws == 1 else np.pad(elements * order / (total * pairs), (1, 0))
    sweep = None
    if plan is not None:
        unbiased, plug_in = (part / (order * total) for part in sums.sweep())
        sweep = DefectSweep(plan.sizes, unbiased, plug_in)
    return PosteriorEquivariance(error, sweep, member_of, predictive_of)


def _checked_outputs(
    drawn: Drawn, site: str | None, data: Data, action: Representation | SampledRotations, output: Representation | None
) -> tuple[int, ...]:
    """The shape of the prediction at one example, from an abstract run of one draw."""

    def one(x: jax.Array) -> jax.Array:
        first = {name: value[:1] for name, value in drawn.values.items()}
        return means(drawn.problem, site, first, drawn.center, (action.transform(0, x),))

    shape = jax.eval_shape(one, data[0][:1]).shape[2:]
    if output is not None and shape[: len(output.shape)] != output.shape:
        raise ShapeError(
            f"the output representation acts on {output.shape}, but the model predicts a mean of shape {shape} at every example: leave "
            "`output` out for invariant predictions, or build it for this shape"
        )
    return shape


def _in_blocks(values: Values, size: int) -> Values:
    """(draws, ...) as (blocks, size, ...), the last block filled up with the last draw."""
    count = len(next(iter(values.values())))
    index = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    return {name: value[index] for name, value in values.items()}
