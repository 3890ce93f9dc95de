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
# # Your own group, layer and transform
#
# After this notebook you can define a group and its action, a layer and a transform that the package does not have, check each, and
# use them together in a model that is fitted by evidence, with nothing registered anywhere. `SMOKE=1` in the environment makes a
# small version for the tests.

# %%
import os
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayes_sym import groups, representations, tap
from bayes_sym.diagnostics import check_equivariance, equivariance_error
from bayes_sym.inference import Laplace, Problem, Variational, fit, predict
from bayes_sym.layers import Activation, Augment, Field, Layer, Sequential, Site, Stage, join, next_output, random_module
from bayes_sym.priors import SoftEquivariance
from bayes_sym.transforms import Transform, beside, signed


SMOKE = os.environ.get("SMOKE") == "1"
NUM_STEPS = 80 if SMOKE else 2000
NUM_ROWS = 24 if SMOKE else 60
UNITS = 1 if SMOKE else 3

# %% [markdown]
# ## A group
#
# Two mirrors, left-right and up-down, and what they make together: the Klein group of four elements, each its own inverse. A group
# is its multiplication table, with element 0 the identity, and some generators. Both are checked.


# %%
def klein() -> groups.FiniteGroup:
    """The four-group; element g is a pair of bits, one per mirror."""
    elements = np.arange(4)
    return groups.FiniteGroup("V4", elements[:, None] ^ elements, (1, 2))


mirrors = klein()
print(mirrors, "\n", mirrors.table)

# %% [markdown]
# It acts on a grid of 2x3 numbers. A representation by permutations takes, for every generator, the place where each number comes
# from.

# %%
grid = np.arange(6).reshape(2, 3)
on_grid = representations.permutation(mirrors, [grid[:, ::-1].ravel(), grid[::-1].ravel()])
figure, axes = plt.subplots(1, 4, figsize=(8, 1.6), layout="constrained")
for g, panel in enumerate(axes):
    panel.imshow(np.asarray(on_grid.act(g, jnp.arange(6.0))).reshape(2, 3))
    panel.set(xticks=[], yticks=[], title=f"element {g}")
plt.show()
print("independent invariants of six numbers:", on_grid.rank)

# %% [markdown]
# ## A layer
#
# A layer is a frozen specification: its weight sites, its map, how a group acts on its weights, and how it expands. Ours is a dense
# map through few numbers. `tap` shows the linear maps to structured curvature.


# %%
@dataclass(frozen=True)
class LowRank(Layer):
    """y = x L R.

    Attributes:
        inputs, rank, outputs: numbers of features.
    """

    inputs: int
    rank: int
    outputs: int

    def sites(self):
        """Two factors; each takes the square root of a strength."""
        return (
            Site("left", (self.inputs, self.rank), self.inputs, "weight", 0.5),
            Site("right", (self.rank, self.outputs), self.rank, "weight", 0.5),
        )

    def apply(self, weights, x, *, path=""):
        """(batch, ..., inputs) to (batch, ..., outputs)."""
        h = tap(join(path, "left"), x @ weights["left"], inputs=x, weight=join(path, "left"))
        return tap(join(path, "right"), h @ weights["right"], inputs=h, weight=join(path, "right"))

    def representations(self, field, outputs):
        """The group leaves the numbers in the middle alone."""
        channels = next_output(outputs, field, self.outputs, "LowRank")
        middle = representations.trivial(field.group, self.rank)
        left = (field.channels * middle).reshape(self.inputs, self.rank)
        return {"left": left, "right": (middle * channels).reshape(self.rank, self.outputs)}, Field(channels)

    def stages(self):
        """One weighted layer."""
        return (Stage(self.outputs, ("left", "right")),)

    def expand(self, order, roles):
        """The layer between `order` copies."""
        role = next(roles)
        return LowRank(self.inputs * (1 if role.first else order), self.rank, self.outputs * (1 if role.last else order))


# %% [markdown]
# Does it do what it says? `check_equivariance` moves inputs and weights together and compares.

# %%
regular = representations.regular(mirrors)
print(check_equivariance(LowRank(6, 2, 4), mirrors, input=on_grid, output=regular, key=jax.random.key(0)))

