"""The result of a comparison: a table, a figure of the trade between symmetry and fit, and files that keep both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from bayes_sym.atomic import whole_file

from .fit import Fit
from .posterior import Posterior
from .results import save_results
from .rows import Data


if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        rows: one flat dict per method, in the order of the cells.
        fits: the fits by method.
        posteriors: the posteriors by method: the last ones, or the best on validation.
        data: the training data by method.
        about: facts of the run, such as the seed.
    """

    rows: list[dict[str, Any]]
    fits: dict[str, Fit]
    posteriors: dict[str, Posterior]
    data: dict[str, Data]
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """The rows as a data frame, indexed by method."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("method")

    def plot(self) -> Figure:
        """Equivariance error against negative log-likelihood, with standard errors; arrows lead to the orbit average."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 4.8), layout="constrained")
        axes = figure.add_subplot()
        floor = max(1e-5, min((r["equivariance_error"] for r in self.rows if r["equivariance_error"] > 0), default=1e-5) / 2)
        for i, row in enumerate(self.rows):
            colour, marker = f"C{i % 10}", "osD^vP*X"[i % 8]
            x, error = max(row["equivariance_error"], floor), 2 * row["equivariance_error_se"]
            axes.errorbar(
                x,
                row["nll"],
                xerr=[[min(error, x * 0.999)], [error]],
                yerr=2 * row["nll_se"],
                fmt=marker,
                color=colour,
                markersize=8,
                capsize=3,
                label=f"{row['method']}  ({row['parameters']:,} weights)",
            )
            axes.plot(floor, row["averaged_nll"], marker=marker, color=colour, fillstyle="none", markersize=8, linestyle="none")
        axes.set_xscale("log")
        axes.set_xlabel(
            "equivariance error of the predictive, squared probability\n(hollow, at the left edge: test-time orbit average)"
        )
        axes.set_ylabel("negative log-likelihood on all transforms [nats]")
        axes.set_title("Bars: 2 standard errors", fontsize=9, loc="right")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
        return figure

    def save(self, folder: str | Path) -> Path:
        """Writes results.json, table.csv, tradeoff.png and one ArviZ netCDF per posterior; returns the folder.

        Files are moved into place whole, results.json last.
        """
        from .arviz import to_arviz

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for method, fit in self.fits.items():
            posterior = self.posteriors[method]
            tree = to_arviz(
                _with_posterior(fit, posterior), posterior.problem, jax.random.key(0), *self.data[method], num_draws=100
            )
            with whole_file(folder / "posteriors" / f"{method}.nc") as path:
                tree.to_netcdf(str(path))
        with whole_file(folder / "tradeoff.png") as path:
            self.plot().savefig(path, dpi=150, format="png")
        with whole_file(folder / "table.csv") as path:
            self.table().to_csv(path)
        save_results(folder, self.rows, self.about)
        return folder


def _with_posterior(fit: Fit, posterior: Posterior) -> Fit:
    return Fit(posterior.problem, fit.scheme, posterior, fit.losses, fit.state, fit.seconds, fit.status())
