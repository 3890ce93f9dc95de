"""What stays the same during a fit: its options once they are checked, where its chunks end, and what its checkpoints hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bayes_sym.errors import OptionError

from . import checkpoints, rows
from .checkpoints import File, Saved
from .chunks import RowStream, start_state
from .posterior import Posterior
from .problem import Problem
from .rows import Data
from .scheme import Scheme


__all__ = ["History", "Keys", "Plan"]


class Keys(NamedTuple):
    """The random keys of a fit, by what they are for."""

    init: jax.Array
    steps: jax.Array
    cross: jax.Array
    rows: jax.Array
    end: jax.Array

    @classmethod
    def of(cls, key: jax.Array) -> Keys:
        """All of them, from the key of the fit."""
        return cls(*jax.random.split(key, 5))


@dataclass(frozen=True)
class Plan:
    """A fit that has been found possible.

    Attributes:
        problem: the model before the first step.
        scheme: how to infer.
        data: the arguments of the model, as arrays.
        num_steps: steps of the whole fit.
        batch_size: rows per step, or None for all.
        chunk: the most steps per chunk.
        boundaries: the steps before which the scheme crosses a boundary, in order.
    """

    problem: Problem
    scheme: Scheme
    data: Data
    num_steps: int
    batch_size: int | None
    chunk: int
    boundaries: tuple[int, ...]

    @classmethod
    def checked(
        cls,
        problem: Problem,
        scheme: Scheme,
        data: Data,
        *,
        num_steps: int,
        batch_size: int | None,
        chunk: int,
        mesh: Mesh | None = None,
    ) -> Plan:
        """Refuses what cannot be fitted, before any compute.

        Raises:
            OptionError, DataError, ModelError, TapError: what is wrong, and what to do about it.
        """
        data = rows.as_arrays(data)
        count = rows.num_rows(data)
        _check_options(count, num_steps, batch_size, chunk, mesh)
        if batch_size is not None and not scheme.takes_batches:
            raise OptionError(f"{type(scheme).__name__} needs all rows at every step, got batch_size={batch_size}: leave it out")
        problem.check(data)
        scheme.check(problem, problem.structure(*data), num_steps)
        scheme.check_data(problem, data)
        boundaries = tuple(sorted(set(scheme.boundaries(num_steps))))
        return cls(problem, scheme, data, num_steps, batch_size, min(chunk, num_steps), boundaries)

    @property
    def factor(self) -> float:
        """N/B: how many rows each row of a batch stands for."""
        return 1.0 if self.batch_size is None else rows.num_rows(self.data) / self.batch_size

    def stream(self, key: jax.Array) -> RowStream | None:
        """Where the batches come from, if there are any."""
        return None if self.batch_size is None else RowStream(key, rows.num_rows(self.data), self.batch_size)

    def problem_at(self, step: int) -> Problem:
        """The problem that step number `step` works on."""
        return self.scheme.problem_at(self.problem, self.data, step, self.boundaries)

    def scheme_at(self, step: int) -> Scheme:
        """The scheme that takes step number `step`."""
        return self.scheme.stage(step, self.boundaries)

    def after(self, step: int, state: Any, data: Data) -> Plan:
        """The plan before step number `step`, where a scheme that waits for a condition may move its next boundary to that step."""
        later = [boundary for boundary in self.boundaries if boundary >= step]
        if not later or step >= self.num_steps:
            return self
        if not self.scheme.due(self.problem_at(step - 1), state, data, step, self.boundaries):
            return self
        return replace(self, boundaries=tuple(sorted((set(self.boundaries) - {min(later)}) | {step})))

    def resumed(self, file: File) -> Plan:
        """The plan with the boundaries of a checkpoint, which a condition may have moved."""
        return self if file.boundaries is None else replace(self, boundaries=file.boundaries)

    def end_of_chunk(self, step: int) -> int:
        """Where the chunk that starts at `step` ends."""
        return min([step + self.chunk, self.num_steps, *(boundary for boundary in self.boundaries if boundary > step)])

    def posterior(self, key_end: jax.Array, state: Any, step: int, records: Any, data: Data | None = None) -> Posterior:
        """What was inferred after `step` steps. `data` are those of the plan, where they have been placed elsewhere."""
        data = self.data if data is None else data
        last = max(step - 1, 0)
        return self.scheme_at(last).posterior(key_end, state, self.problem_at(last), data, records)

    def identity(self, key: jax.Array) -> dict[str, str]:
        """What must agree between two runs of this fit."""
        return checkpoints.identify(self.problem, self.scheme, key, self.data, self.batch_size, self.boundaries)

    def template(self, keys: Keys, step: int) -> Any:
        """The shapes of the scheme's state after `step` steps."""
        found = jax.eval_shape(partial(start_state, self.scheme, self.problem_at(0)), keys.init, self.data)
        for boundary in (b for b in self.boundaries if b < step):
            cross = partial(self.scheme.cross, problem=self.problem_at(boundary - 1), step=boundary)
            found = jax.eval_shape(
                lambda key, state, data, cross=cross: cross(key, state, data=data), keys.cross, found, self.data
            )
        return found

    def restore(self, file: File, identity: dict[str, str] | None, keys: Keys) -> Saved:
        """What a checkpoint of this fit holds."""
        return checkpoints.restore(file, identity, self.template(keys, file.step))


class History(NamedTuple):
    """What the chunks so far reported: the steps come first."""

    losses: list[np.ndarray]
    records: list[Any]

    @classmethod
    def of(cls, saved: Saved | None) -> History:
        """That of a checkpoint, or an empty one."""
        return cls([], []) if saved is None else cls([saved.losses], [saved.records])

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


def _check_options(count: int, num_steps: int, batch_size: int | None, chunk: int, mesh: Mesh | None) -> None:
    if num_steps < 1 or chunk < 1:
        raise OptionError(f"num_steps and chunk must be at least 1, got num_steps={num_steps} and chunk={chunk}")
    if batch_size is not None and not 1 <= batch_size <= count:
        raise OptionError(
            f"batch_size={batch_size}, but the data have {count} rows: choose 1..{count}, or None for all rows at every step"
        )
    if mesh is not None:
        devices, per_step = mesh.shape[mesh.axis_names[0]], batch_size or count
        if per_step % devices:
            raise OptionError(
                f"{per_step} rows per step cannot be spread evenly over {devices} devices: choose a batch_size that {devices} divides"
            )
