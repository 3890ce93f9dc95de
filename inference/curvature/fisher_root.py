"""Square roots of the Fisher information: what a root is, how its columns are built, which families have an exact one.

A family is one function, distribution and batch shape -> roots. Where two parameters are correlated the information of an
element is L L' with L lower triangular, and every column of L is a root of its own: the first one places cotangents on
both parameters, the second on the second parameter alone. So a column is dropped when nothing that it touches moves.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist


__all__ = [
    "Root",
    "Roots",
    "Shape",
    "align",
    "broadcast",
    "diagonal",
    "elementwise",
    "exact_roots",
    "families",
    "joint",
    "register",
]

Shape = tuple[int, ...]


class Root(NamedTuple):
    """Some columns of a Fisher root S of a distribution; the information is the sum of S S' over all its roots.

    Attributes:
        parameter: what the columns are cotangents of: a parameter of the distribution, (rows, ...), or a tuple of them.
        columns: the columns, (K, rows, ...), in the structure of `parameter`: column k of every row at once, since rows
            are independent.
    """

    parameter: Any
    columns: Any


Roots = dict[str, Root]


@singledispatch
def _roots(fn: dist.Distribution, shape: Shape) -> Roots:
    """An unknown family has no exact root."""
    return {}


register = _roots.register
"""Decorator of a function (fn: Family, shape) -> Roots: the roots of a family whose batch is broadcast to `shape`."""


def exact_roots(fn: dist.Distribution, shape: Shape) -> Roots | None:
    """The roots of a distribution whose batch is broadcast to `shape`, by the leading parameter of each.

    None for a family that is not known. A subclass belongs to the family of its base only while it keeps its density.
    """
    family = next(cls for cls in type(fn).__mro__ if cls in _roots.registry)
    if type(fn).log_prob is not getattr(family, "log_prob", None):
        return None
    return _roots.registry[family](fn, shape)


def families() -> list[str]:
    """The names of the distributions with an exact root."""
    return sorted(cls.__name__ for cls in _roots.registry if cls is not object)


def elementwise(shape: Shape, *pairs: tuple[Any, Any]) -> Root:
    """One column per element of a row: pairs (parameter, its cotangent there), each to be broadcast to `shape`."""
    elements = math.prod(shape[1:])
    parameters, columns = [], []
    for parameter, cotangent in pairs:
        parameter = broadcast(parameter, shape)
        which = jnp.eye(elements, dtype=parameter.dtype).reshape(elements, 1, *shape[1:])
        parameters.append(parameter)
        columns.append(which * jnp.broadcast_to(cotangent, shape).astype(parameter.dtype)[None])
    return Root(parameters[0], columns[0]) if len(pairs) == 1 else Root(tuple(parameters), tuple(columns))


def joint(shape: Shape, parameter: Any, matrix: jax.Array) -> Root:
    """Columns (elements * K, *shape, *event) from one root per element of a row, (*shape, *event, K)."""
    elements, event, count = math.prod(shape[1:]), matrix.shape[len(shape) : -1], matrix.shape[-1]
    parameter = broadcast(parameter, shape + event)
    which = jnp.eye(elements, dtype=parameter.dtype).reshape(elements, 1, 1, *shape[1:], *(1,) * len(event))
    columns = jnp.moveaxis(matrix, -1, 0).astype(parameter.dtype)[None] * which
    return Root(parameter, columns.reshape(elements * count, *shape, *event))


def broadcast(parameter: Any, shape: Shape) -> jax.Array:
    """The parameter as an array of floats of this shape."""
    return jnp.broadcast_to(jnp.asarray(parameter, jnp.result_type(parameter, float)), shape)


def diagonal(root: jax.Array) -> jax.Array:
    """Diagonal matrices, (..., C) -> (..., C, C)."""
    return root[..., None] * jnp.eye(root.shape[-1], dtype=root.dtype).reshape((1,) * (root.ndim - 1) + root.shape[-1:] * 2)


def align(weight: jax.Array, columns: jax.Array, batch_ndim: int) -> jax.Array:
    """A weight that broadcasts against the batch, as one that broadcasts against columns (K, *batch, ...)."""
    leading, trailing = 1 + batch_ndim - weight.ndim, columns.ndim - 1 - batch_ndim
    return weight.reshape((1,) * leading + weight.shape + (1,) * trailing)
