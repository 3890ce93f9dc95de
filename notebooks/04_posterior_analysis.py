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

# %% [markdown]
# # Posterior analysis with ArviZ
#
# After this notebook you can turn any fit into an ArviZ tree, summarise it, check its predictions, compare models by leave-one-out
# cross-validation beside their evidence, and read how equivariant each posterior draw is. It runs under ArviZ 0.23 and 1.x alike.
# `SMOKE=1` in the environment makes a small version for the tests.

# %%
import os

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayes_sym import groups, representations
from bayes_sym.inference import Laplace, Problem, evidence_table, fit, to_arviz
from bayes_sym.layers import Activation, Dense, Field, Sequential, random_module
from bayes_sym.priors import SoftEquivariance


SMOKE = os.environ.get("SMOKE") == "1"
NUM_STEPS = 600 if SMOKE else 3000
NUM_DRAWS = 40 if SMOKE else 500
UNITS = 2 if SMOKE else 8

# %% [markdown]
# ## An even function
#
# The group has two elements: the identity, and the change of the input's sign. The data come from an even function, seen mostly on
# the right. A model that knows the symmetry may use what it saw there for the left. Whether it should is what the softness says.

# %%
rng = np.random.default_rng(0)
x = np.concatenate([rng.uniform(0, 2, 26), rng.uniform(-2, 0, 4)])[:, None].astype(np.float32)
y = (np.cos(2 * x[:, 0]) + 0.2 * rng.standard_normal(30)).astype(np.float32)
mirror = groups.cyclic(2)
sign = representations.permutation(mirror, [([0], [-1])])
spec = Sequential((Dense(1, 2 * UNITS), Activation("tanh"), Dense(2 * UNITS, 1)))
hidden = representations.regular(mirror) * representations.trivial(mirror, UNITS)
on_weights, _ = spec.representations(Field(sign), iter([hidden, representations.trivial(mirror, 1)]))


def soft_model(x, y=None):
    """Responses y given x; softness 0 is an even function."""
    softness = numpyro.sample("softness", dist.HalfNormal(0.5))
    noise = numpyro.sample("noise", dist.LogNormal(-1.5, 0.5))
    net = random_module("net", spec, prior=SoftEquivariance(on_weights, softness, 2.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], noise), obs=y)


def free_model(x, y=None):
    """The same without a symmetry."""
    noise = numpyro.sample("noise", dist.LogNormal(-1.5, 0.5))
    net = random_module("net", spec, prior=dist.Normal(0.0, 2.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], noise), obs=y)


# %% [markdown]
# ## Two fits
#
# Laplace for both models. Any other scheme would do: `Variational()`, or `NUTS()`, whose chains and draws the tree then keeps.

# %%
problems = {"soft": Problem(soft_model), "free": Problem(free_model)}
key, key_draws = jax.random.split(jax.random.key(0))
fits = {
    "soft": (problems["soft"], Laplace(curvature="full", optimise=("softness",))),
    "free": (problems["free"], Laplace(curvature="full")),
}
fits = {
    name: (problem, fit(problem, scheme, key, x, y, num_steps=NUM_STEPS, progress=not SMOKE))
    for name, (problem, scheme) in fits.items()
}
print(evidence_table({name: found for name, (_, found) in fits.items()}).to_string())

# %% [markdown]
# ## Trees
#
# One call per fit. `posterior` holds hyperparameters and the root mean square of every weight site; weights come on request, since
# they are many and not identified. `inputs` asks for predictions elsewhere, `action` for the equivariance defect there.

# %%
grid = np.linspace(-2, 2, 41, dtype=np.float32)[:, None]
trees = {
    name: to_arviz(found, problem, key_draws, x, y, num_draws=NUM_DRAWS, posterior_predictive=True, inputs=(grid,), action=sign)
    for name, (problem, found) in fits.items()
}
for name, tree in trees.items():
    print(name)
    print(az.summary(tree, kind="stats").to_string())

# %% [markdown]
# R-hat is not shown: draws of an approximation are independent, in one chain, and their r-hat is 1 whether or not the approximation
# is any good.
#
# ## Do the predictions look like the data?

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for panel, (name, tree) in zip(axes, trees.items(), strict=True):
    replicated = tree["predictions"]["y"].values.reshape(-1, len(grid))
    low, middle, high = np.quantile(replicated, [0.05, 0.5, 0.95], axis=0)
    panel.fill_between(grid[:, 0], low, high, alpha=0.3)
    panel.plot(grid[:, 0], middle)
    panel.plot(x[:, 0], y, "k.", markersize=4)
    panel.plot(grid[:, 0], np.cos(2 * grid[:, 0]), "k:", linewidth=1)
    panel.set(title=name, xlabel="x", ylim=(-2.5, 2.5))
plt.show()

# %% [markdown]
# A number for it: the share of observations inside their 90 % predictive interval.

# %%
for name, tree in trees.items():
    replicated = tree["posterior_predictive"]["y"].values.reshape(-1, len(y))
    low, high = np.quantile(replicated, [0.05, 0.95], axis=0)
    print(f"{name}: {np.mean((low <= y) & (y <= high)):.2f} of the observations lie in their 90% interval")

# %% [markdown]
# ## Leave-one-out, beside the evidence
#
# The evidence asks how probable all data were before any was seen; leave-one-out cross-validation asks how well each point is
# predicted from the others. The tree has the pointwise log likelihood (of the linearised model, for Laplace), so ArviZ's own
# functions do the rest. They warn where its importance weights are unreliable: mind that.

# %%
print(az.loo(trees["soft"]))
print(az.compare({name: trees[name] for name in ("soft", "free")}).to_string())

# %% [markdown]
# ## How even is each draw?
#
# The group `equivariance` has the squared defect of every draw and element, and that of the mean with its standard error.

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, tree in trees.items():
    group = tree["equivariance"]
    member = group["member"].values[0, :, 1]
    axes.hist(np.log10(np.maximum(member, 1e-8)), bins=20, alpha=0.5, label=name)
    print(f"{name}: defect of the mean {float(group['predictive_error']):.4f} +- {float(group['predictive_error_se']):.4f}")
axes.set(xlabel="log10 of a draw's squared defect under x -> -x", ylabel="draws")
axes.legend()
plt.show()

# %% [markdown]
# Trees are files too: `tree.to_netcdf("fit.nc")`, and `az.from_netcdf` reads them back under either version.
