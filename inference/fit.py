"""The one fitting loop: jitted chunks of steps, and between chunks progress, checks, callbacks and checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from bayes_sym.errors import NonFiniteError, OptionError

from . import checkpoints, rows
from .chunks import RowStream, place, run_chunk, start_state, with_auto_axes
from .posterior import Posterior
from .problem import Problem
from .rows import Data
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
    """

    step: int
    num_steps: int
    losses: np.ndarray
    state: Any
    posterior: Callable[[], Posterior]


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
    data = rows.as_arrays(data)
    count = rows.num_rows(data)
    _check_options(count, num_steps, batch_size, chunk, on_failure, mesh)
    if batch_size is not None and not scheme.takes_batches:
        raise OptionError(f"{type(scheme).__name__} needs all rows at every step, got batch_size={batch_size}: leave it out")
    problem.check(data)
    scheme.check(problem, problem.structure(*data), num_steps)
    scheme.check_data(problem, data)
    mesh = None if mesh is None else with_auto_axes(mesh)
    chunk = min(chunk, num_steps)
    boundaries = set(scheme.boundaries(num_steps))

    def problem_at(step: int) -> Problem:
        return scheme.problem_at(problem, data, step, tuple(sorted(boundaries)))

    def stage(step: int) -> Scheme:
        return scheme.stage(step, tuple(sorted(boundaries)))

    key_init, key_steps, key_cross, key_rows, key_end = jax.random.split(key, 5)
    stream = None if batch_size is None else RowStream(key_rows, count, batch_size)
    factor = 1.0 if batch_size is None else count / batch_size

    identity = None
    if checkpoint is not None or resume is not None:
        identity = checkpoints.identify(problem, scheme, key, data, batch_size, boundaries)
    history = _History([], [])
    step, state = 0, None
    if resume is None:
        state = start_state(scheme, problem, key_init, data)
        scheme.check_state(problem, state, data)
    else:
        step, state = _restore(resume, identity, scheme, problem_at, boundaries, (key_init, key_cross), data, history)
    state, shared = place(mesh, problem, state, data, batch_size)

    error: NonFiniteError | None = None
    stopped = False
    with tqdm(
        total=num_steps, initial=step, desc=type(scheme).__name__, disable=not progress, file=sys.stderr, leave=False
    ) as bar:
        while step < num_steps and not stopped:
            if step in boundaries:
                state = scheme.cross(jax.random.fold_in(key_cross, step), state, problem_at(step - 1), shared, step)
            current, acting = problem_at(step), stage(step)
            end = min([step + chunk, num_steps, *(boundary for boundary in boundaries if boundary > step)])
            index = None if stream is None else stream.table(step, end, chunk)
            run = partial(run_chunk, acting, current, mesh, chunk, key=key_steps, data=shared, index=index, factor=factor)
            after, losses, records = run(state, start=step, count=end - step)
            losses = np.asarray(losses)[: end - step]
            bad = _first_bad(losses, scheme.position(after))
            if bad is not None:
                state, _, _ = run(state, start=step, count=bad + bool(np.isfinite(losses[bad])))
                batch = shared if index is None else current.take(shared, index[bad])
                error = _non_finite(current, scheme, state, batch, step + bad, float(losses[bad]))
                history.losses.append(losses[:bad])
                step += bad
                break
            state, step = after, end
            history.append(losses, records)
            bar.update(len(losses))
            bar.set_postfix_str(f"loss {losses[-1]:.4g}", refresh=False)
            if step < num_steps and scheme.due(current, state, shared, step, tuple(sorted(boundaries))):
                boundaries -= {min(boundary for boundary in boundaries if boundary >= step)}
                boundaries.add(step)
            if checkpoint is not None and identity is not None:
                checkpoints.save(checkpoint, identity, step, state, history.all_losses(), history.records, boundaries)
            if callbacks:
                posterior_now = partial(_posterior, acting, key_end, state, current, shared, history.all_records())
                view = Progress(step, num_steps, history.all_losses(), state, posterior_now)
                stopped = any([bool(callback(view)) for callback in callbacks])

    if error is not None and on_failure == "raise":
        raise error
    final = problem_at(max(step - 1, 0))
    acting = stage(max(step - 1, 0))
    posterior = None if error is not None else _posterior(acting, key_end, state, final, shared, history.all_records())
    reason = "non-finite" if error is not None else "stopped" if stopped else "finished"
    status = Status(error is None, reason, step, "" if error is None else str(error))
    seconds = time.perf_counter() - started
    return Fit(final, scheme, posterior, history.all_losses(), state, seconds, status, error)  # type: ignore[arg-type]


