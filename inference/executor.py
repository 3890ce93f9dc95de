"""Where the jobs of a comparison run: one after the other here, or side by side through anything that has `submit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
from tqdm import tqdm

from bayes_sym.errors import OptionError


__all__ = ["Executor", "on_device", "run_all"]

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Executor(Protocol):
    """The part of the interface of `concurrent.futures.Executor` that is needed; a Dask `Client` has it too."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Starts ``fn(*args)`` somewhere and returns a future, an object with ``result()`` (and perhaps ``cancel()``)."""


def on_device(run: Callable[[_Job], _Result], job: _Job, place: int) -> _Result:
    """Runs a job on the device number `place` of where this is called, counted round-robin."""
    devices = jax.local_devices()
    with jax.default_device(devices[place % len(devices)]):
        return run(job)


def run_all(
    run: Callable[[_Job], _Result],
    jobs: Sequence[_Job],
    names: Sequence[str],
    executor: Executor | None = None,
    *,
    progress: bool = True,
) -> list[_Result]:
    """``[run(job) for job in jobs]``. The first error cancels what has not started and is raised.

    Args:
        run: a function that processes can import by name.
        jobs: its arguments; with an engine of processes they are pickled, so are the results.
        names: what to call the jobs beside the bar.
        executor: None for this thread; else job number i runs on device i of its process, counted round-robin.
        progress: whether to show a bar.
    """
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise OptionError(
            f"executor must have submit(fn, *args), as a ThreadPoolExecutor or a Dask Client has, got {type(executor).__name__}; for "
            "another engine write a class with one method, submit, that returns futures with result()"
        )
    found: list[_Result] = []
    with tqdm(total=len(jobs), disable=not progress, file=sys.stderr, unit="fit") as bar:
        if executor is None:
            for job, name in zip(jobs, names, strict=True):
                bar.set_description(name)
                found.append(run(job))
                bar.update()
            return found
        waiting = [executor.submit(on_device, run, job, place) for place, job in enumerate(jobs)]
        try:
            for future, name in zip(waiting, names, strict=True):
                bar.set_description(name)
                found.append(future.result())
                bar.update()
        except BaseException:
            for future in waiting:
                if hasattr(future, "cancel"):
                    future.cancel()
            raise
    return found
