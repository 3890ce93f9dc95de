"""What augmentation costs: composed against sequential warps, cached against computed frequency shifts, a step of a net.

    python benchmarks/augmentation.py             images of 32x32x3, series of 1,000 samples, widths 32 to 256, float32
    python benchmarks/augmentation.py --small     a few seconds, to see that it runs

What is compared is timed in turns in one process; every time is the smallest of several repeats after a warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from timing import smallest

from bayes_sym.layers import Activation, Augment, Conv, Dense, Layer, Pool, Selection, Sequential
from bayes_sym.transforms import Chain, FrequencyShift, Rotate, ShearX, ShearY, TranslateX, TranslateY


FIVE = Chain((TranslateX(), TranslateY(), Rotate(180.0), ShearX(), ShearY()))

LIMITS = (  # the ratio, and what it must be: at least, or at most
    ("warps in turn", "composed warp", ">=", 5.0),
    ("warps in turn, gradient", "composed warp, gradient", ">=", 5.0),
    ("shift", "shift, cached", ">=", 3.0),
    ("shift, gradient", "shift, cached, gradient", "", 0.0),
    ("step, one copy by all five", "step, plain net", "<=", 1.3),
    ("step, one copy by a choice of five", "step, plain net", "", 0.0),
)


def warps(count: int, size: int) -> dict[str, Callable[[], Any]]:
    """Five affine operations by one warp, and by five; values, and gradients in the magnitudes."""
    x = jnp.asarray(np.random.default_rng(0).random((count, size, size, 3)), jnp.float32)
    u = FIVE.draw(jax.random.key(0), x)
    magnitudes = jnp.full(5, 0.5)

    def in_turn(x: jax.Array, magnitudes: jax.Array, u: jax.Array) -> jax.Array:
        for k, operation in enumerate(FIVE.operations):
            x = operation.apply(x, magnitudes[k], u[:, k : k + 1])
        return x

    found: dict[str, Callable[[], Any]] = {}
    for name, apply in (("composed warp", FIVE.apply), ("warps in turn", in_turn)):
        value = jax.jit(apply)
        slope = jax.jit(jax.grad(lambda m, x, u, apply=apply: (apply(x, m, u) ** 2).sum()))
        found[name] = lambda value=value: value(x, magnitudes, u)
        found[f"{name}, gradient"] = lambda slope=slope: slope(magnitudes, x, u)
    return found


def shifts(count: int, length: int) -> dict[str, Callable[[], Any]]:
    """A frequency shift with its Fourier transforms, and with the quadrature given."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((count, length, 1)), jnp.float32)
    shift = FrequencyShift(2.0, 100.0)
    u, prepared = shift.draw(jax.random.key(0), x), shift.prepare(x)
    value = jax.jit(shift.apply)
    slope = jax.jit(jax.grad(lambda m, x, u, prepared: (shift.apply(x, m, u, prepared) ** 2).sum()))
    return {
        "shift": lambda: value(x, 0.5, u),
        "shift, cached": lambda: value(x, 0.5, u, prepared),
        "shift, gradient": lambda: slope(0.5, x, u, None),
        "shift, cached, gradient": lambda: slope(0.5, x, u, prepared),
    }


def steps(count: int, size: int, width: int) -> dict[str, Callable[[], Any]]:
    """The gradient of a loss in all sites of a conv net (four layers, 57.5 million products per image at width 32), plain and augmented."""
    members: list[Layer] = [Conv(3, width), Activation("relu")]
    for inputs in (width, 2 * width, 4 * width):
        members += [Conv(inputs, 2 * inputs), Activation("relu"), Pool(2, "max")]
    net = Sequential((*members, Pool(None, "max"), Dense(8 * width, 4)))
    choice = Selection(FIVE.operations, mode="gumbel")
    specs = {
        "plain net": net,
        "one copy by all five": Augment(net, FIVE.operations),
        "one copy by a choice of five": Augment(net, choice),
    }
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((count, size, size, 3)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 4, count), jnp.int32)
    found: dict[str, Callable[[], Any]] = {}
    for name, spec in specs.items():
        weights = {
            site.name: jnp.asarray(rng.standard_normal(site.shape) / np.sqrt(site.fan_in), jnp.float32) for site in spec.sites()
        }
        weights |= {site: jnp.full(value.shape, 0.3) for site, value in weights.items() if site.endswith("magnitude")}

        def loss(weights: Any, key: jax.Array, spec: Layer = spec) -> jax.Array:
            logits = numpyro.handlers.seed(lambda: spec.apply(weights, x), key)()
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

        step = jax.jit(jax.value_and_grad(loss))
        found[f"step, {name}"] = lambda step=step, weights=weights: step(weights, jax.random.key(0))
    return found


def main() -> None:
    """Times everything and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small arrays, to see that it runs")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to repeat each comparison")
    options = parser.parse_args()
    count, size, length = (8, 16, 200) if options.small else (128, 32, 1000)
    width = 4 if options.small else 32
    print(f"{count} images {size}x{size}x3, {count} series of {length}, float32, jax {jax.__version__} on {jax.devices()[0]}")
    found = smallest(warps(count, size), options.seconds, 3) | smallest(shifts(count, length), options.seconds, 3)
    print(f"steps: conv net of widths {width} to {8 * width}, {count // 4} images")
    found |= smallest(steps(count // 4, size, width), options.seconds, 3)
    for name, seconds in found.items():
        print(f"{name:36s}{1e3 * seconds:9.3f} ms")
    for what, unit, sign, limit in LIMITS:
        ratio = found[what] / found[unit]
        held = ratio >= limit if sign == ">=" else ratio <= limit
        verdict = f" ({sign} {limit:g}: {'held' if held else 'MISSED'})" if sign else ""
        print(f"{what} / {unit}: {ratio:.2f}{verdict}")


if __name__ == "__main__":
    main()