class _History(NamedTuple):
    """What the chunks so far reported."""

    losses: list[np.ndarray]
    records: list[Any]

    def append(self, losses: np.ndarray, records: Any) -> None:
        """Adds a chunk, whose records may be padded."""
        self.losses.append(losses)
        self.records.append(jax.tree.map(lambda leaf: np.asarray(leaf)[: len(losses)], records))

    def all_losses(self) -> np.ndarray:
        """One loss per step."""
        return np.concatenate(self.losses) if self.losses else np.zeros(0)

    def all_records(self) -> Any:
        """One record per step, or None."""
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self.records) if self.records else None


def _posterior(scheme: Scheme, key: jax.Array, state: Any, problem: Problem, data: Data, records: Any) -> Posterior:
    return scheme.posterior(key, state, problem, data, records)


def _restore(
    path: str | Path,
    identity: dict[str, str] | None,
    scheme: Scheme,
    problem_at: Callable[[int], Problem],
    boundaries: set[int],
    keys: tuple[jax.Array, jax.Array],
    data: Data,
    history: _History,
) -> tuple[int, Any]:
    """The step and the state of a checkpoint; its losses, records and boundaries go into `history` and `boundaries`."""
    file = checkpoints.read(path)
    boundaries.clear()
    boundaries.update(file.boundaries)
    template = jax.eval_shape(partial(start_state, scheme, problem_at(0)), keys[0], data)
    for boundary in sorted(b for b in boundaries if b < file.step):
        cross = partial(scheme.cross, problem=problem_at(boundary - 1), step=boundary)
        template = jax.eval_shape(lambda key, state, data, cross=cross: cross(key, state, data=data), keys[1], template, data)
    saved = checkpoints.restore(file, identity, template)
    history.losses.append(saved.losses)
    history.records.append(saved.records)
    return file.step, saved.state


def _first_bad(losses: np.ndarray, position: dict[str, jax.Array]) -> int | None:
    """The first step with a loss that is not finite, or the last one if it took finite values to others."""
    finite = np.isfinite(losses)
    if not finite.all():
        return int(np.argmin(finite))
    moved_well = all(np.isfinite(value).all() for value in jax.device_get(position).values())
    return None if moved_well else len(losses) - 1


def _check_options(count: int, num_steps: int, batch_size: int | None, chunk: int, on_failure: str, mesh: Mesh | None) -> None:
    if num_steps < 1 or chunk < 1:
        raise OptionError(f"num_steps and chunk must be at least 1, got num_steps={num_steps} and chunk={chunk}")
    if batch_size is not None and not 1 <= batch_size <= count:
        raise OptionError(
            f"batch_size={batch_size}, but the data have {count} rows: choose 1..{count}, or None for all rows at every step"
        )
    if on_failure not in ("raise", "return"):
        raise OptionError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    if mesh is not None:
        devices, per_step = mesh.shape[mesh.axis_names[0]], batch_size or count
        if per_step % devices:
            raise OptionError(
                f"{per_step} rows per step cannot be spread evenly over {devices} devices: choose a batch_size that {devices} divides"
            )


def _non_finite(problem: Problem, scheme: Scheme, state: Any, batch: Data, step: int, loss: float) -> NonFiniteError:
    z = scheme.position(state)

    def terms(z: dict[str, jax.Array]) -> dict[str, jax.Array]:
        sites, _ = problem.trace(batch, unconstrained=z)
        return {name: jnp.sum(site["fn"].log_prob(site["value"])) for name, site in sites.items() if site["type"] == "sample"}

    def where(values: dict[str, jax.Array]) -> tuple[str, ...]:
        return tuple(name for name, value in values.items() if not bool(jnp.isfinite(value).all()))

    sites = where(z)
    what = "values"
    if not sites:
        what, sites = "log-densities", where(jax.jit(terms)(z))
    if not sites:
        what, sites = "gradients", where(jax.jit(jax.grad(lambda z: sum(terms(z).values())))(z))
    place = (
        f"the {what} of {list(sites)} are not finite"
        if sites
        else f"none at the central values of {list(z)}, so in a random draw"
    )
    return NonFiniteError(
        f"{type(scheme).__name__} met a loss of {loss} at step {step}: {place}. Lower the learning rate, check the scale of the inputs and "
        "of the priors, or run in float64 (jax.config.update('jax_enable_x64', True))",
        step=step,
        sites=sites,
    )
