"""compare() fits several schemes and models to one classification task and puts them into one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from bayes_sym.diagnostics import calibration, equivariance_error_from_draws, orbit_agreement
from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from .comparison import Comparison
from .fit import Fit, fit
from .posterior import PointPosterior, Posterior
from .predict import predict
from .problem import Problem
from .rows import Data
from .scheme import Scheme
from .selection import BestOnValidation


__all__ = ["Cell", "compare"]


@dataclass(frozen=True)
class Cell:
    """One row of a comparison: a problem, a scheme, and how long to fit.

    Attributes:
        name: the method's name in the table.
        problem: the model.
        scheme: the scheme.
        num_steps: steps of the fit.
        batch_size: rows per step, or None for all.
        select: ``"upright"`` or ``"orbit"`` keeps the posterior that is best on the validation images, or on all their
            transforms; None keeps the last one.
        data: other training data than the comparison's, e.g. rotated images.
    """

    name: str
    problem: Problem
    scheme: Scheme
    num_steps: int = 1000
    batch_size: int | None = None
    select: str | None = None
    data: Data | None = field(default=None, compare=False)


def compare(
    cells: Sequence[Cell],
    key: jax.Array,
    *data: Any,
    test: tuple[np.ndarray, np.ndarray],
    action: Representation,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    num_draws: int = 32,
    chunk: int = 100,
    progress: bool = True,
    mesh: Mesh | None = None,
    about: Mapping[str, Any] | None = None,
) -> Comparison:
    """Fits every cell and scores it on the test images and on all their transforms.

    Classification with labels that do not change under the group. Every row also carries the scores of its test-time
    orbit average, the trivial way to an invariant prediction.

    Args:
        cells: what to fit; names must differ.
        key: the random key; cells share the key of their posterior draws, not that of their fits.
        data: training arguments of the models, (x, y).
        test: images x (rows, ...) and labels y (rows,).
        action: how the group acts on one image.
        validation: images and labels for cells with `select`.
        num_draws: posterior draws per prediction (one for point estimates).
        chunk: steps between looks at the validation split.
        progress: whether to show bars.
        mesh: devices to shard every batch over.
        about: further facts for the saved results, e.g. the seed.

    Returns:
        The comparison.
    """
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names) or not cells:
        raise OptionError(f"compare needs at least one cell, with different names, got {names}")
    unknown = [cell.select for cell in cells if cell.select not in (None, "upright", "orbit")]
    if unknown:
        raise OptionError(f"select must be None, 'upright' or 'orbit', got {unknown}")
    if validation is None and any(cell.select is not None for cell in cells):
        raise OptionError("cells with select need validation=(x, y): a choice on test data would flatter them")
    rows, fits, posteriors = [], {}, {}
    keys = jax.random.split(key, len(cells) + 2)
    with tqdm(cells, disable=not progress, file=sys.stderr, unit="fit") as bar:
        for cell, fit_key in zip(bar, keys[2:], strict=True):
            bar.set_description(cell.name)
            started = time.perf_counter()
            found, posterior = _fit(cell, fit_key, keys[0], data, validation, action, chunk, progress, mesh)
            scores = _score(posterior, keys[1], test, action, num_draws)
            fits[cell.name], posteriors[cell.name] = found, posterior
            evidence = None if posterior.log_evidence is None else float(posterior.log_evidence)
            rows.append(
                {
                    "method": cell.name,
                    **scores,
                    "log_evidence": evidence,
                    "evidence_kind": posterior.evidence_kind,
                    "parameters": _parameters(posterior),
                    "steps": len(found.losses),
                    "seconds": round(time.perf_counter() - started, 2),
                }
            )
    training = {cell.name: data if cell.data is None else cell.data for cell in cells}
    return Comparison(rows, fits, posteriors, training, dict(about or {}))


def _fit(
    cell: Cell,
    key: jax.Array,
    key_draws: jax.Array,
    data: Data,
    validation: tuple[np.ndarray, np.ndarray] | None,
    action: Representation,
    chunk: int,
    progress: bool,
    mesh: Mesh | None,
) -> tuple[Fit, Posterior]:
    best = None
    if cell.select is not None:
        assert validation is not None
        images, labels = validation
        if cell.select == "orbit":
            images, labels = orbit_images(action, images), np.tile(labels, action.group.order)
        best = BestOnValidation(key_draws, (images,), labels)
    found = fit(
        cell.problem,
        cell.scheme,
        key,
        *(data if cell.data is None else cell.data),
        num_steps=cell.num_steps,
        batch_size=cell.batch_size,
        callbacks=() if best is None else (best,),
        chunk=chunk,
        progress=progress,
        mesh=mesh,
    )
    return found, found.posterior if best is None or best.posterior is None else best.posterior


def orbit_images(action: Representation, x: np.ndarray) -> np.ndarray:
    """All transforms of all images, element-major: (order * rows, ...)."""
    axes = tuple(range(1, 1 + len(action.shape)))
    orbit = np.asarray(action.orbit(x, axes))
    return orbit.reshape(-1, *orbit.shape[2:])


def _score(
    posterior: Posterior, key: jax.Array, test: tuple[np.ndarray, np.ndarray], action: Representation, num_draws: int
) -> dict[str, float]:
    x, y = test
    order = action.group.order
    draws = 1 if isinstance(posterior, PointPosterior) else num_draws
    flat = predict(posterior.problem, posterior, key, orbit_images(action, x), num_draws=draws, draw_batch=8)
    on_orbit = flat.reshape(draws, order, len(x), -1)
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


def _parameters(posterior: Posterior) -> int:
    structure = posterior.problem.structure(*posterior.example)
    return int(sum(np.prod(structure.latent[name].shape, dtype=int) for name in structure.weights))
