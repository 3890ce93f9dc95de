"""families: variational families under a group: which are closed under what, and what symmetrising costs each of them.

The table of closedness comes with a check of every claim. Then a small net is fitted with several families to four numbers on
a cycle with all their shifts, so that the likelihood is invariant, and q is made invariant in four ways: after the fit by an average
(the group moves inputs only) or a projection (it moves hidden units too), from the start by tying, and without leaving
anything out by mixing its transforms, which has the larger ELBO always.

A LogNormal with fixed random signs can be symmetrised in none of the first three: its transforms have other signs on the same
orbits, so they live on other half-lines, and KL(q || g q) is infinite. With signs that are constant on orbits, it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayes_sym.datasets import Labelled
from bayes_sym.errors import ClosednessError, OptionError
from bayes_sym.inference import (
    Fit,
    FullGaussian,
    LogNormal,
    MeanField,
    MeanFieldLaplace,
    NaturalGradient,
    Variational,
    mixture_gain,
    orbit_mixture,
    predict,
    tie,
)
from bayes_sym.inference.families import Family, symmetrised
from bayes_sym.inference.families.averages import check_average, check_signs
from bayes_sym.inference.families.log_normal import LogNormalParams
from bayes_sym.inference.intervals import over_seeds
from bayes_sym.inference.scores import score
from bayes_sym.representations import Representation

from .closedness_table import closedness_rows, draw_closedness
from .cycle import ACTION, PROBLEM, cycles, weights_move
from .experiment import Experiment, Options
from .findings import Findings
from .repeats import repeats
from .side_by_side import side_by_side


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FAMILIES", "FITTED", "ConstantSigns", "fits"]

_SEEDS, _STEPS, _NUM_TRAIN, _NUM_TEST, _DRAWS = 3, 500, 100, 500, 128
_COLUMNS = {
    "family": ("family", "{}"),
    "under": ("under", "{}"),
    "push_forward": ("transforms", "{:d}"),
    "log_affine": ("geometric", "{:d}"),
    "moment": ("moments", "{:d}"),
    "push_error": ("error", "{:.0e}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "nll": ("NLL", "{:.3f}"),
    "elbo": ("ELBO", "{:.1f}"),
    "gain": ("gain", "{:.2f}"),
    "defect": ("defect", "{:.1e}"),
    "defect_se": ("s.e.", "{:.0e}"),
    "member_defect": ("members", "{:.3f}"),
    "reason": ("why not", "{:.70}"),
}


@dataclass(frozen=True)
class ConstantSigns(LogNormal):
    """A LogNormal that starts with equal signs on every orbit of `PROBLEM`'s weights, those of the means over it. Signs stay."""

    def init(self, z: dict[str, jax.Array]) -> LogNormalParams:
        """With median |z|."""
        start = super().init(z)
        mean = {name: rep.project(z[name], tuple(range(z[name].ndim))) for name, rep in weights_move("regular").items()}
        return start._replace(sign=super().init({**z, **mean}).sign)


# the dense covariance needs the natural gradient: with Adam it is 100 nats below the factorised Gaussian after as many steps
_ADAM, _NATURAL = optax.adam(2e-2), NaturalGradient(0.02, max_step=0.5)
FITTED: dict[str, Variational] = {
    "MeanField": Variational(MeanField(), _ADAM),
    "FullGaussian": Variational(FullGaussian(), _NATURAL, num_particles=8),
    "MeanFieldLaplace": Variational(MeanFieldLaplace(), _ADAM),
    "LogNormal, constant signs": Variational(ConstantSigns(), _ADAM),
    "LogNormal, random signs": Variational(LogNormal(), _ADAM),
}
"""By name, the schemes without symmetrisation."""


