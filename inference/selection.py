"""Choosing how long to train on a validation split: keeps the best posterior, and stops when it no longer improves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from scipy.special import logsumexp

from bayes_sym.errors import OptionError

from .fit import Progress
from .posterior import PointPosterior, Posterior
from .predict import predict
from .value_scores import log_likelihood_of_draws


__all__ = ["BestOnValidation"]


@dataclass
class BestOnValidation:
    """A callback of `fit` that scores the posterior on validation data between chunks.

    After the fit, `posterior` is the one with the lowest score and `step` the step it was found at.

    Attributes:
        key: the random key of the posterior draws; the same draws at every look.
        inputs: the arguments of the model without the observations.
        labels: integer labels (rows,), or the values that the model observes (rows, ...).
        num_draws: draws of the posterior predictive.
        patience: looks without improvement after which the fit is stopped; None never stops it.
        scores: (step, negative log-likelihood in nats per row) of every look.
    """

    key: jax.Array
    inputs: tuple[Any, ...]
    labels: np.ndarray
    num_draws: int = 8
    patience: int | None = None
    scores: list[tuple[int, float]] = field(default_factory=list)
    posterior: Posterior | None = None
    step: int = 0

    def __post_init__(self) -> None:
        if self.num_draws < 1 or (self.patience is not None and self.patience < 1):
            raise OptionError(f"num_draws and patience must be at least 1, got {self.num_draws} and {self.patience}")

    def __call__(self, progress: Progress) -> bool:
        """Scores the posterior as it stands; True once patience is at its end."""
        posterior = progress.posterior()
        draws = 1 if isinstance(posterior, PointPosterior) else self.num_draws
        score = self._score(posterior, draws)
        best = min((s for _, s in self.scores), default=math.inf)
        self.scores.append((progress.step, score))
        if score < best or self.posterior is None:
            self.posterior, self.step = posterior, progress.step
        looks_since = sum(1 for step, _ in self.scores if step > self.step)
        return self.patience is not None and looks_since >= self.patience

    def _score(self, posterior: Posterior, draws: int) -> float:
        labels = np.asarray(self.labels)
        if labels.dtype.kind in "iub":
            mean = predict(posterior.problem, posterior, self.key, *self.inputs, num_draws=draws).mean(axis=0)
            if mean.ndim == labels.ndim + 1:
                chosen = mean[np.arange(len(labels)), labels.astype(int)]
                return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())
        likelihood = log_likelihood_of_draws(posterior, self.key, (*self.inputs, labels), draws)
        return float(math.log(draws) - logsumexp(likelihood, axis=0).mean())
