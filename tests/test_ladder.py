"""The ladder and its layers: maps against dense matrices, shifts, parameter counts, costs, and the shares of pathways."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import pathway_shares, plot_pathway_shares
from bayes_sym.errors import GroupActionError, OptionError, ShapeError
from bayes_sym.inference import Problem
from bayes_sym.layers import (
    Activation,
    Conv,
    Dense,
    Factored,
    Field,
    Flatten,
    FullyConnected,
    Polyphase,
    Residual,
    Sequential,
    pathways,
)
from bayes_sym.models import LadderClassifier, ladder_spec
from bayes_sym.models.ladder import VARIANTS


C4, D4 = groups.cyclic(4), groups.dihedral(4)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def weights_of(layer, seed=1):
    return {site.name: jnp.asarray(numbers(*site.shape, seed=seed + i)) for i, site in enumerate(layer.sites())}


# Layers


@pytest.mark.parametrize("stride", [1, 2])
def test_fully_connected_is_a_matrix_between_maps(stride, x64):
    layer = FullyConnected(2, 3, (4, 3), stride)
    w, x = weights_of(layer), numbers(2, 4, 3, 2)
    expected = np.einsum("nijc,ijcpqd->npqd", x, w["weight"]) + np.asarray(w["bias"])
    assert layer.output_grid() == expected.shape[1:3]
    assert np.abs(layer.apply(w, jnp.asarray(x)) - expected).max() < 1e-12


@pytest.mark.parametrize("stride", [1, 2])
def test_factored_is_rank_one_over_space_for_each_pair_of_channels(stride, x64):
    """W[d,q,c,p] = output[d,c,q] input[c,p,d], with the effective bias of both."""
    layer = Factored(2, 3, (4, 2), stride)
    w, x = weights_of(layer), numbers(2, 4, 2, 2)
    dense = np.einsum("dcuv,cijd->ijcuvd", w["output"], w["input"])
    bias = np.asarray(w["output_bias"])[:, :, None] + np.einsum("d,dcuv->uvd", w["input_bias"], w["output"])
    expected = np.einsum("nijc,ijcuvd->nuvd", x, dense) + bias
    assert np.abs(layer.apply(w, jnp.asarray(x)) - expected).max() < 1e-12
    plain = Factored(2, 3, (4, 2), stride, bias=False)
    expected = np.einsum("nijc,ijcuvd->nuvd", x, dense)
    assert np.abs(plain.apply(w, jnp.asarray(x)) - expected).max() < 1e-12


@pytest.mark.parametrize("make", [FullyConnected, Factored])
@pytest.mark.parametrize("group", [C4, D4])
def test_the_group_moves_the_weights_of_dense_maps(make, group, x64):
    """f(g x; w) = g f(x; g^-1 w), on channels that turn with the group."""
    layer, regular = make(group.order, 2 * group.order, (4, 4), 2), representations.regular(group)
    field = Field.of(representations.image(group, (4, 4)), regular)
    reps, out = layer.representations(field, iter([regular * representations.trivial(group, 2)]))
    w, x = weights_of(layer), jnp.asarray(numbers(2, 4, 4, group.order))
    for g in range(1, group.order):
        moved = field.representation.act(g, x, axis=(1, 2, 3))
        back = int(group.inverse[g])
        turned = {n: reps[n].act(back, v, axis=tuple(range(v.ndim))) for n, v in w.items()}
        expected = out.representation.act(g, layer.apply(turned, x), axis=(1, 2, 3))
        assert np.abs(layer.apply(w, moved) - expected).max() < 1e-10


@pytest.mark.parametrize("make", [FullyConnected, Factored])
def test_dense_maps_start_with_outputs_of_variance_one(make):
    layer = make(16, 24, (8, 8), 2)
    rng = np.random.default_rng(0)
    w = {
        s.name: jnp.asarray(rng.standard_normal(s.shape) / math.sqrt(s.fan_in) * (s.kind == "weight"), jnp.float32)
        for s in layer.sites()
    }
    x = jnp.asarray(rng.standard_normal((200, 8, 8, 16)), jnp.float32)
    assert float(layer.apply(w, x).var()) == pytest.approx(1.0, abs=0.05)


def largest_entry(x):  # where the largest entry lies
    return tuple(int(a) % 2 for a in np.unravel_index(np.argmax(x.max(axis=-1)), x.shape[:2]))


def largest_energy(x):  # which component a ReLU lets most through of
    energies = {(i, j): np.square(np.maximum(x[i::2, j::2], 0)).sum() for i in range(2) for j in range(2)}
    return max(energies, key=energies.__getitem__)


def at_the_centroid(x):  # that of the pixel where the energy's centre of mass on the circle lies
    energy = np.square(np.maximum(x, 0)).sum(axis=-1)
    found = []
    for along in (energy.sum(axis=1), energy.sum(axis=0)):
        n = len(along)
        angle = np.angle(sum(along[u] * np.exp(2j * np.pi * u / n) for u in range(n)))
        found.append(int(np.floor(angle * n / (2 * np.pi) + 0.25)) % 2)
    return tuple(found)


@pytest.mark.parametrize(
    ("choose", "component"), [("energy", largest_energy), ("max", largest_entry), ("centroid", at_the_centroid)]
)
def test_polyphase_follows_shifts_of_each_image_by_itself(x64, choose, component):
    x = jnp.asarray(numbers(5, 8, 6, 3))
    polyphase = Polyphase(2, choose)
    pooled = polyphase.apply({}, x)
    assert pooled.shape == (5, 4, 3, 3)
    for n in range(5):  # whatever else is in the batch
        i, j = component(np.asarray(x[n]))
        assert np.array_equal(pooled[n], x[n, i::2, j::2])
        assert np.array_equal(polyphase.apply({}, x[n : n + 1])[0], pooled[n])
    for shift in ((1, 0), (0, 1), (3, 2), (4, 5)):
        moved = polyphase.apply({}, jnp.roll(x, shift, (1, 2)))
        for n in range(5):
            rolls = [jnp.roll(pooled[n], (a, b), (0, 1)) for a in range(4) for b in range(3)]
            assert any(np.array_equal(moved[n], r) for r in rolls)
    gradient = jax.grad(lambda x: polyphase.apply({}, x).sum())(x)
    assert set(np.unique(gradient)) == {0.0, 1.0}
    assert np.array_equal(Polyphase(1).apply({}, x), x)


def test_the_centroid_of_a_blob_chooses_its_sample_and_two_pixels_are_told_apart(x64):
    blob = jnp.zeros((1, 8, 8, 1)).at[0, 3, 6, 0].set(5.0).at[0, 3, 5, 0].set(1.0)  # at 5.96 or so along the second axis
    pooled = Polyphase(2, "centroid").apply({}, blob)
    assert np.array_equal(pooled, blob[:, 1::2, 0::2])
    pairs = jnp.asarray(numbers(50, 2, 2, 1)) ** 2
    kept = Polyphase(2, "centroid").apply({}, pairs)[:, 0, 0, 0]
    for x, value in zip(np.asarray(pairs[..., 0]), kept, strict=True):
        rows, columns = np.square(x).sum(axis=1), np.square(x).sum(axis=0)
        assert value == x[rows.argmax(), columns.argmax()]


@pytest.mark.parametrize(("smooth", "window"), [(2, {0: 1 / 2, 1: 1 / 2}), (3, {-1: 1 / 4, 0: 1 / 2, 1: 1 / 4})])
def test_smooth_polyphase_cuts_the_map_of_means(x64, smooth, window):
    x = jnp.asarray(numbers(3, 8, 6, 2))
    band = {n: sum(weight * np.roll(np.eye(n), shift, 1) for shift, weight in window.items()) for n in (8, 6)}
    smoothed = np.einsum("ab,cd,nbde->nace", band[8], band[6], x)
    polyphase = Polyphase(2, smooth=smooth)
    pooled = polyphase.apply({}, x)
    assert np.abs(pooled - Polyphase(2).apply({}, jnp.asarray(smoothed))).max() < 1e-12
    for k in range(4):  # it commutes with turns and shifts, up to a shift of what is kept
        moved = polyphase.apply({}, jnp.roll(jnp.rot90(x, k, (1, 2)), (1, 2), (1, 2)))
        for n in range(3):
            turned = jnp.rot90(pooled[n], k)
            rolls = [jnp.roll(turned, (a, b), (0, 1)) for a in range(turned.shape[0]) for b in range(turned.shape[1])]
            assert min(float(np.abs(moved[n] - r).max()) for r in rolls) < 1e-12


def test_what_dense_maps_and_polyphase_refuse():
    x = jnp.zeros((1, 4, 4, 2))
    with pytest.raises(ShapeError, match=r"takes feature maps \(batch, 3, 4, 2 channels\), got an array of shape \(1, 4, 4, 2\)"):
        FullyConnected(2, 1, (3, 4)).apply(weights_of(FullyConnected(2, 1, (3, 4))), x)
    with pytest.raises(ShapeError, match="Factored 'a.b' takes feature maps"):
        Factored(3, 1, (4, 4)).apply(weights_of(Factored(3, 1, (4, 4))), x, path="a.b")
    with pytest.raises(ShapeError, match="whose sides 3 divides"):
        Polyphase(3).apply({}, x)
    with pytest.raises(OptionError, match="at least 1"):
        Polyphase(0)
    with pytest.raises(OptionError, match="choose must be 'energy', 'max' or 'centroid', got 'mean'"):
        Polyphase(2, "mean")
    with pytest.raises(OptionError, match="1, 2 or 3, got 4"):
        Polyphase(2, smooth=4)
    with pytest.raises(GroupActionError, match="smooth by 3 pixels"):
        Polyphase(2, smooth=2).representations(Field.of(representations.image(C4, (4, 4)), 1), iter([]))
    with pytest.raises(GroupActionError, match="choose by 'energy'"):
        Polyphase(2, "centroid").representations(Field.of(representations.image(C4, (4, 4)), 1), iter([]))
    action = representations.image(C4, (4, 4))
    with pytest.raises(GroupActionError, match=r"maps of \(2, 2\) pixels"):
        Factored(1, 1, (2, 2)).representations(Field.of(action, 1), iter([]))
    rotations = representations.matrix(C4, np.stack([np.linalg.matrix_power([[0, -1], [1, 0]], k) for k in range(4)]))
    with pytest.raises(GroupActionError, match="by permutations"):
        Factored(1, 2, (4, 4)).representations(Field.of(action, 1), iter([rotations]))


# The net

COUNTS = {  # van der Ouderaa et al. 2023 at width 10: CIFAR-10, digits with 10 labels, digits with 40 labels
    "fc": (133_635_690, 112_664_170, 112_683_400),
    "conv": (338_770, 338_590, 357_820),
    "both": (133_865_010, 112_893_310, 112_912_540),
    "f_fc": (1_542_625, 1_501_665, 1_520_895),
    "f_both": (1_771_945, 1_730_805, 1_750_035),
    "s_fc": (831_820, 811_340, 830_570),
    "s_conv": (287_910, 287_770, 307_000),
    "s_both": (933_990, 913_430, 932_660),
}


@pytest.mark.parametrize("variant", COUNTS)
def test_the_ladder_has_the_parameters_of_the_paper(variant):
    found = tuple(ladder_spec(variant, 32, c, k, 10).num_weights() for c, k in ((3, 10), (1, 10), (1, 40)))
    assert found == COUNTS[variant]


@pytest.mark.parametrize("variant", [*VARIANTS, "mixed"])
def test_every_variant_is_a_model_whose_pathways_have_strengths(variant):
    model = LadderClassifier(variant, 16, 1, 3, 1)
    structure = Problem(model).structure(jnp.zeros((2, 16, 16, 1)), jnp.zeros(2, jnp.int32))
    sites = [f"net.{name}" for pathway in pathways(model.spec) for name in pathway.sites]
    assert structure.latent["strength"].shape == (len(pathways(model.spec)),)
    assert sorted(sites) == sorted(set(structure.latent) - {"strength"})  # every weight in one pathway
    assert set(structure.weights) == set(sites)
    tapped = {site for meta in structure.taps.values() for site in (meta.weight, meta.bias)}
    assert set(sites) <= tapped
    fixed = LadderClassifier(variant, 16, 1, 3, 1, learned=False)
    assert "strength" not in Problem(fixed).structure(jnp.zeros((2, 16, 16, 1)), jnp.zeros(2, jnp.int32)).latent


def test_a_net_of_convolutions_does_not_see_shifts_and_others_do(x64):
    x = jnp.asarray(numbers(2, 16, 16, 1))
    shifts = [(8, 0), (0, 8), (8, 8), (1, 0), (3, 7)]
    for variant, options in (("conv", {}), ("conv", {"activation": "silu", "smooth": 2}), ("s_conv", {}), ("f_both", {})):
        spec = ladder_spec(variant, 16, 1, 4, 2, **options)
        w = {s.name: jnp.asarray(numbers(*s.shape, seed=i) / math.sqrt(s.fan_in)) for i, s in enumerate(spec.sites())}
        apply = jax.jit(lambda x, w=w, spec=spec: spec.apply(w, x))
        out = apply(x)
        changes = [float(np.abs(apply(jnp.roll(x, s, (1, 2))) - out).max()) for s in shifts]
        if variant == "f_both":
            assert min(changes) > 1e-3
        else:
            assert max(changes) < 1e-10


def test_strengths_start_with_signals_of_constant_variance():
    model = LadderClassifier("f_both", 16, 1, 10, 8)
    start = dict(zip([(p.layer, p.name) for p in pathways(model.spec)], model.start(), strict=True))
    assert start["0", "conv"] == start["0", "full"] == pytest.approx(1.0)  # sqrt(2), shared by two
    assert start["13", ""] == pytest.approx(math.sqrt(2))
    near = LadderClassifier("mixed", 16, 1, 10, 1, relative=0.5)
    start = dict(zip([(p.layer, p.name) for p in pathways(near.spec)], near.start(), strict=True))
    assert start["2", "conv"] == pytest.approx(0.5 * start["2", "group"]) == pytest.approx(2 * start["2", "full"])
    assert math.hypot(start["2", "group"], start["2", "conv"], start["2", "full"]) == pytest.approx(math.sqrt(2))
    with pytest.raises(OptionError, match="must be positive, got 0"):
        LadderClassifier(relative=0.0)


def test_a_factored_layer_costs_a_tenth_of_the_block_diagonal_form():
    """The published form builds block-diagonal matrices; XLA counts the operations of both, layer 1 of CIFAR-10 at width 10."""
    layer = Factored(10, 20, (32, 32), 2, bias=False)
    w = {s.name: jnp.zeros(s.shape) for s in layer.sites()}
    x = jnp.zeros((4, 32, 32, 10))

    def block_diagonal(w, x):
        rows = jnp.zeros((x.shape[0], 10, 10 * 1024))
        for c in range(10):
            rows = rows.at[:, c, c * 1024 : (c + 1) * 1024].set(x[..., c].reshape(x.shape[0], -1))
        z = rows @ w["input"].reshape(10 * 1024, 20)
        rows = jnp.zeros((x.shape[0], 20, 20 * 10))
        for d in range(20):
            rows = rows.at[:, d, d * 10 : (d + 1) * 10].set(z[:, :, d])
        return rows @ w["output"].reshape(20 * 10, 256)

    def flops(fn):
        return jax.jit(fn).lower(w, x).compile().cost_analysis()["flops"]

    assert flops(block_diagonal) > 10 * flops(layer.apply)


def test_what_the_ladder_refuses():
    with pytest.raises(OptionError, match="unknown variant 'rpp'"):
        ladder_spec("rpp")
    with pytest.raises(OptionError, match="16 x 16 or 32 x 32"):
        ladder_spec("conv", 28)


# Pathways and their shares

NET = Sequential(
    (
        Residual({"conv": Conv(1, 2, 3, "CIRCULAR"), "full": Factored(1, 2, (4, 4))}),
        Activation("relu"),
        Residual({"conv": Sequential((Conv(2, 2, 3, "CIRCULAR"), Polyphase(2))), "full": FullyConnected(2, 2, (4, 4), 2)}),
        Flatten(),
        Dense(8, 3),
    )
)


def test_pathways_name_what_shares_a_strength():
    found = pathways(NET)
    assert [(p.layer, p.name) for p in found] == [("0", "conv"), ("0", "full"), ("2", "conv"), ("2", "full"), ("4", "")]
    assert found[1].sites == ("0.full.input", "0.full.input_bias", "0.full.output", "0.full.output_bias")
    assert found[2].sites == ("2.conv.0.weight", "2.conv.0.bias")
    assert [name for p in found for name in p.sites] == [s.name for s in NET.sites()]


def test_shares_are_those_of_effective_parameters_and_of_output_energy():
    params = {f"net.{n}": v for n, v in weights_of(NET).items()}
    x = numbers(6, 4, 4, 1)
    gamma = {name: 0.5 * value.size for name, value in params.items()}
    gamma["net.0.full.input"] = 0.1 * params["net.0.full.input"].size
    gamma["net.2.conv.0.weight"] = 0.0
    gamma["net.2.full.weight"] = 0.0
    strengths = [1.0, 0.5, 2.0, 1e-3, 1.0]
    found = pathway_shares(NET, params, x, gamma=gamma, strengths=strengths)
    rows = {(r.layer, r.pathway): r for r in found.rows}
    full = rows["0", "full"]
    assert full.effective == pytest.approx((0.1 + 0.5) / 2)  # the mean over both factors
    assert full.share == pytest.approx(0.3 / 0.8)
    assert full.parameters == 2 * 16 + 2 + 2 * 16 + 16
    assert full.precision == pytest.approx(16 / 0.5)  # fan_in / strength, each factor having its root
    assert rows["0", "conv"].precision == pytest.approx(9.0)
    w = {n.removeprefix("net."): v for n, v in params.items()}
    with jax.default_matmul_precision("highest"):  # as the diagnostic multiplies; a GPU rounds to 10 bits if it may
        conv, other = (
            np.asarray(layer.apply({k[7:]: v for k, v in w.items() if k.startswith(f"0.{name}.")}, jnp.asarray(x)))
            for name, layer in NET.layers[0].pathways
        )
    assert rows["0", "conv"].mean_square == pytest.approx((conv**2).mean(), rel=1e-5)
    assert rows["0", "conv"].energy == pytest.approx((conv**2).mean() / ((conv**2).mean() + (other**2).mean()), rel=1e-5)
    assert found.verdicts() == {"0": "conv", "2": "dead"}
    assert found.layers() == ("0", "2")
    assert found.of("conv") == {"0": rows["0", "conv"].share, "2": pytest.approx(float("nan"), nan_ok=True)}
    plain = pathway_shares(NET, params, x)
    assert plain.verdicts()["0"] == ("conv" if plain.of("conv", "energy")["0"] > 0.5 else "full")
    assert len(plain.plot().axes) == 2
    assert len(plot_pathway_shares([(0, plain), (10, found)], "energy").axes) == 2


def test_what_shares_refuse():
    params = {f"net.{n}": v for n, v in weights_of(NET).items()}
    with pytest.raises(OptionError, match=r"params lacks the sites \['0.conv.weight'"):
        pathway_shares(NET, params, numbers(2, 4, 4, 1), module="other")
    with pytest.raises(OptionError, match="gamma lacks"):
        pathway_shares(NET, params, numbers(2, 4, 4, 1), gamma={})
    with pytest.raises(OptionError, match="2 strengths for 5 pathways"):
        pathway_shares(NET, params, numbers(2, 4, 4, 1), strengths=[1.0, 2.0])
    with pytest.raises(OptionError, match="'share' or 'energy'"):
        plot_pathway_shares([])


def test_strengths_with_shared_or_held_totals_divide_them_within_layers():
    model = LadderClassifier("f_both", 16, 1, 10, 1, totals="shared")
    names = [pathway.layer for pathway in pathways(model.spec)]
    strength = jnp.asarray(np.exp(numbers(len(names))))
    found = np.asarray(model.strengths(strength))
    totals = {name: math.sqrt(sum(s**2 for s, n in zip(found, names, strict=True) if n == name)) for name in names}
    given = {name: math.sqrt(sum(float(s) ** 2 for s, n in zip(strength, names, strict=True) if n == name)) for name in names}
    mean = math.exp(sum(math.log(total) for total in given.values()) / len(given))
    assert np.allclose(list(totals.values()), mean, rtol=1e-5)
    assert found[0] / found[1] == pytest.approx(float(strength[0] / strength[1]), rel=1e-5)
    # what it leaves out: one layer larger and the next smaller by the same factor is the same prior
    factor = jnp.asarray([3.0 if n == names[0] else 1 / 3 if n == names[2] else 1.0 for n in names])
    assert np.allclose(model.strengths(strength * factor), found, rtol=1e-5)
    held = LadderClassifier("f_both", 16, 1, 10, 1, scale=3.0, totals="held")
    assert np.allclose(held.strengths(strength), found * 3 / mean, rtol=1e-5)
    assert np.allclose(held.strengths(strength * factor), held.strengths(strength), rtol=1e-5)
    plain = LadderClassifier("f_both", 16, 1, 10, 1)
    assert np.array_equal(plain.strengths(strength), strength)
    with pytest.raises(OptionError, match="'free', 'shared' or 'held', got 'tied'"):
        LadderClassifier(totals="tied")


def test_at_a_mode_every_layer_of_a_relu_net_has_the_same_scatter():
    """Euler: the weights of each layer times their gradients are the outputs times theirs. So gammas cannot equal scatters."""
    spec = Sequential(
        (Dense(3, 6, bias=False), Activation("relu"), Dense(6, 5, bias=False), Activation("relu"), Dense(5, 2, bias=False))
    )
    x = jnp.asarray(numbers(40, 3))
    start = {n: jnp.asarray(v) for n, v in weights_of(spec).items()}
    precision = {name: 1.0 + i for i, name in enumerate(start)}

    def loss(weights):
        log_p = jax.nn.log_softmax(spec.apply(weights, x))
        prior = sum(precision[n] * (v**2).sum() for n, v in weights.items())
        return prior / 2 - 3 * log_p[jnp.arange(40), (x[:, 0] > 0).astype(int)].sum()

    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 4000, 1e-4))

    def step(_, state):
        weights, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(weights), memory, weights)
        return optax.apply_updates(weights, updates), memory

    weights, _ = jax.jit(lambda w: jax.lax.fori_loop(0, 4000, step, (w, optimizer.init(w))))(start)
    scatters = [float(precision[n] * (v**2).sum()) for n, v in weights.items()]
    assert min(scatters) > 1 and max(scatters) == pytest.approx(min(scatters), rel=1e-2)
