"""The sparse layers against plain and dense maps, their anchors, group actions, reduction and taps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import check_equivariance
from bayes_sym.errors import GroupActionError, OptionError, ShapeError
from bayes_sym.inference import Laplace, Problem, fit, log_evidence
from bayes_sym.layers import Conv, Dense, Field, Role, random_module
from bayes_sym.layers.factored import Factored
from bayes_sym.layers.interpolation import Interpolation
from bayes_sym.layers.sparse_conv import SparseConv
from bayes_sym.layers.sparse_factored import SparseFactored
from bayes_sym.priors import IndependentScales
from bayes_sym.taps import TapRecorder


C4, D4 = groups.cyclic(4), groups.dihedral(4)
SCATTERED = ((-0.9, 0.4), (0.3, -0.7), (0.8, 0.9), (-0.2, 0.1), (0.6, -0.1))
NOISELESS = 1e-7


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def weights_of(layer, seed=1):
    """Random weights; what shapes the map stands near its start."""
    found = {}
    for i, site in enumerate(layer.sites()):
        value = numbers(*site.shape, seed=seed + i)
        if site.name.endswith("lengthscale"):
            value = layer.lengthscale * np.exp(0.1 * value)
        elif site.name.endswith("anchors"):
            value = np.asarray(site.prior.mean) + 0.1 * value
        found[site.name] = jnp.asarray(value, jnp.result_type(float))
    return found


def run(layer, weights, x):
    """The map, in one compiled program."""
    return jax.jit(layer.apply)(weights, jnp.asarray(x, jnp.result_type(float)))


def pixels(height, width):
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    return np.array([(y, x) for y in rows for x in columns])


def regression(positions, grid, lengthscale=1.0, noise=0.01):
    """L by the book."""

    def kernel(a, b):
        return np.array([[np.exp(-((p - q) ** 2).sum() / (2 * lengthscale**2)) for q in b] for p in a])

    positions = np.asarray(positions)
    return np.linalg.inv(kernel(positions, positions) + noise**2 * np.eye(len(positions))) @ kernel(positions, pixels(*grid))


def dense_map(layer, weights, lengths=None):
    """W[p, c, q, d], made from its factors, and the second factor."""
    lengths = lengths or [layer.lengthscale] * 2
    u, v = np.asarray(weights["input"]), np.asarray(weights["output"])
    first, second = layer.interpolations
    into = regression(first.positions, layer.grid, lengths[0], layer.noise)
    out = regression(second.positions, layer.output_grid(), lengths[1], layer.noise)
    patterns = np.einsum("czd,zp->pcd", u, into), np.einsum("dcz,zq->qdc", v, out)
    return np.einsum("qdc,pcd->pcqd", patterns[1], patterns[0]), patterns[1]


# Interpolation


@pytest.mark.parametrize("anchors", [1, 4, 5, SCATTERED, 9], ids=str)
def test_the_fixed_matrix_is_the_kernel_regression(anchors):
    layer = Interpolation((3, 3), anchors, 0.8, 0.1)
    assert np.abs(layer.matrix - regression(layer.positions, (3, 3), 0.8, 0.1)).max() < 1e-12
    assert layer.matrix.shape == (layer.count, 9) and not layer.matrix.flags.writeable
    assert layer.power == pytest.approx(np.linalg.norm(layer.matrix) ** 2)


@pytest.mark.parametrize(("anchors", "grid"), [(SCATTERED, (3, 3)), (20, (5, 4))])
def test_the_learned_matrix_at_the_start_is_the_fixed_one(anchors, grid, x64):
    fixed = Interpolation(grid, anchors, 1.3)
    for learned in ((True, True), (True, False), (False, True)):
        layer = Interpolation(grid, anchors, 1.3, 0.01, *learned)
        start = {"a_lengthscale": jnp.asarray(1.3), "a_anchors": jnp.asarray(layer.positions)}
        names = {site.name for site in layer.sites("a_")}
        found = layer.at({name: start[name] for name in names}, jnp.float64, "a_")
        assert np.abs(found - fixed.matrix).max() < 1e-10
    assert (fixed.at({}, jnp.float32) == fixed.matrix.astype(np.float32)).all()


def test_anchors_are_placed_in_the_window_and_never_twice():
    assert np.abs(Interpolation((3, 3), 9).positions - pixels(3, 3)).max() < 1e-12
    assert np.abs(Interpolation((3, 5), 15).positions - pixels(3, 5)).max() < 1e-12
    assert np.abs(Interpolation((2, 2), 4).positions - pixels(2, 2)).max() < 1e-12
    for grid, count in (((3, 3), 1), ((3, 3), 4), ((3, 3), 7), ((8, 6), 24), ((8, 8), 36), ((1, 4), 3)):
        layer = Interpolation(grid, count)
        positions = layer.positions
        assert positions.shape == (count, 2)
        assert (np.abs(positions) <= (np.array(grid) - 1) / 2 + 1e-12).all()
        assert len(np.unique(positions.round(9), axis=0)) == count
        assert (layer.lattice is None) == (count in (3, 7, 24))
        assert (layer.positions == Interpolation(grid, count).positions).all()
    # every quarter of the window holds a quarter of a low-discrepancy sequence, to within one
    quarters = np.sign(Interpolation((16, 16), 100).positions) @ [2, 1]
    assert np.abs(np.unique(quarters, return_counts=True)[1] - 25).max() <= 2


# The maps


@pytest.mark.parametrize(("kernel", "padding"), [(3, "SAME"), ((2, 3), "CIRCULAR"), (3, "VALID")])
def test_a_sparse_conv_with_an_anchor_on_every_pixel_is_the_plain_one(kernel, padding, x64):
    plain = Conv(2, 3, kernel, padding)
    taps = plain.window[0] * plain.window[1]
    layer = SparseConv(2, 3, kernel, taps, padding, noise=NOISELESS)
    weights, x = weights_of(layer), jnp.asarray(numbers(2, 6, 5, 2))
    expected = run(plain, {"weight": weights["weight"].reshape(*plain.window, 2, 3), "bias": weights["bias"]}, x)
    found = run(layer, weights, x)
    assert found.shape[1:3] == layer.output_grid((6, 5))
    assert np.abs(found - expected).max() < 1e-10


@pytest.mark.parametrize("anchors", [4, SCATTERED], ids=str)
def test_a_sparse_conv_is_a_conv_with_interpolated_filters(anchors, x64):
    layer = SparseConv(2, 3, 3, anchors, "SAME", 0.9, 0.1)
    weights, x = weights_of(layer), jnp.asarray(numbers(2, 4, 5, 2))
    matrix = regression(layer.interpolation.positions, (3, 3), 0.9, 0.1)
    filters = np.einsum("zt,zcd->tcd", matrix, weights["weight"]).reshape(3, 3, 2, 3)
    assert np.abs(layer.filters(weights) - filters).max() < 1e-12
    expected = run(Conv(2, 3, 3, "SAME"), {"weight": jnp.asarray(filters), "bias": weights["bias"]}, x)
    assert np.abs(run(layer, weights, x) - expected).max() < 1e-12
    without = run(replace(layer, bias=False), weights, x)
    assert np.abs(without + weights["bias"][None, None, None] - expected).max() < 1e-12


@pytest.mark.parametrize(("kernel", "anchors"), [(3, 4), (3, SCATTERED), ((2, 5), 3)], ids=str)
def test_a_circular_sparse_conv_commutes_with_circular_shifts(kernel, anchors, x64):
    layer = SparseConv(2, 3, kernel, anchors)
    weights, x = weights_of(layer), numbers(1, 6, 5, 2)
    y = np.asarray(run(layer, weights, jnp.asarray(x)))
    batch = np.concatenate([np.roll(x, (i, j), (1, 2)) for i in range(6) for j in range(5)])
    expected = np.concatenate([np.roll(y, (i, j), (1, 2)) for i in range(6) for j in range(5)])
    assert np.abs(run(layer, weights, jnp.asarray(batch)) - expected).max() < 1e-10


@pytest.mark.parametrize(("anchors", "stride"), [(None, 1), ((4, 4), 2), ((SCATTERED, 3), 2)], ids=str)
def test_a_sparse_factored_map_is_its_dense_map(anchors, stride, x64):
    layer = SparseFactored(2, 3, (5, 4), stride, anchors, 1.2, 0.1)
    weights, x = weights_of(layer), numbers(2, 5, 4, 2)
    dense, second = dense_map(layer, weights)
    expected = np.einsum("bpc,pcqd->bqd", x.reshape(2, 20, 2), dense)
    expected += np.einsum("qdc,d->qd", second, weights["input_bias"])
    found = run(layer, weights, jnp.asarray(x))
    assert found.shape == (2, *layer.output_grid(), 3)
    assert np.abs(found.reshape(2, -1, 3) - expected).max() < 1e-10


def test_a_sparse_factored_map_with_an_anchor_on_every_pixel_is_the_plain_one(x64):
    layer = SparseFactored(2, 3, (4, 3), 2, (12, 4), noise=NOISELESS)
    plain = Factored(2, 3, (4, 3), 2)
    weights, x = weights_of(layer), jnp.asarray(numbers(2, 4, 3, 2))
    of_plain = {site.name: weights.get(site.name, jnp.zeros(site.shape)).reshape(site.shape) for site in plain.sites()}
    assert np.abs(run(layer, weights, x) - run(plain, of_plain, x)).max() < 1e-8


def test_float32_is_as_good_as_it_can_be():
    layer = SparseFactored(2, 3, (6, 6), learn_lengthscale=True)
    weights, x = weights_of(layer), numbers(2, 6, 6, 2)
    lengths = [float(weights[f"{name}_lengthscale"]) for name in ("input", "output")]
    dense, second = dense_map(layer, weights, lengths)
    expected = np.einsum("bpc,pcqd->bqd", x.reshape(2, 36, 2), dense) + np.einsum("qdc,d->qd", second, weights["input_bias"])
    with jax.default_matmul_precision("highest"):
        found = run(layer, weights, x)
    assert found.dtype == np.float32
    assert np.abs(np.asarray(found).reshape(2, 36, 3) - expected).max() < 1e-4 * np.abs(expected).max()


# Sizes and scales


def test_parameter_counts_are_those_of_the_reference_networks():
    ladder = [(3, 10, 32, 1), (10, 20, 32, 2), (20, 20, 16, 1), (20, 40, 16, 2), (40, 40, 8, 1), (40, 80, 8, 2), (80, 80, 4, 2)]
    ladder.append((80, 160, 2, 2))
    head = Dense(160, 640).num_weights() + Dense(640, 10).num_weights()
    factored = [SparseFactored(c, d, (h, h), s).num_weights() for c, d, h, s in ladder]
    assert head + sum(factored) == 831_820
    assert factored[0] == 3 * 10 * (512 + 512) + 10 and factored[-1] == 80 * 160 * (2 + 1) + 160
    assert head + sum(SparseConv(c, d, anchors=7).num_weights() for c, d, _, _ in ladder) == 287_910
    assert head + sum(factored) + sum(SparseConv(c, d, anchors=4).num_weights() for c, d, _, _ in ladder) == 933_990
    assert [SparseConv(c, d, anchors=4).sites()[0].shape for c, d, _, _ in ladder[:2]] == [(4, 3, 10), (4, 10, 20)]
    without = SparseFactored(3, 4, (5, 4), 2, (6, 2), bias=False)
    assert without.num_weights() == 3 * 4 * (6 + 2)


@pytest.mark.parametrize(
    ("layer", "scale"),
    [
        (SparseConv(8, 256, 5, 7, lengthscale=1.5, learn_lengthscale=True, bias=False), 1.0),
        (SparseFactored(24, 256, (8, 8), bias=False), 1.0),
        (SparseFactored(16, 256, (6, 6), 2, (9, 4), lengthscale=1.5, bias=False), 2.0),
    ],
    ids=["conv", "factored", "factored-smooth"],
)
def test_white_inputs_give_outputs_of_the_variance_of_the_strength(layer, scale):
    prior = IndependentScales(scale)
    weights = {}
    for i, site in enumerate(layer.sites()):
        deviation = np.sqrt(prior(site).variance) if site.kind == "weight" else 0
        start = layer.lengthscale if site.kind == "form" else 0
        weights[site.name] = jnp.asarray(start + numbers(*site.shape, seed=i) * deviation, jnp.float32)
    size = layer.grid if isinstance(layer, SparseFactored) else (8, 8)
    out = run(layer, weights, jnp.asarray(numbers(32, *size, layer.inputs, seed=9), jnp.float32))
    assert float((out**2).mean()) == pytest.approx(scale**2, rel=0.05)


def test_modules_sample_what_is_learned_from_priors_of_its_own():
    layer = SparseConv(1, 2, 3, 4, lengthscale=0.7, learn_lengthscale=True, learn_anchors=True)
    assert [(site.name, site.shape, site.kind) for site in layer.sites()] == [
        ("weight", (4, 1, 2), "weight"),
        ("bias", (2,), "bias"),
        ("lengthscale", (), "form"),
        ("anchors", (4, 2), "form"),
    ]

    values = {f"net.{name}": value for name, value in weights_of(layer).items()}
    with numpyro.handlers.trace() as trace, numpyro.handlers.substitute(data=values):
        module = random_module("net", layer, prior=IndependentScales(3.0))
    assert module.weights.keys() == {site.name for site in layer.sites()}
    lengthscale, anchors = trace["net.lengthscale"]["fn"], trace["net.anchors"]["fn"]
    assert float(lengthscale.icdf(0.5)) == pytest.approx(0.7, rel=1e-5)
    assert np.abs(anchors.mean - layer.interpolation.positions).max() < 1e-6 and anchors.event_shape == (4, 2)
    assert np.allclose(anchors.variance, 0.25)
    # the variance of the weights is set by the map at its start
    expected = 9 / np.linalg.norm(regression(layer.interpolation.positions, (3, 3), 0.7)) ** 2
    assert np.allclose(trace["net.weight"]["fn"].variance, expected, rtol=1e-5)
    both = SparseFactored(1, 2, (4, 4), learn_lengthscale=True, learn_anchors=True)
    assert [site.name for site in both.sites()] == [
        *("input", "input_bias", "output", "input_lengthscale", "input_anchors", "output_lengthscale", "output_anchors")
    ]
    assert [site.share for site in both.sites()[:3]] == [0.5] * 3


@pytest.mark.parametrize(
    "layer",
    [
        SparseConv(2, 3, 3, SCATTERED, learn_lengthscale=True, learn_anchors=True),
        SparseFactored(2, 3, (4, 3), 2, (5, 3), 1.1, learn_lengthscale=True, learn_anchors=True),
    ],
    ids=["conv", "factored"],
)
def test_gradients_in_the_form_of_the_map_match_differences(layer, x64):
    x, weights = jnp.asarray(numbers(2, 4, 3, 2)), weights_of(layer)
    form = {site.name: weights[site.name] for site in layer.sites() if site.kind == "form"}

    @jax.jit
    @jax.value_and_grad
    def loss(form):
        return jnp.sin(layer.apply(weights | form, x)).sum()

    gradients, step = loss(form)[1], 1e-5
    assert len(gradients) == (2 if isinstance(layer, SparseConv) else 4)
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 1e-3
        for index in np.ndindex(form[name].shape):
            at = np.asarray(form[name])
            nudge = step * (np.arange(at.size).reshape(at.shape) == np.ravel_multi_index(index, at.shape))
            moved = [loss(form | {name: at + s * nudge})[0] for s in (1, -1)]
            assert float(gradient[index]) == pytest.approx(float(moved[0] - moved[1]) / (2 * step), rel=1e-6, abs=1e-6)


# Reduction


def residuals(layer, weights, anchors):
    """How far the filters of the reduced layer are from the present ones, by factor."""
    reduced, found = layer.reduce(weights, anchors)
    assert {name: w.shape for name, w in found.items()} == {site.name: site.shape for site in reduced.sites()}
    if isinstance(layer, SparseConv):
        return [np.linalg.norm(reduced.filters(found) - layer.filters(weights))], reduced, found
    errors = []
    for name, axis, old, new in zip(("input", "output"), (1, 2), layer.interpolations, reduced.interpolations, strict=True):
        before = np.tensordot(old.matrix.T, np.asarray(weights[name]), (1, axis))
        errors.append(np.linalg.norm(before - np.tensordot(new.matrix.T, np.asarray(found[name]), (1, axis))))
    return errors, reduced, found


@pytest.mark.parametrize("kind", ["conv", "factored"])
def test_reduction_errs_less_with_more_anchors_and_not_at_all_on_the_grid(kind, x64):
    if kind == "conv":
        layer, counts, grid = SparseConv(2, 3, 5, 25, noise=NOISELESS), [1, 4, 7, 9, 16, 20], 25
    else:
        layer, counts, grid = SparseFactored(2, 3, (4, 4), 1, (16, 16)), [(n, n) for n in (1, 3, 4, 9, 12)], (16, 16)
    weights = weights_of(layer)
    errors = np.array([residuals(layer, weights, count)[0] for count in counts])
    assert (np.diff(errors, axis=0) < 0).all() and (errors[-1] > 0.01).all()
    exact, _, found = residuals(layer, weights, grid)
    assert np.abs(exact).max() < 1e-8
    assert all(np.abs(found[name] - weights[name]).max() < 1e-8 for name in weights)


def test_reduction_solves_the_normal_equations_and_keeps_the_rest(x64):
    layer = SparseConv(2, 3, 5, 16, learn_lengthscale=True, learn_anchors=True)
    weights = weights_of(layer)
    reduced, found = layer.reduce(weights, 6)
    assert reduced == SparseConv(2, 3, 5, 6, learn_lengthscale=True, learn_anchors=True)
    assert found["lengthscale"] == weights["lengthscale"] and (found["bias"] == weights["bias"]).all()
    assert np.abs(found["anchors"] - reduced.interpolation.positions).max() < 1e-12
    matrix = regression(found["anchors"], (5, 5), float(found["lengthscale"]))
    before = np.asarray(layer.filters(weights)).reshape(25, -1)
    left = before - matrix.T @ np.asarray(found["weight"]).reshape(6, -1)
    assert np.abs(matrix @ left).max() < 1e-8 < np.abs(left).max()

    both = SparseFactored(2, 3, (4, 4), learn_anchors=True)
    reduced, found = both.reduce(weights_of(both), (SCATTERED, 2))
    assert list(found) == [site.name for site in reduced.sites()]
    assert np.abs(found["input_anchors"] - np.array(SCATTERED)).max() < 1e-12


# The action on the weights


def hidden(group, copies=1):
    return representations.regular(group) * representations.trivial(group, copies)


ACTIONS = {
    "conv": lambda G: (SparseConv(2, 2 * G.order, 3, 4), {"channels": 2, "output": hidden(G, 2)}),
    "conv-hidden": lambda G: (SparseConv(G.order, 3, 5, 9, "SAME", 1.5), {"channels": hidden(G)}),
    "conv-lengthscale": lambda G: (SparseConv(1, G.order, 3, 9, "VALID", learn_lengthscale=True), {"output": hidden(G)}),
    "factored": lambda G: (SparseFactored(2, G.order, (4, 4), 1, (4, 9)), {"channels": 2, "output": hidden(G)}),
    "factored-stride": lambda G: (
        SparseFactored(G.order, G.order, (4, 4), 2, (9, 1), learn_lengthscale=True),
        {"channels": hidden(G), "output": hidden(G)},
    ),
}


@pytest.mark.parametrize("case", ACTIONS.values(), ids=ACTIONS.keys())
def test_transformed_weights_transform_the_outputs(case, key, x64):
    layer, options = case(D4)
    check = check_equivariance(layer, D4, input=(4, 4), **options, key=key, num_examples=2, tolerance=1e-10)
    assert check.passed


TURNS = representations.permutation(C4, [[[1, 0], [-1, 1]]])


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (SparseConv(1, 4, anchors=5), {}, "5 anchors off a lattice, which C4 .* use a square number of anchors, fixed"),
        (SparseConv(1, 4, anchors=SCATTERED), {}, "use a square number of anchors, fixed"),
        (SparseConv(1, 4, learn_anchors=True), {}, "learned anchors, which C4"),
        (SparseConv(1, 4, (1, 3), 3), {}, "must be square"),
        (SparseConv(1, 4, 2, 4), {}, "even kernel"),
        (SparseConv(2, 4), {}, "takes 2 channels, but the group acts on 1"),
        (SparseFactored(1, 4, (4, 4)), {}, "8 anchors off a lattice"),
        (SparseFactored(1, 4, (3, 3), 1, (4, 4)), {}, r"takes maps of \(3, 3\) pixels"),
        (SparseFactored(2, 4, (4, 4), 1, (4, 4)), {"channels": TURNS}, "channels by permutations"),
    ],
)
def test_actions_that_do_not_exist_are_refused(layer, options, message, key):
    with pytest.raises(GroupActionError, match=message):
        check_equivariance(layer, C4, input=(4, 4), **options, key=key)


def test_the_trivial_group_takes_any_anchors():
    field = Field.of(representations.image(groups.trivial(), (4, 4)), 2)
    for layer in (SparseConv(2, 3, anchors=SCATTERED, learn_anchors=True), SparseFactored(2, 3, (4, 4), learn_anchors=True)):
        reps, after = layer.representations(field, iter([representations.trivial(groups.trivial(), 3)]))
        assert {name: rep.shape for name, rep in reps.items()} == {site.name: site.shape for site in layer.sites()}
        assert after.grid == (4, 4) and after.channels.dim == 3


@pytest.mark.parametrize("layer", [SparseConv(2, 3), SparseFactored(2, 3, (4, 4))], ids=["conv", "factored"])
def test_expanded_layers_multiply_hidden_channels(layer):
    (stage,) = layer.stages()
    assert stage.width == 3 and stage.sites == tuple(site.name for site in layer.sites())
    for first in (True, False):
        wide = layer.expand(4, iter([Role(first, False)]))
        assert (wide.inputs, wide.outputs) == (2 if first else 8, 12)
        x = jnp.ones((2, 4, 4, wide.inputs))
        # the small layer takes the wide one's weights
        assert all(jax.eval_shape(by.apply, weights_of(wide), x).shape == (2, 4, 4, 12) for by in (layer, wide))
    assert layer.expand(4, iter([Role(True, True)])) == layer


# Taps


@pytest.mark.parametrize(
    "layer",
    [SparseConv(2, 3, 3, SCATTERED, "VALID", learn_anchors=True), SparseFactored(2, 3, (4, 3), 2)],
    ids=["conv", "factored"],
)
def test_taps_show_a_linear_map_of_the_anchor_values(layer, x64):
    x, weights = jnp.asarray(numbers(2, 4, 3, 2)), weights_of(layer)

    def loss(weights, shifts):
        with (recorder := TapRecorder(shifts=shifts)):
            out = layer.apply(weights, x, path="net")
        return jnp.sin(out).sum(), (recorder.inputs, recorder.meta)

    _, (inputs, metas) = loss(weights, {})
    zeros = {name: jnp.zeros(meta.shape) for name, meta in metas.items()}
    of_weights, of_shifts = jax.jit(jax.grad(lambda *args: loss(*args)[0], argnums=(0, 1)))(weights, zeros)
    assert list(metas) == (["net"] if isinstance(layer, SparseConv) else ["net.input", "net.output"])
    for name, meta in metas.items():
        site = meta.weight.removeprefix("net.")
        groups_ = meta.groups if isinstance(layer, SparseFactored) else 1
        a = np.asarray(inputs[name]).reshape(-1, groups_, inputs[name].shape[-1])
        g = np.asarray(of_shifts[name]).reshape(-1, groups_, meta.shape[-1])
        assert np.abs(np.einsum("nga,ngb->gab", a, g).reshape(weights[site].shape) - of_weights[site]).max() < 1e-12
        if meta.bias is not None:
            assert np.abs(g.sum(axis=(0, 1)) - of_weights[meta.bias.removeprefix("net.")]).max() < 1e-12


def test_tapped_pre_activations_are_inputs_times_anchor_values(x64):
    x = jnp.asarray(numbers(2, 4, 4, 2))
    layer = SparseConv(2, 3, 3, 5)
    weights = weights_of(layer)
    with (recorder := TapRecorder()):
        z = layer.apply(weights, x, path="net")
        Conv(2, 3, 3, "CIRCULAR").apply({"weight": jnp.ones((3, 3, 2, 3)), "bias": jnp.ones(3)}, x, path="plain")
    assert recorder.meta["net"].weight == "net.weight" and recorder.meta["net"].bias == "net.bias"
    expected = recorder.inputs["net"] @ weights["weight"].reshape(10, 3) + weights["bias"][None, None, None]
    assert np.abs(z - expected).max() < 1e-12
    # the factor of the inputs is the projection of that of a plain convolution
    into = np.kron(layer.interpolation.matrix, np.eye(2))
    plain, sparse = (np.asarray(recorder.inputs[name]).reshape(32, -1) for name in ("plain", "net"))
    assert np.abs(sparse.T @ sparse - into @ plain.T @ plain @ into.T).max() < 1e-10

    both = SparseFactored(2, 3, (4, 4), 2, (5, 2))
    weights = weights_of(both)
    with (recorder := TapRecorder()):
        out = both.apply(weights, x, path="net")
    assert [meta.groups for meta in recorder.meta.values()] == [2, 3]
    assert [(meta.weight, meta.bias) for meta in recorder.meta.values()] == [
        ("net.input", "net.input_bias"),
        ("net.output", None),
    ]
    seen, mixed = recorder.inputs["net.input"], recorder.inputs["net.output"]
    assert seen.shape == (2, 2, 5) and mixed.shape == (2, 3, 2)
    z = np.einsum("bga,gao->bgo", seen, weights["input"]) + np.asarray(weights["input_bias"])
    assert np.abs(np.swapaxes(z, 1, 2) - mixed).max() < 1e-12
    t = np.einsum("bga,gao->bgo", mixed, weights["output"])
    assert np.abs(np.einsum("bdz,zq->bqd", t, both.interpolations[1].matrix) - out.reshape(2, 4, 3)).max() < 1e-12


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: SparseConv(2, 3, anchors=10), OptionError, "anchors must be 1 to 9 for a grid of 3 x 3 pixels, got 10"),
        (lambda: SparseConv(2, 3, anchors=0), OptionError, "anchors must be 1 to 9"),
        (lambda: SparseConv(2, 3, anchors=((0, 0), (1,))), OptionError, r"positions \(y, x\) of shape \(number, 2\)"),
        (lambda: SparseConv(2, 3, anchors="many"), OptionError, "anchors must be a number, or positions"),
        (lambda: SparseConv(2, 3, lengthscale=0), OptionError, "lengthscale must be positive, in pixels, got 0"),
        (lambda: SparseConv(2, 3, noise=0, learn_anchors=True), OptionError, "noise must be positive .* got 0"),
        (
            lambda: SparseConv(2, 3, anchors=((0, 0), (0, 0)), noise=0).sites(),
            OptionError,
            "2 anchors cannot be told apart at lengthscale 1.0 and noise 0",
        ),
        (lambda: SparseConv(2, 3, padding="REFLECT"), OptionError, "padding must be .* got 'REFLECT'"),
        (lambda: SparseFactored(2, 3, (4, 4), anchors=4), OptionError, "anchors must be a pair, .* got 4"),
        (lambda: SparseFactored(2, 3, (4, 4), anchors=(4, 17)), OptionError, "anchors must be 1 to 16"),
        (
            lambda: SparseConv(2, 3).apply(weights_of(SparseConv(2, 3)), jnp.ones((1, 4, 4, 5))),
            ShapeError,
            r"2 channels.*SparseConv\(inputs=5",
        ),
        (
            lambda: SparseFactored(2, 3, (4, 4)).apply(weights_of(SparseFactored(2, 3, (4, 4))), jnp.ones((1, 5, 4, 2))),
            ShapeError,
            r"SparseFactored '' takes feature maps \(batch, 4, 4, 2 channels\)",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_the_evidence_learns_the_lengthscale_of_filters(x64):
    """A linear model, so its evidence is that of a Gaussian: y ~ N(0, s^2 Phi Phi' + noise^2), Phi from filters of unit values."""
    layer = SparseConv(1, 2, 5, 9, lengthscale=0.6, learn_lengthscale=True, bias=False)
    strength, noise = 1.0, 0.3
    x, truth = numbers(12, 6, 6, 1), weights_of(layer)
    y = layer.apply({**truth, "lengthscale": jnp.asarray(1.5)}, jnp.asarray(x))
    y = np.asarray(y) + noise * numbers(*y.shape, seed=9)

    def model(x, y=None):
        net = random_module("net", layer, prior=IndependentScales(strength))
        mean = net(x)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(mean, noise).to_event(3), obs=y)

    scale = strength / np.sqrt(next(site.fan_in for site in layer.sites() if site.name == "weight"))
    units = jnp.eye(truth["weight"].size).reshape(-1, *truth["weight"].shape)

    @jax.jit
    def closed_form(lengthscale):
        phi = jax.vmap(lambda w: layer.apply({"weight": w, "lengthscale": lengthscale}, jnp.asarray(x)).ravel())(units).T
        precision = phi.T @ phi / noise**2 + jnp.eye(phi.shape[1]) / scale**2
        mode = jnp.linalg.solve(precision, phi.T @ y.ravel() / noise**2)
        log_det = jnp.linalg.slogdet(precision * scale**2)[1]
        fit = ((y.ravel() - phi @ mode) ** 2).sum() / noise**2 + (mode**2).sum() / scale**2
        value = -(fit + log_det + y.size * jnp.log(2 * jnp.pi * noise**2)) / 2
        return value, mode.reshape(truth["weight"].shape)

    problem = Problem(model)

    def evidence(lengthscale, mode):
        params = {"net.weight": mode, "net.lengthscale": lengthscale}
        found = log_evidence(problem, params, jnp.asarray(x), jnp.asarray(y), optimise=("net.lengthscale",), curvature="full")
        return found.value

    start = jnp.asarray(0.8)
    value, mode = closed_form(start)
    found, slope = jax.value_and_grad(evidence)(start, mode)
    assert float(found) == pytest.approx(float(value), rel=1e-9)
    steps = [float(closed_form(start + h)[0]) for h in (-1e-4, 1e-4)]
    assert float(slope) == pytest.approx((steps[1] - steps[0]) / 2e-4, rel=1e-5)
    assert float(slope) > 10  # it asks for smoother filters

    scheme = Laplace(optax.adam(0.05), optimise=("net.lengthscale",), curvature="full", burn_in=100, refresh=50)
    learned = fit(problem, scheme, jax.random.key(0), jnp.asarray(x), jnp.asarray(y), num_steps=600, progress=False)
    best = max(np.arange(0.4, 3.0, 0.02), key=lambda length: float(closed_form(length)[0]))
    assert float(jnp.exp(learned.posterior.mean["net.lengthscale"])) == pytest.approx(best, abs=0.03)
    assert abs(best - 1.5) < 0.3
