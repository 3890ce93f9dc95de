"""Which of the data are rows, how to take some of them, and what is refused before any compute."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import DataError


__all__ = ["as_arrays", "check_finite", "describe", "num_rows", "shapes", "take"]

Data = tuple[Any, ...]


def as_arrays(data: Data) -> Data:
    """The data with every leaf an array; None stays None."""
    return jax.tree.map(jnp.asarray, tuple(data))


def num_rows(data: Data) -> int:
    """N: the length of the leading axis of the first array.

    Raises:
        DataError: there is no array with an axis among the data.
    """
    for leaf in jax.tree.leaves(data):
        if np.ndim(leaf) > 0:
            if leaf.shape[0] == 0:
                raise DataError(f"the data have no rows: the first array has shape {leaf.shape}")
            return int(leaf.shape[0])
    raise DataError("there are no data: pass the arrays that the model takes, e.g. fit(problem, scheme, key, x, y, ...)")


def row_mask(data: Data, row_args: tuple[int, ...] | None) -> list[bool]:
    """For every leaf of `data`, whether its leading axis counts rows.

    With `row_args` None these are the leaves whose leading axis is as long as the first array's.
    """
    count = num_rows(data)
    mask = []
    for position, argument in enumerate(data):
        for leaf in jax.tree.leaves(argument):
            is_rows = np.ndim(leaf) > 0 and leaf.shape[0] == count
            mask.append(is_rows if row_args is None else position in row_args)
            if row_args is not None and position in row_args and not is_rows:
                raise DataError(
                    f"argument {position} is in row_args, so it needs {count} rows as the first one has, got shape {np.shape(leaf)}"
                )
    return mask


def take(data: Data, rows: Any, row_args: tuple[int, ...] | None) -> Data:
    """The data with only these rows (an index array or slice) of every row argument."""
    leaves, structure = jax.tree.flatten(data)
    mask = row_mask(data, row_args)
    return jax.tree.unflatten(structure, [leaf[rows] if is_row else leaf for leaf, is_row in zip(leaves, mask, strict=True)])


def shapes(data: Data) -> Data:
    """The data with every leaf replaced by its shape and dtype."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), data)


def describe(data: Data) -> str:
    """The shapes of the arguments, for messages."""
    return ", ".join(str(jax.tree.map(np.shape, argument)) for argument in data)


def check_finite(data: Data) -> None:
    """Raises `DataError` if a floating-point argument holds NaN or infinity, with the count and the first place."""
    for position, argument in enumerate(data):
        for leaf in jax.tree.leaves(argument):
            values = np.asarray(leaf)
            if not np.issubdtype(values.dtype, np.floating):
                continue
            bad = ~np.isfinite(values)
            if bad.any():
                where = tuple(int(i) for i in np.argwhere(bad)[0])
                raise DataError(
                    f"argument {position} of the data, shape {values.shape}, holds {int(bad.sum())} values that are NaN or infinite, the "
                    f"first at {where} ({values[where]}): remove or impute these rows before the fit"
                )
