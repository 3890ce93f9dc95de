"""One job of a comparison: some seeds of one cell are fitted, scored, and kept in a folder so that they need not run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from . import unit
from .cell import Cell
from .cost import Cost, measured
from .fingerprint import describe
from .fit import Callback, Fit, fit
from .interrupt import STOP, Interrupted
from .posterior import Posterior
from .scores import num_weights, orbit_images, score
from .seeds import fit_seeds, revive
from .selection import BestOnValidation
from .value_scores import moved_values


__all__ = ["COSTS", "Finished", "Job", "Run", "run_job"]

COSTS = ("seconds", "compile_seconds", "run_seconds", "peak_memory_mib")
"""The columns that differ from run to run: all others are the same, bit for bit, on the same machine."""


class Run(NamedTuple):
    """What came of one cell and seed: the fit, and the posterior that was scored (the last one, or the best on validation)."""

    fit: Fit
    posterior: Posterior


def as_key(data: np.ndarray) -> jax.Array:
    """A random key from its data, which any engine can send."""
    return jax.random.wrap_key_data(jnp.asarray(data))


class Finished(NamedTuple):
    """What came of a job: rows and runs by seed; the runs are missing where they stay in the folder."""

    rows: dict[int, dict[str, Any]]
    runs: dict[int, Run]


class Job(NamedTuple):
    """Some seeds of one cell.

    Attributes:
        cell: the cell, complete with its data, as arrays of numpy.
        seeds: in one program if there are several.
        key: data of the random key of the cell's fits; that of seed 0 is this one.
        key_look: data of the key of the posterior draws on validation data.
        key_score: data of the key of the posterior draws on test data.
        num_draws: posterior draws per prediction.
        chunk: steps between looks at the validation data.
        progress: whether to show bars.
        mesh: devices to shard every batch over.
        folder: where to keep what is finished, or None.
        hand_back: whether to return the runs.
    """

    cell: Cell
    seeds: tuple[int, ...]
    key: np.ndarray
    key_look: np.ndarray
    key_score: np.ndarray
    num_draws: int
    chunk: int
    progress: bool
    mesh: Mesh | None
    folder: Path | None
    hand_back: bool

    @property
    def name(self) -> str:
        """What to call it beside a bar."""
        return self.cell.name if self.seeds == (0,) else f"{self.cell.name}, seed {', '.join(map(str, self.seeds))}"

    def identity(self) -> dict[str, str]:
        """Everything that the rows depend on, except the seeds: the same job of another comparison has the same rows."""
        cell = self.cell
        asked = {name: getattr(cell, name) for name in ("problem", "scheme", "num_steps", "batch_size", "select", "data", "test")}
        asked |= {
            "action": cell.action,
            "output": cell.output,
            "key": self.key,
            "key_score": self.key_score,
            "num_draws": self.num_draws,
        }
        if cell.select is not None:
            asked |= {"validation": cell.validation, "key_look": self.key_look, "chunk": self.chunk}
        return {name: describe(value) for name, value in asked.items()} | unit.source()

    def of_seed(self, key: np.ndarray, seed: int) -> jax.Array:
        """The key that one seed has in place of `key`."""
        base = as_key(key)
        return base if seed == 0 else jax.random.fold_in(base, seed)

    def revived(self, seed: int) -> Run:
        """The run of a seed that is finished and kept in the folder."""
        assert self.folder is not None
        found = self._revive(unit.last(self.folder, seed), seed)
        best = unit.best(self.folder, seed)
        return Run(found, self._revive(best, seed).posterior if best.exists() else found.posterior)

    def _revive(self, path: Path, seed: int) -> Fit:
        cell = self.cell
        assert cell.data is not None
        key = self.of_seed(self.key, seed)
        return revive(path, cell.problem, cell.scheme, key, cell.data, num_steps=cell.num_steps, batch_size=cell.batch_size)


def run_job(job: Job) -> Finished:
    """Fits and scores every seed of a job. With a folder, a job that was cut off goes on after its last chunk.

    Raises:
        Interrupted: the user asked to stop; with a folder, the steps so far are saved.
    """
    if STOP.is_set():
        raise Interrupted("stopped before the start")
    with measured() as cost:
        runs = _fits(job)
        scores = {}
        for seed, run in runs.items():
            assert job.cell.test is not None and job.cell.action is not None
            key = job.of_seed(job.key_score, seed)
            scores[seed] = score(run.posterior, key, job.cell.test, job.cell.action, job.num_draws, job.cell.output)
    rows = {seed: _row(job, seed, run, scores[seed], cost) for seed, run in runs.items()}
    if job.folder is not None:
        unit.finish(job.folder, rows)
    return Finished(rows, runs if job.hand_back else {})


def _row(job: Job, seed: int, run: Run, scores: dict[str, float], cost: Cost) -> dict[str, Any]:
    evidence, share = run.posterior.log_evidence, len(job.seeds)
    return {
        "method": job.cell.name,
        "task": job.cell.task,
        "seed": seed,
        **scores,
        "log_evidence": None if evidence is None else float(evidence),
        "evidence_kind": run.posterior.evidence_kind,
        "parameters": num_weights(run.posterior),
        "steps": len(run.fit.losses),
        "seconds": round(cost.seconds / share, 2),
        "compile_seconds": round(cost.compile_seconds / share, 2),
        "run_seconds": round(cost.run_seconds / share, 2),
        "peak_memory_mib": round(cost.peak_bytes / 2**20, 1),
        "seeds_together": share,
        "data_checksum": unit.checksum(job.cell.data),
    }


def _fits(job: Job) -> dict[int, Run]:
    cell, part = job.cell, None if job.folder is None else unit.part(job.folder)
    looks = {seed: _Looks(job, seed) for seed in job.seeds}
    resume = part if part is not None and part.exists() else None
    if resume is not None:
        for look in looks.values():
            look.go_back_to(unit.step_of(resume))
    options: dict[str, Any] = {
        "num_steps": cell.num_steps,
        "batch_size": cell.batch_size,
        "resume": resume,
        "progress": job.progress,
        "chunk": job.chunk,
    }
    assert cell.data is not None
    keys = [job.of_seed(job.key, seed) for seed in job.seeds]
    # looks come before the checkpoint: one of a step that the checkpoint does not have yet is simply repeated
    callbacks: list[list[Callback]] = [looks[seed].callbacks() for seed in job.seeds]
    if len(keys) == 1:
        last: list[Callback] = [] if part is None else [lambda progress: progress.save(part)]
        found = [
            fit(cell.problem, cell.scheme, keys[0], *cell.data, callbacks=[*callbacks[0], *last, STOP], mesh=job.mesh, **options)
        ]
    else:
        found = fit_seeds(
            cell.problem,
            cell.scheme,
            jnp.stack(keys),
            *cell.data,
            callbacks=[[*calls, STOP] for calls in callbacks],
            checkpoint=part,
            **options,
        )
    if found[0].status().step < cell.num_steps:
        raise Interrupted(f"stopped at step {found[0].status().step} of {cell.num_steps} of {job.name}")
    return {seed: Run(one, looks[seed].posterior(one)) for seed, one in zip(job.seeds, found, strict=True)}


class _Looks:
    """The looks at the validation data of one seed, kept in the folder as they are made."""

    def __init__(self, job: Job, seed: int) -> None:
        self.job, self.seed = job, seed
        self.best = None
        cell = job.cell
        if cell.select is not None:
            assert cell.validation is not None and cell.action is not None
            images, labels = cell.validation
            if cell.select == "orbit":
                moved = moved_values(cell.action, cell.output, labels)
                images, labels = orbit_images(cell.action, images), moved.reshape(-1, *moved.shape[2:])
            self.best = BestOnValidation(as_key(job.key_look), (images,), labels)

    def callbacks(self) -> list[Callback]:
        """What the fit is to call."""
        found: list[Callback] = [] if self.best is None else [self._look]
        return found if self.job.folder is None else [*found, self._keep_last]

    def _look(self, progress: Any) -> bool:
        assert self.best is not None
        stop = self.best(progress)
        if self.job.folder is not None:
            if self.best.step == progress.step:
                progress.save(unit.best(self.job.folder, self.seed))
            unit.save_looks(self.job.folder, self.seed, self.best.scores)
        return stop

    def _keep_last(self, progress: Any) -> None:
        if progress.step == progress.num_steps:
            assert self.job.folder is not None
            progress.save(unit.last(self.job.folder, self.seed))

    def go_back_to(self, step: int) -> None:
        """Takes up the looks until `step`."""
        if self.best is None:
            return
        assert self.job.folder is not None
        scores = [look for look in unit.looks(self.job.folder, self.seed) if look[0] <= step]
        self.best.scores[:] = scores
        if scores:
            self.best.step = min(scores, key=lambda look: look[1])[0]
            self.best.posterior = self.job._revive(unit.best(self.job.folder, self.seed), self.seed).posterior

    def posterior(self, found: Fit) -> Posterior:
        """The one to score."""
        return found.posterior if self.best is None or self.best.posterior is None else self.best.posterior
