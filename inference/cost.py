"""What a piece of work costs: wall-clock seconds, those of them that went into compiling, and the peak of memory."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.monitoring
import jax.numpy as jnp


__all__ = ["Cost", "measured", "peak_memory"]

_COMPILING = "/jax/core/compile/"  # tracing, lowering and XLA's own work; traces lie within traces
_EVERY = 0.02  # seconds between looks at the memory in use


class Cost:
    """What one piece of work cost so far; `measured` fills it.

    Attributes:
        seconds: wall-clock time.
        compile_seconds: the part of it in which this thread traced, lowered or compiled programs.
        peak_bytes: the most memory in use meanwhile: of the device where it counts its own, else of the whole process.
    """

    def __init__(self) -> None:
        self.seconds = self.compile_seconds = 0.0
        self.peak_bytes = 0

    @property
    def run_seconds(self) -> float:
        """All but compiling."""
        return max(0.0, self.seconds - self.compile_seconds)


class _Spans(threading.local):
    """The stretches of time in which this thread compiled; None while nobody asks."""

    found: list[tuple[float, float]] | None = None


_spans = _Spans()
_listening = threading.Lock()
_registered = False


def _listen() -> None:
    global _registered
    with _listening:
        if not _registered:
            jax.monitoring.register_event_time_span_listener(_heard)
            _registered = True


def _heard(event: str, start_time: float, end_time: float, **kwargs: str | int) -> None:
    if _spans.found is not None and event.startswith(_COMPILING):
        _spans.found.append((start_time, end_time))


@contextmanager
def measured() -> Iterator[Cost]:
    """Measures what is done inside, by this thread.

    Where the high-water mark of the memory rises meanwhile, it is the peak; where an earlier one was higher, the peak is
    that of looks every 20 ms.
    """
    _listen()
    device = next(iter(jnp.zeros(()).devices()))  # the one that computations of this thread go to
    cost, before, outer = Cost(), _high_water(device), _spans.found
    _spans.found = []
    done, looks = threading.Event(), [_in_use(device)]

    def look() -> None:
        while not done.wait(_EVERY):
            looks.append(max(looks.pop(), _in_use(device)))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        done.set()
        watcher.join()
        after = _high_water(device)
        cost.peak_bytes = after if after > before else looks[0]
        cost.compile_seconds = min(cost.seconds, _union(_spans.found))
        _spans.found = outer


def peak_memory() -> int:
    """The most bytes that were ever in use: on the first device where it counts its own, else by this process."""
    return _high_water(jax.local_devices()[0])


def _union(spans: list[tuple[float, float]]) -> float:
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _high_water(device: jax.Device) -> int:
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    try:
        import resource
    except ImportError:  # there is no such module on Windows
        return 0
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


def _in_use(device: jax.Device) -> int:
    stats = device.memory_stats()
    if stats and "bytes_in_use" in stats:
        return int(stats["bytes_in_use"])
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # only Linux has it
        return 0
