"""The equivariance error of a posterior under an infinitesimal transform of its inputs: the Lie derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._precision import full_precision
from ..errors import DataError, ShapeError
from .estimates import EquivarianceError, defect
from .generators import Generator


__all__ = ["lie_derivative"]


@full_precision
def lie_derivative(
    predict: Callable[[jax.Array], jax.Array],
    x: ArrayLike,
    generator: Generator,
    output: Generator | None = None,
    *,
    clusters: ArrayLike | None = None,
) -> EquivarianceError:
    """The local equivariance error of predictions F_t under a continuous group, per output dimension.

        L_t(x) = J_{F_t}(x) A x - B F_t(x),    member = E_x E_t |L_t|^2 / dim,    predictive = E_x |E_t L_t|^2 / dim

    with A the generator on inputs and B that on outputs: how fast f(exp(s A) x) and exp(s B) f(x) part at s = 0 (Gruver et al. 2023,
    "The Lie derivative for measuring learned equivariance", who take A alone, and single nets). The estimators and their standard errors
    are those of `defect`, in squared units of the outputs per squared unit of the generator. The derivative is one
    `jax.jvp`, at the cost of about two predictions.

    Args:
        predict: maps inputs like `x` to draws (num_draws, num_examples, *outputs), one draw or at least 3; differentiable by jax.
        x: inputs, as floats (num_examples, ...).
        generator: how inputs move, e.g. `ImageRotation()`.
        output: how outputs should move; None for invariant outputs.
        clusters: as in `defect`.

    Returns:
        The errors; `floor` is |R(a) R(b) x - R(a + b) x| / |x| of the inputs' own interpolation, at a = 0.3 and b = 0.5.

    Raises:
        ShapeError: `predict` does not return draws of these examples, or x holds no floats.
        DataError: a derivative is not finite.
        OptionError: there are two draws.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ShapeError(f"inputs must be floats to have a derivative, got {x.dtype}: convert first")
    here, moved = jax.jvp(lambda x: jnp.asarray(predict(x)), (x,), (generator(x),))
    if here.ndim < 2 or here.shape[1] != x.shape[0]:
        raise ShapeError(
            f"predict must return draws (num_draws, num_examples, *outputs) for its {x.shape[0]} examples, got shape {here.shape}; add a "
            "first axis of length 1 to a point estimate"
        )
    if output is not None:
        flat = here.reshape(-1, *here.shape[2:])
        moved = moved - output(flat).reshape(here.shape)
    derivative = np.asarray(moved, np.float64)
    if not np.isfinite(derivative).all():
        raise DataError("the derivatives of the predictions are not all finite: look at the predictions at these inputs")
    found = defect([derivative / math.sqrt(math.prod(here.shape[2:]))], clusters=clusters)
    return replace(found, floor=generator.floor(x))
