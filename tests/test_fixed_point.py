"""Prior strengths at which MacKay's identity holds, the weights held: against dense linear algebra and a root finder."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.optimize import brentq, root

from bayes_sym.errors import CurvatureError, OptionError
from bayes_sym.inference import Problem, hold_evidence


pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(3)
X = RNG.standard_normal((12, 9)) * np.repeat([1.0, 0.3, 1e-3], 3)  # the last three weights are hardly determined
W = RNG.standard_normal(9)
NOISE, POWERS = 0.4, np.array([2.0, 1.0, 2.0])  # of the strength in the variance
Y = X @ W + NOISE * RNG.standard_normal(12)


def model(x, y):
    """Three groups of weights; the second has the root of its strength, as a factor of a factored layer has."""
    strength = numpyro.sample("strength", dist.LogNormal(jnp.zeros(3), 1.0).to_event(1))
    w = [numpyro.sample(f"w{i}", dist.Normal(0.0, strength[i] ** (POWERS[i] / 2)).expand([3]).to_event(1)) for i in range(3)]
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ jnp.concatenate(w), NOISE), obs=y)


def params(w=W, strength=(1.0, 1.0, 1.0)):
    return {f"w{i}": jnp.asarray(w[3 * i : 3 * i + 3]) for i in range(3)} | {"strength": jnp.asarray(strength)}


def hold(w=W, curvature="full", correction=None):
    return hold_evidence(Problem(model), params(w), X, Y, optimise=("strength",), curvature=curvature, correction=correction)


def by_hand(strength, w=W):
    """Scatter and effective parameters of the three groups."""
    variances = np.repeat(strength**POWERS, 3)
    curvature = X.T @ X / NOISE**2
    effective = np.diag(curvature @ np.linalg.inv(curvature + np.diag(1 / variances)))
    return (w**2 / variances).reshape(3, 3).sum(axis=1), effective.reshape(3, 3).sum(axis=1)


def truth(w=W):
    def apart(log_strength):
        scatter, effective = by_hand(np.exp(log_strength), w)
        return np.log(scatter / effective)

    found = root(apart, np.log(by_hand(np.ones(3), w)[0]) / POWERS, tol=1e-13)
    assert found.success and np.abs(apart(found.x)).max() < 1e-10
    return np.exp(found.x)


@pytest.mark.parametrize("start", [(1.0, 1.0, 1.0), (1e-3, 1e3, 10.0)])
@pytest.mark.parametrize(("curvature", "correction"), [("full", None), ("full", "newton"), ("dual", None), ("dual", "seen")])
def test_scatter_equals_effective_parameters(curvature, correction, start):
    held = hold(curvature=curvature, correction=correction)
    found = held.balanced({"strength": jnp.asarray(start)}, tolerance=1e-8)
    np.testing.assert_allclose(found["strength"], truth(), rtol=1e-6)
    scatter, effective = by_hand(np.asarray(found["strength"]))
    np.testing.assert_allclose(scatter, effective, rtol=1e-7)
    gamma = held.effective_parameters(found)
    np.testing.assert_allclose([float(gamma[f"w{i}"]) for i in range(3)], effective, rtol=1e-6)


def test_a_strength_that_the_data_say_little_of_comes_as_fast_as_the_others():
    scatter, effective = by_hand(truth())
    assert effective[2] < 0.1 < 2.5 < effective[0]  # so whole steps of MacKay would swing about the third
    start, held = jnp.asarray(truth() * np.array([5.0, 0.2, 5.0])), hold()
    apart = np.abs(np.log(np.divide(*by_hand(np.asarray(start))))).max()
    found = held.balanced({"strength": start}, tolerance=1.01 * apart / 3**6, max_steps=8)
    np.testing.assert_allclose(found["strength"], truth(), rtol=0.02)


def test_steps_that_swing_are_halved():
    """Scatter that falls as 1/strength and effective parameters that rise as its square: two thirds of a step go twice as far."""

    def uneven(x, y):
        strength = numpyro.sample("strength", dist.LogNormal(0.0, 1.0))
        idle = numpyro.sample("idle", dist.Normal(0.0, jnp.sqrt(strength)).expand([3]).to_event(1))
        w = numpyro.sample("w", dist.Normal(0.0, strength).expand([9]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(1e-3 * x @ w + 1e-6 * idle.sum(), NOISE), obs=y)

    idle, w = np.full(3, 2.0), np.full(9, 1e-3)
    first = {"strength": 1.0, "idle": jnp.asarray(idle), "w": jnp.asarray(w)}
    held = hold_evidence(Problem(uneven), first, X, Y, optimise=("strength",), curvature="full")
    found = float(held.balanced({"strength": jnp.asarray(1.0)}, tolerance=1e-6)["strength"])
    eigenvalues = np.linalg.eigvalsh(X.T @ X) * (1e-3 / NOISE) ** 2

    def apart(log_strength):  # each side times half the power of its variance
        variance = np.exp(2 * log_strength)
        effective = (variance * eigenvalues / (1 + variance * eigenvalues)).sum()
        return np.log(((idle**2).sum() / np.exp(log_strength) / 2 + (w**2).sum() / variance) / effective)

    assert np.log(found) == pytest.approx(brentq(apart, -5, 10), abs=1e-5)


def test_the_last_step_that_is_allowed_counts():
    start = truth() * 1.2
    apart = np.abs(np.log(np.divide(*by_hand(start)))).max()
    found = hold().balanced({"strength": jnp.asarray(start)}, tolerance=0.6 * apart, max_steps=1)["strength"]
    assert 1e-3 * apart < np.abs(np.log(np.divide(*by_hand(np.asarray(found))))).max() <= 0.6 * apart


def test_the_evidence_is_stationary_there():
    held = hold()
    top = held.balanced({"strength": jnp.ones(3)}, tolerance=1e-9)["strength"]
    slope = jax.grad(lambda log_strength: held({"strength": jnp.exp(log_strength)}).value)(jnp.log(top))
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    best = float(held({"strength": top}).value)
    assert all(
        float(held({"strength": top * (1 + 0.1 * sign * np.eye(3)[i])}).value) < best for i in range(3) for sign in (-1, 1)
    )


def test_unusable_input_is_named():
    held = hold()
    with pytest.raises(OptionError, match=r"tolerance must be positive and max_steps at least 1, got 0 and 30"):
        held.balanced({"strength": jnp.ones(3)}, tolerance=0)
    with pytest.raises(CurvatureError, match=r"after max_steps=1 steps, log.*of \['strength'\].*not all within tolerance=0.01"):
        held.balanced({"strength": jnp.full(3, 1e-3)}, max_steps=1)
    still = np.where(np.arange(9) < 3, 0.0, W)
    with pytest.raises(CurvatureError, match=r"log\(scatter/gamma\) of \['strength'\] is \[ *-inf.*prior mean"):
        hold(still).balanced({"strength": jnp.ones(3)})

    def shifted(x, y):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        w = numpyro.sample("w", dist.Normal(offset, 1.0).expand([9]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    means = hold_evidence(Problem(shifted), {"offset": 0.0, "w": jnp.asarray(W)}, X, Y, optimise=("offset",), curvature="full")
    with pytest.raises(OptionError, match=r"\['offset'\] are not positive, so they are no prior strengths"):
        means.balanced({"offset": jnp.zeros(())})
