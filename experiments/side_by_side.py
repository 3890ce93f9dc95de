"""Independent pieces of one experiment side by side: in worker processes on a CPU, one after the other elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from .notices import plain_warnings


__all__ = ["side_by_side"]

_Item = TypeVar("_Item")


def side_by_side(fn: Callable[[_Item], Any], items: Sequence[_Item], *, progress: bool = True) -> list[Any]:
    """``[fn(item) for item in items]``, with as many processes as there are cores, at most four.

    Most of the time of a short fit goes into compiling it, which uses one core. Arguments and results are pickled.
    """
    workers = min(4, os.cpu_count() or 1, len(items))
    with tqdm(total=len(items), desc="models", disable=not progress, file=sys.stderr, leave=False) as bar:
        if workers < 2 or jax.default_backend() != "cpu":
            found = []
            for item in items:
                found.append(fn(item))
                bar.update()
            return found
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=plain_warnings) as pool:
            waiting = [pool.submit(fn, item) for item in items]
            for future in waiting:
                future.add_done_callback(lambda _: bar.update())
            try:
                return [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
