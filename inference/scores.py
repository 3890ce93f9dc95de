"""The scores of a comparison on test images, on all their transforms, and after averaging over the orbit; here of classifiers."""

from __future__ import annotations

import jax
import numpy as np

from bayes_sym.diagnostics import calibration, equivariance_error_from_draws, orbit_agreement
from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from .posterior import PointPosterior, Posterior
from .predict import predict
from .value_scores import moved_values, value_scores


__all__ = ["num_weights", "orbit_images", "score"]


def orbit_images(action: Representation, x: np.ndarray) -> np.ndarray:
    """All transforms of all images, element-major: (order * rows, ...)."""
    axes = tuple(range(1, 1 + len(action.shape)))
    orbit = np.asarray(action.orbit(x, axes))
    return orbit.reshape(-1, *orbit.shape[2:])


def score(
    posterior: Posterior,
    key: jax.Array,
    test: tuple[np.ndarray, np.ndarray],
    action: Representation,
    num_draws: int,
    output: Representation | None = None,
) -> dict[str, float]:
    """Quality and symmetry of the predictions of one posterior on the test images and all their transforms.

    Integer labels beside a probability for every class are scored as classes, anything else as values.

    Args:
        posterior: that predicts.
        key: the random key of its draws.
        test: images (rows, ...), and labels or values (rows, ...).
        action: how the group acts on one image.
        num_draws: posterior draws; a point is one draw.
        output: how the group acts on the values of one row; None if they do not change.

    Raises:
        OptionError: `output` does not fit the values, or these are classes.
    """
    x, y = test[0], np.asarray(test[1])
    order = action.group.order
    values = moved_values(action, output, y)
    draws = 1 if isinstance(posterior, PointPosterior) else num_draws
    images = orbit_images(action, x)
    flat = predict(posterior.problem, posterior, key, images, num_draws=draws, draw_batch=8)
    on_orbit = flat.reshape(draws, order, len(x), *flat.shape[2:])
    if not (y.dtype.kind in "iub" and flat.ndim == y.ndim + 2):
        return value_scores(posterior, key, on_orbit, images, values, output)
    if output is not None:
        raise OptionError("output= is for values that the group moves; the labels of classes do not change here: leave it out")
    mean = _normalised(on_orbit.mean(axis=0))
    upright = calibration(mean[0], y)
    everywhere = calibration(mean.reshape(order * len(x), -1), np.tile(y, order))
    averaged = calibration(_normalised(mean.mean(axis=0)), y)
    error = equivariance_error_from_draws(on_orbit)
    agreement = orbit_agreement(mean)
    return {
        "accuracy": upright.accuracy,
        "accuracy_se": upright.accuracy_se,
        "orbit_accuracy": everywhere.accuracy,
        "nll": everywhere.nll,
        "nll_se": _clustered_se(mean, y),
        "ece": everywhere.ece,
        "equivariance_error": float(error.predictive),
        "equivariance_error_se": float(error.predictive_se),
        "member_error": float(error.member),
        "orbit_agreement": agreement.agreement,
        "averaged_accuracy": averaged.accuracy,
        "averaged_nll": averaged.nll,
        "num_draws": draws,
    }


def _normalised(probabilities: np.ndarray) -> np.ndarray:
    return probabilities / probabilities.sum(axis=-1, keepdims=True)


def _clustered_se(mean: np.ndarray, y: np.ndarray) -> float:
    """Standard error of the orbit NLL: transforms of one image are not independent, so images are the clusters."""
    chosen = np.maximum(mean[:, np.arange(len(y)), y], np.finfo(np.float32).tiny)
    return float(np.log(chosen).mean(axis=0).std(ddof=1) / np.sqrt(len(y)))


def num_weights(posterior: Posterior) -> int:
    """Weights and biases of the net, after an expansion those of the expanded one."""
    structure = posterior.problem.structure(*posterior.example)
    return int(sum(np.prod(structure.latent[name].shape, dtype=int) for name in structure.weights))
