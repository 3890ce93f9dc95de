"""Curvature of grouped taps, linear maps side by side with a matrix each, against dense matrices by brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_sym import groups, representations, tap
from bayes_sym.errors import TapError
from bayes_sym.inference import Problem, effective_parameters, evidence_basis, log_evidence
from bayes_sym.inference.blocks import KroneckerBlock, Layout
from bayes_sym.inference.curvature.measure import measure
from bayes_sym.layers import Activation, Factored, Field, Flatten, Sequential, random_module
from bayes_sym.priors import IndependentScales, SoftEquivariance


pytestmark = pytest.mark.usefixtures("x64")

ROWS = 7
SPEC = Sequential((Factored(2, 3, (2, 2)), Activation("tanh"), Factored(3, 2, (2, 2), stride=2), Flatten()))
FLIPS = groups.cyclic(2)
SITES = [f"net.{site.name}" for site in SPEC.sites()]


def det(shape, a, b):
    """Numbers that anybody can rebuild."""
    return np.sin(a * np.arange(1, np.prod(shape) + 1) + b).reshape(shape)


X, Y = 1.5 * det((ROWS, 2, 2, 2), 1.7, 0.05), np.arange(ROWS, dtype=np.int32) % 2
WEIGHTS = {f"net.{site.name}": 0.8 * det(site.shape, 1.1 + i, 0.2) for i, site in enumerate(SPEC.sites())}


def model(x, y, scales):
    net = random_module("net", SPEC, prior=IndependentScales({site.name: scales[i] for i, site in enumerate(SPEC.sites())}))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


SCALES = np.array([0.7, 1.3, 0.9, 0.6, 0.5, 1.1, 0.8, 1.2])


@functools.cache
def fisher_rows():
    """Whitened square-root Fisher rows (rows, 2, P) by a dense Jacobian, and which site every column belongs to."""
    layout = Layout.of(WEIGHTS)

    def logits(flat):
        values = {name.removeprefix("net."): value for name, value in layout.unflatten(flat).items()}
        return SPEC.apply(values, jnp.asarray(X))

    flat = layout.flatten({name: jnp.asarray(w) for name, w in WEIGHTS.items()})
    jacobian, out = jax.jit(lambda flat: (jax.jacrev(logits)(flat), logits(flat)))(flat)
    p = np.asarray(jax.nn.softmax(out))
    root = np.einsum("nk,kc->nkc", np.sqrt(p), np.eye(2)) - np.einsum("nk,nc->nkc", np.sqrt(p), p)
    rows = np.einsum("nkc,ncp->nkp", root, jacobian)
    scale = [
        np.full(int(np.prod(site.shape)), float(SCALES[i]) ** site.share / np.sqrt(site.fan_in))
        for i, site in enumerate(SPEC.sites())
    ]
    owner = np.concatenate([np.full(len(of), i) for i, of in enumerate(scale)])
    return rows * np.concatenate(scale), owner


def log_det(matrix):
    return np.linalg.slogdet(np.eye(len(matrix)) + matrix)[1]


@functools.cache
def program(curvature, **options):
    def of(weights, scales):
        found = log_evidence(Problem(model), weights, X, Y, scales, curvature=curvature, **options)
        return found.value, found

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))


def run(curvature, weights=WEIGHTS, scales=SCALES, **options):
    (_, found), gradients = program(curvature, **options)(weights, scales)
    return found, gradients


def test_a_factored_layer_has_grouped_taps_and_no_site_is_left_out():
    structure = Problem(model).structure(X, Y, SCALES)
    assert [meta.groups for meta in structure.taps.values()] == [2, 3, 3, 2]
    assert run("ekfac")[0].untapped == ()


def test_full_block_diag_and_ntk_match_the_dense_matrix():
    rows, owner = fisher_rows()
    flat = rows.reshape(-1, rows.shape[-1])
    assert float(run("full")[0].log_det_ratio) == pytest.approx(log_det(flat @ flat.T), rel=1e-9)
    blocks = [flat[:, owner == i] for i in range(len(SITES))]
    assert float(run("block")[0].log_det_ratio) == pytest.approx(sum(log_det(b.T @ b) for b in blocks), rel=1e-9)
    assert float(run("diag")[0].log_det_ratio) == pytest.approx(np.log1p((flat**2).sum(axis=0)).sum(), rel=1e-9)
    some = [rows[start : start + 3].reshape(-1, rows.shape[-1]) for start in range(0, ROWS, 3)]
    assert float(run("ntk", block_size=3)[0].log_det_ratio) == pytest.approx(sum(log_det(b @ b.T) for b in some), rel=1e-9)


def test_ekfac_is_the_diagonal_in_a_basis_of_its_own_for_every_group():
    rows, owner = fisher_rows()
    basis = evidence_basis(Problem(model), WEIGHTS, X, Y, SCALES)
    expected = 0.0
    for i, site in enumerate(SPEC.sites()):
        flat = rows[..., owner == i].reshape(ROWS * 2, -1)
        if site.kind == "bias":
            expected += log_det(flat.T @ flat)
            continue
        left, right = map(np.asarray, basis[f"net.{site.name}"])
        assert left.shape[0] == right.shape[0] == site.shape[0]
        matrices = flat.reshape(len(flat), left.shape[0], left.shape[1], right.shape[1])
        expected += np.log1p((np.einsum("gia,ngio,gob->ngab", left, matrices, right) ** 2).sum(axis=0)).sum()
    assert float(run("ekfac")[0].log_det_ratio) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("curvature", ["kfac", "kfac_reduce"])
def test_kfac_has_factors_of_its_own_for_every_group(curvature):
    """One position per row, so that expand and reduce agree on weights: A_c = mean a a', B_c = sum g g' for each group c."""
    problem, fixed, data = Problem(model), {}, (jnp.asarray(X), jnp.asarray(Y), SCALES)
    rows, owner = fisher_rows()
    seen = {"net.0.input": np.asarray(X).reshape(ROWS, 4, 2).swapaxes(1, 2)}
    values = {name.removeprefix("net."): value for name, value in WEIGHTS.items()}
    weights = np.asarray(values["0.input"]).reshape(2, 4, 3)
    seen["net.0.output"] = np.swapaxes(
        np.einsum("ncp,cpd->ncd", seen["net.0.input"], weights) + np.asarray(values["0.input_bias"]), 1, 2
    )
    pieces = {
        piece.layout.names[0]: piece
        for piece in measure(problem, {n: jnp.asarray(w) for n, w in WEIGHTS.items()}, fixed, data, curvature)
    }
    for i, name in enumerate(SITES):
        if name not in seen:
            continue
        a = seen[name]
        assert np.allclose(pieces[name].inputs, np.einsum("nca,ncb->cab", a, a) / ROWS, rtol=1e-9)
        groups_, inputs = a.shape[1:]
        site = SPEC.sites()[i]
        whitened = rows[..., owner == i].reshape(ROWS, 2, groups_, inputs, -1)
        unscaled = whitened / (float(SCALES[i]) ** site.share / np.sqrt(site.fan_in))
        g = np.einsum("nkgio,ngi->nkgo", unscaled, a) / (a**2).sum(axis=-1)[:, None, :, None]  # rows are a g'
        assert np.allclose(pieces[name].outputs, np.einsum("nkga,nkgb->gab", g, g), rtol=1e-7)
    # a bias is shared by the groups, so they are positions to it: summed before products in reduce, after them in expand
    i = SITES.index("net.0.output_bias")
    whole = (rows[..., owner == i] / float(SCALES[i])).reshape(ROWS * 2, -1)
    reduced = np.allclose(pieces["net.0.output_bias"].matrix, whole.T @ whole, rtol=1e-9)
    assert reduced == (curvature == "kfac_reduce")


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "ntk", "block"])
def test_gradients_match_finite_differences(curvature):
    step = 1e-5
    options = {"block_size": 3} if curvature == "ntk" else {}
    _, (of_weights, of_scales) = run(curvature, **options)
    if curvature == "ekfac":  # its basis is held constant, so differences must hold it too
        options["basis"] = None
        basis = evidence_basis(Problem(model), WEIGHTS, X, Y, SCALES)
        value = jax.jit(lambda w, s: log_evidence(Problem(model), w, X, Y, s, curvature=curvature, basis=basis).value)
    else:
        value = lambda w, s: run(curvature, w, s, **options)[0].value  # noqa: E731
    direction = {name: jnp.asarray(det(w.shape, 0.9, 0.3)) for name, w in WEIGHTS.items()}
    ahead, behind = ({n: w + sign * step * direction[n] for n, w in WEIGHTS.items()} for sign in (1, -1))
    slope = sum(float((of_weights[name] * direction[name]).sum()) for name in WEIGHTS)
    assert slope == pytest.approx(float(value(ahead, SCALES) - value(behind, SCALES)) / (2 * step), rel=1e-6)
    along = jnp.asarray(det(SCALES.shape, 0.7, 0.1))
    slope = float((of_scales * along).sum())
    assert slope == pytest.approx(
        float(value(WEIGHTS, SCALES + step * along) - value(WEIGHTS, SCALES - step * along)) / (2 * step), rel=1e-6
    )


@pytest.mark.parametrize("curvature", ["full", "block", "ekfac"])
def test_effective_parameters_are_traces(curvature):
    rows, owner = fisher_rows()
    flat = rows.reshape(-1, rows.shape[-1])
    found = effective_parameters(Problem(model), WEIGHTS, X, Y, SCALES, curvature=curvature)
    gram = flat.T @ flat
    whole = gram @ np.linalg.inv(np.eye(len(gram)) + gram)
    for i, name in enumerate(SITES):
        own = owner == i
        if curvature == "full":
            expected = np.trace(whole[np.ix_(own, own)])
        else:
            expected = np.trace(gram[np.ix_(own, own)] @ np.linalg.inv(np.eye(own.sum()) + gram[np.ix_(own, own)]))
        assert 0 <= float(found[name]) <= own.sum()
        if curvature != "ekfac" or SPEC.sites()[i].kind == "bias":
            assert float(found[name]) == pytest.approx(expected, rel=1e-8)


def test_a_correlated_prior_on_a_factored_layer_is_priced():
    field = Field.of(representations.image(FLIPS, (2, 2)), 2)
    outputs = [representations.trivial(FLIPS, 3), representations.trivial(FLIPS, 2)]
    reps, _ = SPEC.representations(field, iter(outputs))

    def soft(x, y):
        net = random_module("net", SPEC, prior=SoftEquivariance(reps, 0.4))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    full, ekfac, block = (
        float(log_evidence(Problem(soft), WEIGHTS, X, Y, curvature=c).log_det_ratio) for c in ("full", "ekfac", "block")
    )
    assert full <= block + 1e-9
    assert block <= ekfac + 1e-9


@pytest.mark.parametrize("transposed", [False, True])
def test_kronecker_blocks_side_by_side_are_the_dense_gaussian(transposed):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((2, n, n)))[0] for n in (3, 2))
    scale, mean = rng.uniform(0.5, 2, (2, 3, 2)), rng.standard_normal((2, 3, 2))
    layout = Layout(("w",), ((2, 2, 3) if transposed else (2, 3, 2),))
    block = KroneckerBlock(layout, *map(jnp.asarray, (mean, left, right, scale)), transposed)
    root = np.zeros((12, 12))
    for g in range(2):
        part = np.kron(left[g], right[g]) * scale[g].reshape(-1)
        root[6 * g : 6 * g + 6, 6 * g : 6 * g + 6] = part
    order = np.arange(12).reshape(2, 3, 2).swapaxes(1, 2).reshape(-1) if transposed else np.arange(12)
    covariance = (root @ root.T)[np.ix_(order, order)]
    centre = mean.reshape(-1)[order]
    assert np.allclose(block.center()["w"].reshape(-1), centre)
    v = rng.standard_normal((4, 12))
    half = np.asarray(block.half(jnp.asarray(v)))
    assert np.allclose(half @ half.T, v @ covariance @ v.T)
    at = {"w": jnp.asarray(v[0].reshape(layout.shapes[0]))}
    expected = dist.MultivariateNormal(jnp.asarray(centre), jnp.asarray(covariance)).log_prob(jnp.asarray(v[0]))
    assert float(block.log_prob(at)) == pytest.approx(float(expected), rel=1e-10)
    draws = np.asarray(block.sample(jax.random.key(0), 20_000)["w"]).reshape(-1, 12)
    assert np.abs(np.cov(draws.T) - covariance).max() < 0.15
    assert np.abs(draws.mean(axis=0) - centre).max() < 0.08


def test_a_grouped_tap_that_does_not_fit_is_refused():
    def wrong(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2, 2]).to_event(3))
        z = jnp.einsum("ngi,goi->ngo", x, jnp.swapaxes(w[:2], 1, 2))
        z = tap("t", z, inputs=x, weight="w", grouped=True)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=z.sum(axis=1)), obs=y)

    with pytest.raises(TapError, match="first axis must count"):
        log_evidence(Problem(wrong), {"w": jnp.ones((3, 2, 2))}, jnp.ones((3, 2, 2)), np.zeros(3, np.int32), curvature="ekfac")
