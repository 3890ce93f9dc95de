"""The one fitting loop: jitted chunks of steps, and between chunks progress, checks, callbacks and checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from bayes_sym.errors import NonFiniteError, OptionError

from . import checkpoints
from .chunks import place, run_chunk, start_state, with_auto_axes
from .non_finite import first_bad, non_finite
from .plan import History, Keys, Plan
from .posterior import Posterior
from .problem import Problem
from .scheme import Scheme


__all__ = ["Fit", "Progress", "Status", "fit"]


class Status(NamedTuple):
    """How a fit ended.

    Attributes:
        ok: whether every loss and every value was finite.
        reason: ``"finished"``, ``"stopped"`` (by a callback) or ``"non-finite"``.
        step: the number of steps taken.
        message: what to do, where something went wrong.
    """

    ok: bool
    reason: str
    step: int
    message: str = ""


@dataclass(frozen=True)
class Fit:
    """The result of `fit`.

    Attributes:
        problem: the problem at the end (expanded, if the scheme expanded it).
        scheme: the scheme.
        posterior: what was inferred; None where the fit met NaN and you asked for `on_failure="return"`.
        losses: the loss of every step, (steps,), nats per row.
        state: the scheme's last state.
        seconds: wall-clock time, compilation included.
    """

    problem: Problem
    scheme: Scheme
    posterior: Posterior
    losses: np.ndarray
    state: Any
    seconds: float
    _status: Status
    _error: NonFiniteError | None = None

    def status(self, raise_if_failed: bool = False) -> Status:
        """How the fit ended; with `raise_if_failed`, raises the `NonFiniteError` of one that failed."""
        if raise_if_failed and self._error is not None:
            raise self._error
        return self._status


class Progress(NamedTuple):
    """What a callback sees between chunks. Returning True from the callback stops the fit.

    Attributes:
        step: steps taken so far.
        num_steps: steps asked for.
        losses: the losses so far.
        state: the scheme's state.
        posterior: a function without arguments that returns the posterior as it stands.
        save: a function of a path that writes a checkpoint of the fit as it stands.
    """

    step: int
    num_steps: int
    losses: np.ndarray
    state: Any
    posterior: Callable[[], Posterior]
    save: Callable[[str | Path], None]


Callback = Callable[[Progress], Any]


def fit(
    problem: Problem,
    scheme: Scheme,
    key: jax.Array,
    *data: Any,
    num_steps: int = 1000,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    chunk: int = 200,
    on_failure: str = "raise",
) -> Fit:
    """Fits a scheme to a problem.

    Args:
        problem: the model.
        scheme: how to infer.
        key: the random key; the same key gives the same result.
        data: the arguments of the model.
        num_steps: how many steps to take, over the whole fit (also when resuming).
        batch_size: rows per step, or None for all. Every row is used equally often: batches are cut from a stream of
            random permutations.
        mesh: devices to shard each batch over, along the mesh's first axis. The result equals that of one device up to
            the rounding of sums.
        callbacks: called between chunks with a `Progress`; return True to stop.
        checkpoint: a file to write after every chunk (atomically), so that the fit can be resumed.
        resume: a checkpoint to continue from; the arrays at the end are those of an uninterrupted fit, bit for bit.
        progress: whether to show a bar.
        chunk: steps per chunk.
        on_failure: ``"raise"`` a `NonFiniteError` where a loss is NaN or infinite, or ``"return"`` the fit as it stood.

    Returns:
        The fit. A second fit of the same problem and scheme on data of the same shapes compiles nothing.

    Raises:
        OptionError, DataError, ModelError, TapError, CheckpointError: before any compute.
        NonFiniteError: naming the step and the sites.
    """
    started = time.perf_counter()
    if on_failure not in ("raise", "return"):
        raise OptionError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    plan = Plan.checked(problem, scheme, data, num_steps=num_steps, batch_size=batch_size, chunk=chunk, mesh=mesh)
    mesh = None if mesh is None else with_auto_axes(mesh)
    keys = Keys.of(key)
    stream = plan.stream(keys.rows)
    identity = cache(partial(plan.identity, key))  # it reads all data, so once and only where somebody saves
    saved = None
    if resume is not None:
        file = checkpoints.read(resume)
        plan = plan.resumed(file)
        saved = plan.restore(file, identity(), keys)
    history = History.of(saved)
    step = 0 if saved is None else saved.step
    state = start_state(scheme, problem, keys.init, plan.data) if saved is None else saved.state
    if saved is None:
        scheme.check_state(problem, state, plan.data)
    state, shared = place(mesh, problem, state, plan.data, batch_size)

    error: NonFiniteError | None = None
    stopped = False
    with tqdm(
        total=num_steps, initial=step, desc=type(scheme).__name__, disable=not progress, file=sys.stderr, leave=False
    ) as bar:
        while step < num_steps and not stopped:
            if step in plan.boundaries:
                state = scheme.cross(jax.random.fold_in(keys.cross, step), state, plan.problem_at(step - 1), shared, step)
            current, acting, end = plan.problem_at(step), plan.scheme_at(step), plan.end_of_chunk(step)
            index = None if stream is None else stream.table(step, end, plan.chunk)
            run = partial(
                run_chunk, acting, current, mesh, plan.chunk, key=keys.steps, data=shared, index=index, factor=plan.factor
            )
            after, losses, records = run(state, start=step, count=end - step)
            losses = np.asarray(losses)[: end - step]
            bad = first_bad(losses, scheme.position(after))
            if bad is not None:
                state, _, _ = run(state, start=step, count=bad + bool(np.isfinite(losses[bad])))
                batch = shared if index is None else current.take(shared, index[bad])
                error = non_finite(current, scheme, scheme.position(state), batch, step + bad, float(losses[bad]))
                history.losses.append(losses[:bad])
                step += bad
                break
            state, step = after, end
            history.append(losses, records)
            bar.update(len(losses))
            bar.set_postfix_str(f"loss {losses[-1]:.4g}", refresh=False)
            plan = plan.after(step, state, shared)
            save = partial(_save, identity, step, state, history, plan.boundaries)
            if checkpoint is not None:
                save(checkpoint)
            if callbacks:
                posterior_now = partial(plan.posterior, keys.end, state, step, history.all_records(), shared)
                view = Progress(step, num_steps, history.all_losses(), state, posterior_now, save)
                stopped = any([bool(callback(view)) for callback in callbacks])

    if error is not None and on_failure == "raise":
        raise error
    posterior = None if error is not None else plan.posterior(keys.end, state, step, history.all_records(), shared)
    reason = "non-finite" if error is not None else "stopped" if stopped else "finished"
    status = Status(error is None, reason, step, "" if error is None else str(error))
    seconds = time.perf_counter() - started
    final = plan.problem_at(max(step - 1, 0))
    return Fit(final, scheme, posterior, history.all_losses(), state, seconds, status, error)  # type: ignore[arg-type]


def _save(
    identity: Callable[[], dict[str, str]], step: int, state: Any, history: History, boundaries: tuple[int, ...], path: str | Path
) -> None:
    checkpoints.save(path, identity(), step, state, history.all_losses(), history.records, boundaries)