def fits(
    name: str,
    seed: int,
    *,
    steps: int = _STEPS,
    num_train: int = _NUM_TRAIN,
    seeds: int = _SEEDS,
    num_test: int = _NUM_TEST,
    mesh: Any = None,
) -> list[dict[str, Any]]:
    """The rows of one of the `FITTED` families, means over seeds with their intervals: q as it is, and in every symmetric form."""
    train, test = cycles(num_train, num_test, seed)
    data = np.asarray(ACTION.orbit(train.x)).reshape(-1, 4), np.tile(train.y, 4)
    scheme = FITTED[name]
    plain = repeats(PROBLEM, scheme, seed, seeds, *data, num_steps=steps, mesh=mesh)
    found = [_row(done, done.state.params, data, test, seed) for done in plain]
    rows = [{"under": "nothing", **row} for row in found]
    kind = "arithmetic" if name == "MeanFieldLaplace" else "geometric"
    for under, hidden, how in (("average", "trivial", kind), ("projection", "regular", "parameters")):
        rows += _or_reason(under, partial(_after, plain, weights_move(hidden), how, data, test, seed))
    tied = replace(scheme, symmetrise=tie(ACTION))

    def fit_tied() -> list[dict[str, Any]]:
        several = repeats(PROBLEM, tied, seed, seeds, *data, num_steps=steps, mesh=mesh)
        return [_row(done, done.state.params, data, test, seed) for done in several]

    rows += _or_reason("tied", fit_tied)
    rows += [{"under": "mixture", **_mixed(row, done, test, seed)} for row, done in zip(found, plain, strict=True)]
    means = over_seeds([{"method": f"{name}, {row['under']}", "part": "fit", "family": name, **row} for row in rows])
    return [{key: value for key, value in row.items() if key != "seeds"} | {"seeds": seeds} for row in means]


