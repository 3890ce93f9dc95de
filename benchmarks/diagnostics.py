"""What the equivariance defect of a posterior costs, beside a loop over its draws, and how much memory it takes.

    python benchmarks/diagnostics.py             unit costs on 10,000 images x 4 rotations, in turns; two minutes
    python benchmarks/diagnostics.py --full      and the whole defect with 1,024 draws, with the peak of memory
    python benchmarks/diagnostics.py --small     a minute's version, to see that it runs

Digits of 8 x 8 pixels, repeated; a conv net of widths 8 and 16; a mean-field posterior after a few steps. A forward pass is one draw
at one image. Loops are linear in the draws and blocks in the images, so unit costs are timed on few of them; the loops see all
images, because their arrays leave the caches there. Every time is the smallest of several repeats after a warm-up.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import smallest

from bayes_sym import datasets, groups, representations
from bayes_sym.diagnostics import equivariance_error_from_draws
from bayes_sym.inference import Problem, Variational, fit
from bayes_sym.inference.orbit_predictions import posterior_equivariance
from bayes_sym.inference.predict import means
from bayes_sym.models import ConvClassifier


DRAWS, ORDER, EXAMPLES = 1024, 4, 10_000
ACTION = representations.image(groups.cyclic(ORDER), (8, 8))
PROBLEM = Problem(ConvClassifier())
KEY = jax.random.key(1)


def posterior_and_images(count: int) -> tuple[Any, np.ndarray]:
    """The posterior, and digits repeated to `count`."""
    digits = datasets.digits(seed=0)
    x, y = np.asarray(digits.train.x), np.asarray(digits.train.y)
    found = fit(PROBLEM, Variational(), jax.random.key(0), x, y, num_steps=200, batch_size=64, progress=False)
    return found.posterior, np.resize(x, (count, *x.shape[1:]))


def peak() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(posterior: Any, x: np.ndarray) -> float:
    """The seconds of the whole defect, its compilation included, and prints what was found."""
    before, started = peak(), time.perf_counter()
    found = posterior_equivariance(PROBLEM, posterior, KEY, x, ACTION, num_draws=DRAWS).error
    seconds = time.perf_counter() - started
    print(
        f"{len(x):,} images x {ORDER} rotations x {DRAWS:,} draws: predictive defect {found.predictive:.3e} +- {found.predictive_se:.1e}, "
        f"member defect {found.member:.3e} +- {found.member_se:.1e}\n"
        f"  {seconds:.0f} s with compilation, {1e6 * seconds / (len(x) * ORDER * DRAWS):.2f} us per forward pass; peak of memory "
        f"{before:.0f} MiB before, {peak():.0f} MiB after"
    )
    return seconds


def main() -> None:
    """Times everything and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="500 images, to see that it runs")
    parser.add_argument("--full", action="store_true", help="the whole defect too, not only unit costs")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to repeat")
    options = parser.parse_args()
    examples = 500 if options.small else EXAMPLES
    posterior, x = posterior_and_images(examples)
    device = jax.devices()[0]
    print(f"{PROBLEM.model}, float32, jax {jax.__version__} on {device.device_kind}")
    ours(posterior, x[:64])  # compiles; first, because memory is a high-water mark
    if options.full:
        ours(posterior, x)
    draws = posterior.sample(KEY, DRAWS)
    orbit = jnp.concatenate([ACTION.transform(g, jnp.asarray(x)) for g in range(ORDER)])
    one = {name: value[:1] for name, value in draws.items()}
    three = {name: value[:3, None] for name, value in draws.items()}
    forward = jax.jit(lambda values, x: means(PROBLEM, None, values, None, (x,)))
    mapped = jax.jit(lambda values, x: jax.lax.map(lambda one: means(PROBLEM, None, one, None, (x,)), values))
    some, held = min(256, examples), 128

    def in_rows() -> Any:
        """One draw, 1,024 rows at a time."""
        return [forward(one, orbit[start : start + 1024]) for start in range(0, len(orbit) - 1023, 1024)]

    stored = np.random.default_rng(0).random((DRAWS, ORDER, held, 10), np.float32)
    units: dict[str, tuple[Callable[[], Any], int]] = {
        "loop: a jitted call per draw": (lambda: np.asarray(forward(one, orbit)), len(orbit)),
        "loop: lax.map over draws": (lambda: np.asarray(mapped(three, orbit)), 3 * len(orbit)),
        "loop: a call per draw and 1,024 rows": (in_rows, len(orbit) // 1024 * 1024),
        "the defect of stored predictions": (lambda: equivariance_error_from_draws(stored), DRAWS * ORDER * held),
        "posterior_equivariance": (
            lambda: posterior_equivariance(PROBLEM, draws, KEY, x[:some], ACTION, progress=False),
            DRAWS * ORDER * some,
        ),
    }
    found = smallest({name: fn for name, (fn, _) in units.items()}, options.seconds, 1)
    cost = {name: 1e6 * found[name] / count for name, (_, count) in units.items()}
    mine, estimate = cost["posterior_equivariance"], cost["the defect of stored predictions"]
    print(f"{'':40s}{'us per pass':>12s}{'in units of ours':>18s}{'and with the defect':>21s}")
    for name, value in cost.items():
        both = f"{(value + estimate) / mine:21.2f}" if name.startswith("loop") else ""
        print(f"{name:40s}{value:12.2f}{value / mine:18.2f}{both}")
    best = min(cost["loop: a jitted call per draw"], cost["loop: lax.map over draws"])
    ratio = (best + estimate) / mine
    stored_size = DRAWS * len(orbit) * 10 * 4 / 2**20
    print(f"a loop over draws holds {stored_size:,.0f} MiB of predictions (float32)")
    print(f"the defect by a loop over draws / ours: {ratio:.2f} (limit 5: {'held' if ratio >= 5 else 'MISSED'})")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