# %% [markdown]
# ## In a model, with the symmetry chosen by evidence
#
# The data know one mirror well and the other not at all: labels do not change from left to right, and do from top to bottom. One
# softness for the whole group cannot say that: at full size it ends above 1, which is to give the symmetry up.

# %%
rng = np.random.default_rng(0)
x = rng.standard_normal((NUM_ROWS, 6)).astype(np.float32)
cells = x.reshape(-1, 2, 3)
y = (np.tanh(cells[:, 0].sum(axis=1) - 0.5 * cells[:, 1].sum(axis=1)) + 0.1 * rng.standard_normal(NUM_ROWS)).astype(np.float32)
spec = Sequential((LowRank(6, 2, 4 * UNITS), Activation("tanh"), LowRank(4 * UNITS, 1, 1)))
hidden = regular * representations.trivial(mirrors, UNITS)
on_weights, _ = spec.representations(Field(on_grid), iter([hidden, representations.trivial(mirrors, 1)]))


def model(x, y=None):
    """Responses y given grids x."""
    softness = numpyro.sample("softness", dist.HalfNormal(1.0))
    net = random_module("net", spec, prior=SoftEquivariance(on_weights, softness))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], 0.1), obs=y)


problem = Problem(model)
scheme = Laplace(curvature="full", optimise=("softness",))
found = fit(problem, scheme, jax.random.key(1), x, y, num_steps=NUM_STEPS, progress=False)
print(f"softness {float(found.posterior.sample(jax.random.key(0), 1)['softness'][0]):.2f}")
print(f"log evidence {float(found.posterior.log_evidence):.1f} nats")

# %% [markdown]
# Which of the mirrors do the predictions respect? Ask for each alone: the group of one mirror is a subgroup, and the action
# restricts to it. The left-right mirror was learned from the data although the prior gave it up; a prior with a strength per
# subgroup (`NestedSymmetry`) could say so.

# %%
bars = {}
for name, element in (("left-right", 1), ("up-down", 2)):
    alone = on_grid.restrict(mirrors.subgroup([element]))

    def predictions(x):
        """Predicted means (draws, rows)."""
        return predict(problem, found, jax.random.key(2), x, num_draws=20)

    bars[name] = equivariance_error(predictions, x, alone)
    print(f"{name}: squared defect {bars[name].predictive:.4f} +- {bars[name].predictive_se:.4f}")
figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
axes.bar(list(bars), [error.predictive for error in bars.values()], yerr=[error.predictive_se for error in bars.values()])
axes.set(ylabel="squared defect")
plt.show()

# %% [markdown]
# ## A transform
#
# A transform is a frozen dataclass with a limit and one method: the identity at magnitude 0, stronger with the magnitude, with all
# its noise from uniform numbers. Ours stretches all numbers of an example by a common factor. Around the net it can be learned like
# any other.


# %%
@dataclass(frozen=True)
class Loudness(Transform):
    """x times exp(t), with t uniform on (-limit m, limit m).

    Attributes:
        limit: the largest logarithm of the factor.
    """

    limit: float = 1.0
    kind: ClassVar[str] = "any"

    def transform(self, x, magnitude, u):
        """All shapes stay."""
        return x * beside(jnp.exp(signed(self.limit * magnitude, u[:, 0])), x)


print("the identity at 0:", bool((Loudness()(jax.random.key(0), jnp.asarray(x), 0.0) == x).all()))
around = Augment(spec, (Loudness(),), copies=2)


def augmented(x, y=None):
    """The same responses, from a net that is averaged over loudness."""
    net = random_module("net", around)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], 0.1), obs=y)


again = fit(Problem(augmented), Variational(), jax.random.key(3), x, y, num_steps=NUM_STEPS, progress=False)
magnitude = again.posterior.sample(jax.random.key(0), 100)["net.augment.0.magnitude"]
print(f"magnitude {float(magnitude.mean()):.3f} +- {float(magnitude.std()):.3f}")

# %% [markdown]
# The responses do change with loudness, and no reward asks for more, so the magnitude stays about where its prior has it, at 0.1.
#
# To put a part into the package, add its file, one line in the list of its room, and one row in the table of its tests: the page on
# contributing says which.
