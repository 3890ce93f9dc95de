"""A fingerprint of what was asked: the same in another process, and another one as soon as an option, the data or a model differs."""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


__all__ = ["describe", "fingerprint"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Path, np.dtype)


def fingerprint(parts: Mapping[str, str]) -> str:
    """Eight hexadecimal digits that stand for descriptions by name."""
    text = "\n".join(f"{name}: {parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def describe(value: Any) -> str:
    """What `value` is, in a line of text that holds no addresses.

    Options are written out; arrays become their shape and a checksum; functions their name, what they close over, their
    defaults and a checksum of their code, so that a model whose body changes is another model, as is one of a class whose
    methods change. What a function looks up among the globals of its module is not followed.
    """
    return _describe(value, ())


def _describe(value: Any, above: tuple[int, ...]) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, np.generic):
        return f"{value.dtype}({value.item()!r})"
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key{np.asarray(jax.random.key_data(value)).tolist()}"
    if isinstance(value, np.ndarray | jax.Array):
        array = np.ascontiguousarray(value)
        return f"{array.dtype}{list(array.shape)}#{zlib.crc32(array.tobytes()):08x}"
    if isinstance(value, type | ModuleType):
        return _name(value)
    if id(value) in above:  # a function that closes over itself
        return f"^{len(above) - above.index(id(value))}"
    inside = functools.partial(_describe, above=(*above, id(value)))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _listed(type(value), [f"{name}={inside(getattr(value, name))}" for name in value._fields])
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(inside, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inside(name)}: {inside(item)}" for name, item in value.items()) + "}"
    if isinstance(value, Set):
        return "{" + ", ".join(sorted(map(inside, value))) + "}"
    if isinstance(value, functools.partial):
        return _listed(functools.partial, [inside(value.func), inside(value.args), inside(value.keywords)])
    if is_dataclass(value):
        return _object(type(value), [f"{field.name}={inside(getattr(value, field.name))}" for field in fields(value)])
    code = getattr(value, "__code__", None)
    if isinstance(code, CodeType):
        cells = [inside(cell.cell_contents) for cell in value.__closure__ or ()]
        return (
            f"{_name(value)}#{_code(code):08x}({', '.join([*cells, inside(value.__defaults__), inside(value.__kwdefaults__)])})"
        )
    if hasattr(value, "__self__") and hasattr(value, "__func__"):
        return f"{inside(value.__self__)}.{inside(value.__func__)}"
    if hasattr(value, "__wrapped__"):
        return f"{type(value).__name__}({inside(value.__wrapped__)})"
    if hasattr(value, "__qualname__"):
        return _name(value)
    return _object(type(value), [f"{name}={inside(item)}" for name, item in sorted(getattr(value, "__dict__", {}).items())])


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _object(kind: type, parts: list[str]) -> str:
    return _listed(kind, [f"#{_methods(kind):08x}", *parts])


@functools.cache
def _methods(kind: type) -> int:
    """A checksum of the code of all methods that the class and its bases define."""
    codes = [
        (name, _code(item.__code__))
        for base in kind.__mro__
        for name, item in sorted(vars(base).items())
        if isinstance(getattr(item, "__code__", None), CodeType)
    ]
    return zlib.crc32(repr(codes).encode())


def _listed(kind: type, parts: list[str]) -> str:
    return f"{_name(kind)}({', '.join(parts)})"


def _code(code: CodeType) -> int:
    """A checksum of what the code does, without the lines that it stands on."""
    constants = [f"{_code(c):08x}" if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return zlib.crc32(repr((code.co_code, code.co_names, code.co_varnames, constants)).encode())


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
