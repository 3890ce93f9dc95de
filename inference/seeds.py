"""Several fits of one problem that differ in their keys only, as one program with a leading axis of seeds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from bayes_sym.errors import OptionError

from . import checkpoints
from .checkpoints import File, Saved
from .chunks import run_chunk, start_state
from .fit import Callback, Fit, Progress, Status
from .non_finite import first_bad, non_finite
from .plan import History, Keys, Plan
from .problem import Problem
from .rows import Data
from .scheme import Scheme


__all__ = ["fit_seeds", "revive"]


def fit_seeds(
    problem: Problem,
    scheme: Scheme,
    keys: jax.Array,
    *data: Any,
    num_steps: int = 1000,
    batch_size: int | None = None,
    callbacks: Sequence[Sequence[Callback]] = (),
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    chunk: int = 200,
) -> list[Fit]:
    """``[fit(problem, scheme, key, *data, ...) for key in keys]``, all steps vmapped over the keys.

    Each seed has its own start, batches and noise, those that `fit` gives it; its result equals that of `fit` up to the
    rounding of sums. Memory grows with the number of seeds. One program is compiled, and on an accelerator it takes about
    the time of one fit; on a CPU it takes about as long as the fits one after the other.

    Args:
        problem: the model.
        scheme: how to infer; its `vmaps_seeds` must be true.
        keys: random keys (seeds,).
        data: the arguments of the model.
        num_steps: as for `fit`.
        batch_size: as for `fit`.
        callbacks: one sequence of callbacks per seed. One that returns True stops all seeds.
        checkpoint: a file to write after every chunk and its callbacks, with the states of all seeds.
        resume: such a file, to continue from.
        progress: whether to show a bar.
        chunk: steps per chunk.

    Returns:
        One fit per key; `seconds` is its share of the time.

    Raises:
        OptionError, DataError, ModelError, TapError, CheckpointError: before any compute.
        NonFiniteError: where a seed met NaN; no seed goes on then.
    """
    started = time.perf_counter()
    if not scheme.vmaps_seeds:
        raise OptionError(f"{type(scheme).__name__} cannot run several seeds in one program: call fit for one after the other")
    if keys.ndim != 1 or not len(keys) or callbacks and len(callbacks) != len(keys):
        raise OptionError(f"fit_seeds needs keys (seeds,), and callbacks for each, got shape {keys.shape} and {len(callbacks)}")
    plan = Plan.checked(problem, scheme, data, num_steps=num_steps, batch_size=batch_size, chunk=chunk)
    identity = cache(partial(plan.identity, keys))
    each = [Keys.of(key) for key in keys]
    identities = [cache(partial(plan.identity, key)) for key in keys]
    streams = [plan.stream(own.rows) for own in each]
    saved = None if resume is None else _restore(plan, checkpoints.read(resume), identity(), each)
    history = History.of(saved)
    step = 0 if saved is None else saved.step
    states = saved.state if saved is not None else _start(plan, each)

    stopped = False
    description = f"{type(scheme).__name__} x {len(keys)}"
    with tqdm(total=num_steps, initial=step, desc=description, disable=not progress, file=sys.stderr, leave=False) as bar:
        while step < num_steps and not stopped:
            if step in plan.boundaries:
                before = plan.problem_at(step - 1)
                pairs = zip(each, _unstack(states, len(keys)), strict=True)
                crossed = [
                    scheme.cross(jax.random.fold_in(own.cross, step), state, before, plan.data, step) for own, state in pairs
                ]
                states = _stack(crossed)
            current, end = plan.problem_at(step), plan.end_of_chunk(step)
            tables = [stream.table(step, end, plan.chunk) for stream in streams if stream is not None]
            index = jnp.stack(tables) if tables else None
            after, losses, records = _run_chunks(
                plan.scheme_at(step),
                current,
                plan.chunk,
                states,
                keys=jnp.stack([own.steps for own in each]),
                data=plan.data,
                index=index,
                factor=plan.factor,
                start=step,
                count=end - step,
            )
            losses = np.asarray(losses).T[: end - step]
            _refuse_bad(plan, scheme, current, each, index, states, after, losses, step)
            states, step = after, end
            history.append(losses, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), records))
            bar.update(len(losses))
            bar.set_postfix_str(f"loss {losses[-1].mean():.4g}", refresh=False)
            for seed, calls in enumerate(callbacks):
                view = _view(plan, each[seed], identities[seed], seed, step, states, history)
                stopped = any([bool(callback(view)) for callback in calls]) or stopped
            if checkpoint is not None:
                checkpoints.save(checkpoint, identity(), step, states, history.all_losses(), history.records)

    found = []
    seconds = (time.perf_counter() - started) / len(keys)
    status = Status(True, "stopped" if stopped else "finished", step)
    for seed, own in enumerate(each):
        view = _view(plan, own, identities[seed], seed, step, states, history)
        problem_now = plan.problem_at(max(step - 1, 0))
        found.append(Fit(problem_now, scheme, view.posterior(), view.losses, view.state, seconds, status))
    return found


def _start(plan: Plan, each: Sequence[Keys]) -> Any:
    states = [start_state(plan.scheme, plan.problem, own.init, plan.data) for own in each]
    for state in states:
        plan.scheme.check_state(plan.problem, state, plan.data)
    return _stack(states)


def revive(
    path: str | Path, problem: Problem, scheme: Scheme, key: jax.Array, data: Data, *, num_steps: int, batch_size: int | None
) -> Fit:
    """The fit that a checkpoint holds, as it stood, without a step: the same arrays, bit for bit.

    Args:
        path: a checkpoint of ``fit(problem, scheme, key, *data, num_steps=..., batch_size=...)``.
        problem: the model, as it was given to `fit`.
        scheme: the scheme.
        key: the key of the fit.
        data: the arguments of the model.
        num_steps: steps of the whole fit, which may be more than the checkpoint has.
        batch_size: rows per step.

    Raises:
        CheckpointError: it belongs to another fit.
    """
    started = time.perf_counter()
    plan = Plan.checked(problem, scheme, data, num_steps=num_steps, batch_size=batch_size, chunk=num_steps)
    keys = Keys.of(key)
    file = checkpoints.read(path)
    identity, plan = plan.identity(key), plan.resumed(file)
    saved = plan.restore(file, identity, keys)
    posterior = plan.posterior(keys.end, saved.state, saved.step, saved.records)
    status = Status(True, "finished" if saved.step == num_steps else "stopped", saved.step)
    final = plan.problem_at(max(saved.step - 1, 0))
    return Fit(final, scheme, posterior, saved.losses, saved.state, time.perf_counter() - started, status)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run_chunks(
    scheme: Scheme,
    problem: Problem,
    size: int,
    states: Any,
    *,
    keys: jax.Array,
    data: Data,
    index: jax.Array | None,
    factor: jax.Array,
    start: jax.Array,
    count: jax.Array,
) -> tuple[Any, jax.Array, Any]:
    """`run_chunk` of every seed: states, losses and records with a leading axis of seeds."""

    def one(state: Any, key: jax.Array, index: jax.Array | None) -> tuple[Any, jax.Array, Any]:
        return run_chunk(
            scheme, problem, None, size, state, key=key, data=data, index=index, factor=factor, start=start, count=count
        )

    return jax.vmap(one)(states, keys, index)


def _view(
    plan: Plan,
    keys: Keys,
    identity: Callable[[], dict[str, str]],
    seed: int,
    step: int,
    states: Any,
    history: History,
) -> Progress:
    """What one seed's callbacks see."""
    state = jax.tree.map(lambda leaf: leaf[seed], states)
    losses = history.all_losses()[:, seed]
    records = jax.tree.map(lambda leaf: leaf[:, seed], history.all_records())

    def save(path: str | Path) -> None:
        checkpoints.save(path, identity(), step, state, losses, [records])

    return Progress(step, plan.num_steps, losses, state, partial(plan.posterior, keys.end, state, step, records), save)


