"""prior-invariance: what a prior without symmetry does to the posterior's, and how that fades with the number of rows.

First a linear regression on full orbits, in which everything is known: the exact posterior q has mean_g KL(q || g q) equal to
mean_g E_q[log p(w) - log p(g^-1 w)], which falls as 1/N, and its mean prediction has a defect that falls as 1/N^2. Then small
nets by variational inference on digits, which start from an invariant q and see whole orbits, so that only the prior and the
noise of the gradients can break the symmetry. The repaired prior is the geometric mean of the random one over the group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.sharding import Mesh

from bayes_sym import datasets, groups, representations
from bayes_sym.inference import MeanField, Problem, Variational, full_orbit, invariant_prior, project, weight_action
from bayes_sym.inference.families import certificate
from bayes_sym.inference.orbit_predictions import posterior_equivariance
from bayes_sym.layers import Activation, Dense, Flatten, Sequential, random_module
from bayes_sym.representations import Representation

from .experiment import Experiment, Options
from .findings import Findings
from .linear_posterior import PRIORS, linear
from .repeats import repeats
from .side_by_side import side_by_side


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PRIOR_INVARIANCE", "nets"]

_ROWS = tuple(20 * 2**i for i in range(9))  # of the linear regression
_IMAGES, _STEPS, _SEEDS = (50, 200, 800), 500, 3
_ACTION = representations.image(groups.cyclic(4), (8, 8))
_COLUMNS = {
    "part": ("part", "{}"),
    "prior": ("prior", "{}"),
    "num_train": ("N", "{:,}"),
    "kl": ("mean KL(q||gq)", "{:.3g}"),
    "kl_by_prior": ("by the prior", "{:.3g}"),
    "kl_slope": ("slope", "{:.3f}"),
    "defect": ("defect", "{:.2e}"),
    "defect_se": ("s.e.", "{:.1e}"),
    "defect_slope": ("slope", "{:.3f}"),
    "member_defect": ("members", "{:.1e}"),
}


@dataclass(frozen=True)
class _Net:
    """A dense classifier of digits; the means of its weights' priors, in units of their scales, are an argument."""

    width: int = 8

    @property
    def spec(self) -> Sequential:
        return Sequential((Flatten(), Dense(64, self.width), Activation("tanh"), Dense(self.width, 10)))

    def __call__(self, x: jax.Array, y: jax.Array | None = None, center: Mapping[str, jax.Array] | None = None) -> None:
        scales = {s.name: 1 / math.sqrt(s.fan_in) for s in self.spec.sites()}
        prior = {
            s.name: dist.Normal(jnp.zeros(s.shape) if center is None else center[s.name], scales[s.name]).to_event(len(s.shape))
            for s in self.spec.sites()
        }
        net = random_module("net", self.spec, prior=prior)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


_PROBLEM = Problem(_Net(), row_args=(0, 1))