def _or_reason(under: str, build: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows, or one that says why there are none."""
    try:
        return [{"under": under, **row} for row in build()]
    except (ClosednessError, OptionError) as error:
        return [{"under": under, "reason": str(error)}]


def _after(
    plain: list[Fit], reps: dict[str, Representation], kind: str, data: Any, test: Labelled, seed: int
) -> list[dict[str, Any]]:
    """Rows of fits whose q is replaced by an invariant one, without further steps."""
    family: Family = plain[0].scheme.family  # type: ignore[attr-defined]
    check_average(family, reps, kind)
    for done in plain:
        check_signs(family, done.state.params, reps)
    symmetric = jax.jit(lambda params: symmetrised(family, params, reps, kind))
    return [_row(done, symmetric(done.state.params), data, test, seed) for done in plain]


def _row(done: Fit, params: Any, data: Any, test: Labelled, seed: int) -> dict[str, Any]:
    """The scores of the fit's scheme at these parameters; the ELBO counts whole orbits, as the data hold them."""
    state = done.state._replace(params=params)
    key = jax.random.key(seed)
    posterior = done.scheme.posterior(key, state, PROBLEM, tuple(map(jnp.asarray, data)), None)
    scores = score(posterior, key, (test.x, test.y), ACTION, _DRAWS)
    assert posterior.log_evidence is not None
    return {
        "accuracy": scores["accuracy"],
        "nll": scores["nll"],
        "elbo": float(posterior.log_evidence),
        "defect": scores["equivariance_error"],
        "defect_se": scores["equivariance_error_se"],
        "member_defect": scores["member_error"],
        "averaged_accuracy": scores["averaged_accuracy"],
        "averaged_nll": scores["averaged_nll"],
    }


def _mixed(row: dict[str, Any], done: Fit, test: Labelled, seed: int) -> dict[str, Any]:
    """The mixture of q's transforms: its ELBO is that of q and the gain, its defect that under the group's generator.

    A member f(g^-1 x) has at x the defect that f has at g^-1 x, so over these inputs, whose law shifts leave alone, members have that of q.
    """
    family: Family = done.scheme.family  # type: ignore[attr-defined]
    gain = mixture_gain(family, done.state.params, weights_move("regular"), jax.random.key(seed))
    probabilities = orbit_mixture(lambda x: predict(PROBLEM, done, jax.random.key(seed), np.asarray(x), num_draws=_DRAWS), ACTION)
    gap = probabilities(np.asarray(ACTION.transform(1, jnp.asarray(test.x)))) - probabilities(test.x)
    return {
        "accuracy": row["averaged_accuracy"],
        "nll": row["averaged_nll"],
        "elbo": row["elbo"] + gain.gain,
        "gain": gain.gain,
        "gain_se": gain.se,
        "defect": float((gap.mean(axis=0) ** 2).sum(axis=-1).mean()),
        "member_defect": row["member_defect"],
    }


def _job(name: str, options: Options) -> list[dict[str, Any]]:
    if name == "closedness":
        return closedness_rows(options.seed)
    return fits(name, options.seed, steps=options.steps or _STEPS, num_train=options.num_train or _NUM_TRAIN, mesh=options.mesh)


def _run(options: Options) -> Findings:
    names, job = (
        ("FullGaussian", "closedness", *(name for name in FITTED if name != "FullGaussian")),
        partial(_job, options=options),
    )
    parts = side_by_side(job, names, options)
    by_name = dict(zip(names, parts, strict=True))
    rows = [row for name in ("closedness", *FITTED) for row in by_name[name]]
    figures = {"closedness": partial(draw_closedness, rows), "symmetrised": partial(_draw, rows)}
    return Findings(rows, figures, _COLUMNS, {"experiment": "families", "seed": options.seed})


def _draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """By family and symmetrisation: the ELBO, the NLL, and the defects of predictions and of members."""
    fitted = [row for row in rows if row["part"] == "fit"]
    panels = figure.subplots(1, 3, sharey=True)
    under = ("nothing", "average", "projection", "tied", "mixture")
    families = list(dict.fromkeys(row["family"] for row in fitted))
    for row in fitted:
        height = len(families) - 1 - families.index(row["family"]) + 0.32 - 0.16 * under.index(row["under"])
        style: dict[str, Any] = {"color": f"C{under.index(row['under'])}", "marker": "osD^*"[under.index(row["under"])]}
        if row.get("elbo") is None:
            panels[0].text(
                0.02, height, "refused", color=style["color"], fontsize=6, va="center", transform=panels[0].get_yaxis_transform()
            )
            continue
        for axes, key in zip(panels, ("elbo", "nll", "defect"), strict=True):
            low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
            if low is not None and high is not None:
                axes.hlines(height, low, high, color=style["color"], linewidth=1, alpha=0.5)
            axes.plot(row[key], height, markersize=5, linestyle="none", **style)
        panels[2].plot(row["member_defect"], height, markersize=5, linestyle="none", fillstyle="none", **style)
    for i, name in enumerate(under):
        panels[0].plot([], [], color=f"C{i}", marker="osD^*"[i], linestyle="none", label=name)
    panels[0].set(xlabel="ELBO [nats]", yticks=range(len(families)))
    panels[0].set_yticklabels([name.replace(", ", ",\n") for name in families[::-1]])
    panels[1].set(xlabel="test NLL on orbits [nats]")
    panels[2].set(xlabel="predictive defect\n(hollow: of members)")
    panels[2].set_xscale("symlog", linthresh=1e-3)
    panels[2].set_xticks([-1e-2, 0, 1e-2, 1], ["-0.01", "0", "0.01", "1"])
    panels[2].axvline(0, color="0.6", linewidth=0.8, zorder=0)
    for axes in panels:
        axes.hlines(np.arange(len(families) - 1) + 0.5, 0, 1, color="0.85", linewidth=0.8, transform=axes.get_yaxis_transform())
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=8)


FAMILIES = Experiment(
    "families",
    "Variational families under a group: closedness, and what averaging, projecting, tying and mixing do to each",
    _run,
    steps=_STEPS,
)
"""The experiment. Options: `num_train` and `steps` of the fits."""
