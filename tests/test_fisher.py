"""The square roots of Fisher informations against quadrature, sums over supports, Hessians and finite differences."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats as st

from bayes_sym.errors import BiasedGradientWarning, CurvatureError
from bayes_sym.inference.curvature.fisher import fisher_roots, supported
from bayes_sym.inference.curvature.fisher_terms import negative_binomial_root, student_df_information, trigamma_excess


pytestmark = pytest.mark.usefixtures("x64")

# Each program runs once, on a handful of numbers: do not optimise it.
compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def information(make, flat, scale=None, **options):
    """The information of one row about a vector: the roots pulled back column by column, as the curvature does."""

    def forward(flat):
        roots = fisher_roots({"fn": make(flat), "scale": scale}, **options)
        return {name: root.parameter for name, root in roots.items()}, {name: root.columns for name, root in roots.items()}

    values, pull, columns = jax.vjp(forward, flat, has_aux=True)
    zeros = jax.tree.map(jnp.zeros_like, values)
    assert jax.tree.structure(values) == jax.tree.structure(columns)
    found = jnp.concatenate([jax.vmap(lambda c, name=name: pull({**zeros, name: c})[0])(c) for name, c in columns.items()])
    return found.T @ found


def expectation(log_density, at, values, weights, scores=None):
    """E[score score'] by weights at labels, and E[1]; weights (n, 1) are to be multiplied by the density.

    The density is SciPy's, and its scores are five-point differences: nothing here comes from JAX or NumPyro.
    """

    def moved(step):
        return np.stack([log_density(values, at + step * e) for e in np.eye(len(at))], axis=-1)

    h = 1e-3 * min(1, np.abs(at).min())
    with np.errstate(all="ignore"):  # far out, where the density is zero
        p = weights if weights.ndim == 1 else weights[:, 0] * np.exp(log_density(values, at))
        found = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h) if scores is None else scores(values, at)
        found = np.where((p > 1e-60)[:, None], found, 0)
    return (found * p[:, None]).T @ found, p.sum()


# Labels: double-exponential quadrature (Takahasi & Mori, 1974) for densities, all values of finite supports, and the
# values up to a far tail of infinite ones. Weights (n, 1) multiply the density, weights (n,) contain it.

T = np.linspace(-4.4, 4.4, 600)
HALF = np.exp(np.pi / 2 * np.sinh(T))
HALF_WEIGHTS = HALF * np.pi / 2 * np.cosh(T) * (T[1] - T[0])


def positive():
    return HALF, HALF_WEIGHTS[:, None]


def real(centre):
    """Both half lines, since the density may have a corner in its centre."""
    return np.concatenate([centre - HALF, centre + HALF]), np.tile(HALF_WEIGHTS, 2)[:, None]


def unit(count=400):
    t = np.linspace(-3.1, 3.1, count)
    values = 1 / (1 + np.exp(-np.pi * np.sinh(t)))
    return values, (values * (1 - values) * np.pi * np.cosh(t) * (t[1] - t[0]))[:, None]


def simplex():
    (u, of_u), (v, of_v) = unit(160), unit(160)
    u, v = (a.reshape(-1) for a in np.meshgrid(u, v, indexing="ij"))
    return np.stack([u, (1 - u) * v, (1 - u) * (1 - v)], axis=-1), np.outer(of_u, of_v).reshape(-1, 1) * (1 - u)[:, None]


def counts(most):
    return np.arange(most + 1), np.ones((most + 1, 1))


def compositions(total, classes):
    every = [c for c in itertools.product(range(total + 1), repeat=classes) if sum(c) == total]
    return np.array(every), np.ones((len(every), 1))


MEAN, TRIL = np.array([0.3, -0.7, 1.1]), np.array([[0.8, 0.0, 0.0], [-0.4, 1.3, 0.0], [0.5, 0.2, 0.6]])


def gaussian(covariance):
    """A rule that is exact for polynomials of degree five, as the scores of a Gaussian are quadratic."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    z = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 3)
    return MEAN + z @ np.linalg.cholesky(covariance).T, np.prod(
        np.meshgrid(*[weights / weights.sum()] * 3, indexing="ij"), axis=0
    ).reshape(-1)


# Conformance


class Case(NamedTuple):
    """A likelihood of one row: vector -> distribution of batch shape (1,), the vector, labels with weights, log density.

    The scores are given where the density has a corner.
    """

    make: Callable
    at: np.ndarray
    labels: Callable
    log_density: Callable
    scores: Callable | None = None


def _scalars(cls, **fixed):
    """One entry of the vector per argument."""
    return lambda v: cls(*(v[i : i + 1] for i in range(v.size)), **fixed)


LOW = np.tril_indices(3)
GAUSSIAN = np.concatenate([MEAN, TRIL[LOW]])
LOW_RANK = np.concatenate([MEAN, [0.4, -0.8, 0.3, 0.5, 0.9, 0.7]])
THETA = np.array([0.4, -0.3, 0.7])


def full_rank(v):
    return dist.MultivariateNormal(v[None, :3], scale_tril=jnp.zeros((3, 3)).at[LOW].set(v[3:])[None])


def low_rank(v):
    return dist.LowRankMultivariateNormal(v[None, :3], v[None, 3:6, None], v[None, 6:])


def _of_full_rank(y, v):
    tril = np.zeros((3, 3))
    tril[LOW] = v[3:]
    return st.multivariate_normal.logpdf(y, v[:3], tril @ tril.T)


def _low_rank_covariance(v):
    return np.outer(v[3:6], v[3:6]) + np.diag(v[6:])


def _simplex(v):
    return jax.nn.softmax(v)[None]


def _of_classes(y, v):
    return scipy.special.log_softmax(v)[y]


def _of_ordered(y, v):
    below = np.concatenate([[0], scipy.special.expit(v[1:] - v[0]), [1]])
    return np.log(np.diff(below))[y]


def _of_multinomial(y, v):
    return st.multinomial.logpmf(y, 4, scipy.special.softmax(v))


def _of_dirichlet(y, v):
    return scipy.special.gammaln(v.sum()) - scipy.special.gammaln(v).sum() + (np.log(y) * (v - 1)).sum(axis=-1)


class CappedPoisson(dist.Distribution):
    """A Poisson variable given that it is at most four."""

    arg_constraints = {"rate": dist.constraints.positive}
    support = dist.constraints.integer_interval(0, 4)
    has_enumerate_support = True

    def __init__(self, rate):
        self.rate = rate
        super().__init__(jnp.shape(rate))

    def enumerate_support(self, expand=True):
        return jnp.arange(5).reshape(5, *(1,) * len(self.batch_shape))

    def log_prob(self, value):
        every = [k * jnp.log(self.rate) - scipy.special.gammaln(k + 1) for k in range(5)]
        return value * jnp.log(self.rate) - jax.scipy.special.gammaln(value + 1) - jax.nn.logsumexp(jnp.stack(every), axis=0)


def _of_capped_poisson(y, v):
    return st.poisson.logpmf(y, v[0]) - np.log(st.poisson.cdf(4, v[0]))


expit = scipy.special.expit

CASES = {
    "Normal": Case(_scalars(dist.Normal), [0.4, 0.7], lambda: real(0.4), lambda y, v: st.norm.logpdf(y, *v)),
    "StudentT": Case(_scalars(dist.StudentT), [3.3, 0.4, 0.7], lambda: real(0.4), lambda y, v: st.t.logpdf(y, *v)),
    "heavy StudentT": Case(_scalars(dist.StudentT), [0.9, 0.4, 1.7], lambda: real(0.4), lambda y, v: st.t.logpdf(y, *v)),
    "Cauchy": Case(_scalars(dist.Cauchy), [0.4, 0.7], lambda: real(0.4), lambda y, v: st.cauchy.logpdf(y, *v)),
    "Laplace": Case(
        _scalars(dist.Laplace),
        [0.4, 0.7],
        lambda: real(0.4),
        lambda y, v: st.laplace.logpdf(y, *v),
        lambda y, v: np.stack([np.sign(y - v[0]), np.abs(y - v[0]) / v[1] - 1], axis=-1) / v[1],
    ),
    "Logistic": Case(_scalars(dist.Logistic), [0.4, 0.7], lambda: real(0.4), lambda y, v: st.logistic.logpdf(y, *v)),
    "Gumbel": Case(_scalars(dist.Gumbel), [0.4, 0.7], lambda: real(0.4), lambda y, v: st.gumbel_r.logpdf(y, *v)),
    "LogNormal": Case(
        _scalars(dist.LogNormal), [0.4, 0.7], positive, lambda y, v: st.lognorm.logpdf(y, v[1], scale=np.exp(v[0]))
    ),
    "Exponential": Case(_scalars(dist.Exponential), [0.7], positive, lambda y, v: st.expon.logpdf(y, scale=1 / v[0])),
    "HalfNormal": Case(_scalars(dist.HalfNormal), [0.7], positive, lambda y, v: st.halfnorm.logpdf(y, scale=v[0])),
    "Gamma": Case(_scalars(dist.Gamma), [2.3, 0.7], positive, lambda y, v: st.gamma.logpdf(y, v[0], scale=1 / v[1])),
    "Chi2": Case(_scalars(dist.Chi2), [3.3], positive, lambda y, v: st.chi2.logpdf(y, v[0])),
    "InverseGamma": Case(_scalars(dist.InverseGamma), [2.3, 0.7], positive, lambda y, v: st.invgamma.logpdf(y, v[0], scale=v[1])),
    "Weibull": Case(_scalars(dist.Weibull), [1.3, 1.7], positive, lambda y, v: st.weibull_min.logpdf(y, v[1], scale=v[0])),
    "Beta": Case(_scalars(dist.Beta), [2.3, 3.1], unit, lambda y, v: st.beta.logpdf(y, *v)),
    "BetaProportion": Case(
        _scalars(dist.BetaProportion), [0.4, 7.0], unit, lambda y, v: st.beta.logpdf(y, v[0] * v[1], (1 - v[0]) * v[1])
    ),
    "Dirichlet": Case(lambda v: dist.Dirichlet(v[None]), [2.3, 1.9, 3.1], simplex, _of_dirichlet),
    "MultivariateNormal": Case(full_rank, GAUSSIAN, lambda: gaussian(TRIL @ TRIL.T), _of_full_rank),
    "LowRankMultivariateNormal": Case(
        low_rank,
        LOW_RANK,
        lambda: gaussian(_low_rank_covariance(LOW_RANK)),
        lambda y, v: st.multivariate_normal.logpdf(y, v[:3], _low_rank_covariance(v)),
    ),
    "Poisson": Case(_scalars(dist.Poisson), [2.3], lambda: counts(60), lambda y, v: st.poisson.logpmf(y, *v)),
    "GeometricProbs": Case(_scalars(dist.Geometric), [0.3], lambda: counts(150), lambda y, v: st.geom.logpmf(y + 1, *v)),
    "GeometricLogits": Case(
        lambda v: dist.Geometric(logits=v), [-0.4], lambda: counts(150), lambda y, v: st.geom.logpmf(y + 1, *expit(v))
    ),
    "NegativeBinomial2": Case(
        _scalars(dist.NegativeBinomial2), [3.1, 0.8], lambda: counts(400), lambda y, v: st.nbinom.logpmf(y, v[1], v[1] / v.sum())
    ),
    "GammaPoisson": Case(
        _scalars(dist.GammaPoisson), [2.3, 0.6], lambda: counts(200), lambda y, v: st.nbinom.logpmf(y, v[0], v[1] / (1 + v[1]))
    ),
    "NegativeBinomialLogits": Case(
        _scalars(dist.NegativeBinomialLogits),
        [2.3, 0.6],
        lambda: counts(200),
        lambda y, v: st.nbinom.logpmf(y, v[0], expit(-v[1])),
    ),
    "NegativeBinomialProbs": Case(
        _scalars(dist.NegativeBinomialProbs), [2.3, 0.6], lambda: counts(200), lambda y, v: st.nbinom.logpmf(y, v[0], 1 - v[1])
    ),
    "BernoulliLogits": Case(
        lambda v: dist.Bernoulli(logits=v), [0.7], lambda: counts(1), lambda y, v: st.bernoulli.logpmf(y, expit(v[0]))
    ),
    "BernoulliProbs": Case(_scalars(dist.Bernoulli), [0.3], lambda: counts(1), lambda y, v: st.bernoulli.logpmf(y, v[0])),
    "BinomialLogits": Case(
        lambda v: dist.Binomial(5, logits=v), [0.7], lambda: counts(5), lambda y, v: st.binom.logpmf(y, 5, expit(v[0]))
    ),
    "BinomialProbs": Case(lambda v: dist.Binomial(5, v), [0.3], lambda: counts(5), lambda y, v: st.binom.logpmf(y, 5, v[0])),
    "CategoricalLogits": Case(lambda v: dist.Categorical(logits=v[None]), THETA, lambda: counts(2), _of_classes),
    "CategoricalProbs": Case(lambda v: dist.Categorical(_simplex(v)), THETA, lambda: counts(2), _of_classes),
    "OrderedLogistic": Case(lambda v: dist.OrderedLogistic(v[:1], v[None, 1:]), [0.4, -0.6, 0.9], lambda: counts(2), _of_ordered),
    "MultinomialLogits": Case(lambda v: dist.Multinomial(4, logits=v[None]), THETA, lambda: compositions(4, 3), _of_multinomial),
    "MultinomialProbs": Case(lambda v: dist.Multinomial(4, _simplex(v)), THETA, lambda: compositions(4, 3), _of_multinomial),
    # It has no family of its own: its finite support is summed over.
    "CappedPoisson": Case(_scalars(CappedPoisson), [1.3], lambda: counts(4), _of_capped_poisson),
}


def test_every_family_is_in_the_table():
    assert set(supported()) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_roots_square_to_the_expected_outer_product_of_scores_and_are_differentiable(name):
    make, at, labels, *density = CASES[name]
    at = np.asarray(at)

    def numbers(v):
        direction = jnp.cos(1.3 * jnp.arange(v.size) + 0.2)

        def scalar(v):  # of the columns, with signs and sizes that tell them apart
            leaves = jax.tree.leaves({name: root.columns for name, root in fisher_roots({"fn": make(v), "scale": None}).items()})
            return sum(
                (leaf * jnp.cos(1.7 * jnp.arange(leaf.size) + i).reshape(leaf.shape)).sum() for i, leaf in enumerate(leaves)
            )

        steps = 1e-3 * jnp.array([0.0, 1.0, -1.0, 2.0, -2.0])  # a five-point stencil: its error is O(h^4)
        moved, moving = jax.vmap(lambda h: jax.jvp(scalar, (v + h * direction,), (direction,)))(steps)
        slopes = moving[0], (8 * (moved[1] - moved[2]) - (moved[3] - moved[4])) / 12e-3
        return information(make, v), slopes

    found, (slope, by_differences) = compiled(numbers)(at)
    expected, total = expectation(density[0], at, *labels(), density[1])
    assert float(total) == pytest.approx(1, abs=1e-10)
    assert np.allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    assert float(slope) == pytest.approx(float(by_differences), rel=1e-6, abs=1e-9)


def _binomial_logits(v):
    return dist.Binomial(np.array([7]), logits=v)


CANONICAL = {
    # likelihoods whose log density has one Hessian for all labels, a label, and the vector
    "Gamma": (_scalars(dist.Gamma), np.array([1.7]), [0.8, 1.9]),
    "small Gamma": (_scalars(dist.Gamma), np.array([1.7]), [1e-3, 1.9]),
    "Beta": (_scalars(dist.Beta), np.array([0.4]), [0.3, 0.8]),
    "small Beta": (_scalars(dist.Beta), np.array([0.4]), [1e-4, 30.0]),
    "Dirichlet": (lambda v: dist.Dirichlet(v[None]), np.array([[0.2, 0.3, 0.5]]), [0.2, 0.03, 4.0]),
    "Exponential": (_scalars(dist.Exponential), np.array([1.7]), [0.3]),
    "BinomialLogits": (_binomial_logits, np.array([2]), [-1.3]),
    "MultinomialLogits": (lambda v: dist.Multinomial(3, logits=v[None]), np.array([[1, 0, 2]]), [-1.3, 0.2, 0.9]),
}


@pytest.mark.parametrize("name", CANONICAL)
def test_roots_of_canonical_families_square_to_the_hessian(name):
    make, label, at = CANONICAL[name]
    found, hessian = compiled(lambda v: (information(make, v), -jax.hessian(lambda v: make(v).log_prob(label).sum())(v)))(
        np.array(at)
    )
    assert np.allclose(found, hessian, rtol=1e-8, atol=1e-8)


# The other way of writing one likelihood has the same information


def _moments(v):
    """Mean and covariance of two Gaussians in two dimensions, by a vector of ten."""
    tril = jnp.zeros((2, 2, 2)).at[:, (0, 1, 1), (0, 0, 1)].set(v[4:].reshape(2, 3))
    return v[:4].reshape(2, 2), tril, tril @ jnp.swapaxes(tril, -1, -2)


def _expanded_logits(v):
    return dist.Independent(dist.Categorical(logits=v.reshape(1, 2, 3)), 1)


def _negative_binomials(c, p):
    return [
        dist.NegativeBinomialProbs(c, p),
        dist.NegativeBinomialLogits(c, jnp.log(p) - jnp.log1p(-p)),
        dist.NegativeBinomial2(c * p / (1 - p), c),
        dist.GammaPoisson(c, (1 - p) / p),
    ]


SAME = {
    "Binomial": (lambda v: [dist.Binomial(6, logits=v), dist.Binomial(6, jax.nn.sigmoid(v))], [0.8]),
    "Geometric": (lambda v: [dist.Geometric(logits=v), dist.Geometric(jax.nn.sigmoid(v))], [0.8]),
    "Multinomial": (lambda v: [dist.Multinomial(6, logits=v[None]), dist.Multinomial(6, jax.nn.softmax(v)[None])], THETA),
    "NegativeBinomial": (lambda v: _negative_binomials(v[:1], v[1:]), [1.7, 0.4]),
    "Gamma": (lambda v: [dist.Chi2(v), dist.Gamma(v / 2, np.array([0.5]))], [1.7]),
    "StudentT": (lambda v: [dist.Cauchy(v[:1], v[1:]), dist.StudentT(1.0, v[:1], v[1:])], [0.4, 1.7]),
    "Dirichlet": (lambda v: [dist.Beta(v[:1], v[1:]), dist.Dirichlet(v[None])], [1.7, 0.4]),
    "Normal": (
        lambda v: [
            dist.Normal(v[:1], v[1:]),
            dist.LogNormal(v[:1], v[1:]),
            dist.TransformedDistribution(dist.Normal(v[:1], v[1:]), dist.transforms.AffineTransform(0.3, 2.0)),
            dist.MultivariateNormal(v[None, :1], scale_tril=v[None, 1:, None]).to_event(0),
        ],
        [0.4, 1.7],
    ),
    "Weibull": (lambda v: [dist.Weibull(jnp.exp(v[:1]), 1 / v[1:]), dist.Gumbel(-v[:1], v[1:])], [0.4, 1.7]),
    "MultivariateNormal": (
        lambda v: [
            dist.MultivariateNormal(_moments(v)[0][None], scale_tril=_moments(v)[1][None]).to_event(1),
            dist.MultivariateNormal(_moments(v)[0][None], _moments(v)[2][None]).to_event(1),
            dist.MultivariateNormal(_moments(v)[0][None], precision_matrix=jnp.linalg.inv(_moments(v)[2])[None]).to_event(1),
        ],
        [0.4, 1.7, -0.3, 0.2, 0.8, -0.4, 1.3, 0.9, 0.3, 0.6],
    ),
    "LowRankMultivariateNormal": (
        lambda v: [low_rank(v), dist.MultivariateNormal(v[None, :3], (v[3:6, None] * v[None, 3:6] + jnp.diag(v[6:]))[None])],
        LOW_RANK,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_every_parametrisation_has_the_same_information(name):
    make, at = SAME[name]
    first, *others = compiled(lambda v: [information(lambda v, i=i: make(v)[i], v) for i in range(len(make(v)))])(np.array(at))
    for other in others:
        assert np.allclose(other, first, rtol=1e-9, atol=1e-9 * np.abs(first).max())


# Wrappers


A, B = np.array([1.3, 0.4, 2.2]), np.array([[0.7, 1.1, 2.0], [1.6, 0.3, 0.9]])


def _gammas(v):
    return dist.Gamma(v[:3], v[3:].reshape(2, 3))


KEEP = np.array([[True, False, True], [True, True, False]])
WRAPPED = {
    # one row of 2 x 3 gamma variables -> the distribution, and the weight of each
    "to_event": (lambda v: _gammas(v).expand([1, 2, 3]).to_event(2), np.ones((2, 3))),
    "mask of elements": (lambda v: _gammas(v).mask(KEEP).expand([1, 2, 3]).to_event(2), KEEP),
    "mask of inner axis": (
        lambda v: _gammas(v).to_event(1).mask(KEEP[:, 0]).expand([1, 2]).to_event(1),
        KEEP[:, :1] & KEEP[:, :1],
    ),
    "mask of the row": (lambda v: _gammas(v).to_event(2).expand([1]).mask(np.array([False])), np.zeros((2, 3))),
    "no mask": (lambda v: _gammas(v).to_event(2).mask(True).expand([1]), np.ones((2, 3))),
    "two masks": (
        lambda v: _gammas(v).mask(KEEP).to_event(1).mask(np.array([True, False])).expand([1, 2]).to_event(1),
        KEEP * np.array([[1], [0]]),
    ),
    "transformed": (
        lambda v: (
            dist.TransformedDistribution(_gammas(v).mask(KEEP).to_event(1), dist.transforms.ExpTransform())
            .expand([1, 2])
            .to_event()
        ),
        KEEP,
    ),
}


def of_gammas(weight):
    """The information about A and B, in which every one of the 2 x 3 variables counts by its weight."""
    total = np.zeros((9, 9))
    for i, j in np.ndindex(2, 3):
        score = np.eye(9)[[j, 3 + 3 * i + j]]
        element = np.array([[scipy.special.polygamma(1, A[j]), -1 / B[i, j]], [-1 / B[i, j], A[j] / B[i, j] ** 2]])
        total += np.broadcast_to(weight, (2, 3))[i, j] * score.T @ element @ score
    return total


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_masks_and_scales_weigh_the_correlated_parameters_of_every_element(name):
    make, weight = WRAPPED[name]
    at = np.concatenate([A, B.reshape(-1)])
    found = compiled(jax.vmap(lambda scale: information(make, at, scale)))(np.array([1.0, 2.5]))
    assert np.allclose(found, [of_gammas(weight), 2.5 * of_gammas(weight)], rtol=1e-10, atol=1e-10)


def test_scales_may_be_missing_or_differ_by_row_and_inner_element():
    def roots(scale):
        return fisher_roots({"fn": dist.Gamma(A[:2, None], B[:, :2]).expand([2, 2]), "scale": scale})

    plain, by_row, by_element = compiled(
        lambda: (roots(None), roots(np.array([[4.0], [9.0]])), roots(np.array([[4.0, 1.0], [9.0, 4.0]])))
    )()
    for name in plain:
        for leaves in zip(*(jax.tree.leaves(found[name].columns) for found in (plain, by_row, by_element)), strict=True):
            leaves = [np.asarray(leaf) for leaf in leaves]
            assert np.allclose(leaves[1], leaves[0] * np.array([[2.0], [3.0]]))
            assert np.allclose(leaves[2], leaves[0] * np.array([[2.0, 1.0], [3.0, 2.0]]))


def test_columns_hold_every_row_and_each_row_only_its_own():
    def roots(a, b):
        return fisher_roots({"fn": dist.Gamma(a, b).to_event(1), "scale": None})

    together = compiled(roots)(np.ones((2, 1)) * A, B)
    each = compiled(lambda b: jax.vmap(lambda b: roots(A[None], b[None]))(b))(B)
    assert jax.tree.structure(together["rate"].parameter) == jax.tree.structure((0, 0))
    for name in ("rate", "concentration"):
        for all_rows, by_row in zip(jax.tree.leaves(together[name].columns), jax.tree.leaves(each[name].columns), strict=True):
            assert all_rows.shape == (3, 2, 3)
            assert np.allclose(all_rows, np.moveaxis(np.asarray(by_row)[:, :, 0], 0, 1), rtol=1e-12)


def test_masked_elements_cannot_spoil_the_others():
    fn = dist.Poisson(np.array([[0.0, 2.0]])).mask(np.array([[False, True]])).to_event(1)
    columns = np.asarray(fisher_roots({"fn": fn, "scale": None})["rate"].columns)
    assert np.allclose(columns[:, 0], [[0, 0], [0, 2**-0.5]])


# Extremes


EXTREMES = {
    "Gamma": (_scalars(dist.Gamma), [[1e-6, 1e-3], [1e6, 1e3], [1e4, 1e-3]]),
    "Beta": (_scalars(dist.Beta), [[1e6, 1e6], [1e5, 1e-2], [1e-4, 1e4], [1e-6, 1e-6], [1e-2, 1e6]]),
    "Dirichlet": (lambda v: dist.Dirichlet(v[None]), [[1e6, 1e6, 1e6], [1e4, 1.0, 1e-2], [1e-4, 1e-4, 1e-4]]),
    "StudentT": (_scalars(dist.StudentT), [[1e-2, 0.0, 1e3], [1e5, 0.0, 1e-3]]),
    "NegativeBinomial2": (_scalars(dist.NegativeBinomial2), [[1e-6, 1e3], [1e5, 1e-2], [1e4, 1e6], [1e-3, 1e-2]]),
    "NegativeBinomialLogits": (_scalars(dist.NegativeBinomialLogits), [[0.5, -60.0], [0.5, 60.0], [1e4, -20.0], [0.03, 200.0]]),
    "BernoulliProbs": (_scalars(dist.Bernoulli), [[1e-20], [1e-6]]),
    "BinomialLogits": (lambda v: dist.Binomial(9, logits=v), [[-60.0], [60.0]]),
    "GeometricLogits": (lambda v: dist.Geometric(logits=v), [[-60.0], [60.0]]),
    "MultinomialLogits": (lambda v: dist.Multinomial(9, logits=v[None]), [[-60.0, 0.0, 60.0], [1e4, 0.0, -1e4]]),
    "Weibull": (_scalars(dist.Weibull), [[1e-6, 1e3], [1e6, 1e-3]]),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_columns_are_right_in_float32_at_extremes(name):
    make, at = EXTREMES[name]

    def columns(v):
        roots = fisher_roots({"fn": make(v), "scale": None})
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves([root.columns for root in roots.values()])])

    def with_slopes(v):
        return jax.jvp(columns, (v,), (jnp.cos(jnp.arange(v.size)).astype(v.dtype),))

    exact = compiled(jax.vmap(columns))(np.array(at, np.float32).astype(np.float64))
    with jax.enable_x64(False):
        found, slopes = compiled(jax.vmap(with_slopes))(np.array(at, np.float32))
    assert found.dtype == np.float32 and np.isfinite(found).all() and np.isfinite(slopes).all()
    assert np.allclose(found, exact, rtol=1e-3, atol=1e-30)


def test_saturated_probabilities_have_a_finite_root():
    def columns(p, one_hot):
        likelihoods = dist.Bernoulli(p), dist.Geometric(p), dist.Binomial(4, p), dist.Categorical(one_hot)
        return [fisher_roots({"fn": fn, "scale": None})["probs"].columns for fn in likelihoods]

    with jax.enable_x64(False):
        found = compiled(columns)(np.array([0.0, 1.0], np.float32), np.eye(2, dtype=np.float32))
    assert all(np.isfinite(leaf).all() for leaf in found)


# Terms


def test_the_excess_of_the_trigamma_function():
    x = np.logspace(-6, 1, 30)
    excess = compiled(trigamma_excess)
    assert np.allclose(excess(x), scipy.special.polygamma(1, x) - 1 / x, rtol=1e-11, atol=0)
    far = np.logspace(5, 12, 9)
    assert np.allclose(excess(far), (1 + 1 / (3 * far)) / (2 * far**2), rtol=1e-14, atol=0)


def test_the_information_about_degrees_of_freedom():
    v = np.logspace(-4, 0.5, 30)
    trigammas = (scipy.special.polygamma(1, v / 2) - scipy.special.polygamma(1, (v + 1) / 2)) / 4
    information_left = compiled(student_df_information)
    assert np.allclose(information_left(v), trigammas - (v + 3) / (2 * v * (v + 1) ** 2), rtol=1e-10, atol=0)
    far = np.logspace(5, 12, 9)
    assert np.allclose(information_left(far), 1.5 / (far + 0.5) ** 4, rtol=1e-9, atol=0)


def test_the_information_about_the_concentration_of_counts():
    concentration, ratio = np.meshgrid([0.05, 0.3, 1.0, 7.0, 300.0], [1e-5, 0.1, 1.0, 30.0, 1e3])
    k = np.arange(2, 60_000)
    terms = scipy.special.betaln(k, concentration[..., None]) - k * np.log1p(1 / ratio[..., None]) - np.log(k)
    found = compiled(negative_binomial_root)(concentration, np.log(ratio)) ** 2
    assert np.allclose(found, np.exp(terms).sum(axis=-1), rtol=1e-8, atol=0)


# Labels where nothing else is left


class Opaque(dist.Normal):
    """A Gaussian that nobody can know for one, since its density could be any."""

    def log_prob(self, value):
        return super().log_prob(value)


def opaque(v):
    return Opaque(v[:1], v[1:])


AT, OF_AT = np.array([0.3, 1.7]), np.diag([1.0, 2.0]) / 1.7**2


def within_four_errors(estimates, expected):
    estimates = np.asarray(estimates)
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
    return (error < 0.02).all() and (np.abs(estimates.mean(axis=0) - expected) < 4 * error).all()


def test_labels_give_an_unbiased_estimate_with_a_warning_that_points_here():
    keys = jax.random.split(jax.random.key(3), 400)
    with pytest.warns(BiasedGradientWarning, match="Opaque .* 64 labels .* BIASED, by 22%.* Bernoulli.*, Weibull") as record:
        estimates = compiled(jax.vmap(lambda key: information(opaque, AT, key=key, labels=64)))(keys)
    assert {warning.filename for warning in record} == {__file__}
    assert within_four_errors(estimates, OF_AT)


@pytest.mark.filterwarnings("ignore::bayes_sym.errors.BiasedGradientWarning")
def test_labels_of_several_elements_are_weighed_by_mask_and_scale():
    def make(v):
        return opaque(v).expand([1, 3]).mask(np.array([[True, False, True]])).to_event(1)

    keys = jax.random.split(jax.random.key(4), 2000)
    assert within_four_errors(compiled(jax.vmap(lambda key: information(make, AT, 0.5, key=key, labels=32)))(keys), OF_AT)


@pytest.mark.filterwarnings("ignore::bayes_sym.errors.BiasedGradientWarning")
def test_labels_repeat_for_a_key_and_are_differentiated_through_their_scores_only():
    def given(v):  # by the labels that the default key draws
        drawn = jax.vmap(opaque(AT).sample)(jax.random.split(jax.random.key(0), 16))
        scores = jax.vmap(lambda y: jax.grad(lambda v: opaque(v).log_prob(y).sum())(v))(drawn)
        return (scores.T @ scores)[0, 1] / 16

    def numbers(v):
        default, same, other = (jax.value_and_grad(lambda v, key=key: information(opaque, v, key=key)[0, 1])(v) for key in keys)
        return default, same, other, jax.value_and_grad(given)(v)

    keys = (None, jax.random.key(0), jax.random.key(1))
    default, same, other, expected = compiled(numbers)(AT)
    assert jax.tree.all(jax.tree.map(np.array_equal, default, same))
    assert not np.allclose(default[0], other[0])
    assert np.allclose(default[0], expected[0], rtol=1e-9) and np.allclose(default[1], expected[1], rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda v: dist.VonMises(v, 2.0),
        lambda v: dist.TransformedDistribution(dist.Normal(np.zeros(1), 1.0), dist.transforms.AffineTransform(0.0, v)),
        lambda v: dist.FoldedDistribution(dist.Normal(v, 1.0)),
        lambda v: dist.TruncatedNormal(v, 1.0, low=0.0),
    ],
    ids=["unknown", "transform of the weights", "folded", "truncated"],
)
def test_what_only_looks_like_a_known_family_is_sampled(make):
    with pytest.warns(BiasedGradientWarning):
        jax.eval_shape(lambda v: information(make, v), np.ones(1))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda v: dist.Delta(v), "no Fisher root for Delta: its samples do not follow its log density"),
        (lambda v: dist.Unit(v), "no Fisher root for Unit: its samples"),
        (lambda v: dist.LeftCensoredDistribution(dist.Normal(v, 1.0), np.array([1])), "LeftCensoredDistribution: its samples"),
        (lambda v: dist.Uniform(0.0, v), "no Fisher root for Uniform: its support depends on traced numbers"),
        (lambda v: dist.Pareto(v, 2.0), "no Fisher root for Pareto: its support"),
        (lambda v: Unsampled(v), "no Fisher root for Unsampled: it cannot be sampled"),
    ],
    ids=["delta", "factor", "censored", "uniform", "pareto", "unsampled"],
)
def test_what_cannot_work_is_refused(make, why):
    with pytest.raises(CurvatureError, match=why):
        jax.eval_shape(lambda v: information(make, v), np.ones(1))


class Unsampled(dist.Distribution):
    """A density alone."""

    arg_constraints = {"loc": dist.constraints.real}
    support = dist.constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc))