@cache
def _scheme(steps: int) -> Variational:
    """Invariant at the start, not held; steps that shrink, because the noise of the gradients breaks the symmetry too."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, steps))
    return Variational(MeanField(0.02), optimizer, augment=full_orbit(_ACTION), symmetrise=project(_ACTION, at=1))


def nets(
    num_train: int, *, steps: int, seed: int, seeds: int = _SEEDS, num_test: int = 300, mesh: Mesh | None = None
) -> list[dict[str, Any]]:
    """A row for every prior: the asymmetry of q and of its predictions after `steps` steps, means over `seeds` starts."""
    split = datasets.digits(num_train, 0, num_test, seed=seed)
    reps = weight_action(_PROBLEM, tuple(split.train), _ACTION, hidden="regular")
    key = jax.random.key(seed)
    found = []
    for name, center in _centers(reps, seed).items():
        fits = repeats(_PROBLEM, _scheme(steps), seed, seeds, *split.train, center, num_steps=steps, mesh=mesh)
        errors = [
            posterior_equivariance(_PROBLEM, done, key, split.test.x, _ACTION, num_draws=200, progress=False).error
            for done in fits
        ]
        found.append(
            {
                "part": "net",
                "prior": name,
                "num_train": num_train,
                "kl": float(np.mean([certificate(MeanField(), done.state.params, reps) for done in fits])),
                "defect": float(np.mean([error.predictive for error in errors])),
                # that of one fit: the seeds share their test images
                "defect_se": float(np.sqrt(np.mean([error.predictive_se**2 for error in errors]))),
                "defect_sd": float(np.std([error.predictive for error in errors], ddof=1)) if seeds > 1 else None,
                "member_defect": float(np.mean([error.member for error in errors])),
                "elbo": float(np.mean([float(done.posterior.log_evidence) for done in fits])),  # type: ignore[arg-type]
            }
        )
    return found


def _centers(reps: Mapping[str, Representation], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """The means of each of the `PRIORS`, by site."""
    generator, sites = np.random.default_rng([seed, 2]), _Net().spec.sites()
    random = {s.name: (generator.standard_normal(s.shape) / math.sqrt(s.fan_in)).astype(np.float32) for s in sites}
    priors: dict[str, dist.Distribution] = {
        f"net.{s.name}": dist.Normal(random[s.name], 1 / math.sqrt(s.fan_in)).to_event(len(s.shape)) for s in sites
    }
    mended: Any = invariant_prior(priors, reps)
    repaired = {s.name: np.asarray(mended[f"net.{s.name}"].base_dist.loc) for s in sites}
    zero = {name: np.zeros_like(mean) for name, mean in random.items()}
    return dict(zip(PRIORS, (zero, random, repaired), strict=True))


def _run(options: Options) -> Findings:
    rows = linear(_ROWS, options.seed)
    sizes = _IMAGES if options.num_train is None else (options.num_train,)
    one, order = (
        partial(nets, steps=options.steps or _STEPS, seed=options.seed, mesh=options.mesh),
        sizes[::-1],
    )  # the longest first
    found = side_by_side(one, order, options)
    rows += [row for name in PRIORS for of_size in found[::-1] for row in of_size if row["prior"] == name]
    return Findings(
        rows, {"prior-invariance": partial(_draw, rows)}, _COLUMNS, {"experiment": "prior-invariance", "seed": options.seed}
    )


def _draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Left the linear regression's divergence and defect under the random prior; right the nets' defects under every prior."""
    left, right = figure.subplots(1, 2)
    random = [row for row in rows if row["part"] == "linear" and row["prior"] == "random"]
    counts = np.array([row["num_train"] for row in random], float)
    for key, label, slope, color in (("kl", "mean KL(q || g q) [nats]", -1, "C0"), ("defect", "predictive defect", -2, "C1")):
        values = np.array([row[key] for row in random])
        left.loglog(counts, values, "o", color=color, markersize=4, label=label)
        left.loglog(counts, values[-1] * (counts / counts[-1]) ** slope, color=color, linewidth=0.8, label=f"slope {slope}")
    others = max(abs(row["kl"]) for row in rows if row["part"] == "linear" and row["prior"] != "random")
    left.set(title="linear regression, random prior", xlabel="rows")
    note = f"invariant and repaired priors:\nKL < {max(others, 1e-15):.0e}, at any number of rows"
    left.text(0.04, 0.03, note, transform=left.transAxes, fontsize=8, color="0.35")
    left.legend(fontsize=8, frameon=False)
    for i, name in enumerate(PRIORS):
        own = [row for row in rows if row["part"] == "net" and row["prior"] == name]
        counts = np.array([row["num_train"] for row in own], float) * (1 + 0.06 * (i - 1))
        errors = [1.96 * row["defect_se"] for row in own]
        right.errorbar(
            counts, [row["defect"] for row in own], errors, fmt="osD"[i] + "-", markersize=5, linewidth=1, capsize=2, label=name
        )
    right.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    right.set(xscale="log", title="dense nets on digits, variational", xlabel="training images", ylabel="predictive defect")
    right.set_yscale("symlog", linthresh=1e-4)
    right.set_xticks(sorted({row["num_train"] for row in rows if row["part"] == "net"}))
    right.get_xaxis().set_major_formatter("{x:.0f}")
    right.get_xaxis().set_minor_formatter(lambda *_: "")
    right.legend(title="prior", fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)


PRIOR_INVARIANCE = Experiment(
    "prior-invariance",
    "A prior without symmetry against an invariant and a repaired one, by the number of rows",
    _run,
    steps=_STEPS,
)
"""The experiment. Options: `num_train` for the nets' images, `steps` of their fits."""
