"""planted-symmetry: linear maps of images whose symmetry is known, and whether the evidence finds it.

y = W x + noise on a circular grid, where W is a circular convolution ("equivariant"), a map without any translation
symmetry ("broken"), or the sum of two such maps of equal energy ("partial"). The models are a convolution, a fully
connected map, and both side by side, with a strength per pathway and a noise scale that are chosen by evidence. Everything
is linear and Gaussian, so the exact evidence is known in closed form, and judges.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from bayes_sym.errors import CollapseWarning
from bayes_sym.inference import Laplace, Problem, effective_parameters, fit, linearised, log_evidence
from bayes_sym.inference.posterior import GaussianPosterior
from bayes_sym.layers import Conv, FullyConnected, Layer, Residual, random_module
from bayes_sym.priors import ResidualPathways

from .experiment import Experiment, Options
from .findings import Findings
from .planted_maps import NUM_TRAIN, SIDE, TRUTHS, Planted, energy_shares, exact_log_evidence, plant, shares
from .side_by_side import side_by_side


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MODELS", "OBJECTIVES", "PLANTED_SYMMETRY", "PlantedModel", "learn", "learn_truths"]

MODELS = {"conv": ("conv",), "full": ("full",), "both": ("conv", "full")}
"""The candidates, by their pathways."""

OBJECTIVES = ("full", "ekfac", "ntk")
"""The evidence that is climbed: exact here, bounded on the side of the weights, bounded on the side of the data."""

_STEPS = 3000
_BLOCK = 24  # rows per block of "ntk": half of them, so that it is a bound and not exact
_OPTIMISE = ("*.scale", "noise")
_COLUMNS = {
    "truth": ("truth", "{}"),
    "model": ("model", "{}"),
    "evidence_kind": ("kind", "{}"),
    "pathway": ("pathway", "{}"),
    "parameters": ("weights", "{:,}"),
    "gamma": ("effective", "{:.2f}"),
    "share": ("share", "{:.3f}"),
    "energy": ("energy", "{:.4f}"),
    "planted_energy": ("planted", "{:.4f}"),
    "log_evidence": ("log evidence", "{:.2f}"),
    "exact_log_evidence": ("exact", "{:.2f}"),
    "nll": ("NLL", "{:.3f}"),
}


@dataclass(frozen=True)
class PlantedModel:
    """A NumPyro model ``model(x, y=None)`` of a linear map with some pathways, their strengths and the noise scale."""

    pathways: tuple[str, ...]

    @property
    def layers(self) -> dict[str, Layer]:
        """The map of every pathway."""
        every: dict[str, Layer] = {
            "conv": Conv(1, 1, 3, "CIRCULAR", bias=False),
            "full": FullyConnected(1, 1, (SIDE, SIDE), bias=False),
        }
        return {name: every[name] for name in self.pathways}

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> None:
        """The model: sites ``conv.scale``, ``full.scale``, ``noise`` and ``y``, weights ``map.*``."""
        scales = {name: numpyro.sample(f"{name}.scale", dist.LogNormal(0.0, 1.0)) for name in self.pathways}
        noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        mean = random_module("map", Residual(self.layers), prior=ResidualPathways(scales))(x)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(mean, noise).to_event(3), obs=y)


@cache
def _scheme(objective: str, steps: int) -> Laplace:
    # one object per objective, so that the same programs serve every truth and seed
    return Laplace(
        optax.adam(optax.exponential_decay(0.1, max(1, steps // 4), 0.5)),
        _of_weights(objective),
        _OPTIMISE,
        optax.adam(0.05, b1=0.0, b2=0.9),  # steps that overshoot are taken back; momentum would only repeat them
        burn_in=max(1, steps // 10),
        refresh=max(1, steps // 25),
        hyper_steps=3,
        update="mackay",
        whiten=True,
        objective=objective,
        block_size=_BLOCK,
    )


def _of_weights(objective: str) -> str:
    """The curvature of the posterior: "ntk" has none of the weights."""
    return "full" if objective == "ntk" else objective


def learn(data: Planted, model: str, objective: str, options: Options) -> list[dict[str, Any]]:
    """Learns strengths and noise of one of the `MODELS` by one of the `OBJECTIVES`, and weighs its pathways: a row for each.

    Call it in float64, in which the evidence is good to many digits.
    """
    of_model = PlantedModel(MODELS[model])
    problem, layers = Problem(of_model), of_model.layers
    steps = _STEPS if options.steps is None else options.steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # a convolution can make nothing of a map without symmetry
        found = fit(
            problem,
            _scheme(objective, steps),
            jax.random.key(options.seed),
            data.x,
            data.y,
            num_steps=steps,
            mesh=options.mesh,
            progress=False,
        )
    posterior = found.posterior
    assert isinstance(posterior, GaussianPosterior) and posterior.log_evidence is not None
    point = problem.constrain(posterior.mean, (jnp.asarray(data.x), jnp.asarray(data.y)))
    value, kind = posterior.log_evidence, posterior.evidence_kind
    if objective == "ntk":
        bound = log_evidence(problem, point, data.x, data.y, curvature="ntk", block_size=_BLOCK, optimise=_OPTIMISE)
        value, kind = bound.value, bound.kind
    noise = float(point["noise"])
    variances = {name: float(point[f"{name}.scale"]) ** 2 / layers[name].sites()[0].fan_in for name in layers}
    effective = effective_parameters(problem, point, data.x, data.y, curvature=_of_weights(objective), optimise=_OPTIMISE)
    gamma = {name: float(effective[f"map.{name}.weight"]) for name in layers}
    share = shares({name: gamma[name] / layer.num_weights() for name, layer in layers.items()})
    weights, x_test = {name: posterior.mean[f"map.{name}.weight"] for name in layers}, jnp.asarray(data.x_test)
    energy = energy_shares({name: layer.apply({"weight": weights[name]}, x_test) for name, layer in layers.items()})
    of_fit = {
        "noise": noise,
        "log_evidence": float(value),
        "exact_log_evidence": exact_log_evidence(data.x, data.y, noise, **variances),
        "evidence_kind": kind,
        "nll": _nll(problem, posterior, data),
        "seconds": round(found.seconds, 2),
    }
    return [
        {
            "model": model,
            "pathway": name,
            "parameters": layer.num_weights(),
            "gamma": gamma[name],
            "share": share[name],
            "energy": energy[name],
            "planted_energy": data.energy[name],
            "precision": 1 / variances[name],
            **of_fit,
        }
        for name, layer in layers.items()
    ]


def _nll(problem: Problem, posterior: GaussianPosterior, data: Planted) -> float:
    """Nats per pixel of new responses, the uncertainty of the map included."""
    at = linearised(problem, posterior, data.x_test)
    mean, variance = np.asarray(at.mean), np.asarray(at.predictive_variance)
    squares = (data.y_test.reshape(mean.shape) - mean) ** 2
    return float((np.log(2 * np.pi * variance.reshape(mean.shape)) + squares / variance.reshape(mean.shape)).mean() / 2)


def learn_truths(cell: tuple[str, str], options: Options) -> dict[str, list[dict[str, Any]]]:
    """The rows of one model with one objective, in float64, for each of the truths; it compiles once for all of them."""
    model, objective = cell
    num_train = NUM_TRAIN if options.num_train is None else options.num_train
    with jax.enable_x64(True):
        return {truth: learn(plant(truth, options.seed, num_train), model, objective, options) for truth in _truths(options)}


def _truths(options: Options) -> list[str]:
    return list(TRUTHS) if options.task is None else [options.task]


def _run(options: Options) -> Findings:
    cells = [(model, objective) for model in ("both", "full", "conv") for objective in OBJECTIVES]  # the longest first
    of_cell = partial(learn_truths, options=options)
    found = side_by_side(of_cell, cells, options)
    by_cell = dict(zip(cells, found, strict=True))
    order = [(truth, objective, model) for truth in _truths(options) for objective in OBJECTIVES for model in MODELS]
    rows = [
        {"truth": truth, **row, "seed": options.seed}
        for truth, objective, model in order
        for row in by_cell[model, objective][truth]
    ]
    about = {"experiment": "planted-symmetry", "seed": options.seed, "task": options.task}
    return Findings(rows, {"pathways": partial(_draw, rows)}, _COLUMNS, about)


def _draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Energies of the pathways of "both" beside those that were planted, and the evidence of the candidates."""
    left, right = figure.subplots(1, 2)
    kinds = sorted({row["evidence_kind"] for row in rows}, reverse=True)
    truths = list(dict.fromkeys(row["truth"] for row in rows))
    for i, kind in enumerate(kinds):
        own = [row for row in rows if row["evidence_kind"] == kind]
        conv = [row for row in own if row["model"] == "both" and row["pathway"] == "conv"]
        place = np.arange(len(truths)) + 0.8 / len(kinds) * (i - (len(kinds) - 1) / 2)
        left.bar(place, [row["energy"] for row in conv], 0.7 / len(kinds), color=f"C{i}", label=kind)
        left.hlines([row["planted_energy"] for row in conv], place - 0.4 / len(kinds), place + 0.4 / len(kinds), color="black")
        for marker, model in zip("osD", MODELS, strict=True):
            first = {row["truth"]: row for row in own if row["model"] == model}
            best = {t: max(row["exact_log_evidence"] for row in own if row["truth"] == t) for t in truths}
            gap = [first[t]["log_evidence"] - best[t] for t in truths]
            right.plot(place, gap, marker, color=f"C{i}", label=model if i == 0 else None)
            right.plot(place, [first[t]["exact_log_evidence"] - best[t] for t in truths], "k_", markersize=12)
    left.set_ylabel("energy of the convolution (black: planted)")
    right.set_ylabel("log evidence less that of the best [nats] (black: exact)")
    right.set_yscale("symlog", linthresh=1.0)
    for axes in (left, right):
        axes.set_xticks(range(len(truths)), truths)
        axes.legend(fontsize=8)


PLANTED_SYMMETRY = Experiment(
    "planted-symmetry",
    "Linear maps with a known symmetry: the evidence of pathways against its exact value",
    _run,
    tasks=tuple(TRUTHS),
    steps=_STEPS,
)
