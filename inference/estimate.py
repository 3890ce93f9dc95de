"""What a fit will cost, from its compiled programs and a few of their steps: time and memory before anything long is run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .chunks import run_chunk, start_state
from .plan import Keys, Plan
from .problem import Problem
from .scheme import Scheme


__all__ = ["Estimate", "estimate_fit"]

_ENOUGH = 0.3  # seconds of steps after which a mean is good enough
_MOST = 30  # steps that are timed at most


class Estimate(NamedTuple):
    """What one fit will cost.

    Attributes:
        steps: steps of the fit.
        compile_seconds: to trace and compile its programs, as measured just now.
        step_seconds: of one step, the mean of a few that were run just now.
        crossings: how often the scheme crosses a boundary, where it moves prior strengths or expands the net.
        crossing_seconds: of one of these, as measured just now.
        seconds: all of the above for the whole fit. The posterior at the end and predictions come on top.
        memory_mib: what XLA reserves for the arguments, results and temporaries of a chunk of steps. The process itself, a few
            hundred MiB, comes on top, as does the posterior: a full curvature has the square of the number of weights.
    """

    steps: int
    compile_seconds: float
    step_seconds: float
    crossings: int
    crossing_seconds: float
    seconds: float
    memory_mib: float


def estimate_fit(
    problem: Problem, scheme: Scheme, *data: Any, num_steps: int = 1000, batch_size: int | None = None, chunk: int = 100
) -> Estimate:
    """Compiles the programs of a fit, runs a few steps of each, and multiplies.

    Steps whose work depends on the data, as those of NUTS, may take longer later on than the first ones. A scheme that waits for a
    condition is taken to wait as long as it may.

    Args:
        problem: the model.
        scheme: the scheme.
        data: the arguments of the model.
        num_steps: steps of the fit.
        batch_size: rows per step.
        chunk: steps per chunk.

    Raises:
        OptionError, DataError, ModelError, TapError: what a fit would refuse.
    """
    plan = Plan.checked(problem, scheme, data, num_steps=num_steps, batch_size=batch_size, chunk=chunk)
    keys = Keys.of(jax.random.key(0))
    state, compiling = _timed(lambda: start_state(scheme, problem, keys.init, plan.data))
    starts = (0, *plan.boundaries)
    stretches: dict[tuple[Problem, Scheme], int] = {}  # steps by what their programs are made of
    for first, last in zip(starts, (*plan.boundaries, num_steps), strict=True):
        program_of = (plan.problem_at(first), plan.scheme_at(first))
        stretches[program_of] = stretches.get(program_of, 0) + last - first
    running = crossing = memory = 0.0
    before = plan.problem_at(0)
    for i, ((current, acting), steps) in enumerate(stretches.items()):
        into = [b for b in plan.boundaries if (plan.problem_at(b), plan.scheme_at(b)) == (current, acting)]
        if into:
            # the first call compiles, which is told apart by calling it again on the same state
            again = partial(scheme.cross, keys.cross, state, before, plan.data, into[0])
            crossed, first_call = _timed(again)
            _, second_call = _timed(again)
            crossing += second_call * len(into)
            compiling += max(0.0, first_call - second_call)
            state = crossed if i > 0 else state
        before = current
        program, spent = _timed(partial(_compile, plan, acting, keys, current, state))
        compiling += spent
        sizes = program.memory_analysis()
        if sizes is not None:
            needed = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            memory = max(memory, (needed - sizes.alias_size_in_bytes) / 2**20)
        running += steps * _seconds_per_step(plan, keys, program, state)
    count = len(plan.boundaries)
    total = compiling + running + crossing
    return Estimate(num_steps, compiling, running / num_steps, count, crossing / max(count, 1), total, memory)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = work()
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array)])
    return found, time.perf_counter() - started


def _arguments(plan: Plan, keys: Keys) -> dict[str, Any]:
    stream = plan.stream(keys.rows)
    index = None if stream is None else stream.table(0, plan.chunk, plan.chunk)
    factor = jnp.asarray(plan.factor, jnp.result_type(float))
    return {"key": keys.steps, "data": plan.data, "index": index, "factor": factor, "start": jnp.asarray(0)}


def _compile(plan: Plan, scheme: Scheme, keys: Keys, problem: Problem, state: Any) -> Any:
    count = jnp.asarray(0)
    return run_chunk.lower(scheme, problem, None, plan.chunk, state, **_arguments(plan, keys), count=count).compile()


def _seconds_per_step(plan: Plan, keys: Keys, program: Any, state: Any) -> float:
    given, most = _arguments(plan, keys), min(plan.chunk, _MOST)
    _, empty = _timed(lambda: program(state, **given, count=jnp.asarray(0)))
    _, one = _timed(lambda: program(state, **given, count=jnp.asarray(1)))
    count = max(1, min(most, int(_ENOUGH / max(one, 1e-6))))
    _, several = _timed(lambda: program(state, **given, count=jnp.asarray(count)))
    return max(several - min(empty, several / 2), 0.0) / count
