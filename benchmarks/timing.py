"""How the benchmarks measure: the smallest time of several functions, called in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

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
