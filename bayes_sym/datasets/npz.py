"""Images and labels from an .npz file, read without unpickling and without trusting what its headers announce."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from ..errors import DataError
from .digits import Images
from .split import LARGEST, Split, check_labels, check_together, standardised


__all__ = ["from_npz", "read_npz"]

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def from_npz(path: str | Path, *, num_classes: int | None = None) -> Split:
    """Images from an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, standardised as in `mnist`.

    This is the layout of ``mnist.npz`` as Keras publishes it, and of what
    ``np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)`` writes.

    Args:
        path: the file. Images are unsigned bytes (N, height, width) or (N, height, width, channels), labels are whole
            numbers (N,) or (N, 1).
        num_classes: how many classes the labels may name; None for any.

    Raises:
        DataError: the file is missing, cut off or damaged, an array is missing or not of that kind (arrays of Python
            objects are refused), or labels are out of range.
    """
    return standardised(check_labels(read_npz(Path(path)), num_classes, Path(path)))


def read_npz(path: Path) -> Split:
    """The images and labels as they are in the file, uint8 and int32."""
    if not path.is_file():
        raise DataError(f"there is no file {path}: it should be an .npz file with the arrays {', '.join(_NAMES)}")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _array(archive, name) for name in _NAMES}
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error}") from error
    except Exception as error:  # damaged archives and headers raise anything
        raise DataError(
            f"{path} cannot be read as .npz ({type(error).__name__}: {error}): write it with np.savez, or get it anew"
        ) from error
    return check_together(Split(_images(arrays, "train", path), _images(arrays, "test", path)), path)


def _images(arrays: dict[str, np.ndarray], part: str, path: Path) -> Images:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise DataError(
            f"x_{part} of {path} must hold unsigned bytes (N, height, width) or (N, height, width, channels), got {x.dtype} of shape "
            f"{x.shape}: scale levels to 0..255 and save x.astype('uint8')"
        )
    if y.dtype.kind not in "iu" or y.shape not in ((y.size,), (y.size, 1)):
        raise DataError(f"y_{part} of {path} must hold whole numbers (N,) or (N, 1), got {y.dtype} of shape {y.shape}")
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < 2**31:
        raise DataError(f"y_{part} of {path} holds labels from {y.min()} to {y.max()}: labels are 0, 1, 2, ...")
    return Images(x if x.ndim == 4 else x[..., None], y.reshape(-1).astype(np.int32))


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array. Its header is compared with the size of its member before anything of that size is made."""
    if f"{name}.npy" not in archive.namelist():
        raise DataError(f"it has no array {name!r}, only {sorted(archive.namelist())}")
    announced = archive.getinfo(f"{name}.npy").file_size
    if announced > LARGEST:
        raise DataError(f"{name} announces {announced} bytes, more than any such set has")
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise DataError(f"{name} has version {version} of the format, and arrays of numbers need no more than (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise DataError(f"{name} holds Python objects, which can run code when they are loaded: save arrays of numbers")
        size, left = math.prod(shape) * dtype.itemsize, announced - file.tell()
        if size != left:
            raise DataError(f"{name} announces {size} bytes of shape {shape}, and {left} follow")
        content = file.read(size)
        rest = file.read(1)  # only at its end is the checksum compared
    if len(content) != size or rest:
        raise DataError(f"{name} announces {size} bytes of shape {shape}, and other than {size} follow")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
