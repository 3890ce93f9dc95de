"""What an experiment returns that is no comparison of schemes: rows, figures that are drawn when needed, and their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_sym.atomic import whole_file
from bayes_sym.errors import OptionError
from bayes_sym.inference.results import save_results

from .table import as_text


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Findings"]


@dataclass(frozen=True)
class Findings:
    """The outcome of an experiment.

    Attributes:
        rows: one flat dict per finding, in the order of the table.
        figures: functions by name, each of which draws on an empty matplotlib figure.
        columns: the columns of the printed table: by key of the rows, a title and a format such as ``"{:.3f}"``. None
            prints all keys.
        about: facts of the run, such as the experiment's name and the seed.
    """

    rows: list[dict[str, Any]]
    figures: Mapping[str, Callable[[Figure], None]] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, str]] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The table for a terminal."""
        columns = self.columns
        if columns is None:
            columns = {key: (key.replace("_", " "), "{}") for row in self.rows for key in row}
        return as_text(self.rows, columns)

    def plot(self, name: str) -> Figure:
        """One of the figures."""
        from matplotlib.figure import Figure

        if name not in self.figures:
            raise OptionError(f"there is no figure {name!r}; there are: {', '.join(self.figures) or 'none'}")
        figure = Figure(figsize=(7.5, 4.8), layout="constrained")
        self.figures[name](figure)
        return figure

    def save(self, folder: str | Path) -> Path:
        """Writes a PNG file per figure and results.json; returns the folder. Files are moved into place whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.figures:
            with whole_file(folder / f"{name}.png") as path:
                self.plot(name).savefig(path, dpi=150, format="png")
        save_results(folder, self.rows, self.about)
        return folder
