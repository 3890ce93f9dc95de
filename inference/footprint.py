"""How many numbers a model holds at once per row and draw, and the sizes of blocks that keep to a budget of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax


__all__ = ["block_sizes", "numbers_per_row"]

_ON_CPU = 2**21  # 8 MiB of float32: what stays in the caches
_ELSEWHERE = 2**26  # 256 MiB: enough work per program for an accelerator


def numbers_per_row(fn: Callable[[Any], Any], of_rows: Callable[[int], Any]) -> int:
    """The size of the largest array that ``fn`` makes per row, read off the traced program without running it.

    Arrays that do not grow with the rows, such as weights, do not count.

    Args:
        fn: a function of data.
        of_rows: gives the shapes of data with so many rows.
    """
    one, two = ([*_sizes(jax.make_jaxpr(fn)(of_rows(count)).jaxpr)] for count in (1, 2))
    if len(one) != len(two):
        return max(two) // 2
    return max((b - a for a, b in zip(one, two, strict=True)), default=1) or 1


def _sizes(program: Any) -> Iterator[int]:
    """The sizes of all arrays in a traced program, those of its inner programs included."""
    for equation in program.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)  # with its constants, or without
                if hasattr(inner, "eqns"):
                    yield from _sizes(inner)


def block_sizes(numbers: int, draws: int, rows: int) -> tuple[int, int]:
    """(draws, rows) per block, at most these, such that draws * rows * `numbers` keeps to the budget of the device.

    Fewer rows are taken before fewer draws: the first layer of a net then sees its inputs once for all draws of the block.
    Measured on a CPU, time per draw and row is flat well below the budget and three times as long above it.
    """
    budget = (_ON_CPU if jax.default_backend() == "cpu" else _ELSEWHERE) // numbers
    some = max(1, min(rows, budget // draws))
    return max(1, min(draws, budget // some)), some
