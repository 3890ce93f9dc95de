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
# # What the evidence says: a symmetry appears and disappears with the data
#
# After this notebook you can put a convolution and an unconstrained map side by side, let the evidence choose between them, see why
# the training loss cannot, and watch the choice change with the data. Everything is linear and Gaussian, so that the exact evidence
# is known and can be drawn. `SMOKE=1` in the environment makes a small version for the tests.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from scipy.optimize import minimize

from bayes_sym.experiments.planted_maps import exact_log_evidence
from bayes_sym.inference import Laplace, Problem, fit
from bayes_sym.layers import Conv, FullyConnected, Residual, random_module
from bayes_sym.priors import ResidualPathways


jax.config.update("jax_enable_x64", True)
SMOKE = os.environ.get("SMOKE") == "1"
NUM_STEPS = 100 if SMOKE else 3000
SHARES = (0.0, 1.0) if SMOKE else (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
ROWS = (4, 24) if SMOKE else (3, 6, 12, 24, 48, 96)
GRID = 5 if SMOKE else 41
NUM_IMAGES = 16 if SMOKE else 48
SIDE, NOISE = 4, 0.3

# %% [markdown]
# ## Data with a dial
#
# Small white images on a circular grid go through a linear map: a convolution, plus a map without any translation symmetry. The
# dial says which share of the energy is the convolution's.


# %%
def planted(share, num_rows, seed=0):
    """Images and responses (rows, side, side, 1); `share` of the energy is that of the convolution."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, SIDE, SIDE))
    kernel, free = rng.standard_normal((3, 3)), rng.standard_normal((SIDE,) * 4)
    shifts = [(i, j) for i in range(SIDE) for j in range(SIDE)]
    free -= np.mean([np.roll(free, (i, j, i, j), (0, 1, 2, 3)) for i, j in shifts], axis=0)  # its mean would be a convolution
    conv = sum(kernel[i + 1, j + 1] * np.roll(x, (-i, -j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1))
    parts = (conv / np.linalg.norm(kernel), np.einsum("nij,ijkl->nkl", x, free) / np.linalg.norm(free) * SIDE)
    y = np.sqrt(share) * parts[0] + np.sqrt(1 - share) * parts[1] + NOISE * rng.standard_normal(x.shape)
    return x[..., None], y[..., None]


# %% [markdown]
# ## What the training loss says, and what the evidence says
#
# Fit a convolution and an unconstrained map to purely convolutional data by least squares. The unconstrained map always fits at
# least as well: it contains the convolution. The evidence of each, at its best prior strength, is another matter.


# %%
def best_exact(x, y, pathways):
    """The largest exact log evidence over the prior strengths of these pathways."""

    def negative(logs):
        return -exact_log_evidence(x, y, NOISE, **dict(zip(pathways, np.exp(np.clip(logs, -20, 5)), strict=True)))

    return -minimize(negative, np.zeros(len(pathways)) - 2, method="Nelder-Mead", options={"maxiter": 20 if SMOKE else 300}).fun


def smallest_loss(x, y, pathway):
    """The mean squared error of least squares."""
    flat, out = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if pathway == "full":
        fitted = flat @ np.linalg.lstsq(flat, out, rcond=None)[0]
    else:
        views = [np.roll(x[..., 0], (-i, -j), (1, 2)).reshape(-1) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        design = np.stack(views, axis=-1)
        fitted = (design @ np.linalg.lstsq(design, out.reshape(-1), rcond=None)[0]).reshape(out.shape)
    return np.mean((fitted - out) ** 2)


x, y = planted(1.0, NUM_IMAGES)
for pathway in ("conv", "full"):
    print(f"{pathway}: smallest loss {smallest_loss(x, y, pathway):.4f}, log evidence {best_exact(x, y, (pathway,)):.1f}")

# %% [markdown]
# ## The landscape
#
# With both maps side by side the evidence is a function of two prior variances. For convolutional data its top lies at the edge
# where the free map is switched off; for data without symmetry at the other edge.

# %%
logs = np.linspace(-12, 2, GRID)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
for share, panel in zip((1.0, 0.5, 0.0), axes, strict=True):
    x, y = planted(share, NUM_IMAGES)
    values = np.array([[exact_log_evidence(x, y, NOISE, conv=np.exp(c), full=np.exp(f)) for f in logs] for c in logs])
    panel.contourf(logs, logs, np.maximum(values - values.max(), -400), 20)
    top = np.unravel_index(values.argmax(), values.shape)
    panel.plot(logs[top[1]], logs[top[0]], "r*", markersize=12)
    panel.set(title=f"{share:.0%} convolution", xlabel="log variance of the free map")
axes[0].set(ylabel="log variance of the convolution")
plt.show()


# %% [markdown]
# ## The same by gradients, as in any net
#
# Now let `Laplace` do it. The model says that there are two pathways with a strength each, and that the noise is unknown.
# `optimise` names the sites that are moved up the evidence; the weights are integrated over. In a linear model full curvature is
# exact.


# %%
def model(x, y=None):
    """Responses y given images x; two linear maps side by side."""
    strengths = {name: numpyro.sample(f"{name}.scale", dist.LogNormal(0.0, 1.0)) for name in ("conv", "full")}
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    maps = {"conv": Conv(1, 1, 3, "CIRCULAR", bias=False), "full": FullyConnected(1, 1, (SIDE, SIDE), bias=False)}
    mean = random_module("map", Residual(maps), prior=ResidualPathways(strengths))(x)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, noise).to_event(3), obs=y)


problem = Problem(model)
scheme = Laplace(
    optax.adam(optax.exponential_decay(0.1, NUM_STEPS // 4, 0.5)),
    curvature="full",
    optimise=("*.scale", "noise"),
    hyper_optimizer=optax.adam(0.05, b1=0.0, b2=0.9),
    refresh=NUM_STEPS // (5 if SMOKE else 25),
    hyper_steps=3,
    update="mackay",
    whiten=True,
)
maps = {"conv": Conv(1, 1, 3, "CIRCULAR", bias=False), "full": FullyConnected(1, 1, (SIDE, SIDE), bias=False)}


def learned(x, y, seed=0):
    """The convolution's share of the energy of the fitted map, and the log evidence."""
    found = fit(problem, scheme, jax.random.key(seed), x, y, num_steps=NUM_STEPS, progress=False)
    fresh = np.random.default_rng(9).standard_normal((200, SIDE, SIDE, 1))
    energy = {
        name: float(np.mean(np.square(layer.apply({"weight": found.posterior.mean[f"map.{name}.weight"]}, fresh))))
        for name, layer in maps.items()
    }
    return energy["conv"] / sum(energy.values()), float(found.posterior.log_evidence)


by_share = {share: learned(*planted(share, NUM_IMAGES)) for share in SHARES}
for share, (found, evidence) in by_share.items():
    exact = best_exact(*planted(share, NUM_IMAGES), ("conv", "full"))
    print(f"planted {share:.2f}: learned {found:.3f}, evidence {evidence:.1f} nats (exact, at the true noise: {exact:.1f})")

# %% [markdown]
# ## The symmetry comes and goes
#
# On the left, the dial is turned at 48 images. On the right it stays at 90 % and the number of images grows, and the three models
# compete by their exact evidence. With three images the convolution alone explains data that are not quite symmetric nearly as well
# as both maps together, and the unconstrained map is far behind. With more of them the free part is worth its price, and from some
# forty images on even the unconstrained map alone is better than the convolution. So "how symmetric" is a question about a model
# *and* an amount of data.

# %%
names = {"conv": ("conv",), "full": ("full",), "both": ("conv", "full")}
by_rows = {name: [best_exact(*planted(0.9, n), pathways) / n for n in ROWS] for name, pathways in names.items()}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot([0, 1], [0, 1], "k:", linewidth=1)
left.plot(list(by_share), [found for found, _ in by_share.values()], "o-")
left.set(xlabel="planted share of the convolution", ylabel="learned share")
for name, values in by_rows.items():
    right.plot(ROWS, np.array(values) - np.array(by_rows["both"]), "o-", label=name)
right.set(xscale="log", xlabel="images", ylabel="log evidence per image, less that of both", ylim=(-12, 2))
right.legend()
plt.show()

# %% [markdown]
# For deep nets the exact evidence is out of reach and estimates take its place: see the pages on choosing an evidence, and on what
# is exact and what is a bound. The command `bayes-sym run planted-symmetry` repeats this notebook over truths, models and two
# curvatures.
