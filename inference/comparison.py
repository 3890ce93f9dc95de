"""The result of a comparison: tables, figures, the fits behind them, and files that keep all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from bayes_sym.atomic import whole_file
from bayes_sym.errors import OptionError

from .evidence_table import ranked
from .figures import plot_evidence, plot_tradeoff
from .fit import Fit
from .grid import Run
from .intervals import interval_over, over_seeds
from .posterior import Posterior
from .results import save_results
from .rows import Data


if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Runs"]

_T = TypeVar("_T")
_FIGURES = {"tradeoff": plot_tradeoff, "evidence": plot_evidence}


class Runs(Mapping[tuple[str, int], Run]):
    """The runs by method and seed. Those that were finished earlier are read from their folder when they are asked for."""

    def __init__(self, runs: Mapping[tuple[str, int], Run | Callable[[], Run]]) -> None:
        self._runs = dict(runs)

    def __getitem__(self, place: tuple[str, int]) -> Run:
        found = self._runs[place]
        if not isinstance(found, Run):
            found = self._runs[place] = found()
        return found

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)


class _FirstSeed(Mapping[str, _T]):
    """A part of each method's run with its first seed."""

    def __init__(self, runs: Mapping[tuple[str, int], Run], part: Callable[[Run], _T]) -> None:
        self._runs, self._part = runs, part
        self._places: dict[str, tuple[str, int]] = {}
        for place in runs:
            self._places.setdefault(place[0], place)

    def __getitem__(self, method: str) -> _T:
        return self._part(self._runs[self._places[method]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        rows: one flat dict per method and seed, in the order of the cells.
        runs: fit and posterior by (method, seed): ``runs["map", 0].posterior``.
        data: the training data by method.
        about: facts of the run, such as the seed.
    """

    rows: list[dict[str, Any]]
    runs: Mapping[tuple[str, int], Run]
    data: dict[str, Data]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> Mapping[str, Fit]:
        """The fits by method, of the first seed."""
        return _FirstSeed(self.runs, lambda run: run.fit)

    @property
    def posteriors(self) -> Mapping[str, Posterior]:
        """The posteriors by method, of the first seed: the last ones, or the best on validation."""
        return _FirstSeed(self.runs, lambda run: run.posterior)

    @property
    def _several(self) -> bool:
        return len(self.runs) > len(self.fits)

    def summary(self) -> list[dict[str, Any]]:
        """One flat dict per method: the rows as they are with one seed, and else their means with intervals over seeds."""
        return over_seeds(self.rows) if self._several else self.rows

    def table(self) -> pd.DataFrame:
        """A data frame indexed by method. Several seeds become means, with the columns ``*_low`` and ``*_high`` beside them.

        These are 95% t-intervals over seeds, for three seeds and more. The test set is the same for all seeds, so they do not
        cover its chance; the columns ``*_se`` do.
        """
        import pandas as pd

        return pd.DataFrame(self.summary()).set_index("method")

    def long(self) -> pd.DataFrame:
        """A tidy data frame: one line per method, seed and score, with the columns method, seed, score and value."""
        import pandas as pd

        lines = [
            {"method": method, "seed": seed, "score": name, "value": float(value)}
            for (method, seed), row in zip(self.runs, self.rows, strict=True)
            for name, value in row.items()
            if name != "seed" and isinstance(value, int | float) and not isinstance(value, bool)
        ]
        return pd.DataFrame(lines)

    def dataset(self) -> xr.Dataset:
        """An xarray data set: every score (cell, seed), and for several seeds ``*_mean`` (cell) and ``*_interval`` (cell, bound).

        Cells are named by their methods: ``.sel(cell="map")``, since xarray's own `method` is another thing. Intervals are
        NaN below three seeds. The kind of each cell's evidence is a coordinate.
        """
        import numpy as np
        import xarray as xr

        methods = list(self.fits)
        seeds = list(dict.fromkeys(seed for _, seed in self.runs))
        place = {run: i for i, run in enumerate(self.runs)}
        ordered = [[self.rows[place[method, seed]] for seed in seeds] for method in methods]
        found: dict[str, Any] = {}
        for name in self.rows[0]:
            values = [[row[name] for row in of_method] for of_method in ordered]
            flat = [value for of_method in values for value in of_method]
            if name == "seed" or any(isinstance(value, str | bool) for value in flat) or all(value is None for value in flat):
                continue
            array = np.array([[np.nan if value is None else value for value in line] for line in values], float)
            found[name] = (("cell", "seed"), array)
            if self._several:
                over = [interval_over(line) for line in array]
                bounds = [[np.nan if one.low is None else one.low, np.nan if one.high is None else one.high] for one in over]
                found[f"{name}_mean"] = ("cell", np.array([one.mean for one in over]))
                found[f"{name}_interval"] = (("cell", "bound"), np.array(bounds))
        kinds = np.array([of_method[0]["evidence_kind"] or "" for of_method in ordered])
        coordinates: dict[str, Any] = {"cell": methods, "seed": seeds, "evidence_kind": ("cell", kinds)}
        if self._several:
            coordinates["bound"] = ["low", "high"]
        return xr.Dataset(found, coordinates, {name: str(value) for name, value in self.about.items()})

    def evidence(self) -> pd.DataFrame:
        """The evidence of each method, ranked among those with the same kind of estimate and the same training data.

        With several seeds it is the mean over them, with its interval.
        """
        import pandas as pd

        names = ("method", "evidence_kind", "data_checksum", "log_evidence", "log_evidence_low", "log_evidence_high")
        rows = [{name: row[name] for name in names if name in row} for row in self.summary()]
        table = pd.DataFrame(rows).set_index("method").astype({"log_evidence": float})
        return ranked(table, ["evidence_kind", "data_checksum"])

    def plot(self, name: str = "tradeoff") -> Figure:
        """A figure: ``"tradeoff"``, equivariance error against fit, or ``"evidence"``, evidence against fit, by kind."""
        if name not in _FIGURES:
            raise OptionError(f"there is no figure {name!r}; there are: {', '.join(_FIGURES)}")
        return _FIGURES[name](self.rows)

    def save(self, folder: str | Path) -> Path:
        """Writes results.json, table.csv, figures and one ArviZ netCDF per posterior; returns the folder.

        Files are moved into place whole, results.json last. Its rows are those of every seed; table.csv has the table.
        """
        from .arviz import to_arviz

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for (method, seed), run in self.runs.items():
            problem = run.posterior.problem
            tree = to_arviz(_with_posterior(*run), problem, jax.random.key(0), *self.data[method], num_draws=100)
            name = f"{method}.seed-{seed}" if self._several else method
            with whole_file(folder / "posteriors" / f"{name}.nc") as path:
                tree.to_netcdf(str(path))
        figures = ["tradeoff"] + ["evidence"] * any(row["log_evidence"] is not None for row in self.rows)
        for name in figures:
            with whole_file(folder / f"{name}.png") as path:
                self.plot(name).savefig(path, dpi=150, format="png")
        with whole_file(folder / "table.csv") as path:
            self.table().to_csv(path)
        save_results(folder, self.rows, self.about)
        return folder


def _with_posterior(fit: Fit, posterior: Posterior) -> Fit:
    return Fit(posterior.problem, fit.scheme, posterior, fit.losses, fit.state, fit.seconds, fit.status())
