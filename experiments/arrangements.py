"""arrangements: how hidden blocks of an expanded net may be filled, and which fillings leave it equivariant.

A small net without any symmetry is expanded in every arrangement, and the mean of q is run on all transforms of some
inputs. `diag` is the group average of the small net. A function can be equivariant although q is not invariant under regular
hidden representations (row_rolled under commutative groups). With dense layers, which nothing turns, all but diag and mix
collapse to invariant features: outputs that should move cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import representations
from bayes_sym._precision import full_precision
from bayes_sym.inference import ARRANGEMENTS as NAMES
from bayes_sym.inference import MeanField
from bayes_sym.inference.expansion import expand_spec, expand_weights
from bayes_sym.inference.families import MeanFieldParams, certificate
from bayes_sym.inference.weight_action import weight_representations
from bayes_sym.layers import Field, Layer
from bayes_sym.representations import Representation

from .arrangement_cases import CASES, Case
from .experiment import Experiment, Options
from .findings import Findings
from .side_by_side import side_by_side


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ARRANGEMENTS", "expansions"]

_SCALE, _OFF_SCALE, _INPUTS = 0.05, 0.02, 8
_COLUMNS = {
    "case": ("net", "{}"),
    "arrangement": ("arrangement", "{}"),
    "error": ("error, float32", "{:.1e}"),
    "error_float64": ("float64", "{:.1e}"),
    "average_gap": ("from average", "{:.1e}"),
    "moving_share": ("moving share", "{:.1e}"),
    "distinct_rows": ("rows", "{}"),
    "copies": ("of", "{}"),
    "certificate": ("KL(q||gq)", "{:.1e}"),
    "other_certificate": ("other hidden", "{:.1e}"),
    "kl_before": ("KL small", "{:.0f}"),
    "kl_fan_in": ("by fan-in", "{:.0f}"),
    "kl_fixed_before": ("KL small", "{:.0f}"),
    "kl_fixed": ("fixed", "{:.0f}"),
}


@full_precision
def expansions(case: Case, seed: int) -> list[dict[str, Any]]:
    """A row for every arrangement: errors in float32 and float64, blocks, invariance of q, and its KL divergence to priors."""
    with jax.enable_x64(True):
        generator = np.random.default_rng(seed)
        # biases are small, so that outputs depend on the inputs
        small = {
            s.name: generator.standard_normal(s.shape) * (0.1 if s.kind == "bias" else 1 / math.sqrt(s.fan_in))
            for s in case.spec.sites()
        }
        shape = (*case.action.shape, 1) if case.output is None else case.action.shape
        x = generator.standard_normal((_INPUTS, *shape))
        every, before = _expanded(case, small)
        average = _group_average(case, small, x)
        rows = []
        for name in NAMES:
            q, divergences = every[name]
            outputs, error = _outputs(case, q.mean, x)
            rows.append(
                {
                    "case": case.name,
                    "group": case.group.name,
                    "arrangement": name,
                    "error": None,
                    "error_float64": error,
                    "average_gap": float(np.abs(outputs - average).max() / np.abs(average).max()),
                    "moving_share": None if case.output is None else _moving(outputs, case.output),
                    **_blocks(case, q.mean),
                    **_invariance(case, name, q),
                    "kl_before": float(before[0]),
                    "kl_fan_in": float(divergences[0]),
                    "kl_fixed_before": float(before[1]),
                    "kl_fixed": float(divergences[1]),
                }
            )
    for row in rows:
        narrow = {site: np.asarray(mean, np.float32) for site, mean in every[row["arrangement"]][0].mean.items()}
        row["error"] = _outputs(case, narrow, x.astype(np.float32))[1]
    return rows


def _expanded(case: Case, small: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], jax.Array]:
    """By arrangement, the expanded q and its KL divergences; and those of the small q. One program: each alone takes as long."""
    field, big = Field.of(case.action, 1), expand_spec(case.spec, case.group.order)

    @jax.jit
    def every(means: Mapping[str, jax.Array]) -> tuple[dict[str, Any], jax.Array]:
        start = MeanField(_SCALE).init(dict(means))
        found = {}
        for name in NAMES:
            grown = expand_weights(case.spec, field, case.output, means, start.scale, _OFF_SCALE, arrangement=name)
            q = MeanFieldParams(grown[0], {site: jnp.log(scale) for site, scale in grown[1].items()})
            found[name] = q, _divergences(big, q)
        return found, _divergences(case.spec, start)

    return every(small)


def _divergences(spec: Layer, q: MeanFieldParams) -> jax.Array:
    """KL(q || prior) in nats for priors of standard deviation 1/sqrt(fan_in) and of 1."""
    found = []
    for by_fan_in in (True, False):
        mean = {s.name: jnp.zeros(s.shape) for s in spec.sites()}
        scale = {s.name: jnp.full(s.shape, -0.5 * math.log(s.fan_in) if by_fan_in else 0.0) for s in spec.sites()}
        found.append(MeanField().kl(q, MeanFieldParams(mean, scale)))
    return jnp.stack(found)


@partial(jax.jit, static_argnums=0)
def _apply(spec: Layer, weights: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    return spec.apply(weights, x)


def _on_orbit(case: Case, spec: Layer, weights: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """The outputs at g x for every g, float64 (group, inputs, outputs)."""
    order = case.group.order
    orbit = np.concatenate([np.asarray(case.action.transform(g, jnp.asarray(x))) for g in range(order)])
    return np.asarray(_apply(spec, dict(weights), orbit), np.float64).reshape(order, len(x), -1)


def _turned(case: Case, g: int, outputs: np.ndarray) -> np.ndarray:
    return outputs if case.output is None else outputs @ case.output.matrices()[g].T


def _outputs(case: Case, weights: Mapping[str, Any], x: np.ndarray) -> tuple[np.ndarray, float]:
    """The outputs of the expanded net, and how far they are from equivariant, relative to the largest."""
    found = _on_orbit(case, expand_spec(case.spec, case.group.order), weights, x)
    gap = max(np.abs(found[g] - _turned(case, g, found[0])).max() for g in range(case.group.order))
    return found[0], float(gap / np.abs(found[0]).max())


def _group_average(case: Case, small: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """1/|G| sum_g rho_out(g) f(g^-1 x) of the small net f."""
    found = _on_orbit(case, case.spec, small, x)
    return np.mean([_turned(case, g, found[case.group.inverse[g]]) for g in range(case.group.order)], axis=0)


def _moving(outputs: np.ndarray, output: Representation) -> float:
    """The share of outputs (rows, dim) that is not invariant, by norms."""
    return float(np.linalg.norm(outputs - outputs @ output.projector.T) / np.linalg.norm(outputs))


def _blocks(case: Case, means: Mapping[str, jax.Array]) -> dict[str, int]:
    """How many rows of hidden blocks differ, in the first layer that has blocks on both sides."""
    order, stages = case.group.order, case.spec.stages()
    weight = np.asarray(means[stages[1].sites[0]])
    blocks = weight.reshape(-1, order, stages[0].width, order, stages[1].width).transpose(3, 0, 1, 2, 4).reshape(order, -1)
    return {"distinct_rows": len(np.unique(blocks.round(12), axis=0)), "copies": order}


def _invariance(case: Case, arrangement: str, q: MeanFieldParams) -> dict[str, Any]:
    """mean_g KL(q || g q) under regular hidden representations, and of row_rolled under those in which it is invariant."""
    copies, layers = representations.regular(case.group), len(case.spec.stages()) - 1
    found: dict[str, Any] = {"certificate": _certificate(case, q, [copies] * layers), "other_certificate": None}
    if arrangement == "row_rolled" and case.output is None and len(case.group.generators) == 1:
        # block (g, h) depends on g h^-1 by a turn, so layer l moves its copies by the l-th power of the element
        assert copies.source is not None
        powers = [np.arange(case.group.order) * (layer + 1) % case.group.order for layer in range(layers)]
        several = [representations.permutation(case.group, copies.source[power]) for power in powers]
        found["other_certificate"] = _certificate(case, q, several)
    return {**found, "is_invariant": found["certificate"] < 1e-9}


def _certificate(case: Case, q: MeanFieldParams, copies: list[Representation]) -> float:
    widths = [stage.width for stage in case.spec.stages()[:-1]]
    hidden = tuple(
        (rep * representations.trivial(case.group, width)).reshape(rep.dim * width)
        for rep, width in zip(copies, widths, strict=True)
    )
    big, field = expand_spec(case.spec, case.group.order), Field.of(case.action, 1)
    return certificate(MeanField(), q, weight_representations(big, field, case.output, hidden))


def _run(options: Options) -> Findings:
    rows = [row for found in side_by_side(partial(expansions, seed=options.seed), CASES, options) for row in found]
    return Findings(rows, {"errors": partial(_draw, rows)}, _COLUMNS, {"experiment": "arrangements", "seed": options.seed})


def _draw(rows: list[dict[str, Any]], figure: Figure) -> None:
    """Left the errors of the mean net by arrangement; right by how much the expansion multiplies KL(q || prior)."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    places = {name: len(NAMES) - 1 - i for i, name in enumerate(NAMES)}
    for i, case in enumerate(cases):
        own = [row for row in rows if row["case"] == case]
        height = np.array([places[row["arrangement"]] for row in own]) + 0.6 * (0.5 - (i + 0.5) / len(cases))
        style: dict[str, Any] = {"marker": "oosDPX"[i % 6], "color": f"C{i}", "linestyle": "none", "markersize": 5}
        left.plot([row["error_float64"] for row in own], height, label=case, **style)
        left.plot([row["error"] for row in own], height, fillstyle="none", **style)
        right.plot([row["kl_fan_in"] / row["kl_before"] for row in own], height, **style)
        right.plot([row["kl_fixed"] / row["kl_fixed_before"] for row in own], height, fillstyle="none", **style)
    left.axvspan(1e-3, 1, color="0.93", zorder=0)
    left.text(0.3, len(NAMES) - 0.6, "broken", ha="right", va="center", color="0.4")
    left.set(
        xscale="log",
        xlim=(3e-17, 1),
        xlabel="equivariance error of the mean net\n(hollow: float32)",
        yticks=list(places.values()),
    )
    left.set_yticklabels(list(places))
    left.set_ylim(-0.6, len(NAMES) - 0.3)
    right.set(xscale="log", xlabel="KL(q || prior), expanded / small\n(prior by fan-in; hollow: fixed)")
    right.set_xticks([10, 20, 50, 100], ["10", "20", "50", "100"])
    right.set_xticks([], minor=True)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=3, frameon=False)
    for axes in (left, right):
        axes.hlines(np.arange(len(NAMES) - 1) + 0.5, *axes.get_xlim(), color="0.85", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)


ARRANGEMENTS = Experiment(
    "arrangements", "Ways to fill the hidden blocks of an expanded net: which are equivariant, and at what cost", _run
)
"""The experiment."""
