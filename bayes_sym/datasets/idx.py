"""IDX, the format of MNIST: a header that says the type and the lengths of the axes, and then the bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError
from .split import LARGEST


__all__ = ["read_idx"]


def read_idx(path: Path, axes: int, again: str) -> np.ndarray:
    """The array of an IDX file of unsigned bytes: 0, 0, 8, the number of axes, their lengths in 4 bytes each, the bytes.

    Args:
        path: the file, as it is or, with the ending ``.gz``, compressed.
        axes: how many axes it must have.
        again: what to do about a bad file, for messages.

    Returns:
        The array, uint8.

    Raises:
        DataError: the file cannot be read, is of another format, or holds more or fewer bytes than it announces.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, 8, axes)):
                raise DataError(f"{path} is no IDX file of bytes with {axes} axes, it starts with {header[:4].hex(' ')}: {again}")
            shape = tuple(int(length) for length in np.frombuffer(header, ">u4", offset=4))
            size = math.prod(shape)
            if size > LARGEST:
                raise DataError(f"{path} announces {size} bytes of shape {shape}, more than any such set has: {again}")
            content = file.read(size + 1)
            if path.suffix == ".gz" and len(content) == size:
                file.read(1)  # only at its end is the checksum compared
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): {again}") from error
    if len(content) != size:
        held = "more" if len(content) > size else len(content)
        raise DataError(f"{path} announces {size} bytes of shape {shape} and holds {held}: {again}")
    return np.frombuffer(content, np.uint8).reshape(shape)
