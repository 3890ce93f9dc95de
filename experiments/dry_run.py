"""What a run would cost in time and memory, found out without running it."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from typing import Any

from bayes_sym.errors import OptionError
from bayes_sym.inference.estimate import estimate_fit

from .experiment import Experiment, Options


__all__ = ["COLUMNS", "HOW", "dry_run"]

_SHORT, _LONGER = 10, 30  # steps of the short runs

COLUMNS = {
    "name": ("fit", "{}"),
    "steps": ("steps", "{:,}"),
    "compile_seconds": ("compile s", "{:.1f}"),
    "step_seconds": ("s/step", "{:.5f}"),
    "crossings": ("updates", "{}"),
    "crossing_seconds": ("s/update", "{:.2f}"),
    "seconds": ("total s", "{:.0f}"),
    "memory_mib": ("MiB", "{:.0f}"),
}
"""The columns of the printed table."""

HOW = {
    "steps": "From compiling the program of each fit and timing a few of its steps, and the updates of prior strengths, just now. MiB are "
    "what XLA's memory analysis says a chunk of steps needs. The posterior at the end and predictions come on top, and a few hundred MiB "
    "for the process.",
    "runs": f"From whole runs of {_SHORT} and {_LONGER} steps just now, continued in a straight line. MiB are the peak of the processes. "
    "A part whose work grows faster than the number of steps makes the run longer.",
}
"""How each kind of estimate was made."""


def dry_run(experiment: Experiment, options: Options) -> tuple[list[dict[str, Any]], str]:
    """One row per fit, with their sum, where the experiment has a plan, or one for the whole; and how it was estimated.

    Raises:
        OptionError: nobody said how many steps the run takes.
    """
    if experiment.plan is not None:
        rows = []
        for cell in experiment.plan(options):
            assert cell.data is not None
            found = estimate_fit(cell.problem, cell.scheme, *cell.data, num_steps=cell.num_steps, batch_size=cell.batch_size)
            rows.append({"name": cell.name, **found._asdict()})
        total = {"name": "all", "seconds": sum(row["seconds"] for row in rows)}
        total |= {"steps": sum(row["steps"] for row in rows), "memory_mib": max(row["memory_mib"] for row in rows)}
        return [*rows, total], HOW["steps"]
    steps = experiment.steps if options.steps is None else options.steps
    if steps is None:
        raise OptionError(f"{experiment.name} does not say how many steps it takes: give --steps with --dry-run")
    seconds = []
    for some in (_SHORT, _SHORT, _LONGER):  # the first one compiles
        started = time.perf_counter()
        experiment.run(replace(options, steps=some))
        seconds.append(time.perf_counter() - started)
    per_step = max(0.0, seconds[2] - seconds[1]) / (_LONGER - _SHORT)
    row = {
        "name": experiment.name,
        "steps": steps,
        "compile_seconds": max(0.0, seconds[0] - seconds[1]),
        "step_seconds": per_step,
        "seconds": seconds[0] + per_step * max(0, steps - _SHORT),
        "memory_mib": _peak_mib(),
    }
    return [row], HOW["runs"]


def _peak_mib() -> float:
    """The highest peak of this process and of those it has waited for."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) / (2**20 if sys.platform == "darwin" else 2**10)
