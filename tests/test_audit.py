"""The audit by stochastic Lanczos quadrature against dense log-determinants, in float64."""

import functools
import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_sym import groups, representations, tap
from bayes_sym.errors import CurvatureError, OptionError, PriorError
from bayes_sym.inference import Audit, Problem, audit, log_evidence
from bayes_sym.inference.blocks import Layout
from bayes_sym.inference.curvature.kronecker import Kronecker
from bayes_sym.inference.curvature.measure import measure
from bayes_sym.inference.curvature.product import curvature_product
from bayes_sym.inference.curvature.view import View
from bayes_sym.inference.prior_parts import gaussian_part
from bayes_sym.priors import SoftEquivariantNormal


pytestmark = pytest.mark.usefixtures("x64")

module = importlib.import_module("bayes_sym.inference.audit")  # the name in the package is the function's
KEY = jax.random.key(1)


def det(shape, a, b):
    """Numbers that anybody can rebuild."""
    return np.sin(a * np.arange(1, np.prod(shape) + 1) + b).reshape(shape)


# A classifier, 8 -> 12 -> 4, with 160 parameters and 200 rows of data

SIZES, ROWS = (8, 12, 4), 200
RNG = np.random.default_rng(0)
WEIGHTS = {
    name: value
    for i, (a, b) in enumerate(zip(SIZES, SIZES[1:], strict=False))
    for name, value in ((f"w{i}", RNG.standard_normal((a, b)) / np.sqrt(a)), (f"b{i}", 0.1 * RNG.standard_normal(b)))
}
X, Y = RNG.standard_normal((ROWS, 8)), RNG.integers(0, 4, ROWS)


def classifier(x, y, precision):
    def gaussian(name):
        shape = WEIGHTS[name].shape
        return numpyro.sample(name, dist.Normal(0, precision**-0.5).expand(shape).to_event(len(shape)))

    hidden = jnp.tanh(tap("first", x @ gaussian("w0") + gaussian("b0")[None], inputs=x, weight="w0", bias="b0"))
    logits = tap("second", hidden @ gaussian("w1") + gaussian("b1")[None], inputs=hidden, weight="w1", bias="b1")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


@functools.cache
def dense(precision, curvature="full"):
    return float(log_evidence(Problem(classifier), WEIGHTS, X, Y, precision, curvature=curvature).log_det_ratio)


@functools.cache
def audited(precision, curvature, num_matvecs=20, against=()):
    options = {"key": KEY, "curvature": curvature, "num_matvecs": num_matvecs, "against": against}
    return audit(Problem(classifier), WEIGHTS, X, Y, precision, **options)


def bias(precision, curvature):
    """Of 20 products against 40 from the same probes: a little below the truth for the weakest priors, else equal to it."""
    return -float(audited(precision, curvature, 40).change)


@pytest.mark.parametrize("curvature", [None, "kfac"])
@pytest.mark.parametrize("precision", [0.01, 1.0])
def test_the_estimate_is_within_its_errors_of_the_dense_log_determinant(precision, curvature):
    found = audited(precision, curvature, 40)
    assert 0 < found.standard_error < 0.1 * dense(precision)
    assert abs(found.log_det_ratio - dense(precision)) < 3 * found.standard_error
    assert (found.size, found.num_matvecs, found.num_probes, found.plain) == (160, 40, 10, ())


@pytest.mark.parametrize("precision", [1.0, 10.0])
def test_twenty_products_leave_a_bias_below_one_percent_unless_priors_are_weak(precision):
    for curvature in (None, "kfac"):
        assert -1e-8 < bias(precision, curvature) < 0.01 * dense(precision)


def test_a_kronecker_preconditioner_takes_most_of_the_bias_of_weak_priors():
    plain, preconditioned = bias(0.01, None), bias(0.01, "kfac")
    assert plain > 0.03 * dense(0.01)
    assert preconditioned < plain / 3


def test_the_change_over_the_second_half_bounds_the_bias():
    for precision in (0.01, 1.0):
        found, deep = audited(precision, "kfac"), audited(precision, "kfac", 40)
        assert float(found.log_det_ratio) == pytest.approx(float(deep.log_det_ratio - deep.change), rel=1e-10)
        assert -1e-8 < bias(precision, "kfac") < -found.change


