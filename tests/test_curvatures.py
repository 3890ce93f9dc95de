"""Every curvature against matrices formed by brute force: bounds, bases, kernels, probes, chunks, batches and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_sym import groups, layers, representations, tap
from bayes_sym.errors import CurvatureError, OptionError, PriorError
from bayes_sym.inference import Problem, evidence_basis, hold_evidence, log_evidence
from bayes_sym.inference.blocks import Layout
from bayes_sym.inference.curvature import measure
from bayes_sym.inference.curvature.kronecker import Kronecker
from bayes_sym.inference.prior_parts import gaussian_part
from bayes_sym.priors import SoftEquivariantNormal


pytestmark = pytest.mark.usefixtures("x64")

STRUCTURED = ("block", "ekfac", "diag", "ntk")


def det(shape, a, b):
    """Numbers that anybody can rebuild."""
    return np.sin(a * np.arange(1, np.prod(shape) + 1) + b).reshape(shape)


# A convolution, a tied weight that is used twice, biases, and a site without a tap: everything a structure must see.

CONV = layers.Conv(1, 2, bias=False)
ROWS = 11


def net(sample, x):
    """Logits (rows, 3) with a weight that is used twice."""
    conv, bias, tied, head, gain = (sample(name) for name in ("conv", "bias", "tied", "head", "gain"))
    patches = CONV.patches(x)
    h = jnp.tanh(tap("conv", patches @ conv.reshape(9, 2) + bias, inputs=patches, weight="conv", bias="bias"))
    h = h.mean(axis=(1, 2))
    h = jnp.tanh(tap("tied.0", h @ tied, inputs=h, weight="tied"))
    h = tap("tied.1", h @ tied, inputs=h, weight="tied")
    return tap("head", h @ head.T, inputs=h, weight="head") * jnp.exp(gain)


SHAPES = {"conv": (3, 3, 1, 2), "bias": (2,), "tied": (2, 2), "head": (3, 2), "gain": ()}
SCALES = np.array([0.7, 1.3, 0.9, 0.6, 0.5])
WEIGHTS = {name: 0.8 * det(shape, 1.1 + i, 0.2) if shape else np.array(0.3) for i, (name, shape) in enumerate(SHAPES.items())}
X, Y = 1.5 * det((ROWS, 3, 3, 1), 1.7, 0.05), np.arange(ROWS, dtype=np.int32) % 3


def model(x, y, scales):
    def sample(name):
        shape = SHAPES[name]
        scale = scales[list(SHAPES).index(name)]
        return numpyro.sample(name, dist.Normal(0.0, scale).expand(shape).to_event(len(shape)))

    with jax.numpy_rank_promotion("allow"):
        logits = net(sample, x)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


@functools.cache
def fisher_rows():
    """Square-root Fisher rows (rows, 3, P) by a dense Jacobian, and which site every column belongs to."""
    layout = Layout.of(WEIGHTS)

    def logits(flat):
        with jax.numpy_rank_promotion("allow"):
            return net(layout.unflatten(flat).__getitem__, X)

    flat = np.asarray(layout.flatten({name: jnp.asarray(w) for name, w in WEIGHTS.items()}))
    jacobian, out = jax.jit(lambda flat: (jax.jacrev(logits)(flat), logits(flat)))(flat)
    p = np.asarray(jax.nn.softmax(out))
    root = np.einsum("nk,kc->nkc", np.sqrt(p), np.eye(3)) - np.einsum("nk,nc->nkc", np.sqrt(p), p)  # S' by rows
    sites = np.concatenate([np.full(int(np.prod(shape)), i) for i, shape in enumerate(SHAPES.values())])
    return np.einsum("nkc,ncp->nkp", root, jacobian), sites


def scaled_rows():
    """R L, with L the root of the prior covariance."""
    rows, sites = fisher_rows()
    return rows * SCALES[sites], sites


def log_det(matrix):
    return np.linalg.slogdet(np.eye(len(matrix)) + matrix)[1]


@functools.cache
def program(curvature, **options):
    """One program per curvature: ((value, evidence), gradients) at (weights, inputs, scales)."""

    def of(weights, x, scales, basis):
        found = log_evidence(Problem(model), weights, x, Y, scales, curvature=curvature, basis=basis, **options)
        return found.value, found

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True))


@functools.cache
def frozen_basis():
    return evidence_basis(Problem(model), WEIGHTS, X, Y, SCALES)


def run(curvature, weights=WEIGHTS, x=X, scales=SCALES, **options):
    """The evidence and its gradients."""
    basis = frozen_basis() if curvature == "ekfac" else None
    (_, found), gradients = program(curvature, **options)(weights, x, scales, basis)
    return found, gradients


def ratio(curvature, **options):
    return float(run(curvature, **options)[0].log_det_ratio)


def test_full_block_and_diagonal_curvature_match_the_dense_matrix():
    rows, sites = scaled_rows()
    flat = rows.reshape(-1, rows.shape[-1])
    assert ratio("full") == pytest.approx(log_det(flat.T @ flat), rel=1e-9)
    blocks = [flat[:, sites == i] for i in range(len(SHAPES))]
    assert ratio("block") == pytest.approx(sum(log_det(block.T @ block) for block in blocks), rel=1e-9)
    assert ratio("diag") == pytest.approx(np.log1p((flat**2).sum(axis=0)).sum(), rel=1e-9)


def test_ekfac_is_the_diagonal_in_the_basis_of_the_factors():
    rows, sites = scaled_rows()
    basis = frozen_basis()
    assert set(basis) == {"conv", "tied", "head"}
    expected = 0.0
    for i, (name, shape) in enumerate(SHAPES.items()):
        flat = rows[..., sites == i].reshape(-1, int(np.prod(shape)))
        if name not in basis:
            expected += log_det(flat.T @ flat)
            continue
        left, right = basis[name]
        assert np.allclose(left.T @ left, np.eye(len(left)), atol=1e-12)
        matrices = flat.reshape(-1, 3, 2).swapaxes(1, 2) if name == "head" else flat.reshape(-1, len(left), len(right))
        expected += np.log1p((np.einsum("ia,nio,ob->nab", left, matrices, right) ** 2).sum(axis=0)).sum()
    assert ratio("ekfac") == pytest.approx(expected, rel=1e-9)
    found = log_evidence(Problem(model), WEIGHTS, X, Y, SCALES, curvature="ekfac")  # measures the basis itself
    assert float(found.log_det_ratio) == pytest.approx(expected, rel=1e-9)
    assert (found.kind, found.untapped) == ("laplace-ekfac-bound", ("gain",))


@pytest.mark.parametrize("size", [4, 200])
def test_ntk_prices_blocks_of_rows(size):
    rows, _ = scaled_rows()
    blocks = [rows[start : start + size].reshape(-1, rows.shape[-1]) for start in range(0, ROWS, size)]
    found, _ = run("ntk", block_size=size)
    assert float(found.log_det_ratio) == pytest.approx(sum(log_det(block @ block.T) for block in blocks), rel=1e-9)
    assert found.kind == "ntk-bound"


def test_cells_of_rows_and_columns_estimate_the_bound_of_single_columns_without_bias():
    rows, _ = scaled_rows()
    cells = [rows[order, k] for order in np.arange(ROWS).reshape(1, -1) for k in range(3)]  # one block of all rows
    expected = sum(log_det(cell @ cell.T) for cell in cells)
    draws = jax.jit(
        jax.vmap(
            lambda key: (
                log_evidence(
                    Problem(model), WEIGHTS, X, Y, SCALES, curvature="ntk", probes=2, key=key, block_size=ROWS
                ).log_det_ratio
            )
        )
    )(jax.random.split(jax.random.key(0), 400))
    assert abs(draws.mean() - expected) < 4 * draws.std() / 20
    assert expected > ratio("full")


def test_random_probes_are_unbiased_in_the_curvature_and_its_gradient():
    def of(scale, key):
        probes = {} if key is None else {"probes": 1, "key": key}
        # the trace of L' G L is the log-determinant ratio of a small prior, to first order: linear in the curvature
        found = log_evidence(Problem(model), WEIGHTS, X * scale, Y, 1e-4 * SCALES, curvature="diag", **probes)
        return found.log_det_ratio * 1e8

    exact, slope = jax.jit(jax.value_and_grad(lambda s: of(s, None)))(1.0)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(of), (None, 0)))(1.0, jax.random.split(jax.random.key(1), 4000))
    assert abs(values.mean() - exact) < 4 * values.std() / 4000**0.5
    assert abs(slopes.mean() - slope) < 4 * slopes.std() / 4000**0.5
    assert slopes.std() / 4000**0.5 < 0.02 * abs(slope)


@pytest.mark.parametrize("curvature", ["full", "ekfac"])
def test_chunks_of_rows_change_nothing(curvature):
    whole, chunked = run(curvature), run(curvature, chunk=3)  # 11 rows do not fill chunks of 3
    assert float(whole[0].value) == pytest.approx(float(chunked[0].value), rel=1e-10)
    for a, b in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(chunked[1]), strict=True):
        assert np.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("curvature", ["ekfac", "ntk"])
def test_a_batch_stands_for_all_rows(curvature):
    # every row twice is the same as rows that count twice
    twice = np.concatenate([X, X]), np.concatenate([Y, Y])
    options = {"block_size": ROWS} if curvature == "ntk" else {}
    whole = log_evidence(Problem(model), WEIGHTS, *twice, SCALES, curvature=curvature, **options)
    batch = log_evidence(Problem(model), WEIGHTS, X, Y, SCALES, curvature=curvature, num_rows=2 * ROWS, **options)
    assert float(batch.log_likelihood) == pytest.approx(float(whole.log_likelihood), rel=1e-10)
    assert float(batch.log_det_ratio) == pytest.approx(float(whole.log_det_ratio), rel=1e-10)


@pytest.mark.parametrize("curvature", [*STRUCTURED, "full", "kfac"])
def test_gradients_match_finite_differences(curvature):
    options = {"block_size": 4} if curvature == "ntk" else {}
    by_weight, by_input, by_scale = run(curvature, **options)[1]
    ways = [det((3, 3, 1, 2), 0.7, 0.1), det(X.shape, 1.3, 0.4), SCALES]
    exact = [float((g * way).sum()) for g, way in zip((by_weight["conv"], by_input, by_scale), ways, strict=True)]

    def value(index, step):
        moved = [step * way if i == index else 0 for i, way in enumerate(ways)]
        weights = WEIGHTS | {"conv": WEIGHTS["conv"] + moved[0]}
        return float(run(curvature, weights, X + moved[1], SCALES + moved[2], **options)[0].value)

    h = 2e-3  # a five-point stencil: its error is O(h^4)
    for i in range(3):
        steps = [value(i, k * h) for k in (1, -1, 2, -2)]
        found = (8 * (steps[0] - steps[1]) - (steps[2] - steps[3])) / (12 * h)
        assert abs(exact[i]) > 1e-3
        assert found == pytest.approx(exact[i], rel=1e-6)


def test_the_newton_decrement_matches_the_dense_solve():
    rows, sites = fisher_rows()
    flat = rows.reshape(-1, rows.shape[-1])
    layout = Layout.of(WEIGHTS)

    def log_joint(weights):
        density = Problem(model).log_density(weights, (X, Y, jnp.asarray(SCALES)))
        return density.likelihood + density.prior

    gradient = np.asarray(layout.flatten(jax.jit(jax.grad(log_joint))({n: jnp.asarray(w, float) for n, w in WEIGHTS.items()})))
    precision = np.diag(1 / SCALES[sites] ** 2)
    exact = gradient @ np.linalg.solve(flat.T @ flat + precision, gradient)
    assert float(run("full")[0].newton_decrement) == pytest.approx(exact, rel=1e-8)
    assert float(run("ntk", block_size=4)[0].newton_decrement) == pytest.approx(
        gradient @ np.linalg.solve(precision, gradient), rel=1e-8
    )
    basis = frozen_basis()
    total = 0.0
    for i, name in enumerate(SHAPES):
        block, g = flat[:, sites == i], gradient[sites == i]
        matrix = block.T @ block
        if name in basis:
            left, right = map(np.asarray, basis[name])
            q = np.kron(right, left) if name == "head" else np.kron(left, right)
            matrix = q @ np.diag(np.diag(q.T @ matrix @ q)) @ q.T
        total += g @ np.linalg.solve(matrix + np.eye(len(g)) / SCALES[i] ** 2, g)
    assert float(run("ekfac")[0].newton_decrement) == pytest.approx(total, rel=1e-8)


# Correlated priors


SWAP = groups.cyclic(2)
REP = (representations.trivial(SWAP, 4) * representations.regular(SWAP)).reshape(4, 2)
SX, SY = det((9, 4), 1.7, 0.05), det((9, 2), 2.3, 0.6)
SW = {"w": det((4, 2), 1.1, 0.2), "b": det((2,), 0.7, 0.1)}


def correlated(x, y, strengths, prior):
    covariance = jnp.eye(8) * strengths[0] + strengths[1] * jnp.outer(det((8,), 0.9, 0.3), det((8,), 0.9, 0.3))
    fn = {
        "soft": lambda: SoftEquivariantNormal(REP, strengths[0], strengths[1]),
        "dense": lambda: dist.MultivariateNormal(jnp.zeros(8), covariance),
        "by entry": lambda: dist.Normal(0.0, strengths[0] * jnp.linspace(0.5, 2.0, 8).reshape(4, 2)).to_event(2),
    }[prior]()
    w = numpyro.sample("w", fn).reshape(4, 2)
    b = numpyro.sample("b", dist.Normal(0.0, jnp.array([0.5, 2.0])).to_event(1))
    z = x @ w + b[None]
    if prior != "dense":  # a flat site could be a matrix either way round, so it has no tap
        z = tap("z", z, inputs=x, weight="w", bias="b")
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.tanh(z), 0.4).to_event(1), obs=y)


PRIORS = {
    "soft": lambda s: np.asarray(SoftEquivariantNormal(REP, *s).representation.projector) * (s[0] - s[1]) + s[1] * np.eye(8),
    "dense": lambda s: np.eye(8) * s[0] + s[1] * np.outer(det((8,), 0.9, 0.3), det((8,), 0.9, 0.3)),
    "by entry": lambda s: np.diag((s[0] * np.linspace(0.5, 2.0, 8)) ** 2),
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("prior", PRIORS)
def test_correlated_priors_are_priced_by_every_curvature(prior, whole, monkeypatch):
    if not whole:  # as sites are that are too large for a block of their own
        monkeypatch.setattr(measure, "_LARGEST_FALLBACK", 3)
    weights = SW | ({"w": SW["w"].reshape(8)} if prior == "dense" else {})
    strengths = np.array([1.5, 0.2])

    def of(strengths, curvature):
        def bound(x, y, strengths):
            return correlated(x, y, strengths, prior)

        return log_evidence(Problem(bound), weights, SX, SY, strengths, curvature=curvature, block_size=3).log_det_ratio

    kinds = ("full", *STRUCTURED) if prior == "soft" and whole else ("full", "ekfac")
    out = {c: jax.jit(jax.value_and_grad(functools.partial(of, curvature=c))) for c in kinds}
    found = {curvature: float(fn(strengths)[0]) for curvature, fn in out.items()}

    z = SX @ SW["w"] + SW["b"]
    slope = (1 - np.tanh(z) ** 2) / 0.4
    rows = np.einsum("no,ni,op->noip", slope, np.column_stack([SX, np.ones(9)]), np.eye(2))
    rows = np.concatenate([rows[:, :, :4].reshape(9, 2, 8), rows[:, :, 4].reshape(9, 2, 2)], axis=-1)
    covariance = np.zeros((10, 10))
    covariance[:8, :8], covariance[8:, 8:] = PRIORS[prior](strengths), np.diag([0.25, 4.0])
    values, vectors = np.linalg.eigh(covariance)
    whitened = rows @ (vectors * np.sqrt(values)) @ vectors.T
    flat = whitened.reshape(-1, 10)
    assert found["full"] == pytest.approx(log_det(flat.T @ flat), rel=1e-9)
    block = log_det(flat[:, :8].T @ flat[:, :8]) + log_det(flat[:, 8:].T @ flat[:, 8:])
    assert found["ekfac"] == pytest.approx(block, rel=1e-9) if whole else block < found["ekfac"]
    if prior == "soft" and whole:
        blocks = [whitened[i : i + 3].reshape(-1, 10) for i in range(0, 9, 3)]
        assert found["ntk"] == pytest.approx(sum(log_det(block @ block.T) for block in blocks), rel=1e-9)
        assert found["block"] == pytest.approx(block, rel=1e-9)
        assert found["diag"] == pytest.approx(np.log1p((flat**2).sum(axis=0)).sum(), rel=1e-9)
    for fn in out.values():
        step, gradient = 1e-4, fn(strengths)[1]
        for i in range(2):
            moved = [float(fn(strengths + s * step * np.eye(2)[i])[0]) for s in (1, -1)]
            assert float(gradient[i]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-5, abs=1e-8)


# Bounds in many random nets


@functools.cache
def random_net(shared, classes):
    """log-determinant ratios of (full, block, ekfac, diag, ntk of 8, 4, 2 and 1 rows)."""

    def sites(key):
        shapes = {"w1": (5, 4), "b1": (4,), "w2": (4, 4), "w3": (4, classes), "b3": (classes,)}
        return {name: jax.random.normal(jax.random.fold_in(key, i), shape) for i, (name, shape) in enumerate(shapes.items())}

    def random_model(x, scales):
        w = {
            name: numpyro.sample(name, dist.Normal(0.0, scales[i]).expand(value.shape).to_event(value.ndim))
            for i, (name, value) in enumerate(jax.eval_shape(sites, jax.random.key(0)).items())
        }
        with jax.numpy_rank_promotion("allow"):
            h = jnp.tanh(tap("1", x @ w["w1"] + w["b1"], inputs=x, weight="w1", bias="b1"))
            h = jnp.tanh(tap("2", h @ w["w2"], inputs=h, weight="w2"))
            if shared:
                h = jnp.tanh(tap("2.again", h @ w["w2"], inputs=h, weight="w2"))
            f = tap("3", h @ w["w3"] + w["b3"], inputs=h, weight="w3", bias="b3")
            f = f.mean(axis=1)  # positions share the weights
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=f), obs=jnp.zeros(x.shape[0], int))

    def ratios(key):
        keys = jax.random.split(key, 3)
        x = 2 * jax.random.normal(keys[0], (8, 3 if shared else 1, 5))
        scales = jnp.exp(jax.random.normal(keys[1], (5,)))
        weights = sites(keys[2])

        def of(curvature, **options):
            found = log_evidence(Problem(random_model), weights, x, scales, curvature=curvature, **options)
            return found.log_det_ratio

        ntk = [of("ntk", block_size=size) for size in (8, 4, 2, 1)]
        return jnp.stack([of("full"), of("block"), of("ekfac"), of("diag"), *ntk])

    return jax.jit(lambda keys: jax.lax.map(ratios, keys))


@pytest.mark.parametrize(("shared", "classes"), [(False, 3), (True, 2)])
def test_bounds_hold_in_random_nets(shared, classes):
    found = np.asarray(random_net(shared, classes)(jax.random.split(jax.random.key(5), 100)))  # twice 100 nets
    full, block, ekfac, diagonal, *ntk = found.T
    slack = -1e-9
    assert (block - full >= slack).all()
    assert (ekfac - block >= slack).all()
    assert (diagonal - block >= slack).all()
    assert np.allclose(ntk[0], full, rtol=1e-9)
    for finer, coarser in zip(ntk[1:], ntk, strict=False):
        assert (finer - coarser >= slack).all()
    assert (ekfac - block).mean() > 0.01  # the bounds are not equalities
    assert (ekfac - full).mean() < (diagonal - full).mean()


def test_tied_outputs_do_not_break_the_bound_of_single_columns():
    # With logits (f, -f), the diagonal p (1 - p) of the Fisher information is too small for a bound; roots are not.
    def tied(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        f = tap("f", x @ w[:, None], inputs=x, weight="w")[:, 0]
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=jnp.stack([f, -f], axis=-1)), obs=y)

    x, w = det((12, 2), 1.7, 0.3), det((2,), 0.9, 0.2)
    full = float(log_evidence(Problem(tied), {"w": w}, x, np.zeros(12, int)).log_det_ratio)
    p = 1 / (1 + np.exp(2 * x @ w))
    columns = [x * np.sqrt(p * (1 - p))[:, None]] * 2  # what estimators from the diagonal use, for both outputs
    wrong = sum(log_det(rows @ rows.T) for rows in columns)
    keys = jax.random.split(jax.random.key(0), 200)
    draws = jax.jit(
        jax.vmap(
            lambda key: (
                log_evidence(
                    Problem(tied), {"w": w}, x, np.zeros(12, int), curvature="ntk", probes=1, key=key, block_size=12
                ).log_det_ratio
            )
        )
    )(keys)
    assert draws.mean() >= full
    assert wrong < full


# Degenerate factors, small cases


def test_kronecker_gradients_are_exact_where_factors_are_degenerate():
    def flat(x, y, scale, curvature="kfac"):
        w = numpyro.sample("w", dist.Normal(0.0, scale).expand([4, 4]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(tap("z", x @ w, inputs=x, weight="w"), 0.5).to_event(1), obs=y)

    weights = {"w": np.zeros((4, 4))}
    cases = {"identity": np.eye(4), "zero": np.zeros((4, 4)), "rank one": np.outer(det((4,), 1.1, 0.2), np.ones(4))}
    for name, x in cases.items():
        for curvature in ("kfac", "ekfac"):

            def of(x, scale, curvature=curvature):
                return log_evidence(Problem(flat), weights, x, np.zeros((4, 4)), scale, curvature=curvature).log_det_ratio

            def dense(x, scale):
                return 4 * jnp.linalg.slogdet(jnp.eye(4) + scale**2 * x.T @ x / 0.25)[1]

            gradients = jax.jit(jax.value_and_grad(of, (0, 1)))(x, 0.8)
            expected = jax.value_and_grad(dense, (0, 1))(x, 0.8)
            for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
                # the basis of ekfac is held: exact at an eigenbasis, since the diagonal is stationary there
                assert np.allclose(a, b, atol=1e-10), (name, curvature)


@pytest.mark.parametrize("curvature", ["ekfac", "ntk"])
def test_one_row_and_constant_inputs(curvature):
    def of(scales):
        return log_evidence(Problem(model), WEIGHTS, np.zeros_like(X[:1]), Y[:1], scales, curvature=curvature).value

    value, gradient = jax.jit(jax.value_and_grad(of))(SCALES)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("curvature", ["ekfac"])
def test_float32_agrees_with_float64(curvature):
    exact, _ = run(curvature)
    with jax.enable_x64(False):
        weights = {name: np.float32(value) for name, value in WEIGHTS.items()}
        single = log_evidence(Problem(model), weights, np.float32(X), Y, np.float32(SCALES), curvature=curvature)
        assert single.value.dtype == np.float32
    assert float(single.value) == pytest.approx(float(exact.value), rel=1e-5)
    assert float(single.log_det_ratio) == pytest.approx(float(exact.log_det_ratio), rel=3e-5)


def test_whitened_weights_have_the_same_evidence():
    def centred(x, y, s):
        w = numpyro.sample("w", dist.Normal(0.0, s).expand([3, 2]).to_event(2))
        f = tap("f", x @ w, inputs=x, weight="w")
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(1), obs=y)

    def whitened(x, y, s):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        f = tap("f", x @ w * s, inputs=x * s, weight="w")
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(jnp.exp(f)).to_event(1), obs=y)

    x, w, y = det((6, 3), 1.7, 0.05), det((3, 2), 1.1, 0.2), np.arange(12).reshape(6, 2) % 4
    for curvature in ("ekfac", "ntk"):
        a = log_evidence(Problem(centred), {"w": w}, x, y, 0.7, curvature=curvature)
        b = log_evidence(Problem(whitened), {"w": w / 0.7}, x, y, 0.7, curvature=curvature)
        assert float(a.value) == pytest.approx(float(b.value), rel=1e-10), curvature


# Held evidence and the exact Hessian


def test_held_evidence_is_the_evidence_as_a_function_of_the_strengths():
    def hierarchical(x, y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        w = numpyro.sample("w", dist.Normal(0.0, scale).expand([4, 3]).to_event(2))
        b = numpyro.sample("b", dist.Normal(0.0, 2 * scale).expand([3]).to_event(1))
        f = tap("f", x @ w + b[None], inputs=x, weight="w", bias="b")
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=f), obs=y)

    x, y = det((10, 4), 1.7, 0.05), np.arange(10) % 3
    weights = {"scale": 0.8, "w": det((4, 3), 1.1, 0.2), "b": det((3,), 0.7, 0.1)}
    for curvature, correction in (("ekfac", None), ("full", "newton"), ("dual", "seen"), ("ntk", None)):
        options = {"optimise": ("scale",), "curvature": curvature, "correction": correction}
        held = hold_evidence(Problem(hierarchical), weights, x, y, **options)
        value = jax.jit(jax.value_and_grad(lambda s, held=held: held({"scale": s}).value))
        direct = jax.jit(
            jax.value_and_grad(
                lambda s, options=options: log_evidence(Problem(hierarchical), weights | {"scale": s}, x, y, **options).value
            )
        )
        for scale in (0.3, 0.8, 2.0):
            assert np.allclose(value(scale), direct(scale), rtol=1e-9), curvature
    assert held({"scale": 0.8}).kind == "ntk-bound"


def test_the_exact_hessian_equals_gauss_newton_for_a_canonical_linear_model_and_is_refused_where_indefinite():
    def logistic(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.5).expand([3]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    x, y = det((8, 3), 1.7, 0.05), np.arange(8) % 2
    w = {"w": det((3,), 1.1, 0.2)}
    full, hessian = (log_evidence(Problem(logistic), w, x, y, curvature=c) for c in ("full", "hessian"))
    assert float(hessian.value) == pytest.approx(float(full.value), rel=1e-12)
    assert hessian.kind == "laplace-hessian"

    def bent(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal((x @ w) ** 2, 0.1), obs=y)

    with pytest.raises(CurvatureError, match="the Hessian of the log joint is indefinite here"):
        log_evidence(Problem(bent), {"w": 0.01 * w["w"]}, x, 1.0 + y, curvature="hessian")


def test_holding_a_curvature_that_moves_is_refused():
    def noisy(x, y):
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(tap("z", x @ w, inputs=x, weight="w"), sigma).to_event(1), obs=y)

    with pytest.raises(OptionError, match="cannot be held while these move"):
        hold_evidence(Problem(noisy), {"sigma": 0.3, "w": SW["w"]}, SX, SY, optimise=("sigma",))


def test_priors_that_a_structure_cannot_price_are_refused():
    def cauchy(x, y):
        w = numpyro.sample("w", dist.StudentT(5.0, 0.0, 1.0).expand([4, 2]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(tap("z", x @ w, inputs=x, weight="w"), 0.4).to_event(1), obs=y)

    for curvature, message in (("ekfac", "needs Gaussian priors on tapped weights"), ("ntk", "independent Gaussian priors")):
        with pytest.raises(PriorError, match=message):
            log_evidence(Problem(cauchy), {"w": 0.1 * SW["w"]}, SX, SY, curvature=curvature)


def test_memory_grows_neither_with_rows_nor_with_classes():
    def memory(rows, classes):
        def wide(x, y):
            w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([8, classes]).to_event(2))
            with numpyro.plate("data", x.shape[0]):
                numpyro.sample("y", dist.Categorical(logits=tap("z", x @ w, inputs=x, weight="w")), obs=y)

        def of(w, x, y):
            return log_evidence(Problem(wide), {"w": w}, x, y, curvature="ekfac", chunk=64).value

        args = (np.zeros((8, classes)), np.zeros((rows, 8)), np.zeros(rows, int))
        compiled = jax.jit(jax.value_and_grad(of)).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # what grows is a few numbers per row and class (the log likelihood and its gradient), not the Jacobian
    assert memory(4096, 10) - memory(256, 10) < 3840 * 10 * 10 * 8
    assert memory(1024, 300) - memory(256, 300) < 768 * 300 * 10 * 8 < 768 * 300 * 2400 * 8 / 100


# Invariances of the evidence, on one small net


def small(x, y, scale):
    w1 = numpyro.sample("w1", dist.Normal(0.0, scale).expand([3, 4]).to_event(2))
    w2 = numpyro.sample("w2", dist.Normal(0.0, 2 * scale).expand([4, 3]).to_event(2))
    h = jnp.tanh(tap("1", x @ w1, inputs=x, weight="w1"))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=tap("2", h @ w2, inputs=h, weight="w2")), obs=y)


SMALL = {"w1": det((3, 4), 1.3, 0.1), "w2": det((4, 3), 0.9, 0.2)}
SMALL_X, SMALL_Y = det((8, 3), 1.7, 0.05), np.arange(8, dtype=np.int32) % 3


@pytest.mark.parametrize("curvature", ["full", "ekfac", "kfac", "diag"])
def test_orders_of_rows_classes_and_units_do_not_matter(curvature):
    of = jax.jit(lambda params, x, y: log_evidence(Problem(small), params, x, y, 0.7, curvature=curvature).value)
    value = float(of(SMALL, SMALL_X, SMALL_Y))
    rows = np.array([3, 0, 7, 1, 2, 6, 5, 4])
    assert float(of(SMALL, SMALL_X[rows], SMALL_Y[rows])) == pytest.approx(value, rel=1e-12)
    classes = np.array([2, 0, 1])
    assert float(of(SMALL | {"w2": SMALL["w2"][:, np.argsort(classes)]}, SMALL_X, classes[SMALL_Y])) == pytest.approx(
        value, rel=1e-12
    )
    units = np.array([1, 3, 0, 2])
    moved = {"w1": SMALL["w1"][:, units], "w2": SMALL["w2"][units]}
    assert float(of(moved, SMALL_X, SMALL_Y)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("curvature", ["kfac_reduce", "hessian"])
def test_gradients_of_the_other_curvatures_match_finite_differences(curvature):
    @jax.jit
    @jax.value_and_grad
    def of(step):
        params = SMALL | {"w1": SMALL["w1"] + step[0] * det((3, 4), 0.7, 0.1)}
        x = SMALL_X + step[1] * det((8, 3), 1.1, 0.4)
        return log_evidence(Problem(small), params, x, SMALL_Y, jnp.exp(step[2]) * 0.3, curvature=curvature).value

    exact, h = of(np.zeros(3))[1], 2e-3
    for i in range(3):
        steps = [float(of(k * h * np.eye(3)[i])[0]) for k in (1, -1, 2, -2)]
        found = (8 * (steps[0] - steps[1]) - (steps[2] - steps[3])) / (12 * h)
        assert abs(exact[i]) > 1e-3
        assert found == pytest.approx(float(exact[i]), rel=1e-6)


def test_it_runs_under_jit_grad_vmap_and_scan():
    def of(scale):
        return log_evidence(Problem(small), SMALL, SMALL_X, SMALL_Y, scale, curvature="ekfac").value

    scales = jnp.linspace(0.2, 2.0, 16)
    one_by_one = jax.lax.map(jax.grad(of), scales)
    at_once = jax.jit(jax.vmap(jax.grad(of)))(scales)
    _, in_scan = jax.lax.scan(lambda carry, scale: (carry, jax.grad(of)(scale)), 0, scales)
    assert np.allclose(one_by_one, at_once, rtol=1e-9) and np.allclose(one_by_one, in_scan, rtol=1e-9)


def test_kfac_is_never_below_the_mean_of_its_cyclic_pairings():
    # A (x) B is the average over shifts s of sum_n a_{n+s} a_{n+s}' (x) g_n g_n', and log det is concave
    rng = np.random.default_rng(0)
    for _ in range(200):
        count, inputs, outputs = rng.integers(2, 6), rng.integers(1, 4), rng.integers(1, 4)
        a, g = rng.standard_normal((count, inputs)), rng.standard_normal((count, outputs))
        pairings = [
            log_det(sum(np.kron(np.outer(a[(n + s) % count], a[(n + s) % count]), np.outer(g[n], g[n])) for n in range(count)))
            for s in range(count)
        ]
        piece = Kronecker(Layout(("w",), ((inputs, outputs),)), jnp.asarray(a.T @ a / count), jnp.asarray(g.T @ g), False)
        part = gaussian_part(dist.Normal(0.0, 1.0), (inputs, outputs))
        with jax.disable_jit():
            found = float(piece.log_det_ratio(part))
        assert found >= np.mean(pairings) - 1e-9


def test_a_tapped_group_convolution_is_a_dense_layer_with_tied_weights():
    # regular representation of C3: W[g, h] = v[g^-1 h]; positions are the group elements
    def by_tap(x, y):
        v = numpyro.sample("v", dist.Normal(0.0, 0.8).expand([3, 1]).to_event(2))
        shifted = jnp.stack([jnp.roll(x, -g, axis=1) for g in range(3)], axis=1)  # (rows, g, 3)
        z = tap("z", shifted @ v, inputs=shifted, weight="v")[..., 0]
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(jnp.tanh(z), 0.5).to_event(1), obs=y)

    def dense(x, y):
        v = numpyro.sample("v", dist.Normal(0.0, 0.8).expand([3, 1]).to_event(2))
        w = jnp.stack([jnp.roll(v[:, 0], g) for g in range(3)], axis=1)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(jnp.tanh(x @ w), 0.5).to_event(1), obs=y)

    x, y, v = det((7, 3), 1.7, 0.05), det((7, 3), 2.3, 0.6), {"v": det((3, 1), 0.9, 0.2)}
    full = [float(log_evidence(Problem(model), v, x, y).value) for model in (by_tap, dense)]
    block = float(log_evidence(Problem(by_tap), v, x, y, curvature="block").value)
    assert full[0] == pytest.approx(full[1], rel=1e-10) and block == pytest.approx(full[0], rel=1e-10)


def test_a_dense_matrix_beyond_memory_is_refused_with_its_size_before_any_compute():
    def wide(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3000, 10]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=tap("z", x @ w, inputs=x, weight="w")), obs=y)

    shapes = {"w": jax.ShapeDtypeStruct((3000, 10), float)}
    data = jax.ShapeDtypeStruct((30_000, 3000), float), jax.ShapeDtypeStruct((30_000,), np.int32)
    for curvature in ("full", "block", "hessian"):
        with pytest.raises(
            CurvatureError, match="30000 x 30000 over the sites .* would take 3.4 GiB in float32: use curvature='ekfac'"
        ):
            jax.eval_shape(lambda w, x, y, c=curvature: log_evidence(Problem(wide), w, x, y, curvature=c), shapes, *data)
