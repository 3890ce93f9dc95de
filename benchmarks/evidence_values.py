"""The table of docs/evidence.md: every estimate of the evidence of two small nets on digits, what it is, and what it costs.

python benchmarks/evidence_values.py      prints Markdown; about two minutes on a laptop
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import bayes_sym
from bayes_sym import datasets, layers
from bayes_sym.inference import MAP, Problem, fit, log_evidence


NETS = {
    "MLP 64-12-10": layers.Sequential((layers.Flatten(), layers.Dense(64, 12), layers.Activation("tanh"), layers.Dense(12, 10))),
    "conv 3x3x6, pool, 10": layers.Sequential((layers.Conv(1, 6), layers.Activation("tanh"), layers.Pool(), layers.Dense(6, 10))),
}
ROWS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("full", {}, "the reference"),
    ("block", {}, "lower bound"),
    ("ekfac", {}, "lower bound"),
    ("ekfac", {"probes": 1}, "neither"),
    ("kfac", {}, "neither"),
    ("kfac_reduce", {}, "neither"),
    ("diag", {}, "lower bound"),
    ("ntk", {"block_size": 100}, "lower bound"),
    ("ntk", {"block_size": 25}, "lower bound"),
    ("ntk", {"block_size": 100, "probes": 1}, "unbiased for a bound"),
    ("hessian", {}, "the exact second derivative"),
)


def problem_of(spec: layers.Sequential) -> Problem:
    """A classifier with the default prior of its layers."""

    def model(x: Any, y: Any = None) -> None:
        logits = layers.random_module("net", spec)(x)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return Problem(model)


def main() -> None:
    """Prints one table per net."""
    split = datasets.digits(300, seed=0)
    x, y = np.asarray(split.train.x), np.asarray(split.train.y)
    print(f"jax {jax.__version__}, bayes_sym {bayes_sym.__version__}, {len(x)} digits, seed 0, float32\n")
    for name, spec in NETS.items():
        problem = problem_of(spec)
        done = fit(problem, MAP(optax.adam(1e-2)), jax.random.key(0), x, y, num_steps=2000, progress=False)
        params = {site: value[0] for site, value in done.posterior.sample(jax.random.key(0), 1).items()}
        weights = sum(value.size for value in params.values())
        print(f"### {name}: {weights} weights\n")
        print("| curvature | what it is | log-determinant ratio | log evidence | first call, s | again, ms |")
        print("|---|---|---|---|---|---|")
        for curvature, options, what in ROWS:
            key = jax.random.key(1) if "probes" in options else None
            started = time.perf_counter()
            try:
                found = log_evidence(problem, params, x, y, curvature=curvature, key=key, **options)
            except bayes_sym.errors.CurvatureError as error:
                print(f"| {curvature} | {what} | refused: {str(error)[:60]}... | | | |")
                continue
            jax.block_until_ready(found)
            first = time.perf_counter() - started
            again = min(_time(problem, params, x, y, curvature, key, options) for _ in range(5))
            label = " ".join([curvature, *(f"{key} {value}" for key, value in options.items())])
            print(
                f"| {label} | {what} | {float(found.log_det_ratio):.2f} | {float(found.value):.2f} | {first:.1f} | {1e3 * again:.1f} |"
            )
        print(f"\nNewton decrement (full): {float(log_evidence(problem, params, x, y).newton_decrement):.3f}\n")


def _time(problem: Problem, params: Any, x: Any, y: Any, curvature: str, key: Any, options: dict[str, Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(log_evidence(problem, params, x, y, curvature=curvature, key=key, **options))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