def test_slack_is_what_dense_matrices_give():
    against = ("block", "kfac", "diag")
    found = audited(1.0, "kfac", against=against)
    tolerance = 3 * found.slack_error + bias(1.0, "kfac") / 2
    assert tuple(found.slack) == against
    assert float(found.slack_error) == float(found.standard_error) / 2
    for name in against:
        assert abs(found.slack[name] - (dense(1.0, name) - dense(1.0)) / 2) < tolerance
    # what they differ by among themselves has no error of the quadrature in it
    between = float(found.slack["diag"] - found.slack["kfac"])
    assert between == pytest.approx((dense(1.0, "diag") - dense(1.0, "kfac")) / 2, rel=1e-10)
    assert tolerance < found.slack["diag"]


def test_the_key_decides_the_probes():
    def estimate(key):
        return float(audit(Problem(classifier), WEIGHTS, X, Y, 1.0, key=key, against=()).log_det_ratio)

    assert estimate(KEY) == estimate(KEY) == float(audited(1.0, "kfac").log_det_ratio)
    assert estimate(jax.random.key(2)) != estimate(KEY)


# Linear models, where some answers have no error at all


def linear(x, y, scale):
    w = numpyro.sample("w", dist.Normal(0, scale).expand([x.shape[1]]).to_event(1))
    f = tap("f", (x @ w)[:, None], inputs=x, weight="w")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f[:, 0], 0.5), obs=y)


@pytest.mark.parametrize(("curvature", "double"), [(None, True), (None, False), ("kfac", False)])
def test_a_complete_krylov_space_gives_finite_and_right_numbers(curvature, double):
    # G is diagonal, of rank 2 in 30 dimensions: signs have no variance, and Lanczos breaks down after 3 of 30 steps
    with jax.enable_x64(double):
        x = np.zeros((5, 30))
        x[:3, 4], x[3:, 7] = 1.0, 2.0
        options = {"key": KEY, "curvature": curvature, "num_matvecs": 100, "against": ()}
        found = audit(Problem(linear), {"w": np.ones(30)}, x, det((5,), 2.3, 0.6), 0.9, **options)
        nothing = audit(Problem(linear), {"w": np.ones(30)}, 0 * x, det((5,), 2.3, 0.6), 0.9, **options)
    expected = np.log1p(0.81 * 3 / 0.25) + np.log1p(0.81 * 8 / 0.25)
    assert float(found.log_det_ratio) == pytest.approx(expected, rel=1e-10 if double else 1e-5)
    assert float(found.standard_error) < (1e-10 if double else 1e-5)
    assert found.num_matvecs == 30
    assert float(nothing.log_det_ratio) == pytest.approx(0, abs=1e-10 if double else 1e-4)


@pytest.mark.parametrize("curvature", [None, "kfac"])
def test_fewer_rows_than_products(curvature):
    x, y = det((4, 30), 1.7, 0.3), det((4,), 2.3, 0.6)
    found = audit(Problem(linear), {"w": np.ones(30)}, x, y, 10.0, key=KEY, curvature=curvature, num_probes=100, against=())
    expected = np.linalg.slogdet(np.eye(4) + 100 * x @ x.T / 0.25)[1]
    assert abs(found.log_det_ratio - expected) <= 3 * found.standard_error + 1e-8
    assert (found.standard_error < 1e-8) == (curvature == "kfac")  # of one output and Gaussian noise, which KFAC gets right


def test_a_breakdown_is_cut_off_and_a_nan_before_it_refused():
    nan = np.nan
    assert module._quadrature(5, np.array([2.0, nan, nan]), np.array([0.0, nan])) == pytest.approx(5 * np.log(2))
    assert module._quadrature(5, np.array([2.0, 7.0, 9.0]), np.array([1e-16, 3.0])) == pytest.approx(5 * np.log(2))
    with pytest.raises(CurvatureError, match="not finite"):
        module._quadrature(5, np.array([2.0, nan, nan]), np.array([nan, nan]))


REP = (representations.trivial(groups.cyclic(2), 3) * representations.regular(groups.cyclic(2))).reshape(3, 2)


def soft(x, y):
    w = numpyro.sample("w", SoftEquivariantNormal(REP, 1.7, 0.2))
    f = tap("f", x @ w, inputs=x, weight="w")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 0.4).to_event(1), obs=y)


SOFT_X, SOFT_Y = det((9, 3), 1.7, 0.3), det((9, 2), 2.3, 0.6)


