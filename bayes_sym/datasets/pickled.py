"""Arrays from python pickles of the CIFAR sets, in which nothing that they name is ever imported or called."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np


__all__ = ["read_pickle"]

_ARRAY = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")
# What could make objects otherwise than through `find_class` and calls, or names that only a registry knows.
_REFUSED = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER"}


def read_pickle(content: bytes) -> dict[bytes, Any]:
    """The dictionary of a pickle of numbers, strings, lists and numpy arrays of unsigned bytes.

    A pickle is a program, which can run anything when it is loaded. Here its instructions are looked through first: their
    lengths must be those of what follows, so that none makes room for what does not come. Then it is run without
    importing anything: where it asks for one of numpy's names for an array, a record of the arguments is made, and the
    array is built from that.

    Args:
        content: the pickle, of protocol 0 to 4; strings of Python 2 become bytes.

    Raises:
        pickle.UnpicklingError: it asks for any other name, or holds anything but such a dictionary.
        Exception: anything else, if it is damaged.
    """
    _look_through(content)
    found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if type(found) is not dict:
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, not a dictionary")
    return {_name(key): _array(value) if isinstance(value, _Recorded) else value for key, value in found.items()}


def _look_through(content: bytes) -> None:
    """Refuses instructions that no array needs, lengths beyond the end, and numbers of memories beyond the instructions."""
    end = 0
    for count, (instruction, argument, position) in enumerate(pickletools.genops(content)):
        name, end = instruction.name, (position or 0) + 1
        if name in _REFUSED:
            raise pickle.UnpicklingError(f"it uses {name} at byte {position}, which an array does not need")
        if name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > count:
            raise pickle.UnpicklingError(f"it remembers thing number {argument} at byte {position}, after {count} instructions")
    if end != len(content):
        raise pickle.UnpicklingError(f"{len(content) - end} bytes follow its end")


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

    def find_class(self, module: str, name: str) -> Any:
        """Never imports anything."""
        full = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if full == "_codecs.encode":  # how Python 3 writes bytes in the protocols of Python 2
            return _encoded
        if full not in _ARRAY:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array does not need")
        return _Recorded(full)


def _encoded(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it encodes other than text as latin1")
    return text.encode("latin1")


def _name(key: Any) -> bytes:
    if type(key) not in (bytes, str):
        raise pickle.UnpicklingError(f"its dictionary has a key of type {type(key).__name__}, not a string")
    return key.encode() if isinstance(key, str) else key


def _array(array: _Recorded) -> np.ndarray:
    """The array of unsigned bytes that a pickle describes, built here and not by the pickle."""
    _, shape, dtype, fortran, content = array.state
    if array.name != _ARRAY[0] or dtype.name != "numpy.dtype" or dtype.arguments[0] not in (b"u1", "u1"):
        raise pickle.UnpicklingError("its data are no array of unsigned bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
