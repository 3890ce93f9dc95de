"""What is reported multiplies in the precision of its inputs, on devices that round them by default too; training is left as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import groups, representations
from bayes_sym.inference import (
    MAP,
    FullGaussian,
    Laplace,
    LowRankGaussian,
    MatrixNormal,
    NaturalGradient,
    Problem,
    audit,
    effective_parameters,
    evidence_basis,
    fit,
    hold_evidence,
    importance_evidence,
    linearised,
    log_evidence,
    posterior_equivariance,
    predict,
    to_arviz,
)
from bayes_sym.inference.natural import natural_step


SWAP = representations.permutation(groups.cyclic(2), [[1, 0]])
X = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
Y = np.arange(6) % 3
KEY = jax.random.key(0)
OPTIMISE = ("scale",)


class Recording:
    """A model that notes the precision under which it is traced."""

    def __init__(self):
        self.seen = set()

    def __call__(self, x, y=None):
        self.seen.add(jax.config.jax_default_matmul_precision)
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        w = numpyro.sample("w", dist.Normal(jnp.zeros((2, 3)), scale).to_event(2))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


@pytest.fixture(scope="module")
def trained():
    """A recording model, its problem and Laplace fit."""
    model = Recording()
    problem = Problem(model)
    found = fit(problem, Laplace(curvature="full", optimise=OPTIMISE), KEY, X, Y, num_steps=2, progress=False)
    return model, problem, found


REPORTS = {
    "log_evidence": lambda p, f, w: log_evidence(p, w, X, Y, curvature="full", optimise=OPTIMISE),
    "evidence_basis": lambda p, f, w: evidence_basis(p, w, X, Y, optimise=OPTIMISE),
    "hold_evidence": lambda p, f, w: hold_evidence(p, w, X, Y, optimise=OPTIMISE, curvature="full")({"scale": jnp.ones(())}),
    "effective_parameters": lambda p, f, w: effective_parameters(p, w, X, Y, curvature="full", optimise=OPTIMISE),
    "importance_evidence": lambda p, f, w: importance_evidence(p, f.posterior, KEY, X, Y, num_draws=25),
    "audit": lambda p, f, w: audit(p, w, X, Y, key=KEY, optimise=OPTIMISE),
    "predict": lambda p, f, w: predict(p, f, KEY, X, num_draws=2),
    "linearised": lambda p, f, w: linearised(p, f, X),
    "posterior_equivariance": lambda p, f, w: posterior_equivariance(p, f, KEY, X, SWAP, num_draws=4, progress=False),
    "to_arviz": lambda p, f, w: to_arviz(f, p, KEY, X, Y, num_draws=4),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_in_full_precision(name, trained):
    model, problem, found = trained
    weights = {"w": jnp.ones((2, 3)), "scale": jnp.ones(())}
    jax.clear_caches()
    model.seen.clear()
    with jax.default_matmul_precision("bfloat16"):
        REPORTS[name](problem, found, weights)
    assert model.seen == {"highest"}


def test_training_is_left_to_the_user():
    model = Recording()
    fit(Problem(model), MAP(optimizer=optax.sgd(0.1)), KEY, X, Y, num_steps=2, progress=False)
    assert None in model.seen


def products(fn, *args):
    """How many products a program has, and how many of them are in full precision."""
    with jax.default_matmul_precision("bfloat16"):
        program = str(jax.make_jaxpr(fn)(*args))
    return program.count("dot_general["), program.count("Precision.HIGHEST, Precision.HIGHEST")


def test_covariances_are_in_full_precision():
    family = LowRankGaussian(2)
    q = family.init({"w": jnp.zeros(3)})
    count, full = products(lambda q: family.kl(q, q), q)
    assert count == full > 0


@pytest.mark.parametrize("family", [FullGaussian(), MatrixNormal()], ids=lambda family: type(family).__name__)
def test_natural_steps_are_in_full_precision(family):
    q = family.init({"w": jnp.zeros((3, 2))})
    still = jax.tree.map(jnp.zeros_like, q)
    count, full = products(lambda q: natural_step(q, still, still, NaturalGradient(0.1), None), q)
    assert count == full > 0
