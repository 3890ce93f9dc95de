"""Standard datasets from files on this machine, read without trusting them: MNIST and its like, and CIFAR-10."""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from .digits import Images


__all__ = ["Split", "cifar10", "mnist", "read_mnist"]

_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist (or those of Fashion-MNIST, which have the same names)"
_CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_LARGEST = 2**31  # bytes that a header may announce


class Split(NamedTuple):
    """The two disjoint sets of a standard dataset, as published; take validation images from `train`."""

    train: Images
    test: Images


def mnist(folder: str | Path) -> Split:
    """MNIST, or a set in the same format (Fashion-MNIST, KMNIST), as images (N, height, width, 1).

    Grey levels are divided by 255, then standardised as ``(x - mean) / sd`` with one mean and one standard deviation of
    all training pixels.

    Args:
        folder: where ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte`` lie, each as it is or as ``.gz``.

    Raises:
        DataError: a file is missing, cut off, damaged, or of another format.
    """
    return _standardised(read_mnist(folder))


def cifar10(folder: str | Path) -> Split:
    """CIFAR-10 as images (N, 32, 32, 3), from its version for Python.

    Levels are divided by 255, then standardised as ``(x - mean) / sd`` with one mean and one standard deviation per
    colour of all training pixels. The files are pickles, which can run any code when they are loaded; here nothing in
    them is called, and names other than those of a numpy array are refused.

    Args:
        folder: where ``data_batch_1``, ..., ``data_batch_5`` and ``test_batch`` lie, or the folder above, which has them
            in ``cifar-10-batches-py``.

    Raises:
        DataError: a file is missing, cut off, damaged, or asks for anything but arrays.
    """
    folder = Path(folder)
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    batches = [_batch(folder / f"data_batch_{i}") for i in range(1, 6)]
    train = Images(np.concatenate([batch.x for batch in batches]), np.concatenate([batch.y for batch in batches]))
    return _standardised(Split(train, _batch(folder / "test_batch")))


def read_mnist(folder: str | Path) -> Split:
    """The images of `mnist` as they are in the files, uint8."""
    parts = []
    for prefix in ("train", "t10k"):
        x, y = _idx(Path(folder), f"{prefix}-images-idx3-ubyte", 3), _idx(Path(folder), f"{prefix}-labels-idx1-ubyte", 1)
        if len(x) != len(y) or not len(x):
            raise DataError(f"{folder} has {len(x)} {prefix} images and {len(y)} labels: the files do not belong together")
        parts.append(Images(x[..., None], y.astype(np.int32)))
    if parts[0].x.shape[1:] != parts[1].x.shape[1:]:
        raise DataError(f"{folder} has training images of shape {parts[0].x.shape[1:3]} and others of {parts[1].x.shape[1:3]}")
    return Split(*parts)


def _standardised(split: Split) -> Split:
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


def _idx(folder: Path, name: str, axes: int) -> np.ndarray:
    """The array of an IDX file of unsigned bytes: 0, 0, 8, the number of axes, their lengths in 4 bytes each, the bytes."""
    names = [name, name.replace("-idx", ".idx")]
    found = [folder / f"{stem}{end}" for stem in names for end in ("", ".gz") if (folder / f"{stem}{end}").is_file()]
    if not found:
        raise DataError(f"{folder} has no {name}, nor {name}.gz: get it from {_MNIST} and put it there")
    path = found[0]
    again = f"get it again from {_MNIST}"
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, 8, axes)):
                raise DataError(f"{path} is no IDX file of bytes with {axes} axes, it starts with {header[:4].hex(' ')}: {again}")
            shape = tuple(int(length) for length in np.frombuffer(header, ">u4", offset=4))
            size = math.prod(shape)
            if size > _LARGEST:
                raise DataError(f"{path} announces {size} bytes of shape {shape}, more than any such set has: {again}")
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): {again}") from error
    if len(content) != size:
        held = "more" if len(content) > size else len(content)
        raise DataError(f"{path} announces {size} bytes of shape {shape} and holds {held}: {again}")
    return np.frombuffer(content, np.uint8).reshape(shape)


class _Recorded:
    """Stands for something that a pickle names: it takes note of arguments and state, and does nothing."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = ()

    def __call__(self, *arguments: Any) -> _Recorded:
        return _Recorded(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Dictionaries, lists, strings, numbers, and records of what the pickle would do with numpy's names for an array."""

    def find_class(self, module: str, name: str) -> _Recorded:
        """Never imports anything."""
        full = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if full not in ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array does not need")
        return _Recorded(full)


def _batch(path: Path) -> Images:
    """One file of CIFAR-10: a dictionary whose ``data`` is an array (N, 3 * 32 * 32) and whose ``labels`` are a list."""
    again = f"get {_CIFAR10} and unpack it"
    if not path.is_file():
        raise DataError(f"{path.parent} has no {path.name}: {again} there")
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
        x, labels = _bytes_of(content[b"data"]), content[b"labels"]
        if type(labels) is not list or any(type(label) is not int or not 0 <= label <= 9 for label in labels):
            raise pickle.UnpicklingError("its labels are no list of whole numbers 0..9")
        if not labels or x.shape != (len(labels), 3 * 32 * 32):
            raise pickle.UnpicklingError(f"its data have the shape {x.shape}, and there are {len(labels)} labels")
    except Exception as error:  # damaged pickles raise anything
        raise DataError(f"{path} is no batch of CIFAR-10 ({type(error).__name__}: {error}): {again} anew") from error
    return Images(x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int32))


def _bytes_of(array: _Recorded) -> np.ndarray:
    """The array of unsigned bytes that a pickle describes, built here and not by the pickle."""
    _, shape, dtype, fortran, content = array.state
    if (
        array.name != "numpy.core.multiarray._reconstruct"
        or dtype.name != "numpy.dtype"
        or dtype.arguments[0] not in (b"u1", "u1")
    ):
        raise pickle.UnpicklingError("its data are no array of unsigned bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
