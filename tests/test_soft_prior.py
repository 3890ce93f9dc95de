"""The soft-equivariant Gaussian against dense Gaussians, its limits, and its life as a NumPyro distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

from bayes_sym import groups, layers, representations
from bayes_sym.errors import PriorError, ShapeError
from bayes_sym.priors import SoftEquivariance, SoftEquivariantNormal


C2, C3, C4, D4, S3 = (*map(groups.cyclic, (2, 3, 4)), groups.dihedral(4), groups.symmetric(3))
ANGLE = 2 * np.pi / 3
TURN = representations.matrix(C3, [[[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]])
QUARTER = representations.permutation(C4, [[[1, 0], [-1, 1]]])
REPS = {
    "regular": representations.regular(S3),
    "image": representations.image(D4, (3, 3)),
    "weight": (representations.image(C4, (2, 2)) * representations.regular(C4)).reshape(2, 2, 4),
    "signed": QUARTER * QUARTER,
    "matrix": representations.regular(C3) * TURN,
    "rank-0": representations.permutation(C2, [[[0, 1, 2], [-1, -1, -1]]]),
    "full-rank": representations.trivial(C4, 3),
}
INVARIANT, TRANSVERSAL = 1.7, 0.3
every_rep = pytest.mark.parametrize("rep", REPS.values(), ids=REPS.keys())


def covariance(rep, invariant=INVARIANT, transversal=TRANSVERSAL):
    return invariant * rep.projector + transversal * (np.eye(rep.dim) - rep.projector)


def values(rep, n=5):
    return np.random.default_rng(1).standard_normal((n, *rep.shape))


@every_rep
def test_density_moments_and_entropy_match_the_dense_gaussian(rep, x64):
    prior = SoftEquivariantNormal(rep, INVARIANT, TRANSVERSAL)
    dense = scipy.stats.multivariate_normal(np.zeros(rep.dim), covariance(rep))
    x = values(rep)
    log_prob = jax.jit(prior.log_prob)(x)
    assert log_prob.shape == (5,)
    assert np.abs(log_prob - dense.logpdf(x.reshape(5, -1))).max() < 1e-8
    assert float(prior.entropy()) == pytest.approx(dense.entropy(), abs=1e-8)
    assert np.abs(prior.variance.ravel() - np.diagonal(covariance(rep))).max() < 1e-12
    assert np.abs(prior.precision_diagonal.ravel() - np.diagonal(np.linalg.inv(covariance(rep)))).max() < 1e-12


@every_rep
def test_the_root_squares_to_a_covariance_that_commutes_with_the_group(rep, x64):
    prior = SoftEquivariantNormal(rep, INVARIANT, TRANSVERSAL)
    root = np.asarray(jax.jit(prior.root)(np.eye(rep.dim).reshape(-1, *rep.shape))).reshape(rep.dim, rep.dim)
    dense = root.T @ root
    assert np.abs(dense - covariance(rep)).max() < 1e-10
    for rho in rep.matrices():
        assert np.abs(rho @ dense @ rho.T - dense).max() < 1e-10


@pytest.mark.parametrize("name", ["signed", "matrix"])
def test_samples_have_the_covariance(name, key):
    rep, n = REPS[name], 20_000
    prior = SoftEquivariantNormal(rep, INVARIANT, TRANSVERSAL)
    draws = np.asarray(jax.jit(lambda key: prior.sample(key, (n,)))(key), float)
    assert draws.shape == (n, *rep.shape)
    flat, expected = draws.reshape(n, -1), covariance(rep)
    # of a Gaussian: Var(x_i x_j) = S_ii S_jj + S_ij^2
    se = np.sqrt((np.outer(np.diagonal(expected), np.diagonal(expected)) + expected**2) / n)
    assert (np.abs(flat.T @ flat / n - expected) / se).max() < 5
    assert (np.abs(flat.mean(axis=0)) / np.sqrt(np.diagonal(expected) / n)).max() < 5


@every_rep
def test_softness_one_is_isotropic(rep, x64):
    prior = SoftEquivariantNormal.from_softness(rep, 1.0, scale=0.7)
    x = values(rep)
    expected = scipy.stats.norm(0, 0.7).logpdf(x).reshape(5, -1).sum(axis=1)
    assert np.abs(jax.jit(prior.log_prob)(x) - expected).max() < 1e-10


@pytest.mark.parametrize("name", ["image", "signed", "matrix"])
def test_small_softness_draws_nearly_symmetric_weights(name, key):
    @jax.jit
    def asymmetry(softness):
        prior = SoftEquivariantNormal.from_softness(REPS[name], softness)
        draws = prior.sample(key, (10,))
        return jnp.abs(draws - prior.project(draws)).max() / jnp.abs(draws).max()

    assert asymmetry(1e-6) < 1e-5
    assert asymmetry(1.0) > 0.1


@every_rep
@pytest.mark.parametrize("softness", [0.01, 0.5, 1.0, 3.0])
def test_softness_preserves_the_power(rep, softness, x64):
    prior = SoftEquivariantNormal.from_softness(rep, softness, scale=0.7)
    power = float(prior.invariant) * rep.rank + float(prior.transversal) * (rep.dim - rep.rank)
    assert power == pytest.approx(0.7**2 * rep.dim)
    assert float(jnp.sqrt(prior.transversal / prior.invariant)) == pytest.approx(softness)


@every_rep
def test_gradients_are_finite_and_match_differences(rep, x64):
    x = values(rep, 1)[0]

    def log_prob(log_softness, log_scale):
        return SoftEquivariantNormal.from_softness(rep, jnp.exp(log_softness), jnp.exp(log_scale)).log_prob(x)

    at, step = (-2.0, 0.3), 1e-5
    evaluate, differentiate = jax.jit(log_prob), jax.jit(jax.grad(log_prob, argnums=(0, 1)))
    differences = (
        (evaluate(at[0] + step, at[1]) - evaluate(at[0] - step, at[1])) / (2 * step),
        (evaluate(at[0], at[1] + step) - evaluate(at[0], at[1] - step)) / (2 * step),
    )
    assert np.allclose(differentiate(*at), differences, rtol=1e-6, atol=1e-6)
    assert np.isfinite(differentiate(-12.0, 0.0)).all()


def test_it_is_a_pytree_through_jit_and_vmap(key):
    rep = REPS["signed"]
    prior = SoftEquivariantNormal(rep, INVARIANT, TRANSVERSAL)
    x = values(rep).astype(np.float32)
    leaves, structure = jax.tree.flatten(prior)
    assert sorted(leaves) == [TRANSVERSAL, INVARIANT]
    again = jax.tree.unflatten(structure, leaves)
    assert again.representation == rep and again.event_shape == rep.shape
    expected = prior.log_prob(x)
    assert np.allclose(jax.jit(lambda prior, x: prior.log_prob(x))(prior, x), expected, rtol=1e-5)
    strengths = jnp.array([0.5, TRANSVERSAL, 2.0])
    many = jax.vmap(lambda b: SoftEquivariantNormal(rep, INVARIANT, b).log_prob(x))(strengths)
    assert many.shape == (3, 5) and np.allclose(many[1], expected, rtol=1e-5)
    stacked = jax.vmap(lambda b: SoftEquivariantNormal(rep, INVARIANT, b))(strengths)
    mapped = jax.vmap(lambda prior: prior.sample(key))(stacked)
    assert np.allclose(mapped[1], prior.sample(key), rtol=1e-5)


def test_it_lives_in_a_numpyro_model(key):
    rep = REPS["image"]

    def model():
        softness = numpyro.sample("softness", dist.LogNormal(0.0, 1.0))
        return numpyro.sample("w", SoftEquivariantNormal.from_softness(rep, softness))

    w = numpyro.handlers.seed(model, key)()
    assert w.shape == (3, 3) and np.isfinite(w).all()
    assert (numpyro.handlers.seed(model, key)() == w).all()
    assert (numpyro.handlers.seed(model, jax.random.key(1))() != w).any()
    at = {"softness": jnp.array(0.5), "w": w}
    log_density, _ = numpyro.infer.util.log_density(model, (), {}, at)
    expected = dist.LogNormal(0.0, 1.0).log_prob(0.5) + SoftEquivariantNormal.from_softness(rep, 0.5).log_prob(w)
    assert float(log_density) == pytest.approx(float(expected), rel=1e-5)


def test_it_prices_every_weight_of_a_net(key):
    net = layers.Sequential((layers.Conv(1, 4), layers.Pool(), layers.Dense(4, 2)))
    outputs = [representations.regular(C4), representations.trivial(C4, 2)]
    reps, _ = net.representations(layers.Field.of(representations.image(C4, (4, 4)), 1), iter(outputs))
    softness = {name: 1e-6 for name in reps} | {"2.weight": 1.0}
    prior = SoftEquivariance(reps, softness, scale=2.0)

    def model():
        return layers.random_module("net", net, prior=prior).weights

    weights = jax.jit(lambda key: numpyro.handlers.seed(model, key)())(key)
    assert {name: w.shape for name, w in weights.items()} == {site.name: site.shape for site in net.sites()}
    for name, rep in reps.items():
        flat = np.asarray(weights[name]).ravel()
        asymmetry = np.abs(flat - rep.projector @ flat).max()
        assert (asymmetry > 1e-3) == (name == "2.weight")
    site = net.sites()[0]
    power = prior(site).variance.mean() * site.fan_in
    assert float(power) == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: SoftEquivariantNormal(representations.matrix(C2, [[[1, 1], [0, -1]]])),
            PriorError,
            "needs an orthogonal representation",
        ),
        (lambda: SoftEquivariantNormal(REPS["image"], jnp.ones(2), 1.0), PriorError, r"scalars, got shapes \(2,\) and \(\)"),
        (lambda: SoftEquivariantNormal(REPS["image"]).log_prob(jnp.ones((4, 4))), ShapeError, "acts on 9 entries"),
        (lambda: SoftEquivariantNormal(REPS["image"], -1.0), ValueError, "invalid invariant parameter"),
        (
            lambda: SoftEquivariance({}, 0.5)(layers.Dense(2, 3).sites()[0]),
            PriorError,
            "no representation for site 'weight'",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()
