"""Independent pieces of one experiment side by side: in worker processes on a CPU, one after the other elsewhere.

With a folder, what a piece returned is kept there until the experiment is done, so that a command that was cut off goes on.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from .compiled import Cache, cache, use
from .experiment import Options
from .kept import place_of, read, write
from .notices import plain_warnings


__all__ = ["side_by_side"]

_Item = TypeVar("_Item")

# Programs compile in half the time, and take up to a third longer to run (docs/decisions.md). Newer compilers lack the third way.
_QUICK = "--xla_backend_optimization_level=1 --xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
if jax.__version_info__ < (0, 11):
    _QUICK += " --xla_cpu_use_fusion_emitters=false"


def side_by_side(
    fn: Callable[[_Item], Any],
    items: Sequence[_Item],
    options: Options,
    *,
    again: Callable[[Any], Any] | None = None,
    quick: bool = False,
) -> list[Any]:
    """``[fn(item) for item in items]``, with as many processes as this one may use cores, at most four; one if there is a mesh.

    Most of the time of a short fit goes into compiling it, which uses one core, so each process has its own share of the cores.
    Arguments and results are pickled.

    Args:
        fn: what to do with a piece: a function of a module, or a partial one. What it returns is written as JSON: rows of plain values.
        items: the pieces, of different descriptions.
        options: of the run; `folder` is where to keep what is finished, `mesh` and `progress` say how to work.
        again: makes of the lists and dicts that were kept what `fn` returned; None where that was lists and dicts.
        quick: whether the processes compile with less optimisation, for pieces that compile longer than they run.
    """
    places = [place_of(fn, item, options) for item in items]
    found = [read(place) for place in places]
    missing = [i for i, value in enumerate(found) if value is None]
    if again is not None:
        found = [None if value is None else again(value) for value in found]
    cores = _cores()
    workers = min(4, len(cores), len(missing))
    with tqdm(
        total=len(items),
        initial=len(items) - len(missing),
        desc="models",
        disable=not options.progress,
        file=sys.stderr,
        leave=False,
    ) as bar:

        def take(i: int, value: Any) -> None:
            found[i] = value
            write(places[i], value)
            bar.update()

        if workers < 2 or options.mesh is not None or jax.default_backend() != "cpu":  # a mesh belongs to this process
            for i in missing:
                take(i, fn(items[i]))
            return found
        context = multiprocessing.get_context("spawn")
        shares = context.SimpleQueue()
        for first in range(workers):
            shares.put(cores[first::workers])
        start = (shares, quick, cache())
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=start) as pool:
            waiting = {pool.submit(fn, items[i]): i for i in missing}
            try:
                for future in as_completed(waiting):
                    take(waiting[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return found


def _cores() -> list[int]:
    """The cores that this process may run on, which may be fewer than the machine has."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _start(shares: SimpleQueue[list[int]], quick: bool, cache: Cache) -> None:
    """Makes a worker of this process, before JAX starts: it reads the flags then, and starts a thread per core that it finds."""
    plain_warnings()
    # traces are many small objects that stay: looking through them all takes a fifth of the time
    gc.set_threshold(50_000, 20, 100)
    if quick:
        os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}"  # those of the user come last and win
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())
    use(cache)
