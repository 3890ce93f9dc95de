"""Comparisons of regressions: scores against their definitions, for outputs that move with the inputs and for those that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from bayes_sym import groups, representations
from bayes_sym.errors import OptionError
from bayes_sym.experiments.table import as_text
from bayes_sym.inference import MAP, BestOnValidation, Cell, Laplace, Problem, Variational, compare
from bayes_sym.inference.posterior import DrawsPosterior
from bayes_sym.inference.scores import score


TURN = representations.matrix(groups.cyclic(4), [[[0.0, -1.0], [1.0, 0.0]]])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 2)).astype(np.float32)
SIGMA = 0.5


def vectors(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(x @ w, SIGMA).to_event(1), obs=y)


def lengths(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal((x**2) @ w, SIGMA), obs=y)


def counts(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Poisson(jnp.exp(x @ w)), obs=y)


def fitted(model, y, scheme, **options):
    return compare(
        [Cell("one", Problem(model), scheme, 20)], jax.random.key(0), X, y, test=(X, y), action=TURN, progress=False, **options
    )


def orbit(x):
    return np.stack([np.asarray(TURN.transform(g, jnp.asarray(x))) for g in range(4)])


@pytest.mark.parametrize("moves", [True, False])
def test_scores_are_those_of_their_definitions(moves):
    y = X @ RNG.normal(size=(2, 2)) if moves else (X**2).sum(axis=1)
    model, output = (vectors, TURN) if moves else (lengths, None)
    found = fitted(model, y.astype(np.float32), Variational(), output=output)
    (row,), posterior = found.rows, found.posteriors["one"]
    key = jax.random.wrap_key_data(np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 3)))[1])
    w = np.asarray(posterior.sample(key, 32)["w"], np.float64)
    inputs = orbit(X)
    means = np.einsum("gni,tij->tgnj", inputs, w) if moves else np.einsum("gni,ti->tgn", inputs**2, w)
    values = orbit(y.astype(np.float32)) if moves else np.broadcast_to(y, (4, 9))
    density = norm.logpdf(values, means, SIGMA)
    density = density.sum(axis=-1) if moves else density
    mean = means.mean(axis=0)
    turned = TURN.matrices()
    back = np.einsum("gji,gnj->gni", turned, mean) if moves else mean  # rho(g)^-1 is the transpose
    expected = {
        "rmse": np.sqrt(((mean[0] - values[0]) ** 2).mean()),
        "orbit_rmse": np.sqrt(((mean - values) ** 2).mean()),
        "nll": -(logsumexp(density, axis=0) - np.log(32)).mean(),
        "averaged_rmse": np.sqrt(((back.mean(axis=0) - values[0]) ** 2).mean()),
        "averaged_nll": -(logsumexp(density, axis=(0, 1)) - np.log(128)).mean(),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=2e-4)
    assert "accuracy" not in row and "RMSE" in as_text(found.rows) and "accuracy" not in as_text(found.rows)
    assert found.plot("tradeoff").axes[0].get_xlabel().startswith("equivariance error of the predictive, squared units")


def test_an_equivariant_map_has_no_defect_and_a_transformed_average_changes_nothing():
    turn = TURN.matrices()[1].astype(np.float32)
    weights = np.stack([a * np.eye(2, dtype=np.float32) + b * turn for a, b in RNG.normal(size=(6, 2))])
    example = (jnp.asarray(X), jnp.asarray(X))
    posterior = DrawsPosterior(Problem(vectors), example, {"w": jnp.asarray(weights)[None]}, {})
    rows = score(posterior, jax.random.key(0), (X, X @ turn), TURN, 6, TURN)
    assert abs(rows["equivariance_error"]) < 1e-9 and abs(rows["member_error"]) < 1e-9
    assert rows["averaged_rmse"] == pytest.approx(rows["rmse"], rel=1e-5) == pytest.approx(rows["orbit_rmse"], rel=1e-5)
    as_if_fixed = score(posterior, jax.random.key(0), (X, X @ turn), TURN, 6)
    assert as_if_fixed["equivariance_error"] > 1e-3


@pytest.mark.parametrize("scheme", [MAP(), Laplace(curvature="full")], ids=["map", "laplace"])
def test_counts_are_values_although_they_are_integers(scheme):
    y = RNG.poisson(1.0, 9)
    (row,) = fitted(counts, y, scheme).rows
    assert row["rmse"] > 0 and row["nll"] > 0 and "accuracy" not in row


def test_the_best_on_validation_is_that_of_the_density():
    y = (X**2).sum(axis=1)
    cells = [Cell("one", Problem(lengths), MAP(), 40, select="orbit")]
    found = compare(cells, jax.random.key(0), X, y, test=(X, y), validation=(X, y), action=TURN, progress=False, chunk=10)
    assert found.rows[0]["steps"] == 40
    look = BestOnValidation(jax.random.key(1), (X,), y)
    posterior = found.posteriors["one"]
    w = np.asarray(posterior.sample(jax.random.key(0), 1)["w"][0], np.float64)
    assert look._score(posterior, 1) == pytest.approx(-norm.logpdf(y, (X**2) @ w, SIGMA).mean(), rel=1e-4)


def test_outputs_that_do_not_fit_are_refused_before_any_fit():
    y = (X**2).sum(axis=1)
    with pytest.raises(OptionError, match="orthogonal representation of C4 on observations of shape \\(\\)"):
        fitted(lengths, y, MAP(), output=TURN)
