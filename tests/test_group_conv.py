"""Group convolutions: against sums over the group and by turned inputs; their sites, taps, nesting and refusals."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import check_equivariance
from bayes_sym.errors import GroupActionError, OptionError, ShapeError
from bayes_sym.layers import Activation, Conv, Dense, Field, Flatten, Pool, Residual, Role, Sequential
from bayes_sym.layers.group_conv import GroupConv
from bayes_sym.layers.group_pool import GroupPool
from bayes_sym.priors import IndependentScales
from bayes_sym.taps import TapRecorder


C2, C4, D4 = groups.cyclic(2), groups.cyclic(4), groups.dihedral(4)
FORMS = ("pointwise", "full", "separable", "depthwise")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def weights_of(layer, seed=1):
    return {site.name: numbers(*site.shape, seed=seed + i) for i, site in enumerate(layer.sites())}


def run(layer, weights, x):
    return np.asarray(jax.jit(layer.apply)(weights, x))


def hidden(group, channels):
    return representations.regular(group) * representations.trivial(group, channels)


# Equivariance


def moved(group, x):
    """Every element applied to the pixels of NHWC images, (order, batch, ...); channels stay."""
    source = representations.image(group, x.shape[1:3]).source
    return np.stack([x.reshape(len(x), -1, x.shape[-1])[:, s].reshape(x.shape) for s in source])


def with_copies_moved(group, x):
    """The same for maps of copies: g moves the pixels, and copy h of the result was copy g^-1 h."""
    apart = moved(group, x).reshape(group.order, *x.shape[:3], group.order, -1)
    back = group.table[group.inverse]
    return np.stack([apart[g][..., back[g], :] for g in range(group.order)]).reshape(group.order, *x.shape)


SHIFTS = ((1, 0), (2, 3), (-1, 1))


ACTIONS = {
    "p4": (C4, (5, 5), 3),
    "p4m": (D4, (4, 4), 3),
    "half-turns": (C2, (3, 4), (1, 3)),
    "mirror": (groups.dihedral(1), (4, 3), 3),
}
NETS = [*itertools.product(("p4", "p4m"), FORMS), ("half-turns", "full"), ("mirror", "depthwise")]


@pytest.mark.parametrize(("action", "form"), NETS)
def test_two_layers_commute_with_turns_and_shifts(action, form, x64):
    group, grid, kernel = ACTIONS[action]
    net = Sequential([GroupConv(group, 2, 3, kernel, lift=True, form=form), Activation(), GroupConv(group, 3, 2, form=form)])
    x = numbers(2, *grid, 2)
    turned, shifted = moved(group, x), np.stack([np.roll(x, by, axis=(1, 2)) for by in SHIFTS])
    every = np.concatenate([turned, shifted]).reshape(-1, *grid, 2)
    out = run(net, weights_of(net), every).reshape(-1, 2, *grid, group.order * 2)
    y = out[0]
    assert np.abs(out[: group.order] - with_copies_moved(group, y)).max() < 1e-10
    assert np.abs(out[group.order :] - np.stack([np.roll(y, by, axis=(1, 2)) for by in SHIFTS])).max() < 1e-10
    assert np.abs(out[1] - y).max() > 0.1 and np.ptp(y.reshape(2, -1), axis=1).min() > 0.1


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_other_paddings_commute_with_turns(padding, x64):
    layer = GroupConv(C4, 1, 2, 2 if padding == "VALID" else 3, padding, lift=True)
    x = numbers(1, 4, 4, 1)
    out = run(layer, weights_of(layer), moved(C4, x)[:, 0])
    assert out.shape[1:3] == layer.output_grid((4, 4)) == ((3, 3) if padding == "VALID" else (4, 4))
    assert np.abs(out - with_copies_moved(C4, out[:1])[:, 0]).max() < 1e-10


NET = Sequential(
    [
        GroupConv(C4, 2, 2, lift=True),
        Activation(),
        GroupConv(C4, 2, 3, form="separable"),
        Activation(),
        GroupPool(C4, "max"),
        Pool(),
    ]
)


def test_a_net_says_truly_how_it_is_equivariant(key, x64):
    options = {"input": (4, 4), "channels": 2, "key": key, "num_examples": 2, "tolerance": 1e-10}
    assert check_equivariance(NET, C4, hidden=[hidden(C4, 2)], output=hidden(C4, 3), **options)
    weights = weights_of(NET)
    assert check_equivariance(jax.jit(lambda x: NET.apply(weights, x)), C4, **options)
    lost = Sequential([*NET.layers[:4], Pool(), Dense(12, 1)])  # free weights on the copies see the turn
    weights = weights_of(lost)
    assert not check_equivariance(jax.jit(lambda x: lost.apply(weights, x)), C4, **options, raise_if_broken=False)


def test_pathways_nest_a_group_convolution_and_a_free_one(key, x64):
    wide = Residual({"group": GroupConv(C4, 1, 2), "free": Conv(4, 8, 3, "CIRCULAR")})
    options = {"channels": hidden(C4, 1), "output": hidden(C4, 2), "num_examples": 2, "tolerance": 1e-10}
    assert check_equivariance(wide, C4, input=(4, 4), **options, key=key)


# The map, from its definition

TURN, MIRROR = np.array([[0, -1], [1, 0]]), np.array([[1, 0], [0, -1]])  # of (row, column), as np.rot90 and np.fliplr do


def turn_of(group, g):
    """R_g on offsets (row, column): element k + n e is r^k s^e."""
    n = group.order if group.name.startswith("C") else group.order // 2
    return np.linalg.matrix_power(TURN, (g % n) * 4 // n) @ np.linalg.matrix_power(MIRROR, g // n)


def summed(group, filters, bias, x):
    """z[p, g, d] = sum_{t, h, c} k[t, h, c, d] x[p + R_g t, g h, c] + b[d], term by term; no h where the inputs have no copies."""
    batch, rows, columns, _ = x.shape
    lift = filters.ndim == 4
    maps = x.reshape(batch, rows, columns, 1 if lift else group.order, -1)
    z = np.zeros((batch, rows, columns, group.order, filters.shape[-1])) + bias
    window, copies = (range(k) for k in filters.shape[:2]), range(maps.shape[3])
    for i, j, h, g in itertools.product(*window, copies, range(group.order)):
        k = filters[i, j] if lift else filters[i, j, h]
        at = turn_of(group, g) @ (i - filters.shape[0] // 2, j - filters.shape[1] // 2)
        for p, q in itertools.product(range(rows), range(columns)):
            seen = maps[:, (p + at[0]) % rows, (q + at[1]) % columns, 0 if lift else group.table[g, h]]
            z[:, p, q, g] += seen @ k
    return z.reshape(batch, rows, columns, -1)


def filters_of(layer, weights):
    """The filters k[t, (h,) c, d] and the bias b[d] that a form stands for, its steps multiplied out."""
    weight, order = weights["weight"], layer.group.order
    bias = weights["bias"]
    if layer.form in ("pointwise", "full"):
        if layer.lift or layer.form == "full":
            return weight, bias
        return weight[:, :, None] * (np.arange(order) == 0)[None, None, :, None, None], bias
    spatial = np.moveaxis(weights["spatial"], 0, -1)
    if layer.lift:
        return spatial[..., None] * weight, bias + weights["spatial_bias"] @ weight
    images = (np.rot90(np.fliplr(spatial) if h // 4 else spatial, h % 4) for h in range(order))
    spatial = np.stack(list(images), axis=2)[..., None]  # copy h has been filtered in its own direction
    if layer.form == "separable":
        return spatial * weight, bias + np.einsum("c,hcd->d", weights["spatial_bias"], weight)
    mix = weights["copies"].T[..., None] * weight
    inner = weights["spatial_bias"] * weights["copies"].sum(axis=1) + weights["copies_bias"]
    return spatial * mix, bias + inner @ weight


CASES = [(form, lift) for form in FORMS for lift in (False, True) if form != "full" or not lift]


@pytest.mark.parametrize(("form", "lift"), CASES)
def test_every_form_is_the_sum_over_the_group(form, lift, x64):
    layer = GroupConv(D4, 2, 3, lift=lift, form=form)
    weights, x = weights_of(layer), numbers(2, 4, 4, layer.plain.inputs)
    expected = summed(D4, *filters_of(layer, weights), x)
    assert np.abs(run(layer, weights, x) - expected).max() < 1e-10


def test_a_group_convolution_is_a_convolution_with_turned_filters(x64):
    layer, plain = GroupConv(C4, 2, 3), Conv(8, 12, 3, "CIRCULAR")
    weights, x = weights_of(layer), numbers(2, 5, 5, 8)
    assert layer.plain == plain
    columns = []
    for g in range(4):  # np.rot90 turns the window as the group does, and np.roll moves copy h to g h
        columns.append(np.roll(np.rot90(weights["weight"], g), g, axis=2).reshape(3, 3, 8, 3))
    wide = {"weight": np.concatenate(columns, axis=-1), "bias": np.tile(weights["bias"], 4)}
    assert np.abs(run(layer, weights, x) - run(plain, wide, x)).max() < 1e-10


# Sites


@pytest.mark.parametrize(("G", "C", "D"), [(C4, 2, 3), (D4, 3, 1)])
def test_numbers_of_weights_are_those_of_the_formulas(G, C, D):
    order = G.order
    expected = {
        "pointwise": 9 * C * D + D,
        "full": 9 * order * C * D + D,
        "separable": 9 * C + C + order * C * D + D,
        "depthwise": 9 * C + C + order * C + C + C * D + D,
    }
    assert {form: GroupConv(G, C, D, form=form).num_weights() for form in FORMS} == expected
    lifted = {form: GroupConv(G, C, D, lift=True, form=form).num_weights() for form in FORMS}
    separable = 9 * C + C + C * D + D
    assert lifted == {
        "pointwise": expected["pointwise"],
        "full": expected["pointwise"],
        "separable": separable,
        "depthwise": separable,
    }
    assert GroupConv(G, C, D, 1, form="depthwise", bias=False).num_weights() == C + order * C + C * D


def test_sites_have_names_and_shares():
    sites = {site.name: site[1:5] for site in GroupConv(C4, 2, 3, form="depthwise").sites()}
    assert sites == {
        "spatial": ((2, 3, 3), 9, "weight", 1 / 3),
        "spatial_bias": ((2,), 1, "bias", 1 / 3),
        "copies": ((2, 4), 4, "weight", 1 / 3),
        "copies_bias": ((2,), 1, "bias", 2 / 3),
        "weight": ((2, 3), 2, "weight", 1 / 3),
        "bias": ((3,), 1, "bias", 1.0),
    }
    assert GroupConv(C4, 2, 3, lift=True).sites() == GroupConv(C4, 2, 3, lift=True, form="pointwise").sites()


@pytest.mark.parametrize(("form", "lift"), CASES)
def test_outputs_have_variance_one_and_scale_with_the_strength(form, lift, x64):
    layer = GroupConv(C4, 2, 2, lift=lift, form=form)
    prior, draws = IndependentScales(), 500
    std = {site.name: np.asarray(prior(site).variance).ravel()[0] ** 0.5 for site in layer.sites()}
    weights = {name: numbers(draws, *w.shape, seed=i) * std[name] for i, (name, w) in enumerate(weights_of(layer).items())}
    x = numbers(2, 4, 4, layer.plain.inputs, seed=9)
    apply = jax.jit(jax.vmap(layer.apply, in_axes=(0, None)))
    silent = {name: w * (not name.endswith("bias")) for name, w in weights.items()}
    assert np.mean(np.asarray(apply(silent, x)) ** 2) == pytest.approx(1, abs=0.15)

    share = {site.name: site.share for site in layer.sites()}
    strong = {name: 3 ** share[name] * w for name, w in weights.items()}
    assert np.abs(apply(strong, x) - 3 * np.asarray(apply(weights, x))).max() < 1e-10


# Taps


@pytest.mark.parametrize(("form", "lift"), CASES)
def test_taps_say_what_every_weight_multiplies(form, lift, x64):
    layer = GroupConv(C4, 2, 3, lift=lift, form=form)
    weights, x = weights_of(layer), numbers(2, 3, 3, layer.plain.inputs)
    with (recorder := TapRecorder()):
        jax.eval_shape(lambda w: layer.apply(w, x, path="net"), weights)
    metas = recorder.meta

    def loss(weights, shifts):
        with (recorder := TapRecorder(shifts=shifts)), numpyro.handlers.trace() as trace:
            out = layer.apply(weights, x, path="net")
        maps = {site["name"].removesuffix(":tap"): site["args"][0] for site in trace.values()}
        return jnp.sin(out).sum(), (recorder.inputs, maps)

    shifts = {name: jnp.zeros(meta.shape) for name, meta in metas.items()}
    (of_weights, of_shifts), (inputs, maps) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(weights, shifts)
    tapped = [site for meta in metas.values() for site in (meta.weight, meta.bias) if site is not None]
    assert sorted(tapped) == sorted(f"net.{name}" for name in weights)
    for name, meta in metas.items():
        matrix = weights[meta.weight.removeprefix("net.")]
        matrix = matrix.reshape(meta.groups, -1, meta.shape[-1])
        a, z, b = (np.asarray(array[name]).reshape(-1, meta.groups, array[name].shape[-1]) for array in (inputs, maps, of_shifts))
        expected = np.einsum("nga,gab->ngb", a, matrix)
        if meta.bias is not None:
            expected += weights[meta.bias.removeprefix("net.")]
            assert np.abs(b.sum(axis=(0, 1)) - of_weights[meta.bias.removeprefix("net.")]).max() < 1e-10
        assert np.abs(z - expected).max() < 1e-10
        gradient = np.einsum("nga,ngb->gab", a, b)
        assert np.abs(gradient - of_weights[meta.weight.removeprefix("net.")].reshape(matrix.shape)).max() < 1e-10


def test_shared_axes_are_pixels_and_copies():
    layer = GroupConv(D4, 2, 3, form="depthwise")
    with (recorder := TapRecorder()):
        jax.eval_shape(lambda w: layer.apply(w, jnp.ones((5, 4, 4, 16)), path="net"), weights_of(layer))
    assert {name: (meta.shape, recorder.inputs[name].shape[-1], meta.groups) for name, meta in recorder.meta.items()} == {
        "net.spatial": ((5, 4, 4, 8, 2, 1), 9, 2),
        "net.spatial_bias": ((5, 4, 4, 8, 2), 1, 1),
        "net.copies": ((5, 4, 4, 8, 2, 1), 8, 2),
        "net.copies_bias": ((5, 4, 4, 8, 2), 1, 1),
        "net": ((5, 4, 4, 8, 3), 2, 1),
    }


def test_what_the_copies_see_is_computed_only_for_a_recorder():
    layer = GroupConv(C4, 2, 3)
    weights = {name: w.astype(np.float32) for name, w in weights_of(layer).items()}
    patches, out = 9 * 8, 12

    def recorded(weights, x):
        with (recorder := TapRecorder()):
            out = layer.apply(weights, x)
        return out, recorder.inputs

    def largest(fn):
        """The most entries per pixel of any array of the compiled program."""
        text = jax.jit(fn).lower(weights, np.ones((16, 8, 8, 8), np.float32)).compile().as_text()
        shapes = re.findall(r"f32\[([\d,]+)\]", text)
        return max(math.prod(map(int, shape.split(","))) for shape in shapes) / (16 * 8 * 8)

    assert max(patches, out) <= largest(layer.apply) < 2 * patches
    assert largest(recorded) >= 4 * patches


# Pooling over copies


def test_group_pool_reduces_copies():
    x = numbers(2, 3, 3, 12)
    for kind, reduce in (("mean", np.mean), ("max", np.max)):
        pooled = GroupPool(C4, kind).apply({}, jnp.asarray(x))
        expected = reduce([x[..., 3 * g : 3 * g + 3] for g in range(4)], axis=0)
        assert pooled.shape == (2, 3, 3, 3) and np.allclose(pooled, expected, atol=1e-6)
        assert np.allclose(GroupPool(C4, kind).apply({}, jnp.asarray(x[:, 0, 0])), expected[:, 0, 0], atol=1e-6)
    for grid in ((3, 3), ()):
        _, field = GroupPool(C4).representations(Field(hidden(C4, 3), grid), iter([]))
        assert field == Field(representations.trivial(C4, 3), grid)
    assert GroupPool(C4).sites() == GroupPool(C4).stages() == ()


# Specs and refusals


def test_group_layers_are_values():
    layer, same = GroupConv(C4, 1, 2), GroupConv(groups.cyclic(4), 1, 2, (3, 3))
    assert layer == same and hash(layer) == hash(same)
    assert GroupConv(C4, 1, 2) != GroupConv(D4, 1, 2)
    (stage,) = GroupConv(C4, 1, 2, form="separable").stages()
    assert stage == (8, ("spatial", "spatial_bias", "weight", "bias"))


def images(channels, group=C4):
    return Field.of(representations.image(group, (4, 4)), channels)


def apply_to(layer, *shape):
    return layer.apply(weights_of(layer), jnp.ones(shape))


def represent(layer, field, output=None):
    return layer.representations(field, iter([] if output is None else [output]))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: GroupConv(C4, 1, 2, form="dense"), OptionError, "form must be one of 'pointwise', .* got 'dense'"),
        (lambda: GroupConv(C4, 1, 2, padding="REFLECT"), OptionError, "padding must be .* got 'REFLECT'"),
        (lambda: GroupConv(groups.cyclic(3), 1, 2), GroupActionError, "C3 has no exact action on a pixel grid"),
        (lambda: GroupConv(C4, 1, 2, (1, 3)), GroupActionError, "must be square, got height 1 and width 3"),
        (lambda: GroupConv(C4, 1, 2, 2), GroupActionError, r"even kernel \(2, 2\) .* use an odd kernel, or padding 'VALID'"),
        (lambda: apply_to(GroupConv(C4, 2, 2), 1, 4, 4, 2), ShapeError, r"4 x 2 = 8 channels.*\(1, 4, 4, 2\).*and lift=True if"),
        (lambda: apply_to(GroupConv(C4, 2, 2, lift=True), 1, 4, 4, 8), ShapeError, r"2 plain channels.*and lift=False if"),
        (lambda: apply_to(GroupConv(C4, 2, 2, lift=True), 4, 4, 2), ShapeError, "takes feature maps"),
        (lambda: represent(GroupConv(C4, 1, 2), images(hidden(D4, 1), D4)), GroupActionError, "commutes with C4, .* acts is D4"),
        (lambda: represent(GroupConv(C4, 1, 2), Field(hidden(C4, 1))), GroupActionError, "needs images"),
        (
            lambda: represent(GroupConv(C4, 1, 2), images(4)),
            GroupActionError,
            r"takes channels that carry regular\(group\) \* trivial\(group, 1\).*lift=True",
        ),
        (
            lambda: represent(GroupConv(C4, 4, 2, lift=True), images(hidden(C4, 1))),
            GroupActionError,
            r"takes channels that carry trivial\(group, 4\).*lift=True is for plain channels",
        ),
        (lambda: represent(GroupConv(C4, 1, 2, lift=True), images(1)), GroupActionError, "give one per weighted layer"),
        (
            lambda: represent(GroupConv(C4, 1, 2, lift=True), images(1), representations.trivial(C4, 8)),
            GroupActionError,
            r"copies by construction, .* give regular\(group\) \* trivial\(group, 2\)",
        ),
        (lambda: GroupConv(C4, 1, 2).expand(4, iter([Role(True, False)])), GroupActionError, "GroupConv over C4 .* expanded"),
        (lambda: GroupPool(C4).expand(4, iter([])), GroupActionError, "GroupPool over C4 .* leave out the expansion"),
        (lambda: GroupPool(C4, "median"), OptionError, "kind must be 'mean' or 'max', got 'median'"),
        (lambda: apply_to(GroupPool(C4), 2, 6), ShapeError, r"4 copies x channels.*\(2, 6\): put it after a GroupConv over C4"),
        (lambda: represent(GroupPool(C4), images(8)), GroupActionError, r"carry regular\(group\) \* trivial\(group, 2\)"),
        (lambda: represent(GroupPool(C4), images(2)), GroupActionError, "put it after a GroupConv, before Flatten"),
        (
            lambda: represent(Sequential([Flatten(), GroupPool(C4)]), images(hidden(C4, 1))),
            GroupActionError,
            "put it after a GroupConv, before Flatten",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()
