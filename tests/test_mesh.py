"""Fits spread over eight devices equal those on one, on the fake devices of a process of their own."""

import json
import os
import subprocess
import sys

import pytest


SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax
from jax.sharding import PartitionSpec
from bayes_sym.errors import OptionError
from bayes_sym.inference import MAP, Problem, Variational, fit

jax.config.update("jax_numpy_rank_promotion", "raise")
mesh = jax.make_mesh((8,), ("data",))
X = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
Y = np.tanh(X @ np.array([1.0, -0.5, 0.3, 0.0], np.float32))

def model(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([4, 3]).to_event(2))
    v = numpyro.sample("v", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.tanh(x @ w) @ v, 0.3), obs=y)

problem, adam, report = Problem(model), optax.adam(0.05), {}
cases = {
    "map in batches": (MAP(adam), 32, 16),
    "map on all rows": (MAP(adam), 16, None),
    "variational on all rows": (Variational(optimizer=adam), 16, None),
}
for name, (scheme, rows, batch_size) in cases.items():
    one, eight = (
        fit(problem, scheme, jax.random.key(1), X[:rows], Y[:rows], num_steps=8, chunk=4, batch_size=batch_size, mesh=m, progress=False)
        for m in (None, mesh)
    )
    jax.block_until_ready((one.state, eight.state))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(one.state)]
    others = jax.tree.leaves(eight.state)
    report[name] = {
        "difference": max(float(np.max(np.abs(a - np.asarray(b)) / (np.abs(a) + 1e-2))) for a, b in zip(leaves, others)),
        "losses": float(np.max(np.abs(one.losses - eight.losses) / np.abs(one.losses))),
        "moved": float(abs(one.losses[-1] - one.losses[0])),
        "devices": sorted({len(leaf.sharding.device_set) for leaf in others}),
        "replicated": all(leaf.sharding.is_fully_replicated for leaf in others),
    }

for rows, batch_size in ((32, 12), (31, None)):
    try:
        fit(problem, MAP(adam), jax.random.key(1), X[:rows], Y[:rows], num_steps=8, batch_size=batch_size, mesh=mesh, progress=False)
    except OptionError as error:
        report[f"error {batch_size}"] = str(error)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["map in batches", "map on all rows", "variational on all rows"])
def test_eight_devices_give_the_fit_of_one(report, case):
    found = report[case]
    assert found["difference"] < 1e-5 and found["losses"] < 1e-5
    assert found["moved"] > 1e-2
    assert found["devices"] == [8] and found["replicated"]


def test_rows_that_cannot_be_spread_evenly_are_refused(report):
    assert "12 rows per step cannot be spread evenly over 8 devices" in report["error 12"]
    assert "31 rows per step cannot be spread evenly" in report["error None"]
