"""Invariant members of a family against hand cases, dense averages and brute-force optimisation; the orbit guide against the posterior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from bayes_sym import representations
from bayes_sym.errors import ClosednessError, OptionError
from bayes_sym.groups import cyclic, dihedral
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
)
from bayes_sym.inference.families import certificate, symmetrised
from bayes_sym.inference.families.averages import check_signs
from bayes_sym.inference.families.matrix_normal import kronecker_factors
from bayes_sym.priors import SoftEquivariantNormal


C2, C3, C4, D4 = cyclic(2), cyclic(3), cyclic(4), dihedral(4)
FLIP = {"w": representations.regular(C2)}
RING = {"w": representations.regular(C4)}
TURN = representations.matrix(C3, [[[-0.5, -np.sqrt(0.75)], [np.sqrt(0.75), -0.5]]])
PAIRS = {"w": TURN * representations.trivial(C3, 2)}
QUARTER = representations.permutation(C4, [[[1, 0], [-1, 1]]])


def shifted(params, seed=0, size=0.4):
    """Every array moved at random; signs are left alone."""
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda leaf: leaf + size * rng.standard_normal(leaf.shape), params)
    return moved._replace(sign=params.sign) if hasattr(params, "sign") else moved


def start(family, shape, sites=("w",)):
    """Parameters away from any symmetry."""
    rng = np.random.default_rng(3)
    centre = {"real": 0.0, "positive": 1.5, "unit": 0.5}[family.support]
    z = {name: jnp.asarray(centre + 0.3 * np.tanh(rng.standard_normal(shape))) for name in sites}
    params = family.init(z)
    if isinstance(family, LogNormal):
        params = params._replace(sign=jax.tree.map(jnp.ones_like, params.sign))
    return shifted(params)


# Hand cases


def test_two_opposite_means_by_hand(x64):
    """Means 1 and -1 with standard deviation 1, swapped: the mixture has variance 2, and the product of densities variance 1."""
    params = MeanField(1.0).init({"w": jnp.array([1.0, -1.0])})
    for kind, scale in (("geometric", 1.0), ("arithmetic", np.sqrt(2)), ("parameters", 1.0)):
        found = symmetrised(MeanField(), params, FLIP, kind)
        assert np.abs(found.mean["w"]).max() < 1e-15
        assert np.abs(found.scale["w"] - scale).max() < 1e-15


def test_signed_orbits_by_hand(x64):
    """A quarter turn of the plane maps every coordinate to minus itself: no mean is left, and squares are averaged."""
    params = MeanField().init({"w": jnp.array([3.0, 1.0])})._replace(log_scale={"w": jnp.log(jnp.array([1.0, 2.0]))})
    arithmetic = symmetrised(MeanField(), params, {"w": QUARTER}, "arithmetic")
    assert np.abs(arithmetic.mean["w"]).max() == 0
    assert np.abs(arithmetic.scale["w"] ** 2 - (9 + 1 + 1 + 4) / 2).max() < 1e-12
    geometric = symmetrised(MeanField(), params, {"w": QUARTER}, "geometric")
    assert np.abs(geometric.mean["w"]).max() == 0
    assert np.abs(geometric.scale["w"] ** -2 - (1 + 1 / 4) / 2).max() < 1e-12


@pytest.mark.parametrize("family", [MeanField(), LogNormal()], ids=["mean_field", "log_normal"])
def test_gaussian_rules_are_sums_over_orbits(family, x64):
    """geometric: 1/s'^2 = mean 1/s^2, m' = s'^2 mean m/s^2; arithmetic: m' = mean m, s'^2 = mean(s^2 + m^2) - m'^2; scales ordered."""
    params = start(family, (4,))
    m, s = np.asarray(params.mean["w"]), np.exp(params.log_scale["w"])
    found = {kind: symmetrised(family, params, RING, kind) for kind in ("geometric", "parameters", "arithmetic")}
    scales = [np.exp(found[kind].log_scale["w"]) for kind in found]
    precision = (1 / s**2).mean()
    assert np.abs(scales[0] - precision**-0.5).max() < 1e-12
    assert np.abs(found["geometric"].mean["w"] - (m / s**2).mean() / precision).max() < 1e-12
    assert np.abs(scales[1] - np.exp(np.log(s).mean())).max() < 1e-12
    assert np.abs(scales[2] ** 2 - ((s**2).mean() + m.var())).max() < 1e-12  # with the variance of m over the orbit
    for kind in ("parameters", "arithmetic"):
        assert np.abs(found[kind].mean["w"] - m.mean()).max() < 1e-12
    assert (scales[0] < scales[1]).all() and (scales[1] < s.mean()).all() and (s.mean() < scales[2]).all()


def test_gamma_and_beta_rules(x64):
    """geometric: natural parameters are averaged; arithmetic: E T is, which a root finder inverts."""
    psi = scipy.special.digamma
    of_gamma = lambda a, b: np.array([psi(a) - np.log(b), a / b])  # noqa: E731
    of_beta = lambda a, b: np.array([psi(a), psi(b)]) - psi(a + b)  # noqa: E731
    for family, expectation in ((Gamma(), of_gamma), (Beta(), of_beta)):
        params = start(family, (4,))
        a, b = (np.exp(field["w"]) for field in params)
        geometric = symmetrised(family, params, RING, "geometric")
        assert np.abs(np.exp(geometric[0]["w"]) - a.mean()).max() < 1e-12
        assert np.abs(np.exp(geometric[1]["w"]) - b.mean()).max() < 1e-12
        target = expectation(a, b).mean(axis=1)
        root = scipy.optimize.root(lambda u: expectation(*np.exp(u)) - target, np.zeros(2), tol=1e-13)  # noqa: B023
        arithmetic = symmetrised(family, params, RING, "arithmetic")
        assert np.abs(np.array([field["w"] for field in arithmetic]) - root.x[:, None]).max() < 1e-8


def test_narrow_gaussians_are_averaged_in_float32():
    """Second moments less squared means would leave nothing of a variance of 1e-6 next to a mean of 3."""
    rep = representations.regular(C2)
    z = {"w": jnp.array([3.0, 3.001])}
    expected = np.array([1e-6 + 0.0005**2, 0.5e-6 + 1e-6])
    of_mean_field = symmetrised(MeanField(), MeanField(1e-3).init(z), {"w": rep}, "arithmetic")
    assert float(of_mean_field.scale["w"][0] ** 2) == pytest.approx(expected[0], rel=1e-3)
    of_full = symmetrised(FullGaussian(), FullGaussian(1e-3).init(z), {"w": rep}, "arithmetic")
    assert float(FullGaussian().moments(of_full).variance["w"][1]) == pytest.approx(expected[0], rel=1e-3)


# Optimality: no invariant member is closer


OPTIMAL = {
    "mean_field": (MeanField(0.5), RING, "both"),
    "mean_field, signed": (MeanField(0.5), {"w": QUARTER * representations.trivial(C4, 2)}, "both"),
    "log_normal": (LogNormal(0.4), RING, "both"),
    "gamma": (Gamma(), RING, "both"),
    "beta": (Beta(), RING, "both"),
    "full": (FullGaussian(0.5), PAIRS, "both"),
    "block": (BlockGaussian(0.5), PAIRS, "both"),
    "orbit": (OrbitGaussian((("w", representations.image(C4, (3, 3))),), 0.5), {"w": representations.image(C4, (3, 3))}, "both"),
    "laplace": (MeanFieldLaplace(0.5), RING, "arithmetic"),
}


@pytest.mark.parametrize(("family", "reps", "which"), OPTIMAL.values(), ids=OPTIMAL)
def test_means_are_the_closest_invariant_members(family, reps, which, x64):
    """geometric: of all invariant q' the least KL(q' || q); arithmetic: the least KL(q || q'). 300 invariant q' around each."""
    params = start(family, reps["w"].shape)

    @jax.jit
    def divergences(center, noise):
        def one(noise):
            other = family.project(jax.tree.map(jnp.add, center, noise), reps)
            return family.kl(other, params), family.kl(params, other)

        return jax.vmap(one)(noise)

    rng = np.random.default_rng(1)
    sizes = np.exp(rng.uniform(np.log(1e-3), np.log(0.5), 300))
    sizes[0] = 0  # the mean itself
    found = {}
    for at, kind in enumerate(("geometric", "arithmetic")):
        if which in ("both", kind):
            center = symmetrised(family, params, reps, kind)
            noise = jax.tree.map(lambda leaf: np.einsum("n,n...->n...", sizes, rng.standard_normal((300, *leaf.shape))), center)
            if isinstance(family, LogNormal):
                noise = noise._replace(sign=jax.tree.map(np.zeros_like, noise.sign))
            found[kind] = np.asarray(divergences(center, noise)[at])
            assert found[kind][0] > 1e-2
            assert found[kind][1:].min() > found[kind][0]
            assert found[kind].max() > found[kind][0] + 0.1


def test_the_laplace_mean_is_the_best_fit_to_the_mixture(x64):
    """KL(mixture || Laplace(m, b)) is E|theta - m| / b + log b and a constant: least at b = E|theta - m| and the least such m."""
    family = MeanFieldLaplace()
    params = start(family, (4,))
    locs, scales = np.asarray(params.loc["w"]), np.exp(params.log_scale["w"])

    def distance(m):
        """E|theta - m| of the mixture by quadrature."""
        total = 0.0
        for loc, scale in zip(locs, scales, strict=True):
            ends = np.array([loc - 40 * scale, loc + 40 * scale])
            kinks = np.sort([*ends, loc, np.clip(m, *ends)])
            density = scipy.stats.laplace(loc, scale).pdf
            pieces = zip(kinks[:-1], kinks[1:], strict=True)
            total += sum(scipy.integrate.quad(lambda x: density(x) * abs(x - m), *piece)[0] for piece in pieces)  # noqa: B023
        return total / 4

    best = scipy.optimize.minimize_scalar(distance, (-1.0, 1.0), tol=1e-8)
    found = symmetrised(family, params, RING, "arithmetic")
    assert np.ptp(found.loc["w"]) == 0 and np.ptp(found.log_scale["w"]) == 0
    assert float(found.loc["w"][0]) == pytest.approx(best.x, abs=1e-6)
    assert float(found.log_scale["w"][0]) == pytest.approx(np.log(best.fun), abs=1e-9)
    below = np.mean([scipy.stats.laplace(loc, scale).cdf(found.loc["w"][0]) for loc, scale in zip(locs, scales, strict=True)])
    assert below == pytest.approx(0.5, abs=1e-12)
    # under signs the mixture is symmetric about zero
    signed = symmetrised(family, family.init({"w": jnp.array([3.0, 1.0])}), {"w": QUARTER}, "arithmetic")
    assert np.abs(signed.loc["w"]).max() == 0


# Dense algebra


def dense(family, params):
    """Mean and covariance of "w", from the affine map that sampling is."""
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), family.noise(jax.random.key(0), params, 1))
    leaves, structure = jax.tree.flatten(zero)
    size = sum(leaf.size for leaf in leaves)

    def draw(vector):
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = [part.reshape(leaf.shape) for part, leaf in zip(jnp.split(vector, ends), leaves, strict=True)]
        return family.sample(params, jax.tree.unflatten(structure, parts))["w"].reshape(-1)

    mean = draw(jnp.zeros(size))
    root = jax.vmap(draw)(jnp.eye(size)) - mean[None]
    return np.asarray(mean), np.asarray(root.T @ root)


@pytest.mark.parametrize("family", [FullGaussian(0.5), BlockGaussian(0.5)], ids=["full", "block"])
@pytest.mark.parametrize("reps", [PAIRS, {"w": representations.image(D4, (2, 2))}], ids=["C3 by 120 degrees", "D4 on pixels"])
def test_dense_gaussians_are_averaged_densely(family, reps, x64):
    params = start(family, (2, 2))
    mean, covariance = dense(family, params)
    assert np.linalg.cond(covariance) < 1e4
    mats = reps["w"].matrices()
    moved = np.array([rho @ covariance @ rho.T for rho in mats])
    means = mats @ mean
    precisions = np.linalg.inv(moved)
    geometric = np.linalg.inv(precisions.mean(axis=0))
    gaps = means - means.mean(axis=0)
    expected = {
        "geometric": (geometric @ np.einsum("gij,gj->gi", precisions, means).mean(axis=0), geometric),
        "arithmetic": (means.mean(axis=0), moved.mean(axis=0) + gaps.T @ gaps / len(gaps)),
        "parameters": (means.mean(axis=0), moved.mean(axis=0)),
    }
    for kind, truth in expected.items():
        for found, exact in zip(dense(family, symmetrised(family, params, reps, kind)), truth, strict=True):
            assert np.abs(found - exact).max() < 1e-12


def test_the_low_rank_projection_has_the_averaged_covariance(x64):
    family, reps = LowRankGaussian(2, 0.5), {"w": representations.image(D4, (2, 2))}
    params = start(family, (2, 2))
    mean, covariance = dense(family, params)
    found = family.project(params, reps)
    assert found.factor["w"].shape == (2 * 8, 2, 2)  # the price of the average
    mats = reps["w"].matrices()
    after = dense(family, found)
    assert np.abs(after[0] - (mats @ mean).mean(axis=0)).max() < 1e-12
    assert np.abs(after[1] - (mats @ covariance @ mats.swapaxes(1, 2)).mean(axis=0)).max() < 1e-12
    assert float(family.entropy(found)) == pytest.approx(scipy.stats.multivariate_normal(*after).entropy(), abs=1e-10)
    assert float(family.kl(params, found)) > 0.01


MIRROR = np.array([[1, 0], [0, -1.0]])
KRONECKER = {
    "matrices": (TURN * representations.trivial(C3, 2), 2, 2),
    "on both sides": (TURN * TURN, 2, 2),
    "signed on both sides": (QUARTER * QUARTER, 2, 2),
    "permutations": (representations.regular(C3) * representations.trivial(C3, 2), 3, 2),
    "not orthogonal": (representations.matrix(C2, [np.kron([[1, 1.5], [0, -1]], MIRROR)]), 2, 2),
}


@pytest.mark.parametrize(("rep", "inputs", "outputs"), KRONECKER.values(), ids=KRONECKER)
def test_actions_on_matrices_factor(rep, inputs, outputs):
    left, right = kronecker_factors(rep, (inputs, outputs))
    assert left.shape[1:] == (inputs, inputs) and right.shape[1:] == (outputs, outputs)
    assert np.abs(np.einsum("gij,gop->giojp", left, right).reshape(rep.matrices().shape) - rep.matrices()).max() < 1e-12


def test_the_matrix_normal_projection_averages_each_side(x64):
    family, rep = MatrixNormal(0.5), representations.regular(C3) * TURN
    params = start(family, (3, 2))
    found = family.project(params, {"w": rep})
    mean, covariance = dense(family, found)
    sides = []
    for side, mats in ((params.left["w"], representations.regular(C3).matrices()), (params.right["w"], TURN.matrices())):
        root = np.tril(side, -1) + np.diag(np.exp(np.diagonal(side)))
        sides.append((mats @ root @ root.T @ mats.swapaxes(1, 2)).mean(axis=0))
    assert np.abs(covariance - np.kron(*sides)).max() < 1e-12
    for rho in rep.matrices():
        assert np.abs(rho @ mean - mean).max() < 1e-12
        assert np.abs(rho @ covariance @ rho.T - covariance).max() < 1e-12
    with pytest.raises(ClosednessError, match="does not factor"):
        family.project(family.init({"w": jnp.zeros((3, 3))}), {"w": representations.image(C4, (3, 3))})


# LogNormal with signs that differ


def test_signs_that_differ_along_an_orbit_are_refused_by_name(x64):
    family = LogNormal()
    params = family.init({"w": jnp.array([0.3, -0.4, 0.2, 0.1])})
    with pytest.raises(ClosednessError, match="4 of 4 coordinates of site 'w' differ along their orbits under C4"):
        check_signs(family, params, RING)
    mixed = PerSite({"w": family})
    with pytest.raises(ClosednessError, match="those of 4 of 4 coordinates"):
        check_signs(mixed, mixed.init({"w": jnp.array([0.3, -0.4, 0.2, 0.1]), "b": jnp.zeros(2)}), RING)
    for kind in ("geometric", "arithmetic", "parameters"):  # under jit: no number in place of the error
        assert np.isnan(symmetrised(family, params, RING, kind).mean["w"]).all()
    assert certificate(family, params, RING) == np.inf
    half = {"w": representations.permutation(C2, [[0, 1, 3, 2]])}
    with pytest.raises(ClosednessError, match="not closed under"):
        check_signs(family, params, {"w": representations.permutation(C2, [[[0, 1, 3, 2], [1, 1, -1, -1]]])})
    check_signs(family, params, half)
    assert np.isfinite(certificate(family, params, half))


# The orbit Gaussian


def test_the_orbit_gaussian_matches_statistics_of_its_own(x64):
    """arithmetic: the variance across an orbit grows by what its mean loses, per direction; along, nothing changes."""
    rep = representations.image(C4, (3, 3))  # orbits of 4, 4 and 1
    family = OrbitGaussian((("w", rep),), 0.5)
    params = start(family, (3, 3))
    found = symmetrised(family, params, {"w": rep}, "arithmetic")
    before, after = (dense(family, each)[1] for each in (params, found))
    mean = np.asarray(params.mean["w"]).reshape(-1)
    assert np.abs(np.asarray(found.mean["w"]).reshape(-1) - rep.projector @ mean).max() < 1e-12
    lost = mean - rep.projector @ mean
    label, _, size = rep.orbits
    for orbit in range(len(size)):
        at = label == orbit
        inside = np.eye(size[orbit]) - 1 / size[orbit]
        extra = 0 if size[orbit] == 1 else (lost[at] ** 2).sum() / (size[orbit] - 1)
        assert np.abs(after[np.ix_(at, at)] - before[np.ix_(at, at)] - extra * inside).max() < 1e-12


def test_the_orbit_gaussian_knows_its_orbits():
    rep, other = representations.regular(C4), representations.trivial(C4, 4)
    family = OrbitGaussian({"w": rep})
    assert family == OrbitGaussian((("w", rep),)) and hash(family) == hash(OrbitGaussian((("w", rep),)))
    soft = SoftEquivariantNormal(rep, 1.0, 0.1)
    assert OrbitGaussian().resolved({"w": soft.to_event(0), "b": dist.Normal(0, 1)}) == family
    assert family.resolved({}) == family
    rows = PerSite({"w": OrbitGaussian(), "b": MeanFieldLaplace()}).resolved({"w": soft, "b": dist.Normal(0, 1)})
    assert rows == PerSite({"w": family, "b": MeanFieldLaplace()})
    with pytest.raises(OptionError, match="the model has none on a permutation representation"):
        OrbitGaussian().resolved({"b": dist.Normal(0, 1)})
    with pytest.raises(OptionError, match="does not know its orbits yet"):
        OrbitGaussian().check_closed({"w": rep})
    with pytest.raises(OptionError, match="mixes them: use FullGaussian"):
        OrbitGaussian({"w": TURN})
    for reps in ({"w": other}, {"b": rep}):
        with pytest.raises(ClosednessError, match="orbits there are not those of this action"):
            family.check_closed(reps)


@pytest.mark.parametrize("transversal", [1e-2, 1e-4])
def test_two_levels_come_closer_to_a_soft_posterior_than_one(transversal, x64):
    """36 weights, prior N(0, P + b (I - P)), 100 noisy linear observations: KL to the posterior of the best member of each family.

    The optimum is closed form, log-variance by log-variance; that it is one, the slope of the bound says. (With 12 exact observations
    the posterior correlates the orbits with each other, which neither family can say, and at b = 0.01 the two are close.)
    """
    rep = representations.image(C4, (6, 6))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 36))
    noise = 3.0
    precision = x.T @ x / noise**2 + rep.projector + (np.eye(36) - rep.projector) / transversal
    label, _, size = rep.orbits
    _, log_det = np.linalg.slogdet(precision)

    def bound(family, params):
        """KL(q || N(0, precision^-1)), with the root of the covariance of q from its draws."""
        center = family.center(params)["w"].reshape(-1)
        draws = jax.vmap(lambda e: family.sample(params, {"w": e})["w"].reshape(-1))(jnp.eye(36).reshape(-1, 6, 6))
        root = draws - center[None]
        energy = jnp.einsum("ni,ij,nj", root, precision, root) + center @ precision @ center
        return -family.entropy(params) + 0.5 * (energy - log_det + 36 * np.log(2 * np.pi))

    single = MeanField().init({"w": jnp.zeros((6, 6))})
    single = single._replace(log_scale={"w": jnp.asarray(-0.5 * np.log(np.diagonal(precision))).reshape(6, 6)})
    family = OrbitGaussian((("w", rep),))
    along = np.array([1 / (np.ones(4) @ precision[np.ix_(label == o, label == o)] @ np.ones(4) / 4) for o in range(9)])
    traces = np.array([np.trace(precision[np.ix_(label == o, label == o)]) for o in range(9)])
    across = 3 / (traces - 1 / along)
    double = family.init({"w": jnp.zeros((6, 6))})._replace(
        log_along={"w": jnp.asarray(0.5 * np.log(along[label])).reshape(6, 6)},
        log_across={"w": jnp.asarray(0.5 * np.log(across[label])).reshape(6, 6)},
    )
    assert (size == 4).all() and rep.rank == 9
    found = []
    for each, params in ((MeanField(), single), (family, double)):
        value, slope = jax.jit(jax.value_and_grad(functools.partial(bound, each)))(params)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) < 1e-8
        found.append(float(value))
    assert 0 < found[1] < 0.2 * found[0]
