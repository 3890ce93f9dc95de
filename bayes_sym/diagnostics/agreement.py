"""How often the predicted label is the same all along an orbit."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, GroupActionError, OptionError, ShapeError
from ..representations import Representation


__all__ = ["OrbitAgreement", "orbit_agreement", "orbit_labels"]


class OrbitAgreement(NamedTuple):
    """The mean agreement over examples, in 0..1, and its standard error over examples (nan with one example)."""

    agreement: float
    se: float


def orbit_agreement(
    probabilities: ArrayLike,
    kind: Literal["vote", "reference", "pairwise"] = "vote",
    output: Representation | None = None,
) -> OrbitAgreement:
    """How well the predicted labels agree along the orbits of the examples.

    The label at g x is the argmax of the mean predictive probabilities there, mapped back by ``output``. Per example,

        vote        the share of the group, identity included, that predicts the most frequent label;
        reference   the share of the group, identity included, that predicts the label at x itself;
        pairwise    the share of the pairs of different elements that predict the same label (1 for the trivial group).

    All are biased with few posterior draws, because a noisy mean flips labels near a tie: report the number of draws.

    Args:
        probabilities: (group, num_examples, classes): mean predictive probabilities at g x, the identity at g = 0.
        kind: ``"vote"``, ``"reference"`` or ``"pairwise"``.
        output: how the group permutes the classes, for outputs that are equivariant; None for invariant outputs.

    Raises:
        ShapeError: the probabilities do not have these axes.
        GroupActionError: `output` is not a permutation representation, so it does not act on labels.
        OptionError: `kind` is unknown.
        DataError: a probability is not finite.
    """
    labels = orbit_labels(probabilities, output)
    order = len(labels)
    same = labels[:, None] == labels[None]  # (group, group, num_examples)
    if kind == "vote":
        per_example = same.sum(axis=0).max(axis=0) / order
    elif kind == "reference":
        per_example = same[0].mean(axis=0)
    elif kind == "pairwise":
        per_example = (same.sum(axis=(0, 1)) - order) / (order * (order - 1)) if order > 1 else np.ones(labels.shape[1])
    else:
        raise OptionError(f"kind must be 'vote', 'reference' or 'pairwise', got {kind!r}")
    examples = len(per_example)
    se = float(per_example.std(ddof=1)) / math.sqrt(examples) if examples > 1 else math.nan
    return OrbitAgreement(float(per_example.mean()), se)


def orbit_labels(probabilities: ArrayLike, output: Representation | None) -> np.ndarray:
    """The predicted labels (group, num_examples) along the orbits, mapped back to those at x.

    Raises:
        ShapeError: the probabilities are not (group, num_examples, classes).
        GroupActionError: `output` is not a permutation representation, so it does not act on labels.
        DataError: a probability is not finite.
    """
    values = np.asarray(probabilities)
    if values.ndim != 3 or 0 in values.shape:
        raise ShapeError(
            f"probabilities must be (group, num_examples, classes), got shape {values.shape}; average over the draws first"
        )
    if not np.isfinite(values).all():
        raise DataError("the probabilities are not all finite: look at the predictions for NaN or infinity")
    labels = values.argmax(axis=-1)
    if output is not None:
        if not output.is_permutation:
            raise GroupActionError(f"labels can only be mapped back by a permutation of the classes, got {output}")
        if values.shape[::2] != (output.group.order, output.dim):
            raise ShapeError(
                f"{output} permutes {output.dim} classes by {output.group.order} elements, got probabilities of shape {values.shape}"
            )
        # (rho(g) v)[i] = v[source[g, i]]: what has label i at g x had label source[g, i] at x
        labels = np.take_along_axis(output.source, labels, axis=1)
    return labels
