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
# # Comparing schemes: seeds, intervals, and the baselines that would explain a gain
#
# After this notebook you can fit several models and schemes over seeds in one call, read the table with its intervals, draw
# symmetry against fit, rank evidences without mixing kinds, and make figures of your own. `SMOKE=1` in the environment makes a
# small version for the tests.

# %%
import os
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayes_sym import datasets, groups, representations
from bayes_sym.inference import MAP, Cell, Problem, Variational, compare, full_orbit
from bayes_sym.layers import Activation, Dense, Field, Flatten, Sequential, random_module
from bayes_sym.priors import SoftEquivariance


SMOKE = os.environ.get("SMOKE") == "1"
NUM_STEPS = 20 if SMOKE else 800
NUM_DRAWS = 4 if SMOKE else 32
NUM_TRAIN, NUM_TEST = (30, 20) if SMOKE else (300, 500)
SMALL, WIDE = (4, 8) if SMOKE else (16, 64)

# %% [markdown]
# ## The question
#
# We train on upright digits and test on all four rotations of others. Which scheme is accurate, which is symmetric, and does one of
# them know it? Three models: a small net, one four times as wide, and one with a soft-equivariant prior.

# %%
digits = datasets.digits(num_train=NUM_TRAIN)
test = (digits.test.x[:NUM_TEST], digits.test.y[:NUM_TEST])
rotations = groups.cyclic(4)
on_images = representations.image(rotations, (8, 8))


def spec(width):
    """Two dense layers."""
    return Sequential((Flatten(), Dense(64, width), Activation("tanh"), Dense(width, 10)))


def plain(width):
    """A net with independent Gaussian weights."""

    def model(x, y=None):
        net = random_module("net", spec(width))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    return Problem(model)


def soft(width):
    """A net with a soft-equivariant prior; the softness of each layer is a site."""
    hidden = representations.regular(rotations) * representations.trivial(rotations, width // 4)
    labels = representations.trivial(rotations, 10)
    reps, _ = spec(width).representations(Field.of(on_images, 1), iter([hidden, labels]))

    def model(x, y=None):
        softness = numpyro.sample("softness", dist.HalfNormal(0.5).expand([2]).to_event(1))
        by_site = {site: softness[i] for i, stage in enumerate(spec(width).stages()) for site in stage.sites}
        net = random_module("net", spec(width), prior=SoftEquivariance(reps, by_site))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    return Problem(model)


# %% [markdown]
# ## The cells
#
# A cell is a model, a scheme, and how long to fit. Beside the methods of interest stand the explanations that need no symmetry: the
# wide net, and fixed augmentation. Test-time averaging over the group comes with every row by itself.

# %%
cells = [
    Cell("map, wide", plain(WIDE), MAP(), num_steps=NUM_STEPS),
    Cell("vi", plain(SMALL), Variational(), num_steps=NUM_STEPS),
    Cell("vi, soft", soft(SMALL), Variational(), num_steps=NUM_STEPS),
    Cell("vi, orbits", plain(SMALL), Variational(augment=full_orbit(on_images), augment_weight="sum"), num_steps=NUM_STEPS),
]

# %% [markdown]
# ## One call
#
# With a folder, every cell and seed is kept as soon as it is finished: interrupt the call and run it again. All seeds of a cell run
# in one program.

# %%
folder = tempfile.mkdtemp()
comparison = compare(
    cells,
    jax.random.key(0),
    *digits.train,
    test=test,
    action=on_images,
    seeds=3,
    num_draws=NUM_DRAWS,
    folder=folder,
    progress=not SMOKE,
)

# %% [markdown]
# ## The table
#
# `nll_low` and `nll_high` are a 95% interval over seeds. With three seeds it is wide, as it should be. `averaged_nll` is that of
# the same net after averaging over the group at test time: where it is as good as the best method, that method gained nothing that
# averaging would not give.

# %%
table = comparison.table()
print(table[["accuracy", "orbit_accuracy", "nll", "nll_low", "nll_high", "averaged_nll"]].round(3).to_string())
print(table[["equivariance_error", "equivariance_error_se", "orbit_agreement", "parameters"]].round(4).to_string())

# %% [markdown]
# ## Symmetry against fit
#
# Down and to the left is better. Dots are single seeds, bars are intervals, hollow markers are the orbit averages.

# %%
comparison.plot()
plt.show()

# %% [markdown]
# ## The evidence
#
# Ranks are among fits with the same kind of estimate and the same training data. An ELBO is never ranked against a Laplace
# evidence.

# %%
print(comparison.evidence().to_string())

# %% [markdown]
# ## Figures of your own
#
# `long()` is tidy, one line per method, seed and score; `dataset()` is an xarray data set. Here: what test-time averaging would
# gain each method, seed by seed.

# %%
scores = comparison.long().pivot_table(index=["method", "seed"], columns="score", values="value")
gain = (scores["nll"] - scores["averaged_nll"]).unstack("seed").loc[[cell.name for cell in cells]]
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for i, (method, values) in enumerate(gain.iterrows()):
    axes.plot(np.full(len(values), i), values, "o", label=method)
axes.axhline(0, color="grey", linewidth=1)
axes.set(xticks=range(len(gain)), xticklabels=gain.index, ylabel="NLL gained by\norbit averaging (nats)")
plt.show()

# %% [markdown]
# ## The fits behind it
#
# Every fit and posterior is at hand, and `save` writes all of it: rows, table, figures and one ArviZ file per posterior.

# %%
run = comparison.runs["vi, soft", 0]
print(
    "softness of the layers, seed 0:", np.asarray(run.posterior.sample(jax.random.key(0), 100)["softness"].mean(axis=0)).round(3)
)
