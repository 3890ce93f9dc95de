"""The scores of a comparison where values are predicted: of test rows, of all their transforms, and after averaging over the orbit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from bayes_sym.diagnostics import equivariance_error_from_draws
from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from .pointwise import pointwise_log_likelihood
from .posterior import Posterior, center_of
from .rows import Data


__all__ = ["log_likelihood_of_draws", "moved_values", "value_scores"]


def moved_values(action: Representation, output: Representation | None, y: np.ndarray) -> np.ndarray:
    """The observations at every transform, (order, rows, ...): rho(g) y, or y itself where the output does not move.

    Raises:
        OptionError: `output` is of another group, acts on another shape, or changes lengths, so that densities would change.
    """
    order = action.group.order
    if output is None:
        return np.broadcast_to(y, (order, *y.shape))
    if output.group != action.group or output.shape != y.shape[1:] or not output.is_orthogonal:
        raise OptionError(
            f"output must be an orthogonal representation of {action.group.name} on observations of shape {y.shape[1:]}, got {output}"
        )
    return np.stack([np.asarray(output.transform(g, jnp.asarray(y))) for g in range(order)])


def log_likelihood_of_draws(posterior: Posterior, key: jax.Array, data: Data, num_draws: int) -> np.ndarray:
    """log p(y | x, draw), (draws, rows), with the model linearised where the posterior asks for it.

    Args:
        posterior: of which to draw; the draws are those of `predict` with this key.
        key: the random key.
        data: the arguments of the model, with the observations.
        num_draws: how many draws.
    """
    z = posterior.sample_unconstrained(key, num_draws)
    return pointwise_log_likelihood(posterior.problem, z, center_of(posterior, None), data, draw_batch=8, data_batch=1024)


def value_scores(
    posterior: Posterior,
    key: jax.Array,
    predicted: np.ndarray,
    images: np.ndarray,
    values: np.ndarray,
    output: Representation | None,
) -> dict[str, float]:
    """Quality and symmetry of predicted values.

    Negative log-likelihoods are those of the mixture over draws, and for the orbit average over draws and transforms, in nats per
    row. Errors are root mean squares in the units of the observations, over rows and coordinates.

    Args:
        posterior: that predicted.
        key: the random key of the draws.
        predicted: means by draw, (draws, order, rows, ...).
        images: all transforms of all inputs, element-major (order * rows, ...).
        values: the observations at every transform, (order, rows, ...).
        output: how the observations move, or None.
    """
    draws, order, count = predicted.shape[:3]
    data = (images, values.reshape(-1, *values.shape[2:]))
    likelihood = log_likelihood_of_draws(posterior, key, data, draws).reshape(draws, order, count)
    everywhere = logsumexp(likelihood, axis=0) - np.log(draws)
    averaged = logsumexp(likelihood, axis=(0, 1)) - np.log(draws * order)
    mean = predicted.mean(axis=0, dtype=np.float64)
    error = equivariance_error_from_draws(predicted, output)
    back = mean
    if output is not None:
        back = np.stack([np.asarray(output.transform(output.group.inverse[g], jnp.asarray(mean[g]))) for g in range(order)])
    by_row = everywhere.mean(axis=0)  # transforms of one row are not independent, so rows are the clusters
    return {
        "rmse": _rmse(mean[0] - values[0]),
        "orbit_rmse": _rmse(mean - values),
        "nll": -float(everywhere.mean()),
        "nll_se": float(by_row.std(ddof=1) / np.sqrt(count)),
        "equivariance_error": float(error.predictive),
        "equivariance_error_se": float(error.predictive_se),
        "member_error": float(error.member),
        "averaged_rmse": _rmse(back.mean(axis=0) - values[0]),
        "averaged_nll": -float(averaged.mean()),
        "num_draws": draws,
    }


def _rmse(gap: np.ndarray) -> float:
    return float(np.sqrt(np.mean(gap**2)))
