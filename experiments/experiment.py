"""What an experiment is: a name, a sentence, and a function from options to results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from bayes_sym.inference import Cell, Comparison

from .findings import Findings


__all__ = ["Experiment", "Options"]


@dataclass(frozen=True)
class Options:
    """What can be chosen on the command line.

    Attributes:
        seed: of the data split, the fits and the draws.
        steps: steps of every fit, in place of the experiment's own numbers.
        num_train: training images, in place of the experiment's own number.
        mesh: devices to shard every batch over.
        progress: whether to show bars.
        task: one of the experiment's tasks; None leaves the choice to the experiment.
        data_dir: the folder with the local files that the experiment reads.
        epochs: passes over the training data, in place of the experiment's own number; `steps` wins.
        group: one of the experiment's groups; None leaves the choice to the experiment.
        folder: where the results will go. A comparison keeps there what is finished, so that it goes on where it was cut off.
    """

    seed: int = 0
    steps: int | None = None
    num_train: int | None = None
    mesh: Mesh | None = None
    progress: bool = True
    task: str | None = None
    data_dir: Path | None = None
    folder: Path | None = None
    epochs: int | None = None
    group: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A named run.

    Attributes:
        name: what to call it on the command line.
        summary: one sentence for the list.
        run: does it.
        tasks: the tasks to choose from, if it has several.
        reads_files: whether it can use local files from `Options.data_dir`.
        groups: the groups to choose from, if it has several.
        has_epochs: whether it counts in epochs, so that `Options.epochs` says how long it takes.
        steps: its own number of steps, of the longest fit, where one number decides how long it takes; for dry runs.
        plan: the cells of a comparison with their data, for dry runs: what a run would fit, without fitting it.
    """

    name: str
    summary: str
    run: Callable[[Options], Comparison | Findings]
    tasks: tuple[str, ...] = ()
    reads_files: bool = False
    groups: tuple[str, ...] = ()
    has_epochs: bool = False
    steps: int | None = None
    plan: Callable[[Options], Sequence[Cell]] | None = None

    def folder(self, out: Path | None, task: str | None = None) -> Path:
        """Where its results go: `out`, or by default a folder for every experiment and task."""
        return Path("results", self.name, task or "") if out is None else out
