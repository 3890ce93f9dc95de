"""A standard dataset as published, in two sets, and the scaling of its pixels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from .digits import Images


__all__ = ["LARGEST", "Split", "check_labels", "check_together", "standardised"]

LARGEST = 2**31
"""Bytes that a file may announce: more than any of these sets has."""


class Split(NamedTuple):
    """The two disjoint sets of a standard dataset, as published; take validation images from `train`."""

    train: Images
    test: Images


def standardised(split: Split) -> Split:
    """By a mean and a standard deviation per channel, from uint8 to float32 by a table of the 256 levels."""
    levels = np.arange(256) / 255
    channels = split.train.x.shape[-1]
    counts = np.stack([np.bincount(split.train.x[..., c].ravel(), minlength=256) for c in range(channels)])
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = (share @ levels)[:, None]
    sd = np.sqrt((share * (levels - mean) ** 2).sum(axis=1, keepdims=True))
    if (sd == 0).any():
        raise DataError(
            "all training pixels of a colour have one level, so they cannot be standardised: the files hold no images"
        )
    table = ((levels - mean) / sd).astype(np.float32)
    return Split(*(Images(table[np.arange(channels), x], y) for x, y in split))


def check_together(split: Split, where: Path) -> Split:
    """Refuses images without labels, labels without images, and two sets of images of different shapes."""
    for name, (x, y) in zip(("train", "t10k"), split, strict=True):
        if len(x) != len(y) or not len(x):
            raise DataError(f"{where} has {len(x)} {name} images and {len(y)} labels: the files do not belong together")
    if split.train.x.shape[1:] != split.test.x.shape[1:]:
        raise DataError(
            f"{where} has training images of shape {split.train.x.shape[1:3]} and others of {split.test.x.shape[1:3]}"
        )
    return split


def check_labels(split: Split, num_classes: int | None, where: Path) -> Split:
    """Refuses labels outside 0..num_classes-1; None for any."""
    highest = max(int(y.max()) for _, y in split)
    if num_classes is not None and highest >= num_classes:
        raise DataError(
            f"{where} has labels up to {highest}, and {num_classes} classes have labels 0..{num_classes - 1}: the labels are damaged, or "
            "belong to another set"
        )
    return split