def soft_log_det():
    covariance = 1.7 * REP.projector + 0.2 * (np.eye(6) - REP.projector)
    return np.linalg.slogdet(np.eye(6) + np.kron(SOFT_X.T @ SOFT_X, np.eye(2)) @ covariance / 0.16)[1]


def test_soft_equivariant_priors(monkeypatch):
    monkeypatch.setattr(module, "CURVATURES", ("full", "ekfac", "kfac"))
    at = ({"w": np.ones((3, 2))}, SOFT_X, SOFT_Y)
    found = audit(Problem(soft), *at, key=KEY)
    # the Kronecker factors are exact here, and written out they price any prior
    assert float(found.log_det_ratio) == pytest.approx(soft_log_det(), rel=1e-10)
    assert found.plain == () and list(found.slack) == ["ekfac"]
    assert "one scalar variance per site" in dict(found.left_out)["kfac"]
    plain = audit(Problem(soft), *at, key=KEY, curvature=None, num_probes=200, against=())
    assert abs(plain.log_det_ratio - soft_log_det()) < 3 * plain.standard_error
    with pytest.raises(PriorError, match="one scalar variance per site"):
        audit(Problem(soft), *at, key=KEY, against=("kfac",))


@pytest.mark.parametrize("transposed", [False, True])
def test_kronecker_blocks_written_out(transposed):
    factors = [det((n, n), 1.1, 0.4) for n in (2, 3)]
    inputs, outputs = (factor @ factor.T for factor in factors)
    layout = Layout(("w",), ((3, 2) if transposed else (2, 3),))
    vector, part = det((6,), 0.7, 0.3), gaussian_part(dist.Normal(0.0, 0.9), (6,))
    piece = Kronecker(layout, inputs, outputs, transposed)
    dense = module._written_out(piece)
    assert float(dense.log_det_ratio(part)) == pytest.approx(float(piece.log_det_ratio(part)), rel=1e-10)
    assert float(dense.decrement(part, vector)) == pytest.approx(float(piece.decrement(part, vector)), rel=1e-10)


def test_large_sites_whose_prior_has_no_scalar_variance_are_not_preconditioned(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_DENSE", 5)
    model = functools.partial(soft)  # a model of its own, so that nothing compiled before is used
    found = audit(Problem(model), {"w": np.ones((3, 2))}, SOFT_X, SOFT_Y, key=KEY, num_probes=200, against=())
    assert found.plain == ("w",) and "not preconditioned: w" in str(found)
    assert 0 < abs(found.log_det_ratio - soft_log_det()) < 3 * found.standard_error


def hierarchical(x, y):
    s = numpyro.sample("s", dist.LogNormal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0, s).expand([5]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


def test_priors_that_depend_on_each_other_and_held_sites():
    at, x, y = {"s": np.array(1.3), "w": 0.5 * det((5,), 0.9, 0.2)}, det((20, 5), 1.7, 0.05), det((20,), 2.3, 0.6)
    full = log_evidence(Problem(hierarchical), at, x, y)
    block = log_evidence(Problem(hierarchical), at, x, y, curvature="block")
    found = audit(Problem(hierarchical), at, x, y, key=KEY, num_probes=200, against=("block",))
    assert abs(found.log_det_ratio - full.log_det_ratio) < 3 * found.standard_error
    assert abs(found.slack["block"] - (full.value - block.value)) < 3 * found.slack_error
    held = audit(Problem(hierarchical), at, x, y, key=KEY, optimise=("s",), against=())
    exact = np.linalg.slogdet(np.eye(5) + 1.3**2 * x.T @ x / 0.09)[1]
    assert float(held.log_det_ratio) == pytest.approx(exact, rel=1e-10)
    assert held.size == 5


# The product with the curvature


def several(x, y, labels, weight):
    """Two observed sites, one of them with a scale that is learned, and rows of different weight."""
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 4]).to_event(2))
    s = numpyro.sample("s", dist.LogNormal(0.0, 1.0))
    f = jnp.tanh(x @ w)
    with numpyro.plate("data", x.shape[0]):
        with numpyro.handlers.scale(scale=weight):
            numpyro.sample("y", dist.Normal(f[:, :2], s * jnp.exp(f[:, 2:])).to_event(1), obs=y)
        numpyro.sample("labels", dist.Categorical(logits=f), obs=labels)


