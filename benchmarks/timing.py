"""How the benchmarks measure: the smallest or the median time of several functions, called in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


def smallest(fns: dict[str, Callable[[], Any]], seconds: float, in_a_row: int) -> dict[str, float]:
    """The smallest time of each, the calls interleaved, after a warm-up of two calls each."""
    best = dict.fromkeys(fns, float("inf"))
    for fn in fns.values():
        for _ in range(2):
            jax.block_until_ready(fn())
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < 3:
        for name, fn in fns.items():
            for _ in range(in_a_row):  # so that each is timed with its own data in the caches
                started = time.perf_counter()
                jax.block_until_ready(fn())
                best[name] = min(best[name], time.perf_counter() - started)
        rounds += 1
    return best


class Cost(NamedTuple):
    """Medians over rounds, in seconds per call: of the wall clock, and of the process's CPU time in all its threads."""

    wall: float
    cpu: float


def medians(fns: dict[str, Callable[[], Any]], seconds: float) -> dict[str, Cost]:
    """The median cost of each, one call of each per round in turns, after a warm-up of two calls each.

    CPU time does not count the time that other processes take, which on a shared machine the wall clock does.
    """
    for fn in fns.values():
        for _ in range(2):
            jax.block_until_ready(fn())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in fns}
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < 3:
        for name, fn in fns.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(fn())
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        rounds += 1
    return {name: Cost(*(statistics.median(column) for column in zip(*times, strict=True))) for name, times in found.items()}
