"""Every variational family against scipy, dense linear algebra and quadrature: densities, draws, group actions, prior terms.

One table holds the families; every property runs over it, so that a new family is one new row.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from bayes_sym import representations
from bayes_sym.errors import ClosednessError, GroupActionError, OptionError
from bayes_sym.groups import cyclic, dihedral, product, symmetric
from bayes_sym.inference import (
    Beta,
    BlockGaussian,
    FullGaussian,
    Gamma,
    LogNormal,
    LowRankGaussian,
    MatrixNormal,
    MeanField,
    MeanFieldLaplace,
    OrbitGaussian,
    PerSite,
    closedness,
)
from bayes_sym.inference.families import ExponentialFamily, Family, certificate, symmetrised
from bayes_sym.inference.families.averages import KINDS, check_average
from bayes_sym.inference.families.prior_terms import expected_log_prior
from bayes_sym.priors import NestedEquivariantNormal, SoftEquivariantNormal


C3, C4, D4, S3, C2xC3 = cyclic(3), cyclic(4), dihedral(4), symmetric(3), product(cyclic(2), cyclic(3))
SHAPES = {"w": (2, 3), "b": (2,)}  # not in the order of the names
GRID = representations.regular(C2xC3).reshape(2, 3)
DRAWS = 6000


# Truths: what scipy and numpy say of q, with the sites one after the other in one vector.


@dataclass
class Gaussian:
    """N(mean, covariance)."""

    mean: np.ndarray
    covariance: np.ndarray

    def log_prob(self, x):
        return scipy.stats.multivariate_normal(self.mean, self.covariance).logpdf(x)

    def entropy(self):
        return scipy.stats.multivariate_normal(self.mean, self.covariance).entropy()

    def kl(self, other):
        inverse, gap = np.linalg.inv(other.covariance), self.mean - other.mean
        log_dets = np.linalg.slogdet(other.covariance)[1] - np.linalg.slogdet(self.covariance)[1]
        return 0.5 * (log_dets + np.trace(inverse @ self.covariance) + gap @ inverse @ gap - gap.size)

    def moved(self, rho):
        return Gaussian(rho @ self.mean, rho @ self.covariance @ rho.T)


@dataclass
class Marginals:
    """Independent coordinates sign * theta, theta from scipy."""

    laws: list
    signs: np.ndarray

    @property
    def mean(self):
        return self.signs * np.array([law.mean() for law in self.laws])

    @property
    def covariance(self):
        return np.diag([law.var() for law in self.laws])

    def log_prob(self, x):
        return sum(law.logpdf(sign * column) for law, sign, column in zip(self.laws, self.signs, np.atleast_2d(x).T, strict=True))

    def entropy(self):
        return sum(law.entropy() for law in self.laws)

    def kl(self, other):
        if (self.signs != other.signs).any():
            return np.inf
        return sum(self._kl(p, q) for p, q in zip(self.laws, other.laws, strict=True))

    @staticmethod
    def _kl(p, q):
        if p is q:
            return 0.0

        def integrand(x):
            return p.pdf(x) * (p.logpdf(x) - q.logpdf(x))

        kinks = np.unique([p.ppf(1e-15), p.ppf(1e-6), p.median(), q.median(), p.ppf(1 - 1e-6), p.ppf(1 - 1e-15)])
        kinks = kinks[(kinks >= p.ppf(1e-15)) & (kinks <= p.ppf(1 - 1e-15))]
        pieces = zip(kinks[:-1], kinks[1:], strict=True)
        return sum(scipy.integrate.quad(integrand, low, high, epsabs=1e-11)[0] for low, high in pieces)

    def moved(self, rho):
        """Under a permutation; the families here with signs of their own carry them along."""
        source = np.abs(rho).argmax(axis=1)
        assert (rho >= 0).all()
        return Marginals([self.laws[i] for i in source], self.signs[source])


def flat(values):
    return np.concatenate([np.asarray(value).reshape(-1) for value in ordered(values).values()])


def ordered(values):
    return {name: values[name] for name in ("w", "b", "still") if name in values}


def columns(values):
    """(draws, size) from draws by site."""
    return np.concatenate([np.asarray(value).reshape(len(value), -1) for value in ordered(values).values()], axis=1)


def by_site(vectors, shapes):
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])
    pairs = zip(shapes.items(), ends[:-1], ends[1:], strict=True)
    return {name: vectors[..., low:high].reshape(*vectors.shape[:-1], *shape) for (name, shape), low, high in pairs}


def triangular(triangle):
    triangle = np.asarray(triangle)
    return np.tril(triangle, -1) + np.diag(np.exp(np.diagonal(triangle)))


def block_diagonal(blocks):
    return scipy.linalg.block_diag(*blocks)


def true_mean_field(family, p):
    return Gaussian(flat(p.mean), np.diag(np.exp(2 * flat(p.log_scale))))


def true_dense(family, p):
    shapes = {name: np.shape(value) for name, value in ordered(p.mean).items()}
    position = by_site(np.arange(len(flat(p.mean))), shapes)
    covariance = np.zeros((len(flat(p.mean)),) * 2)
    for layout, triangle in zip(p.layouts, p.triangle, strict=True):
        at = np.concatenate([position[name].reshape(-1) for name in layout.names])
        covariance[np.ix_(at, at)] = triangular(triangle) @ triangular(triangle).T
    return Gaussian(flat(p.mean), covariance)


def true_low_rank(family, p):
    factor = columns(p.factor)
    return Gaussian(flat(p.mean), factor.T @ factor + np.diag(np.exp(2 * flat(p.log_scale))))


def true_matrix_normal(family, p):
    sides = [[triangular(side[name]) @ triangular(side[name]).T for side in (p.left, p.right)] for name in ordered(p.mean)]
    return Gaussian(flat(p.mean), block_diagonal([np.kron(left, right) for left, right in sides]))


def true_orbit(family, p):
    blocks = []
    for name, mean in ordered(p.mean).items():
        along, across = (np.asarray(logs[name]).reshape(-1) for logs in (p.log_along, p.log_across))
        if name in family.reps:
            mats = family.reps[name].matrices()
            projector, on_orbits = mats.mean(axis=0), np.abs(mats).mean(axis=0)
            rest = np.eye(mean.size) - projector
            along, across = (np.diag(np.exp(2 * on_orbits @ logs)) for logs in (along, across))
            blocks.append(along @ projector + across @ rest)
        else:
            blocks.append(np.diag(np.exp(2 * along)))
    return Gaussian(flat(p.mean), block_diagonal(blocks))


def marginals(laws, signs=None):
    laws = list(laws)
    return Marginals(laws, np.ones(len(laws)) if signs is None else np.asarray(signs))


def true_laplace(family, p):
    return marginals(map(scipy.stats.laplace, flat(p.loc), np.exp(flat(p.log_scale))))


def true_log_normal(family, p):
    laws = [scipy.stats.lognorm(s, scale=np.exp(m)) for m, s in zip(flat(p.mean), np.exp(flat(p.log_scale)), strict=True)]
    return marginals(laws, flat(p.sign))


def true_gamma(family, p):
    pairs = zip(np.exp(flat(p.log_shape)), np.exp(flat(p.log_rate)), strict=True)
    return marginals(scipy.stats.gamma(a, scale=1 / b) for a, b in pairs)


def true_beta(family, p):
    return marginals(map(scipy.stats.beta, np.exp(flat(p.log_a)), np.exp(flat(p.log_b))))


def true_per_site(family, p):
    """Normal weights, and a Gamma bias in the coordinate log theta."""
    normals = map(scipy.stats.norm, flat(p["1"].mean), np.exp(flat(p["1"].log_scale)))
    pairs = zip(flat(p["0"].log_shape), flat(p["0"].log_rate), strict=True)
    return marginals([*normals, *(scipy.stats.loggamma(np.exp(a), loc=-b) for a, b in pairs)])


@dataclass(frozen=True)
class Row:
    """One family of the table.

    Attributes:
        family: the family.
        truth: q by scipy or numpy, from the family and its parameters.
        levels: closedness (push-forward, log-affine, moment) under permutations, signed permutations and matrices that act on
            inputs and outputs one by one; and under permutations and matrices that do not.
        estimated: the priors under which E log p has no closed form.
    """

    family: Family
    truth: Callable[[Any, Any], Any]
    levels: tuple[str, str, str, str, str]
    estimated: tuple[str, ...] = ()


ROWS = {
    "mean_field": Row(MeanField(0.5), true_mean_field, ("111", "111", "000", "111", "000")),
    "full": Row(FullGaussian(0.5), true_dense, ("111", "111", "111", "111", "111")),
    "block": Row(BlockGaussian(0.5), true_dense, ("111", "111", "111", "111", "111")),
    "low_rank": Row(LowRankGaussian(2, 0.5), true_low_rank, ("100", "100", "000", "100", "000")),
    "matrix_normal": Row(MatrixNormal(0.5), true_matrix_normal, ("100", "100", "100", "000", "000"), ("soft", "nested", "dense")),
    "orbit": Row(OrbitGaussian((("w", GRID),), 0.5), true_orbit, ("000", "000", "000", "000", "000"), ("nested", "dense")),
    "laplace": Row(MeanFieldLaplace(0.5), true_laplace, ("101", "101", "000", "101", "000")),
    "log_normal": Row(LogNormal(0.3), true_log_normal, ("111", "000", "000", "111", "000")),
    "gamma": Row(Gamma(), true_gamma, ("111", "000", "000", "111", "000")),
    "beta": Row(Beta(), true_beta, ("111", "000", "000", "111", "000")),
    "per_site": Row(PerSite({"b": Gamma()}, MeanField(0.5)), true_per_site, ("111", "000", "000", "111", "000")),
}
every = pytest.mark.parametrize("name", ROWS)
exponential = pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row.family, ExponentialFamily)])


def random_params(family, shapes, seed=0):
    """Parameters away from any symmetry."""
    rng = np.random.default_rng(seed)
    z = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    if family.support != "real":
        z = jax.tree.map(jnp.exp if family.support == "positive" else jax.nn.sigmoid, z)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), family.init(z))
    if isinstance(family, LogNormal):  # signs are no matter of degree: the same for all seeds, and equal on orbits
        params = params._replace(sign={name: jnp.full(shape, 1.0 if name == "b" else -1.0) for name, shape in shapes.items()})
    return params


def points(family, shapes, n=5):
    """Values in the support of q."""
    x = np.random.default_rng(5).standard_normal((n, sum(int(np.prod(shape)) for shape in shapes.values())))
    if family.support != "real":
        x = np.exp(x) if family.support == "positive" else scipy.special.expit(x)
    values = by_site(x, shapes)
    if isinstance(family, LogNormal):
        values = {name: np.abs(value) * (1 if name == "b" else -1) for name, value in values.items()}
    return values


@functools.cache
def answers(name):
    family = ROWS[name].family
    params, other = random_params(family, SHAPES), random_params(family, SHAPES, seed=1)

    @jax.jit
    def measure(params, other, x):
        log_prob = jax.vmap(functools.partial(family.log_prob, params))(x)
        return log_prob, family.entropy(params), family.kl(params, other), family.moments(params), family.center(params)

    x = points(family, SHAPES)
    return params, other, x, measure(params, other, x)


@every
def test_the_log_density_is_scipys(name, x64):
    params, _, x, (log_prob, *_) = answers(name)
    assert log_prob.shape == (5,)
    assert np.abs(log_prob - ROWS[name].truth(ROWS[name].family, params).log_prob(columns(x))).max() < 1e-9


@every
def test_the_entropy_is_scipys(name, x64):
    params, _, _, (_, entropy, *_) = answers(name)
    assert float(entropy) == pytest.approx(ROWS[name].truth(ROWS[name].family, params).entropy(), abs=1e-7)


@every
def test_the_kl_between_members_is_that_of_dense_algebra_or_quadrature(name, x64):
    params, other, _, (_, _, kl, *_) = answers(name)
    p, q = (ROWS[name].truth(ROWS[name].family, each) for each in (params, other))
    assert float(kl) > 0.1
    assert float(kl) == pytest.approx(p.kl(q), rel=1e-7)


@every
def test_moments_are_those_of_the_law(name, x64):
    params, _, _, (*_, moments, center) = answers(name)
    truth = ROWS[name].truth(ROWS[name].family, params)
    means, variances = by_site(truth.mean, SHAPES), by_site(np.diagonal(truth.covariance), SHAPES)
    assert set(center) == set(SHAPES)
    for site in moments.mean:  # of PerSite, those on the reals
        assert np.abs(moments.mean[site] - means[site]).max() < 1e-9
        assert np.abs(center[site] - means[site]).max() < 1e-9
        assert np.abs(moments.variance[site] - variances[site]).max() < 1e-9


# Draws and their gradients


def quadratic(size):
    rng = np.random.default_rng(8)
    a = rng.standard_normal((size, size))
    return a @ a.T / size, rng.standard_normal(size)


@functools.cache
def drawn(name):
    """Draws, and the gradient of a quadratic function of each draw with respect to all parameters."""
    family = ROWS[name].family
    params = random_params(family, SHAPES)
    a, c = quadratic(8)

    @jax.jit
    def draw(key, params):
        noise = family.noise(key, params, DRAWS)

        def f(params, e):
            values = family.sample(params, e)
            v = jnp.concatenate([values[site].reshape(-1) for site in SHAPES])
            return 0.5 * v @ (a @ v) + c @ v, v

        gradients, v = jax.vmap(lambda e: jax.grad(f, has_aux=True)(params, e))(noise)
        return v, jnp.concatenate([leaf.reshape(DRAWS, -1) for leaf in jax.tree.leaves(gradients)], axis=1), noise

    return params, *draw(jax.random.key(2), params)


def mean_and_error(samples):
    """Mean and standard error from antithetic pairs, which are independent of each other."""
    half = len(samples) // 2
    pairs = (samples[:half] + samples[half:]) / 2
    return pairs.mean(axis=0), pairs.std(axis=0) / np.sqrt(half)


@every
def test_draws_have_the_moments_of_the_law(name, x64):
    params, v, _, _ = drawn(name)
    truth = ROWS[name].truth(ROWS[name].family, params)
    mean, error = mean_and_error(np.asarray(v))
    assert (np.abs(mean - truth.mean) <= 5 * error + 1e-12).all()
    centred = np.asarray(v) - truth.mean
    outer = (centred[:, :, None] * centred[:, None, :]).reshape(DRAWS, -1)
    covariance, error = mean_and_error(outer)
    assert (np.abs(covariance - truth.covariance.reshape(-1)) <= 5 * error + 1e-12).all()


@every
def test_gradients_pass_through_draws(name, x64):
    """The mean of d f(draw) / d parameters against differences of E f = tr(A S)/2 + m' A m/2 + c' m."""
    family = ROWS[name].family
    params, _, gradients, _ = drawn(name)
    leaves, structure = jax.tree.flatten(params)
    a, c = quadratic(8)

    def expected(vector):
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = [part.reshape(leaf.shape) for part, leaf in zip(np.split(vector, ends), leaves, strict=True)]
        truth = ROWS[name].truth(family, jax.tree.unflatten(structure, parts))
        return 0.5 * np.trace(a @ truth.covariance) + 0.5 * truth.mean @ a @ truth.mean + c @ truth.mean

    at = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves])
    steps = 1e-5 * np.eye(at.size)
    if isinstance(family, LogNormal):  # signs are held
        steps = steps * np.repeat([1, 1, 0], at.size // 3)[:, None]
    slopes = np.array([(expected(at + step) - expected(at - step)) / 2e-5 for step in steps])
    mean, error = mean_and_error(np.asarray(gradients))
    assert (np.abs(slopes) > 0.01).any()
    assert (np.abs(mean - slopes) <= 4.5 * error + 1e-7).all()


@every
def test_an_even_number_of_draws_comes_in_antithetic_pairs(name, x64):
    *_, noise = drawn(name)
    for leaf in jax.tree.leaves(noise):
        assert len(leaf) == DRAWS
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert (leaf[: DRAWS // 2] == -leaf[DRAWS // 2 :]).all() and len(np.unique(leaf)) > DRAWS
        else:  # keys
            assert len(np.unique(jax.random.key_data(leaf), axis=0)) == DRAWS
    family = ROWS[name].family
    odd = jax.eval_shape(lambda key: family.noise(key, random_params(family, SHAPES), 3), jax.random.key(0))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(odd)} == {3}


@every
def test_families_are_values_and_parameters_are_pytrees(name):
    family = ROWS[name].family
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def same(family, params):
        traces.append(family)
        return params

    z = {site: jnp.ones(shape) / 2 for site, shape in SHAPES.items()}
    params = same(family, family.init(z))
    again = same(replace(family), params)
    assert len(traces) == 1 and hash(replace(family)) == hash(family)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert family != MeanField(0.123) and repr(family)


def test_starting_scales_are_checked():
    for family in (MeanField, MeanFieldLaplace, FullGaussian, BlockGaussian, MatrixNormal, LogNormal):
        with pytest.raises(OptionError, match="init_scale must be positive, got 0"):
            family(0.0)
    with pytest.raises(OptionError, match="rank of at least 1, got 0"):
        LowRankGaussian(0)
    with pytest.raises(OptionError, match="init_shape must be positive"):
        Gamma(-1.0)
    with pytest.raises(OptionError, match="init_concentration must be positive"):
        Beta(0.0)
    with pytest.raises(OptionError, match="covariance of 5000 x 5000"):
        FullGaussian().init({"w": jnp.zeros((50, 100))})


# Exponential families


@functools.cache
def exponential_parts(name):
    family = ROWS[name].family
    params, x = random_params(family, SHAPES), points(family, SHAPES)

    @jax.jit
    def measure(params, x):
        eta, mean = family.natural(params), family.expectation(params)
        dot = jax.vmap(lambda x: _dot(eta, family.sufficient(x)) + family.log_base(family.sufficient(x)))(x)
        slope = jax.grad(lambda eta: family.log_partition(family.from_natural(eta, params)))(eta)
        trips = family.natural(family.from_natural(eta, params)), family.expectation(family.from_expectation(mean, params))
        return eta, mean, dot - family.log_partition(params), slope, trips

    return params, x, measure(params, x)


def _dot(a, b):
    return sum((x * y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def largest(a, b):
    gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b) / (1 + jnp.abs(b))), a, b)
    return max(float(gap) for gap in jax.tree.leaves(gaps))


@exponential
def test_the_density_is_that_of_an_exponential_family(name, x64):
    params, x, (_, _, log_prob, _, _) = exponential_parts(name)
    assert np.abs(log_prob - ROWS[name].truth(ROWS[name].family, params).log_prob(columns(x))).max() < 1e-9


@exponential
def test_the_slope_of_the_log_partition_function_is_the_expectation(name, x64):
    _, _, (_, mean, _, slope, _) = exponential_parts(name)
    assert largest(slope, mean) < 1e-9


@exponential
def test_natural_and_mean_parameters_come_back(name, x64):
    _, _, (eta, mean, _, _, trips) = exponential_parts(name)
    assert largest(trips[0], eta) < 1e-8
    assert largest(trips[1], mean) < 1e-8


def test_mean_parameters_come_back_from_extreme_gamma_and_beta_shapes(x64):
    shapes = np.array([0.03, 0.5, 1.0, 7.0, 400.0])
    a, b = (jnp.log(m.reshape(-1)) for m in np.meshgrid(shapes, shapes))

    @jax.jit
    def trip(a, b):
        found = []
        for family, params in ((Gamma(), ({"w": a}, {"w": b})), (Beta(), ({"w": a}, {"w": b}))):
            params = type(family.init({"w": jnp.full(a.shape, 0.5)}))(*params)
            found.append(family.from_expectation(family.expectation(params), params))
        return found

    for params in trip(a, b):
        assert np.abs(params[0]["w"] - a).max() < 1e-7 and np.abs(params[1]["w"] - b).max() < 1e-7


def test_narrow_gaussians_keep_their_density_in_float32():
    mean, scale = np.float32(3.0), np.float32(1e-3)
    x = np.float32(3.0) + scale * np.float32([-2, -0.3, 0, 1.5])
    params = MeanField(1e-3).init({"w": jnp.full(4, mean)})
    truth = scipy.stats.norm(float(mean), 1e-3).logpdf(x.astype(float)).sum()
    assert float(MeanField().log_prob(params, {"w": x})) == pytest.approx(truth, abs=1e-3)
    statistics = MeanField().sufficient({"w": x})
    naive = _dot(MeanField().natural(params), statistics) - MeanField().log_partition(params) + MeanField().log_base(statistics)
    assert abs(float(naive) - truth) > 0.1  # <eta, T> - A is what must not be computed


# Group actions: the table of closedness


TURN = representations.matrix(C3, [[[-0.5, -np.sqrt(0.75)], [np.sqrt(0.75), -0.5]]])
QUARTER = representations.permutation(C4, [[[1, 0], [-1, 1]]])
SHUFFLE = representations.permutation(S3, [[1, 0, 2], [2, 0, 1]])
REPS = {  # the representation, and its column in `Row.levels`
    "C4 on filters": (representations.image(C4, (2, 2)) * representations.trivial(C4, 2), 0),
    "D4 on itself": (representations.regular(D4), 0),
    "S3 on both sides": (SHUFFLE * SHUFFLE, 0),
    "signed": (QUARTER * QUARTER, 1),
    "C3 by 120 degrees": (TURN * representations.trivial(C3, 2), 2),
    "D4 on pixels": (representations.image(D4, (3, 3)), 3),
    "C3 on one row": ((TURN + representations.trivial(C3, 2)).reshape(2, 2), 4),
}
every_rep = pytest.mark.parametrize("action", REPS)


def family_for(name, rep):
    """The family; the orbit Gaussian takes the orbits of a monomial representation, and the Gamma site does not move."""
    if name == "per_site":
        return PerSite({"still": Gamma()}, MeanField(0.5))
    if name == "orbit" and rep.is_monomial:
        return OrbitGaussian((("w", rep),), 0.5)
    return ROWS[name].family


def levels_of(name, action):
    rep, column = REPS[action]
    if name == "orbit" and rep.is_monomial:
        return "111"
    return ROWS[name].levels[column]


@every_rep
@every
def test_closedness_is_that_of_the_table(name, action, x64):
    rep, _ = REPS[action]
    family = family_for(name, rep)
    reps = {"still" if name == "per_site" else "w": rep}  # of several families, the site of the one that is closed under least
    found, expected = closedness(family, rep), levels_of(name, action)
    assert "".join(str(int(level)) for level in found[:3]) == expected
    assert (expected == "111") == (found.reason == "")
    for level, holds in zip(("push_forward", "log_affine", "moment"), expected, strict=True):
        if holds == "1":
            family.check_closed(reps, level)
        else:
            with pytest.raises(ClosednessError, match="[a-zA-Z]+ is not closed under .* on site '(w|still)'"):
                family.check_closed(reps, level)
    if expected != "000":
        with_level = {"geometric": expected[1], "arithmetic": expected[2], "parameters": "1"}
        for kind, holds in with_level.items():
            if holds == "1":
                check_average(family, reps, kind)
            else:
                with pytest.raises(ClosednessError, match=f"no {kind} mean: use kind='parameters'"):
                    check_average(family, reps, kind)


CLOSED = [(name, action) for name in ROWS for action in REPS if levels_of(name, action) != "000"]
# one action that does not factor is a permutation like others to all families but those that hold covariances
CLOSED = [pair for pair in CLOSED if pair[1] != "D4 on pixels" or pair[0] in ("mean_field", "full", "orbit")]
every_closed = pytest.mark.parametrize(("name", "action"), CLOSED)


def kinds_of(name, action):
    levels = levels_of(name, action)
    return [kind for kind, holds in zip(KINDS, (levels[1], levels[2], "1"), strict=True) if holds == "1"]


@functools.cache
def acted(name, action):
    """The family, its parameters, and two programs: log q of it and of its transforms at points, and its means over the group."""
    rep, _ = REPS[action]
    family, shapes = family_for(name, rep), {"w": rep.shape, "still": (2,)}
    x = jax.tree.map(jnp.asarray, points(family, shapes, 3))

    @jax.jit
    def evaluate(params):
        """log q(x), and for every g the density of rho(g) theta at rho(g) x and at x."""

        def transformed(g):
            law = functools.partial(family.log_prob, family.push(params, {"w": rep}, g))
            return jax.vmap(law)({**x, "w": rep.transform(g, x["w"])}), jax.vmap(law)(x)

        return jax.vmap(functools.partial(family.log_prob, params))(x), *jax.lax.map(transformed, jnp.arange(rep.group.order))

    @jax.jit
    def means(params):
        levels = levels_of(name, action)
        chosen = [kind for kind, holds in zip(KINDS, (levels[1], levels[2], "1"), strict=True) if holds == "1"]
        return {kind: symmetrised(family, params, {"w": rep}, kind) for kind in chosen}

    params = random_params(family, shapes)
    return family, params, evaluate, means


@every_closed
def test_the_push_forward_has_the_density_of_the_transformed_draws(name, action, x64):
    _, params, evaluate, _ = acted(name, action)
    here, there, elsewhere = evaluate(params)
    assert np.abs(there - here[None]).max() < 1e-10
    assert np.abs(elsewhere - here[None]).max() > 1e-3  # q was not invariant to begin with


AVERAGED = [(name, action) for name, action in CLOSED if action in ("C4 on filters", "signed", "C3 by 120 degrees")]
AVERAGED += [(name, "S3 on both sides") for name in ("mean_field", "full", "low_rank", "matrix_normal", "laplace")]


@pytest.mark.parametrize(("name", "action"), AVERAGED)
def test_means_over_the_group_are_invariant_and_their_own_means(name, action, x64):
    _, params, evaluate, means = acted(name, action)
    before, _, _ = evaluate(params)
    for kind, mean in means(params).items():
        here, _, elsewhere = evaluate(mean)
        again, _, _ = evaluate(means(mean)[kind])
        assert np.abs(elsewhere - here[None]).max() < 1e-9
        assert np.abs(again - here).max() < 1e-9
        assert np.abs(here - before).max() > 1e-3


@pytest.mark.parametrize(("name", "action"), [pair for pair in CLOSED if pair[1] in ("C4 on filters", "C3 by 120 degrees")])
def test_the_certificate_is_the_mean_kl_of_a_loop_over_the_group(name, action, x64):
    rep, _ = REPS[action]
    family, params, _, means = acted(name, action)
    truth = ROWS[name].truth(family, params)
    moves = [scipy.linalg.block_diag(rho, np.eye(2)) for rho in rep.matrices()]
    expected = np.mean([truth.kl(truth.moved(rho)) for rho in moves])
    assert expected > 1e-2
    assert certificate(family, params, {"w": rep}) == pytest.approx(expected, rel=1e-7)
    assert certificate(family, means(params)["parameters"], {"w": rep}) < 1e-10
    assert certificate(family, params, {}) == 0


def test_one_group_acts_on_all_sites(x64):
    params = MeanField().init({"w": jnp.zeros(4), "b": jnp.zeros(3)})
    reps = {"w": representations.regular(C4), "b": representations.regular(C3)}
    for ask in (lambda: check_average(MeanField(), reps, "geometric"), lambda: certificate(MeanField(), params, reps)):
        with pytest.raises(GroupActionError, match="must be of one group, got \\['C3', 'C4'\\]"):
            ask()
    with pytest.raises(OptionError, match="kind must be one of"):
        check_average(MeanField(), reps, "median")


# Expected log priors


def dense_gaussian(covariance, mean=0.0):
    return np.broadcast_to(mean, covariance.shape[:1]), covariance


_B = np.array([[0.7, -0.3], [-0.3, 0.5]])
_INSIDE = GRID.restrict(C2xC3.subgroup([1]))  # C3
PRIORS = {
    "scalar": ("w", lambda: dist.Normal(0.2, 0.7).expand([2, 3]).to_event(2), dense_gaussian(0.49 * np.eye(6), 0.2)),
    "independent": (
        "b",
        lambda: dist.Normal(jnp.array([0.1, -0.4]), jnp.array([0.5, 2.0])).to_event(1),
        dense_gaussian(np.diag([0.25, 4.0]), np.array([0.1, -0.4])),
    ),
    "soft": (
        "w",
        lambda: SoftEquivariantNormal(GRID, 1.3, 0.2),
        dense_gaussian(1.3 * GRID.projector + 0.2 * (np.eye(6) - GRID.projector)),
    ),
    "nested": (
        "w",
        lambda: NestedEquivariantNormal([GRID, _INSIDE], jnp.array([1.3, 0.6, 0.2])),
        dense_gaussian(1.3 * GRID.projector + 0.6 * (_INSIDE.projector - GRID.projector) + 0.2 * (np.eye(6) - _INSIDE.projector)),
    ),
    "dense": (
        "b",
        lambda: dist.MultivariateNormal(jnp.array([0.3, 0.0]), covariance_matrix=jnp.asarray(_B)),
        dense_gaussian(_B, np.array([0.3, 0.0])),
    ),
}


@every
def test_expected_log_priors_are_those_of_dense_algebra(name, x64):
    """E log N(v; m', S') = log N(m; m', S') - tr(S'^-1 S)/2, whatever the family, from its mean m and covariance S."""
    row = ROWS[name]
    params = random_params(row.family, SHAPES)

    @jax.jit
    def measure(params):
        return {
            kind: expected_log_prior(row.family, params, site, fn(), SHAPES[site])
            for kind, (site, fn, _) in PRIORS.items()
            if row.family.support == "real"
        }

    truth = row.truth(row.family, params)
    places = by_site(np.arange(8), SHAPES)
    for kind, value in measure(params).items():
        site, _, (mean, covariance) = PRIORS[kind]
        if kind in row.estimated or (name == "per_site" and site == "b"):
            assert value is None
            continue
        at = places[site].reshape(-1)
        expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(truth.mean[at])
        expected -= 0.5 * np.trace(np.linalg.solve(covariance, truth.covariance[np.ix_(at, at)]))
        assert float(value) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("family", "prior", "inside"),
    [
        (Gamma(), dist.Gamma(2.0, 0.7).expand([2]).to_event(1), (np.log, lambda t: 1 / t)),
        (Beta(), dist.Beta(2.0, 0.7).expand([2]).to_event(1), (scipy.special.logit, lambda t: 1 / (t * (1 - t)))),
    ],
    ids=["gamma", "beta"],
)
def test_expected_log_priors_of_conjugate_pairs_are_integrals(family, prior, inside, x64):
    """In unconstrained coordinates: E[log p(theta) - log |dz/dtheta|]."""
    params = random_params(family, {"b": (2,)})
    value = float(expected_log_prior(PerSite({"b": family}), {"0": params}, "b", prior, (2,)))
    exact = scipy.stats.gamma(2.0, scale=1 / 0.7) if isinstance(family, Gamma) else scipy.stats.beta(2.0, 0.7)
    truth = true_gamma(family, params) if isinstance(family, Gamma) else true_beta(family, params)
    expected = 0.0
    for law in truth.laws:
        low, high = law.ppf(1e-14), law.ppf(1 - 1e-14)

        def integrand(t, law=law):
            return law.pdf(t) * (exact.logpdf(t) - np.log(inside[1](t)))

        expected += scipy.integrate.quad(integrand, low, high, points=[law.median()], epsabs=1e-11)[0]
    assert value == pytest.approx(expected, abs=1e-6)
    other = dist.LogNormal(0.0, 1.0) if isinstance(family, Gamma) else dist.Uniform(0.0, 1.0)
    assert expected_log_prior(PerSite({"b": family}), {"0": params}, "b", other.expand([2]).to_event(1), (2,)) is None
    assert expected_log_prior(MeanField(), MeanField().init({"b": jnp.zeros(2)}), "b", prior, (2,)) is None