def test_the_product_over_chunks_of_rows_equals_the_dense_one():
    data = (det((7, 3), 1.7, 0.05), det((7, 2), 2.3, 0.6), np.arange(7) % 4, np.linspace(0.5, 2, 7))
    z = {"w": det((3, 4), 1.1, 0.2), "s": jnp.asarray(-0.3)}
    data = jax.tree.map(jnp.asarray, data)
    problem, vectors = Problem(several), det((5, 13), 0.7, 0.3)

    @jax.jit
    def both():
        (piece,) = measure(problem, z, {}, data, "full")
        product = curvature_product(View(problem, z, {}, data), 1, 3)  # 7 rows do not fill chunks of 3
        return piece.matrix, jnp.stack([product(v) for v in vectors]), jax.vmap(product)(vectors)

    matrix, one_by_one, together = both()
    assert matrix.shape == (13, 13)
    assert np.allclose(one_by_one, vectors @ matrix, rtol=1e-10, atol=1e-10)
    assert np.allclose(together, vectors @ matrix, rtol=1e-10, atol=1e-10)


def softmax(x, y):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 8]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


def test_products_of_many_probes_with_many_rows_in_float32():
    # sums of products over more than 32768 numbers are where jaxlib 0.10.2 goes wrong on CPUs
    x, w, vectors = det((600, 3), 1.7, 0.05), det((3, 8), 1.1, 0.2), det((10, 3, 8), 0.7, 0.3)
    p = np.exp(x @ w) / np.exp(x @ w).sum(axis=1, keepdims=True)
    tangents = np.einsum("ni,sic->snc", x, vectors)
    cotangents = p[None] * (tangents - (p[None] * tangents).sum(axis=2, keepdims=True))
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):  # as `audit` calls it
        data = (jnp.asarray(x, float), jnp.arange(600) % 8)
        product = curvature_product(View(Problem(softmax), {"w": jnp.asarray(w, float)}, {}, data), 10, None)
        found = jax.jit(jax.vmap(product))(jnp.asarray(vectors.reshape(10, 24), float))
    assert np.allclose(found, np.einsum("ni,snc->sic", x, cotangents).reshape(10, 24), rtol=1e-4, atol=1e-3)


# What is printed, and what is refused


def test_the_table_reads_well():
    found = Audit(
        jnp.asarray(123.456), jnp.asarray(0.5), jnp.asarray(-0.1), {"diag": jnp.asarray(7.25), "kfac": jnp.asarray(-1.5)},
        curvature="kfac", num_matvecs=20, num_probes=10, size=212, left_out=(("ntk", "because"),),
    )  # fmt: skip
    text = str(found)
    for part in ("123.46 +- 0.50 nats", "212 parameters", "preconditioned by kfac", "7.25 +- 0.25  (a bound)", "-1.50 +- 0.25\n"):
        assert part in text
    assert "ntk: because" in text
    assert str(jax.tree.map(lambda leaf: leaf, found)) == text


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree", None)
    with pytest.raises(OptionError, match=r"pip install bayes-sym\[audit\]"):
        audit(Problem(classifier), WEIGHTS, X, Y, 1.0, key=KEY)


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        (WEIGHTS, {"curvature": "magic"}, CurvatureError, "unknown curvature 'magic': choose one of full, block"),
        (WEIGHTS, {"against": ("magic",)}, CurvatureError, "unknown curvature 'magic'"),
        (WEIGHTS, {"against": "kfac"}, OptionError, r"write against=\('kfac',\)"),
        (WEIGHTS, {"curvature": "ntk"}, OptionError, "'ntk' cannot precondition"),
        (WEIGHTS, {"num_matvecs": 0}, OptionError, "num_matvecs and chunk must be at least 1, got 0 and None"),
        (WEIGHTS, {"chunk": 0}, OptionError, "got 20 and 0"),
        (WEIGHTS, {"num_probes": 1}, OptionError, "one probe has no standard error"),
        (WEIGHTS, {"optimise": ("*",)}, OptionError, "holds every site"),
        ({}, {}, OptionError, "params lack values"),
        (
            {**WEIGHTS, "b1": np.full(4, np.nan)},
            {"curvature": None, "num_matvecs": 40},
            CurvatureError,
            "not finite at this point",
        ),
    ],
)
def test_errors(params, options, error, message):
    with pytest.raises(error, match=message):
        audit(Problem(classifier), params, X, Y, 1.0, key=KEY, **{"against": (), **options})
