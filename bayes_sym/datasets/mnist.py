"""MNIST, Fashion-MNIST, and sets in the same format: downloaded with a checksum, or from files on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from .digits import Images
from .download import download, origin
from .idx import read_idx
from .npz import read_npz
from .split import Split, check_labels, check_together, standardised


__all__ = ["fashion_mnist", "mnist", "read_mnist"]


def mnist(folder: str | Path | None = None, *, num_classes: int | None = 10, progress: bool = True) -> Split:
    """MNIST, or a set in the same format (KMNIST, EMNIST), as images (N, height, width, 1).

    Grey levels are divided by 255, then standardised as ``(x - mean) / sd`` with one mean and one standard deviation of
    all training pixels. 60,000 images of 28x28 pixels to train on, and 10,000 to test on.

    Args:
        folder: where ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte`` lie, each as it is or as ``.gz``; or an ``.npz`` file with ``x_train``, ``y_train``,
            ``x_test`` and ``y_test``, or a folder with ``mnist.npz``. None to download them once, see `download`.
        num_classes: how many classes the labels may name; None for any.
        progress: whether to show a bar while downloading.

    Raises:
        DataError: a file is missing, cut off, damaged, or of another format, labels are out of range, or the download
            failed.
    """
    folder = Path(folder) if folder is not None else download("mnist", progress=progress)
    return standardised(check_labels(read_mnist(folder), num_classes, folder))


def fashion_mnist(folder: str | Path | None = None, *, progress: bool = True) -> Split:
    """Fashion-MNIST (Xiao et al. 2017), 10 classes of clothes, as images (N, 28, 28, 1), in the format of `mnist`.

    Args:
        folder: where the four files lie, as for `mnist`; None to download them once, see `download`.
        progress: whether to show a bar while downloading.

    Raises:
        DataError: as for `mnist`, and where images do not have 28x28 pixels.
    """
    folder = Path(folder) if folder is not None else download("fashion-mnist", progress=progress)
    split = check_labels(read_mnist(folder, "fashion-mnist"), 10, folder)
    if split.train.x.shape[1:] != (28, 28, 1):
        raise DataError(f"{folder} has images of shape {split.train.x.shape[1:]}, those of Fashion-MNIST have (28, 28, 1)")
    return standardised(split)


def read_mnist(folder: str | Path, name: str = "mnist") -> Split:
    """The images of `mnist` as they are in the files, uint8. `name` says which set to get where files are missing."""
    folder = Path(folder)
    if folder.suffix == ".npz":
        return read_npz(folder)
    if (folder / f"{name}.npz").is_file():
        return read_npz(folder / f"{name}.npz")
    parts = []
    for prefix in ("train", "t10k"):
        x, y = (_read(folder, f"{prefix}-{kind}-ubyte", axes, name) for kind, axes in (("images-idx3", 3), ("labels-idx1", 1)))
        parts.append(Images(x[..., None], y.astype(np.int32)))
    return check_together(Split(*parts), folder)


def _read(folder: Path, file: str, axes: int, name: str) -> np.ndarray:
    """The array of one of the four files, in one of the spellings of its name."""
    stems = [file, file.replace("-idx", ".idx")]
    found = [folder / f"{stem}{end}" for stem in stems for end in ("", ".gz") if (folder / f"{stem}{end}").is_file()]
    if not found:
        raise DataError(f"{folder} has no {file}, nor {file}.gz: get it from {origin(name)} and put it there")
    return read_idx(found[0], axes, f"get it again from {origin(name)}")
