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
# # A first model: a soft-equivariant net, fitted in two ways
#
# After this notebook you can write a NumPyro model whose layers are as rotation-equivariant as the data want them,
# fit it by Laplace with the softness chosen by evidence and by variational inference, read the posterior with ArviZ, and
# say how equivariant its predictions are, with a standard error. It takes some minutes on a laptop; `SMOKE=1` in the environment
# makes a small version for the tests.

# %%
import os

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayes_sym import datasets, groups, representations
from bayes_sym.diagnostics import calibration, equivariance_error
from bayes_sym.inference import Laplace, Problem, Variational, evidence_table, fit, predict, to_arviz
from bayes_sym.layers import Activation, Dense, Field, Flatten, Sequential, random_module
from bayes_sym.priors import SoftEquivariance


SMOKE = os.environ.get("SMOKE") == "1"
NUM_STEPS = 40 if SMOKE else 1500
NUM_DRAWS = 20 if SMOKE else 200
NUM_TEST = 40 if SMOKE else 500
COPIES = 1 if SMOKE else 4

# %% [markdown]
# ## The data
#
# Handwritten digits of 8x8 pixels. Rotations by 90 degrees act on them exactly, as a permutation of the pixels.

# %%
digits = datasets.digits(num_train=50 if SMOKE else 300)
x, y = digits.train
x_test, y_test = (array[:NUM_TEST] for array in digits.test)
rotations = groups.cyclic(4)
on_images = representations.image(rotations, (8, 8))

# %% [markdown]
# ## The model
#
# Two dense layers. The hidden units form `COPIES` copies of the regular representation, so an equivariant hidden layer would
# move its units around when the image turns. The site `softness` says how far each layer may leave that: its prior weights have standard
# deviation `softness` off the equivariant subspace, relative to that on it. 0 is exactly equivariant, 1 ignores the group.

# %%
net_spec = Sequential((Flatten(), Dense(64, 4 * COPIES), Activation("tanh"), Dense(4 * COPIES, 10)))
hidden = representations.regular(rotations) * representations.trivial(rotations, COPIES)
labels = representations.trivial(rotations, 10)
on_weights, _ = net_spec.representations(Field.of(on_images, 1), iter([hidden, labels]))


def model(x, y=None):
    """Labels y given images x; the net is soft-equivariant under rotations."""
    softness = numpyro.sample("softness", dist.HalfNormal(0.5).expand([2]).to_event(1))
    by_site = {site: softness[i] for i, stage in enumerate(net_spec.stages()) for site in stage.sites}
    net = random_module("net", net_spec, prior=SoftEquivariance(on_weights, by_site))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


problem = Problem(model)

# %% [markdown]
# ## Two fits
#
# Laplace chooses the softness by the gradient of its evidence (type-II maximum likelihood). Variational inference treats it as one more
# unknown. The model is the same. The curvature is the full matrix: Kronecker factors cannot price a prior that
# couples the weights as this one does, and say so.

# %%
key_laplace, key_vi, key_draws = jax.random.split(jax.random.key(0), 3)
laplace = Laplace(curvature="full", optimise=("softness",), refresh=NUM_STEPS // 5)
schemes = {"Laplace": (laplace, key_laplace), "Variational": (Variational(), key_vi)}
fits = {name: fit(problem, scheme, key, x, y, num_steps=NUM_STEPS, progress=not SMOKE) for name, (scheme, key) in schemes.items()}

# %% [markdown]
# Their evidences are of different kinds, so the table ranks neither above the other.

# %%
print(evidence_table(fits))

# %% [markdown]
# ## The posterior in ArviZ
#
# `to_arviz` gives hyperparameters and the root mean square of each weight site; the weights themselves come on request. Laplace holds the
# softness at its optimum, so it has no spread there.

# %%
trees = {name: to_arviz(found, problem, key_draws, x, y, num_draws=NUM_DRAWS) for name, found in fits.items()}
for name, tree in trees.items():
    print(name)
    print(az.summary(tree, kind="stats"))

# %% [markdown]
# ## How equivariant are the predictions?
#
# The same key gives the same draws of the weights on every rotation of the images, which is what the error compares.
# `predictive` is the squared difference that is left after averaging over the posterior, `member` that of a single draw.

# %%
errors, scores = {}, {}
for name, found in fits.items():

    def predictions(images, found=found):
        """Class probabilities (draws, images, classes)."""
        return predict(problem, found, key_draws, images, num_draws=NUM_DRAWS)

    errors[name] = equivariance_error(predictions, x_test, on_images)
    scores[name] = calibration(predictions(x_test).mean(axis=0), y_test)
    print(
        f"{name}: accuracy {scores[name].accuracy:.3f}, NLL {scores[name].nll:.3f}, "
        f"equivariance error {errors[name].predictive:.4f} +- {errors[name].predictive_se:.4f}, of members {errors[name].member:.4f}"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for i, (name, tree) in enumerate(trees.items()):
    softness = tree["posterior"]["softness"].values[0]
    left.errorbar(np.arange(2) + 0.1 * i, softness.mean(axis=0), softness.std(axis=0), fmt="o", label=name)
    error = errors[name]
    right.errorbar(scores[name].nll, error.predictive, error.predictive_se, fmt="o", label=name)
left.set(xticks=[0, 1], xticklabels=["hidden layer", "readout"], ylabel="softness", ylim=(0, None))
right.set(xlabel="test NLL (nats)", ylabel="equivariance error")
left.legend()
plt.show()
