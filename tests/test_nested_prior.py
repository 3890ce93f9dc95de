"""The nested-subgroup Gaussian against dense Gaussians, the soft-equivariant one, and its price in the evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

from bayes_sym import groups, layers, representations, tap
from bayes_sym.errors import PriorError
from bayes_sym.inference import Problem, log_evidence
from bayes_sym.layers.factored import Factored
from bayes_sym.priors import IndependentScales, SoftEquivariantNormal
from bayes_sym.priors.nested import NestedEquivariantNormal, NestedSymmetry


C2, C4, D3, D4 = groups.cyclic(2), groups.cyclic(4), groups.dihedral(3), groups.dihedral(4)
TURNS = D4.subgroup([1], "C4"), D4.subgroup([2], "C2"), D4.subgroup([], "trivial")
ANGLE = 2 * np.pi / 3
TRIANGLE = representations.matrix(D3, [[[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]], np.diag([1.0, -1])])
SIGNED = representations.permutation(C4, [[[1, 0], [-1, 1]]])
VARIANCES = (1.7, 0.9, 0.4, 0.1)


def chain(rep, *subgroups):
    return [rep, *(rep.restrict(subgroup) for subgroup in subgroups)]


CHAINS = {
    "image": chain(representations.image(D4, (4, 4)), *TURNS),
    "weight": chain((representations.image(D4, (2, 2)) * representations.regular(D4)).reshape(2, 2, 8), *TURNS[:2]),
    "signed": chain(SIGNED * SIGNED, C4.subgroup([2])),
    "matrix": chain(representations.regular(D3) * TRIANGLE, D3.subgroup([1])),
    "empty-level": chain(representations.image(D4, (3, 3)), *TURNS[:2]),
    "one-group": chain(representations.regular(C4)),
    "no-group": chain(representations.trivial(groups.trivial(), 3)),
}
every_chain = pytest.mark.parametrize("reps", CHAINS.values(), ids=CHAINS.keys())


def projectors(reps):
    """P_j by brute force over the groups, the trivial one last."""
    found = [rep.matrices().mean(axis=0) for rep in reps]
    return found if reps[-1].group.order == 1 else [*found, np.eye(reps[0].dim)]


def covariance(reps, variances=VARIANCES):
    dense, before = 0, 0
    for variance, projector in zip(variances, projectors(reps), strict=False):
        dense, before = dense + variance * (projector - before), projector
    return dense


def nested(reps, variances=VARIANCES):
    return NestedEquivariantNormal(reps, variances[: len(projectors(reps))])


def values(rep, n=5):
    return np.random.default_rng(1).standard_normal((n, *rep.shape))


@every_chain
def test_density_moments_entropy_and_roots_match_the_dense_gaussian(reps, x64):
    prior, expected, size = nested(reps), covariance(reps), reps[0].dim
    dense = scipy.stats.multivariate_normal(np.zeros(size), expected)
    x = values(reps[0])

    @jax.jit
    def answers(x):
        eye = jnp.eye(size).reshape(size, *reps[0].shape)
        return prior.log_prob(x), prior.root(eye), prior.whiten(prior.root(x)), prior.variance, prior.precision_diagonal

    log_prob, root, again, variance, precision = map(np.asarray, answers(x))
    assert np.abs(log_prob - dense.logpdf(x.reshape(5, -1))).max() < 1e-10 and log_prob.shape == (5,)
    assert float(prior.entropy()) == pytest.approx(dense.entropy(), abs=1e-10)
    root = root.reshape(size, size)
    assert np.abs(root - root.T).max() < 1e-12 and np.abs(root @ root - expected).max() < 1e-12
    assert np.abs(again - x).max() < 1e-12
    assert np.abs(variance.ravel() - np.diagonal(expected)).max() < 1e-12
    assert np.abs(precision.ravel() - np.diagonal(np.linalg.inv(expected))).max() < 1e-12
    assert prior.event_shape == reps[0].shape and (np.asarray(prior.mean) == 0).all()
    ranks = [np.linalg.matrix_rank(projector) for projector in projectors(reps)]
    assert prior.ranks == tuple(np.diff(ranks, prepend=0))


def test_samples_have_the_covariance(key):
    reps, n = CHAINS["signed"], 20_000
    prior = nested(reps)
    draws = np.asarray(jax.jit(lambda key: prior.sample(key, (n,)))(key), float)
    assert draws.shape == (n, *reps[0].shape)
    flat, expected = draws.reshape(n, -1), covariance(reps)
    # of a Gaussian: Var(x_i x_j) = S_ii S_jj + S_ij^2
    se = np.sqrt((np.outer(np.diagonal(expected), np.diagonal(expected)) + expected**2) / n)
    assert (np.abs(flat.T @ flat / n - expected) / se).max() < 5
    assert (np.abs(flat.mean(axis=0)) / np.sqrt(np.diagonal(expected) / n)).max() < 5


def test_a_chain_of_two_is_the_soft_equivariant_gaussian(x64):
    rep = CHAINS["weight"][0]
    soft, x = SoftEquivariantNormal(rep, 1.7, 0.3), values(rep)
    draw = jax.jit(lambda prior, key: (prior.log_prob(x), prior.sample(key, (2,)), prior.entropy(), prior.variance))
    expected = draw(soft, jax.random.key(3))
    for reps in ([rep], chain(rep, TURNS[2])):
        found = draw(NestedEquivariantNormal(reps, [1.7, 0.3]), jax.random.key(3))
        assert all(np.abs(a - b).max() < 1e-12 for a, b in zip(found, expected, strict=True))


def test_a_level_without_directions_weighs_nothing():
    reps = CHAINS["empty-level"]  # on 3 x 3 pixels what C4 leaves alone, D4 does too
    x = values(reps[0]).astype(np.float32)
    log_prob = jax.jit(lambda variances: NestedEquivariantNormal(reps, variances).log_prob(x))
    expected = log_prob(jnp.array([1.7, 1.0, 0.4, 0.1]))
    assert (log_prob(jnp.array([1.7, 1e-30, 0.4, 0.1])) == expected).all() and np.isfinite(expected).all()


def test_small_variances_after_a_level_leave_its_symmetry(key):
    rep = representations.image(D4, (4, 4))
    prior = NestedEquivariantNormal(chain(rep, *TURNS), [1.0, 1.0, 1e-12, 1e-12])
    draws = np.asarray(jax.jit(lambda key: prior.sample(key, (20,)))(key))
    turned, mirrored = np.rot90(draws, axes=(1, 2)), np.flip(draws, axis=2)
    assert np.abs(turned - draws).max() < 1e-4 < 0.1 < np.abs(mirrored - draws).max()


def test_it_is_a_pytree_through_jit_and_vmap(key):
    reps = CHAINS["signed"]
    prior, x = nested(reps), values(reps[0]).astype(np.float32)
    leaves, structure = jax.tree.flatten(prior)
    assert len(leaves) == 1 and leaves[0].shape == (3,)
    again = jax.tree.unflatten(structure, leaves)
    assert again.representations == prior.representations and again.event_shape == reps[0].shape
    expected = jax.jit(prior.log_prob)(x)
    strengths = jnp.array([[0.5, 0.5, 0.5], VARIANCES[:3], [2.0, 1.0, 0.5]])
    stacked = jax.vmap(lambda variances: NestedEquivariantNormal(reps, variances))(strengths)
    many = jax.jit(jax.vmap(lambda prior: prior.log_prob(x)))(stacked)
    assert many.shape == (3, 5) and np.allclose(many[1], expected, rtol=1e-5)


def test_it_lives_in_a_numpyro_model(key):
    reps = CHAINS["image"]

    def model():
        strengths = numpyro.sample("strengths", dist.HalfNormal(1.0).expand([4]).to_event(1))
        outer = numpyro.sample("outer", dist.LogNormal(0.0, 1.0))
        numpyro.sample("v", NestedEquivariantNormal(reps, [outer, 1.0, 0.5, strengths[3]]))
        return numpyro.sample("w", NestedEquivariantNormal(reps, strengths))

    w = jax.jit(numpyro.handlers.seed(model, key))()
    assert w.shape == (4, 4) and np.isfinite(w).all()
    at = {"strengths": jnp.array(VARIANCES), "outer": jnp.array(1.7), "v": w, "w": w}
    found = jax.jit(lambda at: numpyro.infer.util.log_density(model, (), {}, at)[0])(at)
    at = {name: np.asarray(value, float) for name, value in at.items()}
    flat = at["w"].ravel()
    expected = scipy.stats.halfnorm.logpdf(VARIANCES).sum() + scipy.stats.lognorm(1.0).logpdf(1.7)
    for variances in (VARIANCES, (1.7, 1.0, 0.5, VARIANCES[3])):
        expected += scipy.stats.multivariate_normal(np.zeros(16), covariance(reps, variances)).logpdf(flat)
    assert float(found) == pytest.approx(expected, rel=1e-4)


# Of a whole net


NET = layers.Sequential((layers.Conv(1, 8), Factored(8, 2, (4, 4)), layers.Pool()))


def net_representations():
    outputs = [representations.regular(D4), representations.trivial(D4, 2)]
    return NET.representations(layers.Field.of(representations.image(D4, (4, 4)), 1), iter(outputs))[0]


def test_it_prices_every_weight_of_a_net(x64):
    reps = net_representations()
    strengths = [2.0, {name: 0.5 if name == "0.weight" else 1.5 for name in reps}, jnp.asarray(0.25), 0.1]
    prior = NestedSymmetry(reps, TURNS[:2], strengths)
    for site in NET.sites():
        found = prior(site)
        levels = np.array([2.0, 0.5 if site.name == "0.weight" else 1.5, 0.25, 0.1]) ** site.share
        expected = covariance(chain(reps[site.name], *TURNS), levels**2 / site.fan_in)
        assert found.event_shape == site.shape
        assert np.abs(np.asarray(found.variance).ravel() - np.diagonal(expected)).max() < 1e-12
    assert [site.share for site in NET.sites()] == [1, 1, 0.5, 0.5, 0.5, 1]


def test_equal_strengths_are_independent_scales(x64):
    nested_prior, plain = NestedSymmetry(net_representations(), TURNS, jnp.full(4, 3.0)), IndependentScales(3.0)
    weights = {site.name: np.random.default_rng(0).standard_normal(site.shape) for site in NET.sites()}

    @jax.jit
    def log_probs(weights):
        return [[prior(site).log_prob(weights[site.name]) for site in NET.sites()] for prior in (nested_prior, plain)]

    found, expected = log_probs(weights)
    assert np.allclose(found, expected, rtol=1e-10)
    values = {f"net.{name}": value for name, value in weights.items()}
    with numpyro.handlers.trace() as trace, numpyro.handlers.substitute(data=values):
        layers.random_module("net", NET, prior=nested_prior)
    assert all(trace[name]["fn"].event_shape == value.shape for name, value in values.items())


# In the evidence


def det(shape, a, b):
    """Numbers that anybody can rebuild."""
    return np.sin(a * np.arange(1, np.prod(shape) + 1) + b).reshape(shape)


X, Y = det((9, 8), 1.7, 0.3), det((9, 1), 2.3, 0.6)
REGULAR = chain(representations.regular(D4).reshape(8, 1), *TURNS[:2])


def linear(x, y, variances):
    w = numpyro.sample("w", NestedEquivariantNormal(REGULAR, variances))
    z = tap("z", x @ w, inputs=x, weight="w")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(z, 0.4).to_event(1), obs=y)


def log_marginal(variances):
    dense = X @ covariance(REGULAR, variances) @ X.T + 0.16 * np.eye(9)
    return scipy.stats.multivariate_normal(np.zeros(9), dense).logpdf(Y[:, 0])


@pytest.mark.parametrize("curvature", ["full", "ekfac", "ntk"])
def test_the_evidence_of_a_linear_model_is_its_marginal_likelihood(curvature, x64):
    at = {"w": 0.3 * det((8, 1), 1.1, 0.2)}

    @jax.jit
    @jax.value_and_grad
    def evidence(variances):
        correction = None if curvature == "ntk" else "newton"  # which makes it independent of the point
        found = log_evidence(Problem(linear), at, X, Y, variances, curvature=curvature, block_size=9, correction=correction)
        return -found.log_det_ratio / 2 if curvature == "ntk" else found.value

    def expected(variances):
        if curvature != "ntk":
            return log_marginal(variances)
        return -np.linalg.slogdet(np.eye(9) + X @ covariance(REGULAR, variances) @ X.T / 0.16)[1] / 2

    variances, step = np.array(VARIANCES), 1e-5
    value, gradient = evidence(variances)
    assert float(value) == pytest.approx(expected(variances), rel=1e-9)
    for i in range(4):
        moved = [expected(variances + s * step * np.eye(4)[i]) for s in (1, -1)]
        assert float(gradient[i]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-6, abs=1e-7)


IMAGE = representations.image(D4, (3, 3))
MIRROR = D4.subgroup([4], "mirror")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: NestedEquivariantNormal([], []), PriorError, "at least one representation"),
        (
            lambda: NestedEquivariantNormal([representations.matrix(C2, [[[1, 1], [0, -1]]])], [1, 1]),
            PriorError,
            "needs orthogonal representations on arrays of one shape",
        ),
        (
            lambda: NestedEquivariantNormal([IMAGE, IMAGE.restrict(TURNS[0]).reshape(9)], [1, 1, 1]),
            PriorError,
            "on arrays of one shape",
        ),
        (
            lambda: NestedEquivariantNormal(chain(IMAGE, TURNS[0], MIRROR), [1] * 4),
            PriorError,
            "a chain from large to small, but .* moves arrays in ways that",
        ),
        (
            lambda: NestedEquivariantNormal([TRIANGLE, representations.permutation(C2, [[1, 0]])], [1] * 3),
            PriorError,
            "a chain from large to small",
        ),
        (
            lambda: NestedEquivariantNormal(chain(IMAGE, TURNS[0]), [1, 1]),
            PriorError,
            "one of its variances per level, 3 for D4, C4, trivial, got 2",
        ),
        (
            lambda: NestedEquivariantNormal([IMAGE], [1.0, jnp.ones(2)]),
            PriorError,
            r"variances of a nested prior are scalars, got shapes \[\(\), \(2,\)\]",
        ),
        (lambda: NestedEquivariantNormal([IMAGE], [1.0, -1.0]), ValueError, "invalid variances parameter"),
        (lambda: NestedSymmetry({"w": IMAGE}, [TURNS[0], MIRROR], [1] * 4), PriorError, "mirror is no smaller subgroup of C4"),
        (
            lambda: NestedSymmetry({"w": IMAGE}, [C4.subgroup([2])], [1] * 3),
            PriorError,
            "list subgroups of D4 from large to small",
        ),
        (
            lambda: NestedSymmetry({"w": IMAGE}, TURNS, [1] * 3),
            PriorError,
            "strengths per level, 4 for D4, C4, C2, trivial, got 3",
        ),
        (
            lambda: NestedSymmetry({"w": IMAGE, "v": representations.regular(C2)}, [], [1, 1]),
            PriorError,
            r"representations of one group, got those of \['C2', 'D4'\]",
        ),
        (
            lambda: NestedSymmetry({"w": IMAGE}, [], [1, 1])(layers.Dense(2, 3).sites()[0]),
            PriorError,
            "no representation for site 'weight'",
        ),
        (
            lambda: NestedSymmetry({"weight": IMAGE}, [], [1, {"w": 1}])(layers.Dense(2, 3).sites()[0]),
            PriorError,
            r"no strength for site 'weight'; there are \['w'\]",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()
