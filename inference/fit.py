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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from bayes_sym.errors import NonFiniteError, OptionError

from . import checkpoints, rows
from .posterior import Posterior
from .problem import Problem
from .rows import Data
from .scheme import Info, Scheme


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
    mesh = None if mesh is None else _auto(mesh)
    chunk = min(chunk, num_steps)
    boundaries = set(scheme.boundaries(num_steps))
    problem_at = partial(scheme.problem_at, problem, data, num_steps=num_steps)
    key_init, key_steps, key_cross, key_rows, key_end = jax.random.split(key, 5)
    stream = None if batch_size is None else _RowStream(key_rows, count, batch_size)
    factor = 1.0 if batch_size is None else count / batch_size

    identity = None
    if checkpoint is not None or resume is not None:
        identity = checkpoints.identify(problem, scheme, key, data, batch_size)
    if resume is None:
        step, losses, records = 0, [], []
        state = _init(scheme, problem, key_init, data)
    else:
        template = jax.eval_shape(partial(_init, scheme, problem), key_init, data)
        step = checkpoints.read_step(resume)
        for boundary in sorted(b for b in boundaries if b < step):
            before = problem_at(boundary - 1)
            template = jax.eval_shape(
                lambda k, s, d, p=before, b=boundary: scheme.cross(k, s, p, d, b), key_cross, template, data
            )
        saved = checkpoints.load(resume, identity, template)
        state, losses, records = saved.state, [saved.losses], [saved.records]
    state, shared = _place(mesh, problem, state, data, batch_size)

    bar = tqdm(total=num_steps, initial=step, desc=type(scheme).__name__, disable=not progress, file=sys.stderr, leave=False)
    error: NonFiniteError | None = None
    stopped = False
    with bar:
        while step < num_steps and not stopped:
            if step in boundaries:
                before = problem_at(step - 1)
                state = scheme.cross(jax.random.fold_in(key_cross, step), state, before, shared, step)
            current = problem_at(step)
            end = min([step + chunk, num_steps, *(b for b in boundaries if b > step)])
            index = None if stream is None else stream.table(step, end, chunk)
            run = partial(_run_chunk, scheme, current, mesh, chunk, key=key_steps, data=shared, index=index, factor=factor)
            after, chunk_losses, chunk_records = run(state, start=step, count=end - step)
            fresh = np.asarray(chunk_losses)[: end - step]
            finite = np.isfinite(fresh)
            if finite.all() and not _is_finite(scheme.position(after)):
                finite = np.append(finite[:-1], False)  # the last step took finite values to others
            if not finite.all():
                bad = int(np.argmin(finite))
                state, _, _ = run(state, start=step, count=bad + bool(np.isfinite(fresh[bad])))
                batch = shared if index is None else current.take(shared, index[bad])
                error = _non_finite(current, scheme, state, batch, step + bad, float(fresh[bad]))
                losses.append(fresh[:bad])
                step += bad
                break
            state, step = after, end
            losses.append(fresh)
            records.append(jax.tree.map(lambda leaf, n=len(fresh): np.asarray(leaf)[:n], chunk_records))
            bar.update(len(fresh))
            bar.set_postfix_str(f"loss {fresh[-1]:.4g}", refresh=False)
            if checkpoint is not None:
                assert identity is not None
                checkpoints.save(checkpoint, identity, step, state, np.concatenate(losses), records)
            if callbacks:
                view = Progress(
                    step,
                    num_steps,
                    np.concatenate(losses),
                    state,
                    lambda p=current, s=state, r=tuple(records): scheme.posterior(key_end, s, p, shared, _join(r)),  # type: ignore[misc]
                )
                stopped = any([bool(callback(view)) for callback in callbacks])

    if error is not None and on_failure == "raise":
        raise error
    final = problem_at(max(step - 1, 0))
    posterior = None if error is not None else scheme.posterior(key_end, state, final, shared, _join(records))
    reason = "non-finite" if error is not None else "stopped" if stopped else "finished"
    status = Status(error is None, reason, step, "" if error is None else str(error))
    history = np.concatenate(losses) if losses else np.zeros(0)
    return Fit(final, scheme, posterior, history, state, time.perf_counter() - started, status, error)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _init(scheme: Scheme, problem: Problem, key: jax.Array, data: Data) -> Any:
    return scheme.init(key, problem, data)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run_chunk(
    scheme: Scheme,
    problem: Problem,
    mesh: Mesh | None,
    size: int,
    state: Any,
    *,
    key: jax.Array,
    data: Data,
    index: jax.Array | None,
    factor: jax.Array,
    start: jax.Array,
    count: jax.Array,
) -> tuple[Any, jax.Array, Any]:
    """`count` <= `size` steps; one program serves every count, so a short last chunk compiles nothing."""

    def step(i: jax.Array, state: Any) -> tuple[Any, Info]:
        batch = data
        if index is not None:
            batch = problem.take(data, index[i])
            if mesh is not None:
                spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
                mask = rows.row_mask(data, problem.row_args)
                leaves, structure = jax.tree.flatten(batch)
                leaves = [jax.lax.with_sharding_constraint(a, spread) if m else a for a, m in zip(leaves, mask, strict=True)]
                batch = jax.tree.unflatten(structure, leaves)
        return scheme.step(jax.random.fold_in(key, start + i), state, problem, batch, factor)

    _, info = jax.eval_shape(step, jnp.zeros((), int), state)
    buffers = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), info)

    def body(i: jax.Array, carry: tuple[Any, Info]) -> tuple[Any, Info]:
        state, kept = carry
        state, info = step(i, state)
        return state, jax.tree.map(lambda buffer, leaf: buffer.at[i].set(leaf), kept, info)

    state, kept = jax.lax.fori_loop(0, count, body, (state, buffers))
    return state, kept.loss, kept.record


class _RowStream:
    """Batches cut from an endless stream of permutations of the rows, each epoch with a seed of its own."""

    def __init__(self, key: jax.Array, count: int, batch_size: int) -> None:
        self.seed = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        self.count, self.batch_size = count, batch_size

    def table(self, start: int, end: int, size: int) -> jax.Array:
        """Row indices (size, batch_size); the steps start..end-1 come first, the rest is padding."""
        first, last = start * self.batch_size, end * self.batch_size
        epochs = range(first // self.count, -(-last // self.count))
        order = np.concatenate([np.random.default_rng([*self.seed, epoch]).permutation(self.count) for epoch in epochs])
        skip = first - epochs[0] * self.count
        table = np.zeros((size, self.batch_size), np.int32)
        table[: end - start] = order[skip : skip + last - first].reshape(end - start, self.batch_size)
        return jnp.asarray(table)


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


def _auto(mesh: Mesh) -> Mesh:
    """The same devices, with axes along which the compiler chooses the shardings."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _place(mesh: Mesh | None, problem: Problem, state: Any, data: Data, batch_size: int | None) -> tuple[Any, Data]:
    """State on every device; data on every device too where batches are picked from them, else spread by rows."""
    if mesh is None:
        return state, data
    everywhere = NamedSharding(mesh, PartitionSpec())
    spread = everywhere if batch_size is not None else NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    leaves, structure = jax.tree.flatten(data)
    mask = rows.row_mask(data, problem.row_args)
    placed = [jax.device_put(leaf, spread if is_row else everywhere) for leaf, is_row in zip(leaves, mask, strict=True)]
    return jax.device_put(state, everywhere), jax.tree.unflatten(structure, placed)


def _join(records: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *records) if records else None


def _is_finite(values: dict[str, jax.Array]) -> bool:
    return all(np.isfinite(value).all() for value in jax.device_get(values).values())


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
