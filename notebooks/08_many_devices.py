# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# ruff: noqa: E402

# %% [markdown]
# # From one device to many
#
# After this notebook you can spread the rows of a fit over a mesh of devices, check that the result is that of one device, spread
# the fits of a comparison over devices or processes, and say what has to be called where. It needs no second device: XLA pretends
# to have four. `SMOKE=1` in the environment makes a small version for the tests.

# %%
import os


# XLA reads this when jax starts, so it comes before the first import of jax, and only if you have not said anything yourself.
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import tempfile
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist

from bayes_sym import datasets, groups, representations
from bayes_sym.errors import OptionError
from bayes_sym.inference import MAP, Cell, Problem, Variational, compare, fit
from bayes_sym.layers import Activation, Dense, Flatten, Sequential, random_module


SMOKE = os.environ.get("SMOKE") == "1"
NUM_STEPS = 40 if SMOKE else 1000
NUM_TRAIN, NUM_TEST = (48, 20) if SMOKE else (320, 500)
print("devices:", jax.devices())

# %% [markdown]
# ## The model knows nothing of devices
#
# It opens the plate `"data"` around its rows, and that is all. Data are arguments, so they can be cut into batches, sharded, and
# sent to where they are needed.

# %%
digits = datasets.digits(num_train=NUM_TRAIN)
x, y = digits.train
test = (digits.test.x[:NUM_TEST], digits.test.y[:NUM_TEST])


def model(x, y=None):
    """Labels y given images x."""
    net = random_module("net", Sequential((Flatten(), Dense(64, 8), Activation("tanh"), Dense(8, 10))))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


problem, key = Problem(model), jax.random.key(0)

# %% [markdown]
# ## A mesh
#
# The rows of each step go to the devices in equal parts, along the first axis of the mesh; the parameters are on all of them. The
# rows of a batch are chosen by the seed alone, so the fit on four devices is that on one, up to the rounding of sums.

# %%
mesh = jax.make_mesh((jax.device_count(),), ("data",))
options = {"num_steps": NUM_STEPS, "batch_size": 16, "progress": False}
one = fit(problem, MAP(), key, x, y, **options)
many = fit(problem, MAP(), key, x, y, mesh=mesh, **options)
difference = max(float(jnp.abs(one.posterior.point[site] - many.posterior.point[site]).max()) for site in one.posterior.point)
print(f"{len(many.posterior.point['net.1.weight'].sharding.device_set)} devices; largest difference of a weight {difference:.1e}")

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(one.losses, label="one device")
axes.plot(many.losses, "--", label=f"{jax.device_count()} devices")
axes.set(xlabel="step", ylabel="loss (nats per row)")
axes.legend()
plt.show()

# %% [markdown]
# Rows that cannot be spread evenly are refused before anything is computed:

# %%
try:
    fit(problem, MAP(), key, x, y, num_steps=NUM_STEPS, batch_size=15, mesh=mesh, progress=False)
except OptionError as error:
    print(error)

# %% [markdown]
# ## Many fits, each on a device of its own
#
# A comparison is a list of jobs, and anything with `submit(fn, *args)` that returns futures may run them; job number i goes to
# device number i of its process, counted round-robin. With a folder, each cell is kept as soon as it is finished. The executor
# below is the smallest possible one: it runs a job at once, here, and so shows what an engine of processes does elsewhere.


# %%
class Here:
    """Runs every job in this process, when it is submitted."""

    def submit(self, fn, *args):
        """A future that is done already."""
        future = Future()
        future.set_result(fn(*args))
        return future


cells = [
    Cell("map", problem, MAP(), num_steps=NUM_STEPS),
    Cell("vi", problem, Variational(), num_steps=NUM_STEPS),
]
turns = representations.image(groups.cyclic(4), (8, 8))
folder = tempfile.mkdtemp()
comparison = compare(cells, key, x, y, test=test, action=turns, num_draws=8, executor=Here(), folder=folder, progress=not SMOKE)
print(comparison.table()[["accuracy", "nll", "equivariance_error", "seconds"]].round(4).to_string())

# %% [markdown]
# Called again with the same folder, nothing is fitted anew:

# %%
again = compare(cells, key, x, y, test=test, action=turns, num_draws=8, folder=folder, progress=False)
print("the same table:", bool((again.table()["nll"] == comparison.table()["nll"]).all()))

# %% [markdown]
# ## Several processes
#
# The same call takes any engine with `submit(fn, *args)`. For processes on one machine or on many, give it a Dask client:
#
#     from dask.distributed import Client
#     comparison = compare(cells, key, x, y, ..., executor=Client("scheduler:8786"), folder="/shared/mine")
#
# or a class of three lines around another engine:
#
#     class Ray:
#         def submit(self, fn, *args):
#             return ray.remote(fn).remote(*args).future()
#
# What to mind: cells and data are pickled, so define models in a module that the workers can import, or use an engine with
# `cloudpickle` (Dask, Ray and loky have it). The folder must be one that all of them see. Each worker sees its own devices only.
# Threads work too, one per device; models are traced by one of them at a time.
#
# One fit over the memory of several hosts is not built; a mesh spans the devices of one process.
