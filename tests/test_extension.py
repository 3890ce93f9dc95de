"""A scheme, a layer, a group with representations, a transform and a dataset from outside the package keep all its promises.

Each is defined here as a user would, by public names and without a change to any file of the package, and then goes through
the very tests that the package's own members go through: those that are parametrised over the tables of other test files.
"""

import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_sym import groups, layers, representations, tap, transforms
from bayes_sym.datasets import Sets
from bayes_sym.datasets.sets import generated, shuffled_labels
from bayes_sym.diagnostics import check_equivariance
from bayes_sym.inference import MAP, Info, Problem, Scheme, fit, log_evidence, predict, to_arviz
from bayes_sym.inference.posterior import DrawsPosterior
from bayes_sym.layers import Field, Layer, Role, Site, Stage, join, next_output, random_module


TESTS = Path(__file__).parent


@cache
def loaded(stem: str) -> ModuleType:
    """Another test file, as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"extended_{stem}", TESTS / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conformance(stem: str, table: str, value: Any, key: jax.Array) -> int:
    """Runs, for one value, every test of a file that is parametrised by its `table` alone; returns how many there were."""
    count, module = 0, loaded(stem)
    argument, rows = getattr(module, table).args
    for name, test in vars(module).items():
        marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
        if not name.startswith("test_") or len(marks) != 1 or marks[0].args[1] is not rows:
            continue
        given = {argument: value, "key": key, "x64": None}
        wanted = inspect.signature(test).parameters
        with jax.enable_x64("x64" in wanted):
            test(**{name: given[name] for name in wanted})
        count += 1
    return count


# A scheme


class Walk(NamedTuple):
    """Where the chain is."""

    z: dict[str, jax.Array]


@dataclass(frozen=True)
class Langevin(Scheme):
    """Stochastic gradient Langevin dynamics (Welling & Teh 2011): z + step/2 grad log p(z) + sqrt(step) N(0, 1)."""

    step_size: float = 1e-3
    burn_in: float = 0.5

    def init(self, key, problem, data):
        return Walk(problem.initial(key, data))

    def step(self, key, state, problem, batch, factor):
        def log_joint(z):
            return sum(problem.log_density(z, batch, factor=factor, key=key))

        value, slope = jax.value_and_grad(log_joint)(state.z)
        leaves, structure = jax.tree.flatten(state.z)
        keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))
        z = jax.tree.map(
            lambda z, g, k: z + self.step_size / 2 * g + self.step_size**0.5 * jax.random.normal(k, z.shape, z.dtype),
            state.z,
            slope,
            keys,
        )
        return Walk(z), Info(-value / (factor * batch[0].shape[0]), z)

    def posterior(self, key, state, problem, data, records):
        first = int(self.burn_in * len(next(iter(records.values()))))
        draws = {name: jnp.asarray(values[first:])[None] for name, values in records.items()}
        return DrawsPosterior(problem, problem.take(data, slice(0, 1)), draws, {})

    def position(self, state):
        return state.z


def test_a_scheme_of_ones_own_keeps_every_promise(key, monkeypatch):
    monkeypatch.setitem(loaded("test_schemes").TABLE, "langevin", (lambda: Langevin(), None))
    assert conformance("test_schemes", "every_scheme", "langevin", key) >= 3


def line(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(w * x, 0.5), obs=y)


X, Y = np.linspace(-1, 1, 10, dtype=np.float32), np.linspace(-0.9, 0.7, 10, dtype=np.float32)


def test_its_draws_have_the_moments_of_the_chain(key):
    """Of a Gaussian with precision p the chain is autoregressive, with the variance 1 / (p (1 - p step/4))."""
    problem, step = Problem(line), 0.05
    done = fit(problem, Langevin(step), key, X, Y, num_steps=8000, progress=False)
    precision = 1 + float(X @ X) / 0.25
    mean, variance = float(X @ Y) / 0.25 / precision, 1 / (precision * (1 - precision * step / 4))
    draws = np.asarray(done.posterior.draws["w"][0], float)
    kept = 1 - precision * step / 2
    effective = len(draws) * (1 - kept) / (1 + kept)
    assert abs(draws.mean() - mean) < 4 * np.sqrt(variance / effective)
    squares = len(draws) * (1 - kept**2) / (1 + kept**2)
    assert abs(draws.var() / variance - 1) < 4 * np.sqrt(2 / squares)


def test_it_works_with_everything_else(key, tmp_path):
    problem, scheme = Problem(line), Langevin(0.02)
    done = fit(problem, scheme, key, X, Y, num_steps=40, batch_size=5, progress=False, chunk=20, checkpoint=tmp_path / "c")
    again = fit(problem, scheme, key, X, Y, num_steps=40, batch_size=5, progress=False, chunk=20, resume=tmp_path / "c")
    assert np.array_equal(done.posterior.draws["w"], again.posterior.draws["w"])
    assert predict(problem, done, key, X, num_draws=5).shape == (5, 10)
    tree = to_arviz(done, problem, key, X, Y, var_names=["w"])
    assert tree["posterior"]["w"].shape == (1, 20) and tree["log_likelihood"]["y"].shape == (1, 20, 10)


# A group, and representations of it


def quaternion_group() -> groups.FiniteGroup:
    """Q8 = {1, i, -1, -i, j, k, -j, -k}: element a + 4b is i^a j^b, with i^4 = 1, j^2 = i^2 and j i = i^-1 j."""
    table = np.empty((8, 8), int)
    for a, b, c, d in np.ndindex(4, 2, 4, 2):
        table[a + 4 * b, c + 4 * d] = (a + (c if b == 0 else -c) + 2 * b * d) % 4 + 4 * (b ^ d)
    return groups.FiniteGroup("Q8", table, (1, 4))


Q8 = quaternion_group()
# left multiplication by i and by j of quaternions (1, i, j, k), as gathers with signs
TURNS = representations.permutation(Q8, [[[1, 0, 3, 2], [-1, 1, -1, 1]], [[2, 3, 0, 1], [-1, 1, 1, -1]]])
REPS = {
    "quaternions": TURNS,
    "as matrices": representations.matrix(Q8, TURNS.matrices()),
    "regular": representations.regular(Q8),
    "quotient": representations.quotient(Q8, [2]),
    "sum": TURNS + representations.trivial(Q8, 2),
}


def test_a_group_of_ones_own_keeps_every_promise(key):
    assert Q8.order == 8 and not (Q8.table == Q8.table.T).all()
    orders = [next(n for n in range(1, 9) if power(g, n) == 0) for g in range(8)]
    assert sorted(orders) == [1, 2, 4, 4, 4, 4, 4, 4]  # not the dihedral group, which has five elements of order 2
    assert conformance("test_groups", "every_group", Q8, key) >= 4


def power(g, n):
    found = 0
    for _ in range(n):
        found = int(Q8.table[found, g])
    return found


@pytest.mark.parametrize("name", REPS)
def test_representations_of_it_keep_every_promise(name, key):
    assert conformance("test_representations", "every_rep", REPS[name], key) >= 4


# A layer


@dataclass(frozen=True)
class LowRank(Layer):
    """y = x L R: a dense map through few numbers, which the group leaves alone."""

    inputs: int
    rank: int
    outputs: int

    def sites(self):
        return (
            Site("right", (self.rank, self.outputs), self.rank, "weight", 0.5),
            Site("left", (self.inputs, self.rank), self.inputs, "weight", 0.5),
        )

    def apply(self, weights, x, *, path=""):
        h = tap(join(path, "left"), x @ weights["left"], inputs=x, weight=join(path, "left"))
        return tap(join(path, "right"), h @ weights["right"], inputs=h, weight=join(path, "right"))

    def representations(self, field: Field, outputs: Iterator[representations.Representation]):
        channels = next_output(outputs, field, self.outputs, "LowRank")
        within = representations.trivial(field.group, self.rank)
        left = (field.channels * within).reshape(self.inputs, self.rank)
        return {"left": left, "right": (within * channels).reshape(self.rank, self.outputs)}, Field(channels)

    def stages(self):
        return (Stage(self.outputs, ("right", "left")),)

    def expand(self, order: int, roles: Iterator[Role]):
        role = next(roles)
        return LowRank(self.inputs * (1 if role.first else order), self.rank, self.outputs * (1 if role.last else order))


CASES = {
    "alone": lambda group: (LowRank(group.order, 2, group.order), on(group)),
    "in a net": lambda group: (
        layers.Sequential([LowRank(group.order, 2, group.order), layers.Activation("tanh"), LowRank(group.order, 1, 3)]),
        {"input": representations.regular(group), "hidden": [representations.regular(group)]},
    ),
}


def on(group):
    return {"input": representations.regular(group), "output": representations.regular(group)}


@pytest.mark.parametrize("group", [groups.dihedral(4), Q8], ids=lambda group: group.name)
@pytest.mark.parametrize("case", CASES)
def test_a_layer_of_ones_own_keeps_every_promise(case, group, key, x64):
    loaded("test_layers").test_transformed_weights_transform_the_outputs(CASES[case], group, key, None)


def test_it_is_equivariant_under_ones_own_group_and_sees_when_it_is_not(key):
    assert check_equivariance(LowRank(4, 3, 4), Q8, input=TURNS, output=TURNS, key=key)
    fixed = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)
    assert not check_equivariance(lambda x: x @ fixed, Q8, input=TURNS, output=TURNS, key=key, raise_if_broken=False)


def net_model(x, y=None):
    net = random_module("net", layers.Sequential([LowRank(3, 2, 4), layers.Activation("tanh"), layers.Dense(4, 1)]))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], 0.3), obs=y)


def test_its_taps_give_structured_curvature(key):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 3)).astype(np.float32)
    y = np.sin(x[:, 0]).astype(np.float32)
    problem = Problem(net_model)
    mode = fit(problem, MAP(), key, x, y, num_steps=20, progress=False).posterior.sample(key, 1)
    point = {name: value[0] for name, value in mode.items()}
    found = {kind: log_evidence(problem, point, x, y, curvature=kind) for kind in ("ekfac", "full")}
    assert found["ekfac"].untapped == ()
    assert float(found["ekfac"].log_det_ratio) > float(found["full"].log_det_ratio) > 0


# A transform


@dataclass(frozen=True)
class Drift(transforms.Transform):
    """A straight line is added to every series, from -t/2 to t/2 with t uniform on (-limit m, limit m)."""

    limit: float = 2.0
    kind: ClassVar[str] = "series"

    def transform(self, x, magnitude, u):
        slope = transforms.beside(transforms.signed(self.limit * magnitude, u[:, 0]), x)
        return x + slope * jnp.linspace(-0.5, 0.5, x.shape[1], dtype=x.dtype)[None, :, None]


def test_a_transform_of_ones_own_keeps_every_promise(key, monkeypatch):
    module = loaded("test_transforms")
    monkeypatch.setattr(module, "TABLE", (Drift(),))  # the others have their turn in their own file
    assert conformance("test_transforms", "every", Drift(), key) >= 4


@dataclass(frozen=True)
class Offset(Drift):
    """Not the identity at magnitude 0."""

    def transform(self, x, magnitude, u):
        return super().transform(x, magnitude, u) + 0.01


def test_a_transform_that_breaks_a_promise_is_caught(key, monkeypatch):
    monkeypatch.setattr(loaded("test_transforms"), "TABLE", (Offset(),))
    with pytest.raises(AssertionError):
        conformance("test_transforms", "every", Offset(), key)


def test_it_can_be_learned(key):
    spec = layers.Augment(layers.Sequential([layers.Flatten(), layers.Dense(10, 2)]), (Drift(), transforms.SignFlip()), copies=2)
    assert [site.shape for site in spec.sites() if site.name == "augment.0.magnitude"] == [(2,)]
    weights = {site.name: jnp.full(site.shape, 0.3) for site in spec.sites()}
    out = numpyro.handlers.seed(lambda x: spec.apply(weights, x), key)(jnp.ones((3, 5, 2)))
    assert out.shape == (3, 2) and np.isfinite(out).all()


# A dataset


def waves(num_train: int = 20, num_validation: int = 10, num_test: int = 10, *, seed: int = 0) -> Sets:
    """Sine or cosine, with noise."""

    def draw(generator, count):
        labels = shuffled_labels(generator, count, 2)
        angles = np.linspace(0, 6, 30)[None] + np.pi / 2 * labels[:, None]
        return (np.sin(angles) + 0.1 * generator.standard_normal(angles.shape))[..., None], labels

    return generated(draw, {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}, seed)


def test_a_dataset_of_ones_own_keeps_every_promise(key, monkeypatch):
    monkeypatch.setitem(loaded("test_datasets").TABLE, "waves", (waves, 2, (30, 1)))
    assert conformance("test_datasets", "every_generator", "waves", key) >= 2


# The guide


def test_the_skeletons_of_the_guide_run():
    blocks = re.findall(r"```python\n(.*?)```", (TESTS.parent / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "guide"})
