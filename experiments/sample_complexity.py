"""sample-complexity: how estimates of the predictive defect gather around its value as posterior draws are added.

The same draws serve all estimators. The plug-in value from independent draws at x and g x, as published, is too large by
mean_g (tr Cov F(gx) + tr Cov F(x)) / T; from common draws by less; the U-statistic not at all. Its standard deviation
over draws is sqrt(4 D'VD / T + 2 tr V^2 / T^2): of order 1/sqrt(T) far above T_c = tr V^2 / (2 D'VD) only, and of order 1/T for
a symmetric q, whose D is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from bayes_sym.diagnostics import DefectSweep, DrawsNeeded, defect_sweep, draws_bound, draws_needed
from bayes_sym.errors import OptionError
from bayes_sym.inference import MeanField, Posterior, Variational, predict, tie

from .cycle import ACTION, PROBLEM, cycles
from .experiment import Experiment, Options
from .findings import Findings
from .kept import resumable_fit


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SAMPLE_COMPLEXITY", "Sampled", "independent_plug_in", "sample"]

_SIZES, _REPEATS, _EXAMPLES = tuple(2**i for i in range(2, 10)), 64, 64
_STEPS, _NUM_TRAIN, _PRECISION, _PILOT = 1000, 400, 1e-3, 1024
_adam = cache(optax.adam)
_COLUMNS = {
    "posterior": ("posterior", "{}"),
    "num_draws": ("draws", "{}"),
    "independent": ("plug-in, independent", "{:.5f}"),
    "plug_in": ("common", "{:.5f}"),
    "unbiased": ("unbiased", "{:.5f}"),
    "unbiased_se": ("s.e.", "{:.5f}"),
    "sd": ("sd", "{:.2e}"),
    "expected_sd": ("expected", "{:.2e}"),
    "bound": ("McDiarmid", "{:.2f}"),
    "slope": ("slope", "{:.2f}"),
    "slope_se": ("s.e.", "{:.2f}"),
    "critical": ("T_c", "{:.1f}"),
    "draws_needed": (f"draws for +-{_PRECISION:g}", "{:,}"),
}


def independent_plug_in(draws: np.ndarray, size: int, repeats: int) -> np.ndarray:
    """|mean_t F'_t(g x) - mean_t F_t(x)|^2 per set, (repeats,), with draws F' of another set at every g.

    Args:
        draws: invariant predictions (num_draws, group, num_examples, outputs), the identity at g = 0.
        size: T, draws per set.
        repeats: disjoint sets, at least as many as the group has elements. Set k takes its predictions at element g from set k + g.

    Raises:
        OptionError: there are too few sets.
    """
    order = draws.shape[1]
    if repeats < order:
        raise OptionError(f"independent draws at {order} elements need at least {order} sets of draws, got {repeats}")
    means = draws[: repeats * size].reshape(repeats, size, *draws.shape[1:]).mean(axis=1, dtype=np.float64)
    gaps = [((np.roll(means[:, g], -g, axis=0) - means[:, 0]) ** 2).sum(axis=-1).mean(axis=-1) for g in range(1, order)]
    return np.sum(gaps, axis=0) / order


@dataclass(frozen=True, eq=False)
class Sampled:
    """The sweeps of one posterior.

    Attributes:
        name: of the posterior.
        order: of the group.
        sweep: the estimators from common draws.
        independent: the plug-in values from independent draws, (sizes, repeats).
        needed: the two parts of the variance, from a pilot.
    """

    name: str
    order: int
    sweep: DefectSweep
    independent: np.ndarray
    needed: DrawsNeeded

    @classmethod
    def of(cls, name: str, draws: np.ndarray, sizes: tuple[int, ...], repeats: int) -> Sampled:
        """From invariant predictions (num_draws, group, num_examples, outputs)."""
        pilot = draws[:_PILOT].astype(np.float64)
        return cls(
            name,
            draws.shape[1],
            defect_sweep(draws, sizes, repeats),
            np.stack([independent_plug_in(draws, size, repeats) for size in sizes]),
            draws_needed((pilot[:, g] - pilot[:, 0] for g in range(draws.shape[1])), _PRECISION),
        )

    @property
    def shows_defect(self) -> bool:
        """Whether some of the sizes lie above four times T_c, where the slope is that of a defect."""
        return 4 * self.needed.critical <= self.sweep.sizes[-2]

    def expected_sd(self, size: float) -> float:
        """sqrt(4 D'VD / T + 2 tr V^2 / T^2)."""
        return float(np.sqrt(4 * max(self.needed.signal, 0.0) / size + 2 * max(self.needed.noise, 0.0) / size**2))

    def slope(self) -> tuple[float, float]:
        """Of log sd against log T and its standard error, from 4 T_c on if the sizes reach so far."""
        if not self.shows_defect:
            return self.sweep.slope()
        keep = np.array(self.sweep.sizes) >= 4 * self.needed.critical
        sizes = tuple(np.array(self.sweep.sizes)[keep].tolist())
        return DefectSweep(sizes, self.sweep.unbiased[keep], self.sweep.plug_in[keep]).slope()

    def rows(self) -> list[dict[str, Any]]:
        """One per number of draws; slopes and what holds for all of them in the last."""
        found: list[dict[str, Any]] = []
        for i, size in enumerate(self.sweep.sizes):
            unbiased = self.sweep.unbiased[i]
            found.append(
                {
                    "posterior": self.name,
                    "num_draws": size,
                    "repeats": self.sweep.repeats,
                    "independent": float(self.independent[i].mean()),
                    "independent_sd": float(self.independent[i].std(ddof=1)),
                    "plug_in": float(self.sweep.plug_in[i].mean()),
                    "plug_in_sd": float(self.sweep.plug_in[i].std(ddof=1)),
                    "unbiased": float(unbiased.mean()),
                    "unbiased_se": float(unbiased.std(ddof=1) / np.sqrt(len(unbiased))),
                    "sd": float(self.sweep.sd[i]),
                    "expected_sd": self.expected_sd(size),
                    "bound": draws_bound(size, self.order, 0.05),
                }
            )
        slope, se = self.slope()
        critical = self.needed.critical
        found[-1] |= {"slope": slope, "slope_se": se, "critical": critical, "draws_needed": self.needed.num_draws}
        return found


def sample(name: str, posterior: Posterior, x: np.ndarray, key: jax.Array, sizes: tuple[int, ...], repeats: int) -> Sampled:
    """Draws predictions on the orbits of `x` and sweeps over the numbers of draws."""
    orbit = np.asarray(ACTION.orbit(x)).reshape(-1, x.shape[1])
    draws = predict(PROBLEM, posterior, key, orbit, num_draws=repeats * sizes[-1], draw_batch=1024)
    return Sampled.of(name, draws.reshape(len(draws), ACTION.group.order, len(x), -1), sizes, repeats)


def _run(options: Options) -> Findings:
    train, test = cycles(options.num_train or _NUM_TRAIN, _EXAMPLES, options.seed)
    key_fit, key_draws = jax.random.split(jax.random.key(options.seed))
    found = []
    for name, symmetrise in (("asymmetric", None), ("symmetric", tie(ACTION))):
        scheme = Variational(MeanField(), _adam(2e-2), symmetrise=symmetrise)
        done = resumable_fit(name, options, PROBLEM, scheme, key_fit, *train, num_steps=options.steps or _STEPS)
        found.append(sample(name, done.posterior, test.x, key_draws, _SIZES, _REPEATS))
    rows = [row for one in found for row in one.rows()]
    about = {"experiment": "sample-complexity", "seed": options.seed, "precision": _PRECISION}
    return Findings(rows, {"estimates": partial(_draw_means, found), "spread": partial(_draw_spread, found)}, _COLUMNS, about)


def _sizes_on(axes: Any, sizes: tuple[int, ...]) -> None:
    axes.set(xscale="log", xlabel="posterior draws T")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_means(found: list[Sampled], figure: Figure) -> None:
    """A panel per posterior: means of the three estimators with bars of one standard deviation over sets of draws."""
    for axes, one in zip(figure.subplots(1, len(found)), found, strict=True):
        sizes = np.array(one.sweep.sizes, float)
        several = (
            ("plug-in, independent draws", one.independent, 0.95),
            ("plug-in, common draws", one.sweep.plug_in, 1.0),
            ("unbiased", one.sweep.unbiased, 1.05),
        )
        for label, values, nudge in several:
            mean, sd = values.mean(axis=1), values.std(axis=1, ddof=1)
            axes.errorbar(sizes * nudge, mean, sd, fmt="o-", markersize=4, linewidth=1, capsize=2, label=label)
        axes.axhline(one.sweep.unbiased[-1].mean(), color="0.6", linewidth=0.8, zorder=0)
        axes.set(title=f"{one.name} q", ylabel="predictive defect")
        _sizes_on(axes, one.sweep.sizes)
        axes.legend(fontsize=8, frameon=False)


def _draw_spread(found: list[Sampled], figure: Figure) -> None:
    """Standard deviations of the unbiased estimator, with what the pilot expects and T_c."""
    axes = figure.add_subplot()
    error = 1 / np.sqrt(2 * (found[0].sweep.repeats - 1))  # of log sd
    for i, one in enumerate(found):
        sizes, (slope, se) = np.array(one.sweep.sizes, float), one.slope()
        bars = np.abs(one.sweep.sd * (np.exp([[-error], [error]]) - 1))
        span = f" from {4 * one.needed.critical:.0f} draws on" if one.shows_defect else ""
        label = f"{one.name} q: slope {slope:.2f} ± {se:.2f}{span}"
        axes.errorbar(sizes, one.sweep.sd, bars, fmt="os"[i], color=f"C{i}", markersize=5, capsize=2, label=label)
        axes.plot(sizes, [one.expected_sd(size) for size in sizes], color=f"C{i}", linewidth=1)
        if one.shows_defect:
            axes.axvline(one.needed.critical, color=f"C{i}", linestyle=":", linewidth=1)
            axes.text(one.needed.critical * 1.05, one.sweep.sd.max(), "$T_c$", color=f"C{i}")
    axes.set(yscale="log", ylabel="standard deviation of the unbiased defect")
    axes.plot([], [], color="0.4", linewidth=1, label="sqrt(4 D'VD / T + 2 tr V² / T²), from a pilot")
    _sizes_on(axes, found[0].sweep.sizes)
    axes.legend(fontsize=8, frameon=False)


SAMPLE_COMPLEXITY = Experiment(
    "sample-complexity",
    "Estimates of the equivariance defect against the number of posterior draws: bias, spread and slopes",
    _run,
    steps=_STEPS,
)
"""The experiment. Options: `num_train` and `steps` of the fits."""
