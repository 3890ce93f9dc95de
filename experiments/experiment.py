"""What an experiment is: a name, a sentence, and a function from options to a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from bayes_sym.inference import Comparison


__all__ = ["Experiment", "Options"]


@dataclass(frozen=True)
class Options:
    """What can be chosen on the command line.

    Attributes:
        seed: of the data split, the fits and the draws.
        steps: steps of every fit, in place of the experiment's own numbers.
        num_train: training images.
        mesh: devices to shard every batch over.
        progress: whether to show bars.
    """

    seed: int = 0
    steps: int | None = None
    num_train: int = 300
    mesh: Mesh | None = None
    progress: bool = True


@dataclass(frozen=True)
class Experiment:
    """A named run.

    Attributes:
        name: what to call it on the command line.
        summary: one sentence for the list.
        run: does it.
    """

    name: str
    summary: str
    run: Callable[[Options], Comparison]

    def folder(self, out: Path | None) -> Path:
        """Where its results go."""
        return Path("results") / self.name if out is None else out
