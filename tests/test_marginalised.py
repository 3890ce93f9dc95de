"""Learned augmentation by posteriors: copies are not counted as data, and cheap curvature agrees on the direction of magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from bayes_sym import datasets
from bayes_sym.experiments.rings import RingModel, Turn
from bayes_sym.inference import MeanField, Problem, Variational, fit, log_evidence
from bayes_sym.layers import Augment, Dense, Selection


X, LABELS = (np.asarray(part) for part in datasets.rings(60, 1, 1, seed=3).train)
ADAM = optax.adam(optax.cosine_decay_schedule(0.05, 600, 0.01))


def spread(copies, average, counted=1.0):
    """The sds of the weights of a linear classifier of points turned by up to 20 degrees, under mean-field q."""
    spec = Augment(Dense(2, 2, bias=False), (Selection((Turn(),)),), copies=copies, average=average)

    def model(x, y=None):
        weight = numpyro.sample("net.weight", dist.Normal(0, 2).expand([2, 2]).to_event(2))
        values = {"weight": weight, "augment.0.magnitude": jnp.full(1, 20 / 180)}
        logits = spec.apply(values, x, path="net")
        with numpyro.plate("data", x.shape[0]), numpyro.handlers.scale(scale=counted):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    done = fit(Problem(model), Variational(MeanField(0.3), ADAM), jax.random.key(0), X, LABELS, num_steps=600, progress=False)
    return np.exp(np.asarray(done.state.params.log_scale["net.weight"])).ravel()


def test_twice_as_many_copies_leave_the_posterior_as_wide():
    few, many, counted = spread(3, "probabilities"), spread(6, "probabilities"), spread(3, "probabilities", counted=2.0)
    assert np.abs(many / few - 1).max() < 0.05
    assert (counted / few).max() < 0.85  # as wide as 1/sqrt(2), were copies data


def test_reduced_factors_agree_with_the_full_matrix_on_the_sign_of_the_slope(key):
    model = RingModel(copies=6, width=6)
    problem = Problem(model)
    x, y = jnp.asarray(X), jnp.asarray(LABELS)
    held = ("scale", "*augment*")

    def slope(curvature, values):
        def value(magnitude):
            given = {**values, "net.augment.0.magnitude": magnitude}
            return log_evidence(problem, given, x, y, curvature=curvature, optimise=held).value

        return jax.grad(value)(values["net.augment.0.magnitude"])[0]

    def both(key):
        keys = dict(zip(problem.structure(x, y).latent, jax.random.split(key, 6), strict=True))
        shapes = {name: site.shape for name, site in problem.structure(x, y).latent.items()}
        values = {name: jax.random.normal(keys[name], shape) for name, shape in shapes.items()}
        values |= {
            "scale": jnp.ones(2),
            "net.augment.0.magnitude": jax.random.uniform(keys["scale"], (1,), minval=0.02, maxval=0.4),
        }
        return slope("full", values), slope("kfac_reduce", values)

    full, reduced = jax.jit(lambda keys: jax.lax.map(both, keys))(jax.random.split(key, 40))
    assert np.mean(np.sign(full) == np.sign(reduced)) >= 0.95
    assert (full > 0).any() and (full < 0).any() and np.abs(full / reduced - 1).max() > 0.01  # both directions, other curvatures