def _refuse_bad(
    plan: Plan,
    scheme: Scheme,
    problem: Problem,
    keys: Sequence[Keys],
    index: jax.Array | None,
    states: Any,
    after: Any,
    losses: np.ndarray,
    step: int,
) -> None:
    """Raises for the first seed with a loss or a value that is not finite, as a fit of that seed alone would."""
    ends = _unstack(after, len(keys))
    for seed, own in enumerate(keys):
        bad = first_bad(losses[:, seed], scheme.position(ends[seed]))
        if bad is None:
            continue
        table = None if index is None else index[seed]
        state, _, _ = run_chunk(
            scheme,
            problem,
            None,
            plan.chunk,
            _unstack(states, len(keys))[seed],
            key=own.steps,
            data=plan.data,
            index=table,
            factor=plan.factor,
            start=step,
            count=bad + bool(np.isfinite(losses[bad, seed])),
        )
        batch = plan.data if table is None else problem.take(plan.data, table[bad])
        raise non_finite(problem, scheme, scheme.position(state), batch, step + bad, float(losses[bad, seed]))


def _restore(plan: Plan, file: File, identity: dict[str, str], keys: Sequence[Keys]) -> Saved:
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((len(keys), *leaf.shape), leaf.dtype), plan.template(keys[0], file.step)
    )
    return checkpoints.restore(file, identity, template)


def _stack(states: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _unstack(states: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(count)]
