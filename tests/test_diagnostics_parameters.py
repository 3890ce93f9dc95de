"""Asymmetry of weights against dense projectors and Gaussians, the certificate on a net, and transversal curvature against eigenvalues."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import certificate, equivariance_error_from_draws, parameter_asymmetry, transversal_curvature
from bayes_sym.errors import DataError, GroupActionError, OptionError, ShapeError
from bayes_sym.layers import Conv, Dense, Field, Pool, Sequential


C2, C3, C4, D4 = (*map(groups.cyclic, (2, 3, 4)), groups.dihedral(4))
SIGNED = representations.permutation(C4, [[[1, 0], [-1, 1]]]) + representations.regular(C4)
ANGLE = 2 * np.pi / 3
THIRD = representations.matrix(C3, [[[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]]) + representations.trivial(
    C3, 1
)
REPS = {"image": representations.image(D4, (3, 3)), "signed": SIGNED, "matrix": THIRD}


def gaussian_kl(m, S, n, R):
    """KL(N(m, S) || N(n, R)) by dense linear algebra."""
    inverse = np.linalg.inv(R)
    logs = np.linalg.slogdet(R)[1] - np.linalg.slogdet(S)[1]
    return 0.5 * (np.trace(inverse @ S) + (n - m) @ inverse @ (n - m) - len(m) + logs)


@pytest.mark.parametrize("rep", REPS.values(), ids=REPS.keys())
def test_the_asymmetry_of_a_point_is_that_of_the_dense_projector(rep):
    w = np.random.default_rng(0).standard_normal(rep.shape)
    row = parameter_asymmetry(w, rep).overall
    flat, rest = w.ravel(), w.ravel() - rep.projector @ w.ravel()
    assert row.asymmetry == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(flat))
    assert row.energy == pytest.approx(row.asymmetry**2) and row.reference == pytest.approx(1 - rep.rank / rep.dim)
    assert row.symmetry == pytest.approx(1 - row.energy / row.reference)
    assert row.distance == pytest.approx(np.mean([((flat - m @ flat) ** 2).sum() for m in rep.matrices()]))
    assert math.isnan(row.divergence) and math.isnan(row.scale_asymmetry)
    symmetric = parameter_asymmetry(rep.projector @ flat, rep).overall
    assert symmetric.asymmetry < 1e-12 and symmetric.symmetry == pytest.approx(1) and symmetric.distance < 1e-20


def test_random_weights_have_the_reference_and_no_symmetry():
    w = np.random.default_rng(0).standard_normal((4000, 9))
    found = [parameter_asymmetry(one, representations.image(C4, (3, 3))).overall for one in w]
    energies = np.array([row.energy for row in found])
    assert found[0].reference == pytest.approx(1 - 3 / 9)
    assert abs(energies.mean() - found[0].reference) < 4 * energies.std() / math.sqrt(4000)
    trivial = parameter_asymmetry(w[0], representations.trivial(C4, 9)).overall
    assert trivial.asymmetry == 0 and math.isnan(trivial.symmetry)


@pytest.mark.parametrize("rep", [REPS["image"], SIGNED], ids=["permutation", "signed"])
def test_the_divergence_is_that_of_dense_gaussians(rep):
    generator = np.random.default_rng(0)
    m, s = generator.standard_normal(rep.dim), np.exp(0.3 * generator.standard_normal(rep.dim))
    row = parameter_asymmetry(m, rep, s).overall
    each = [gaussian_kl(m, np.diag(s**2), g @ m, g @ np.diag(s**2) @ g.T) for g in rep.matrices()]
    assert row.divergence == pytest.approx(np.mean(each), rel=1e-10)
    moved = [np.sqrt(np.diag(g @ np.diag(s**2) @ g.T)) for g in rep.matrices()]
    distance = np.mean([((m - g @ m) ** 2).sum() + ((s - t) ** 2).sum() for g, t in zip(rep.matrices(), moved, strict=True)])
    assert row.distance == pytest.approx(distance)
    logs = np.log(s) - np.abs(rep.matrices()).mean(axis=0) @ np.log(s)
    assert row.scale_asymmetry == pytest.approx(np.linalg.norm(logs) / np.linalg.norm(np.log(s)))


def test_sites_of_a_net_add_up():
    spec = Sequential((Conv(1, 4), Pool(), Dense(4, 3)))
    field = Field.of(representations.image(C4, (4, 4)), 1)
    reps, _ = spec.representations(field, iter([representations.regular(C4), representations.trivial(C4, 3)]))
    generator = np.random.default_rng(0)
    mean = {f"net.{s.name}": generator.standard_normal(s.shape) for s in spec.sites()} | {"noise": np.ones(3)}
    scale = {name: np.exp(generator.standard_normal(value.shape)) for name, value in mean.items()}
    found = parameter_asymmetry(mean, reps, scale, module="net")
    assert [row.site for row in found.rows] == [s.name for s in spec.sites()]
    for total in ("distance", "divergence"):
        assert getattr(found.overall, total) == pytest.approx(sum(found.of(total).values()))
    rest = sum(row.energy * (mean[f"net.{row.site}"] ** 2).sum() for row in found.rows)
    assert found.overall.energy == pytest.approx(rest / sum((mean[f"net.{name}"] ** 2).sum() for name in reps))
    symmetric = {f"net.{n}": np.asarray(r.project(mean[f"net.{n}"], tuple(range(len(r.shape))))) for n, r in reps.items()}
    assert max(parameter_asymmetry(symmetric, reps, module="net").of().values()) < 1e-6


# The certificate


def test_the_defect_never_exceeds_its_certificate():
    rep = representations.regular(C4)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 4))
    ratios, certificates = [], []
    for spread in (0.01, 0.03, 0.1, 0.3, 1.0):
        for _ in range(6):
            # f(g x; W) = f(x; g^-1 W), with g permuting the inputs of the first layer
            base, readout = generator.standard_normal(3), 3 * generator.standard_normal((3, 3))
            mean = base + spread * generator.standard_normal((4, 3))
            scale = 0.4 * np.exp(0.3 * spread * generator.standard_normal((4, 3)))
            weights = mean + scale * generator.standard_normal((400, 4, 3))
            logits = [np.tanh(x[:, rep.source[g]] @ weights) @ readout for g in range(4)]
            p = np.stack([np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) for z in logits], axis=1)
            bound = parameter_asymmetry(mean, rep * representations.trivial(C4, 3), scale).certificate()
            error = equivariance_error_from_draws(p)
            assert error.predictive < bound and error.interval()[1] < bound
            ratios.append(error.predictive / bound)
            certificates.append(bound)
    assert min(certificates) < 0.01 and max(certificates) == 2
    assert max(ratios) > 1e-3  # loose, but not empty


def test_the_certificate_of_gaussian_shifts_is_nearly_reached():
    # two Gaussians a shift apart, and the best function bounded by 1/2 on both sides: |E f - E' f| = 2 Phi(shift/2) - 1
    for shift in (0.01, 0.1, 0.5):
        difference = math.erf(shift / 2 / math.sqrt(2))
        bound = certificate(shift**2 / 2, diameter=1.0)
        assert difference**2 <= bound < 1.7 * difference**2
    assert certificate(0.3) == pytest.approx(0.3) and certificate(7.0) == 2 and certificate(math.inf, 3.0) == 9


# Transversal curvature


def invariant_function(weights):
    """Invariant under C4 on "a" and sign flips with turns on "b"; its symmetric point is unstable or not by `weights`."""
    a, b = weights["a"].reshape(3, 3), weights["b"]
    turned = sum(jnp.cos(jnp.sum(jnp.rot90(a, k) * jnp.arange(9.0).reshape(3, 3) / 9)) for k in range(4))
    return turned - 5 * a.sum() ** 2 + 0.3 * (a**2).sum() + (b**2).sum() ** 2 + 0.7 * (b**2).sum() + (a**2).sum() * (b**2).sum()


SITES = {"a": representations.image(C4, (3, 3)).reshape(3, 3), "b": representations.permutation(C4, [[[1, 0], [-1, 1]]])}


def test_transversal_curvature_is_the_smallest_eigenvalue_across(x64, key):
    a = SITES["a"].project(jnp.asarray(np.random.default_rng(0).standard_normal((3, 3))), (0, 1))
    point = {"a": a, "b": jnp.zeros(2)}
    hessian = np.asarray(
        jax.hessian(lambda v: invariant_function({"a": v[:9].reshape(3, 3), "b": v[9:]}))(
            jnp.concatenate([a.ravel(), jnp.zeros(2)])
        )
    )
    P = np.zeros((11, 11))
    P[:9, :9], P[9:, 9:] = SITES["a"].projector, SITES["b"].projector
    values, vectors = np.linalg.eigh(np.eye(11) - P)
    basis = vectors[:, values > 0.5]
    truth = np.linalg.eigvalsh(basis.T @ hessian @ basis)
    found = transversal_curvature(invariant_function, point, SITES, key)
    assert found.value == pytest.approx(truth[0], rel=1e-9) and found.residual < 1e-6 and found.num_steps <= 8
    v = np.concatenate([found.direction["a"].ravel(), found.direction["b"]])
    np.testing.assert_allclose(P @ v, 0, atol=1e-9)
    assert v @ hessian @ v == pytest.approx(truth[0], rel=1e-9) and v @ v == pytest.approx(1)
    # the symmetric directions bend much less, which must not be seen
    assert np.linalg.eigvalsh(hessian)[0] < truth[0] - 10


def test_a_saddle_is_seen_as_unstable(x64, key):
    # a double well in the asymmetric direction: curvature -4 at its top, and steep walls in the symmetric one
    swap = representations.permutation(C2, [[1, 0]])
    double = lambda w: (((w["w"][0] - w["w"][1]) ** 2 / 2 - 1) ** 2) + 50 * w["w"].sum() ** 2  # noqa: E731
    found = transversal_curvature(double, {"w": jnp.zeros(2)}, {"w": swap}, key)
    assert found.value == pytest.approx(-4) and found.num_steps == 1 and found.residual < 1e-12
    np.testing.assert_allclose(np.abs(found.direction["w"]), math.sqrt(0.5))


def test_few_steps_stay_above_and_say_how_far(x64, key):
    rep = representations.regular(C2) * representations.trivial(C2, 60)
    values = np.sort(np.random.default_rng(0).standard_normal(60))
    flip = np.concatenate([np.eye(60), -np.eye(60)]) / math.sqrt(2)  # the asymmetric directions
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((60, 60)))[0]
    H = jnp.asarray(flip @ turn @ np.diag(values) @ turn.T @ flip.T)
    function = lambda w: w["w"] @ H @ w["w"] / 2  # noqa: E731
    found = {
        n: transversal_curvature(function, {"w": jnp.ones(120)}, {"w": rep.reshape(120)}, key, num_steps=n) for n in (5, 20, 60)
    }
    assert found[5].value > found[20].value > found[60].value - 1e-12
    assert found[60].value == pytest.approx(values[0], rel=1e-9)
    for one in found.values():
        assert np.abs(values - one.value).min() <= one.residual + 1e-9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: parameter_asymmetry({"a": np.ones(4)}, {"b": representations.regular(C4)}),
            OptionError,
            "site 'b' has no value",
        ),
        (lambda: parameter_asymmetry({}, {}), OptionError, "names no site"),
        (lambda: parameter_asymmetry(np.ones(5), representations.regular(C4)), ShapeError, r"shape \(5,\), .* acts on \(4,\)"),
        (lambda: parameter_asymmetry(np.full(4, np.nan), representations.regular(C4)), DataError, "not all finite"),
        (lambda: parameter_asymmetry(np.ones(4), representations.regular(C4), np.zeros(4)), DataError, "must be positive"),
        (lambda: parameter_asymmetry(np.ones(3), THIRD, np.ones(3)), GroupActionError, "mixes coordinates"),
        (
            lambda: parameter_asymmetry({}, {"a": representations.regular(C4), "b": representations.regular(C2)}),
            GroupActionError,
            r"different groups: \['C2', 'C4'\]",
        ),
        (lambda: parameter_asymmetry(np.ones(4), representations.regular(C4)).certificate(), OptionError, "give scale="),
        (
            lambda: transversal_curvature(jnp.sum, {"a": jnp.ones(4)}, {"b": representations.regular(C4)}, jax.random.key(0)),
            OptionError,
            r"the same sites.*\['a'\], \['b'\]",
        ),
        (
            lambda: transversal_curvature(jnp.sum, {"a": jnp.ones(4)}, {"a": representations.trivial(C4, 4)}, jax.random.key(0)),
            OptionError,
            "nothing across",
        ),
        (
            lambda: transversal_curvature(
                lambda w: jnp.log(w["a"]).sum(), {"a": jnp.zeros(4)}, {"a": representations.regular(C4)}, jax.random.key(0)
            ),
            DataError,
            "not finite",
        ),
    ],
)
def test_parameter_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
