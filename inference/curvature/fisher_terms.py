"""Terms of Fisher informations whose textbook form subtracts nearly equal numbers, as sums of positive terms.

Each is cheap, differentiable, and as accurate as its dtype for small and large arguments alike.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


__all__ = ["negative_binomial_root", "student_df_information", "trigamma_excess"]


def trigamma_excess(x: Any) -> jax.Array:
    """trigamma(x) - 1 / x > 0 for x > 0.

    The recurrence trigamma(x) = trigamma(x + 1) + 1 / x^2 gives excess(x) = excess(x + 1) + 1 / (x^2 (x + 1)): ten steps
    of it, then the asymptotic series 1 / (2 x^2) + sum_k B_2k / x^(2k + 1) (Abramowitz & Stegun 6.4.6 and 6.4.12).
    """
    steps = _stacked(x, np.arange(10))
    y = steps[-1] + 1
    bernoulli = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)
    return (1 / steps**2 / (steps + 1)).sum(axis=0) + (0.5 + _horner(bernoulli, y**-2) / y) / y**2


def student_df_information(df: Any) -> jax.Array:
    """The information of Student's t about its degrees of freedom that is left when the scale is unknown too.

    With the information matrix of Lange, Little & Taylor (1989), I(df, df) - I(df, scale)^2 / I(scale, scale) is
    c(v) = (trigamma(v / 2) - trigamma((v + 1) / 2)) / 4 - (v + 3) / (2 v (v + 1)^2), about 1.5 / v^4 for large v. Its
    difference c(v) - c(v + 2) = 6 (2 v + 3) / (v^2 (v + 1) (v + 2) (v + 3)^2) is positive: ten steps of it, then the
    asymptotic series in 1 / (2 v + 1)^2.
    """
    v = _stacked(df, 2 * np.arange(10))
    differences = 6 * (2 * v + 3) / (v * (v + 3)) / (v + 3) / (v * (v + 1) * (v + 2))
    u = (2 * (v[-1] + 2) + 1) ** -2
    return differences.sum(axis=0) + 2 * u * (u * _horner((12.0, -8.0, 452.0, -12432.0, 555772.0, -35135896.0), u))


# Nodes and weights of int_0^inf exp(-r) f(r) dr by the trapezoidal rule in t, r = exp(t - exp(-t)) (Takahasi & Mori,
# 1974): they resolve f at every scale of r down to exp(-20).
_T = np.linspace(-2.9, 3.65, 96)
_NODES = np.exp(_T - np.exp(-_T))
_WEIGHTS = (_T[1] - _T[0]) * _NODES * (1 + np.exp(-_T)) * np.exp(-_NODES)


def negative_binomial_root(concentration: Any, logits: Any) -> jax.Array:
    """The square root of the information about the concentration c of a negative binomial whose mean is unknown too.

    With p = sigmoid(logits) = mean / (mean + c), it is the series sum_{k>=2} p^k B(k, c) / k (Fisher, 1941; B is the beta
    function), which converges slowly where p is near one. But it equals the integral over x from 0 to 1 of
    (1 - x)^(c - 1) (-log(1 - p x) - p x) / x, taken here by quadrature in r = -c log(1 - x): to 1e-9 for c > 0.1, and to
    1e-7 for c = 0.01 and mean / c = 1e4.
    """
    concentration = jnp.asarray(concentration, jnp.result_type(concentration, float))
    concentration, logits = jnp.broadcast_arrays(concentration, logits)
    weights = jnp.asarray(_WEIGHTS, concentration.dtype).reshape(-1, *(1,) * concentration.ndim)
    s = jnp.asarray(_NODES, concentration.dtype).reshape(weights.shape) / concentration[None]
    x, p = -jnp.expm1(-s), jax.nn.sigmoid(logits)
    z = p[None] * x
    # 1 - p x = (1 - p) + p exp(-s), which loses no digits where p x is near one.
    log = jnp.logaddexp(jax.nn.log_sigmoid(-logits)[None], jax.nn.log_sigmoid(logits)[None] - s)
    far = (-log - z) / jnp.maximum(z, 0.1) ** 2
    # -log(1 - z) = 2 atanh(w), w = z / (2 - z), so that (-log(1 - z) - z) / z^2 has only positive terms.
    w = z / (2 - z)
    near = (1 + 2 * w / (2 - z) * _horner(tuple(1 / (2 * i + 3) for i in range(12)), w**2)) / (2 - z)
    return p * jnp.sqrt((weights * x * jnp.where(z < 0.3, near, far)).sum(axis=0) / concentration)


def _stacked(x: Any, shifts: np.ndarray) -> jax.Array:
    """x + shifts, one after the other on a new first axis."""
    x = jnp.asarray(x, jnp.result_type(x, float))
    return x[None] + jnp.asarray(shifts, x.dtype).reshape(-1, *(1,) * x.ndim)


def _horner(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    """The polynomial with these coefficients, lowest order first."""
    total = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total
