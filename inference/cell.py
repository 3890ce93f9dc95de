"""A cell of a comparison: one method on one task."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bayes_sym.representations import Representation

from .problem import Problem
from .rows import Data
from .scheme import Scheme


__all__ = ["Cell", "Labelled"]

Labelled = tuple[np.ndarray, np.ndarray]
"""Images (rows, ...) and their labels (rows,), or values (rows, ...)."""


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
        test: other test images and labels than the comparison's.
        validation: other validation images and labels.
        action: another action of a group on the images.
        output: another action on the values that are predicted.
        task: what the data ask for, where a comparison has several tasks.
    """

    name: str
    problem: Problem
    scheme: Scheme
    num_steps: int = 1000
    batch_size: int | None = None
    select: str | None = None
    data: Data | None = field(default=None, compare=False)
    test: Labelled | None = field(default=None, compare=False)
    validation: Labelled | None = field(default=None, compare=False)
    action: Representation | None = field(default=None, compare=False)
    output: Representation | None = field(default=None, compare=False)
    task: str = ""
