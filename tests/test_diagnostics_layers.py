"""Equivariance layer by layer: symmetric nets have none in their gauge, hidden gauges are found, and broken layers are named."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import layer_equivariance
from bayes_sym.diagnostics.activations import activations
from bayes_sym.diagnostics.matching import homomorphism_defect, matched_units
from bayes_sym.errors import DataError, GroupActionError, OptionError
from bayes_sym.layers import Activation, Conv, Dense, Field, Flatten, FullyConnected, Pool, Residual, Sequential


C2, C4, D4 = groups.cyclic(2), groups.cyclic(4), groups.dihedral(4)
GRID = representations.image(C4, (4, 4))
HIDDEN = representations.regular(C4) * representations.trivial(C4, 2)
NET = Sequential(
    (Residual({"conv": Conv(1, 8), "full": FullyConnected(1, 8, (4, 4))}), Activation("relu"), Pool(2), Flatten(), Dense(32, 3))
)


def weights_of(spec, seed=0):
    generator = np.random.default_rng(seed)
    return {s.name: jnp.asarray(generator.standard_normal(s.shape) / math.sqrt(s.fan_in), jnp.float32) for s in spec.sites()}


def symmetric_weights(spec, hidden, output=None):
    """Weights that the group leaves as they are, in this gauge."""
    outputs = [hidden, representations.trivial(C4, 3) if output is None else output]
    reps, _ = spec.representations(Field.of(GRID, 1), iter(outputs))
    return {name: reps[name].project(w, tuple(range(w.ndim))) for name, w in weights_of(spec).items()}


def images(n=24, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, 4, 4, 1)), jnp.float32)


def test_activations_are_those_of_the_net():
    weights, x = weights_of(NET), images(3)
    found = activations(NET, weights, x)
    assert list(found) == ["0.conv", "0.full", "0", "1", "2", "3", "4"]
    np.testing.assert_array_equal(found["0.conv"] + found["0.full"], found["0"])
    np.testing.assert_array_equal(jax.nn.relu(found["0"]), found["1"])
    with jax.default_matmul_precision("highest"):  # as everything in diagnostics, also where products are shortened by default
        np.testing.assert_array_equal(found["4"], NET.apply(weights, x))
    alone = activations(Dense(4, 2, bias=False), {"weight": jnp.ones((4, 2))}, jnp.ones((1, 4)))
    assert list(alone) == [""] and alone[""].shape == (1, 2)


def test_a_symmetric_net_has_no_error_in_its_gauge_and_its_gauge_is_found():
    params = {f"net.{name}": w for name, w in symmetric_weights(NET, HIDDEN).items()}
    found = layer_equivariance(NET, params, images(), GRID, hidden=[HIDDEN])
    assert [(row.layer, row.kind) for row in found.rows][:3] == [
        ("0.conv", "Conv"),
        ("0.full", "FullyConnected"),
        ("0", "Residual"),
    ]
    for row in found.rows:
        assert row.declared < 1e-10 and row.declared_se < 1e-10 and row.refusal == ""
        assert row.matched < 1e-10 and row.homomorphism == 0
    # under trivial hidden representations the hidden layers seem broken, though the function is invariant
    trivial = layer_equivariance(NET, params, images(), GRID)
    assert trivial.of()["0"] > 0.2 and trivial.of()["4"] < 1e-10
    assert trivial.of("matched") == found.of("matched")


def test_units_in_any_order_are_matched():
    shuffle = np.random.default_rng(3).permutation(8)
    weights = symmetric_weights(NET, HIDDEN)
    weights = {n: w[..., shuffle] if n.startswith("0.") and not n.endswith("full.bias") else w for n, w in weights.items()}
    weights = {n: w[..., shuffle] if n == "0.full.bias" and w.shape[-1] == 8 else w for n, w in weights.items()}
    found = layer_equivariance(NET, weights, images(), GRID, module="", hidden=[HIDDEN])
    first = found.rows[2]
    assert first.layer == "0" and first.declared > 0.1 and first.matched < 1e-10 and first.homomorphism == 0


def test_random_layers_have_the_error_of_their_definition():
    weights, x = weights_of(NET), images()
    found = layer_equivariance(NET, weights, x, GRID, module="", hidden=[HIDDEN])
    phi = [np.asarray(activations(NET, weights, GRID.transform(g, x))["0"], np.float64) for g in range(4)]
    rep = (GRID * HIDDEN).reshape(4, 4, 8).matrices()
    flat = np.stack(phi).reshape(4, 24, -1)
    errors = ((flat - np.einsum("gij,nj->gni", rep, flat[0])) ** 2).sum(axis=-1).mean(axis=0)
    squares = (flat**2).sum(axis=-1).mean(axis=0)
    row = found.rows[2]
    assert row.declared == pytest.approx(errors.sum() / squares.sum(), rel=1e-6)
    # a jackknife of the ratio has nearly the standard error of its linearisation
    without = (errors.sum() - errors) / (squares.sum() - squares)
    assert row.declared_se == pytest.approx(math.sqrt(23 / 24 * ((without - without.mean()) ** 2).sum()), rel=0.1)
    assert row.matched > 0.3 and row.homomorphism > 0.3


def test_matching_is_measured_on_other_examples():
    # many units and few examples fit by chance; on the examples that were not fitted nothing is gained
    spec = Dense(8, 300)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8)), jnp.float32)
    turn = representations.permutation(C2, [np.roll(np.arange(8), 4)])
    row = layer_equivariance(spec, weights_of(spec), x, turn, module="").rows[0]
    assert row.matched > 0.7 and row.homomorphism > 0.9
    phi = [np.asarray(spec.apply(weights_of(spec), turn.transform(g, x)), np.float64) for g in (0, 1)]
    source = matched_units(phi[1][::2], phi[0][::2])
    fitted, elsewhere = (
        np.mean([np.corrcoef(phi[1][half, i], phi[0][half, source[i]])[0, 1] for i in range(300)])
        for half in (slice(0, None, 2), slice(1, None, 2))
    )
    assert fitted > 0.9 and elsewhere < 0.5 * fitted


def test_matching_is_the_best_of_all_permutations():
    generator = np.random.default_rng(0)
    there, here = generator.standard_normal((2, 30, 5))
    correlation = np.corrcoef(there, here, rowvar=False)[:5, 5:]
    best = max(itertools.permutations(range(5)), key=lambda p: correlation[range(5), p].sum())
    assert tuple(matched_units(there, here)) == best
    assert tuple(matched_units(3 * here[:, [2, 0, 1, 4, 3]] + 1, here)) == (2, 0, 1, 4, 3)


def test_the_homomorphism_defect_of_actions_and_of_chance():
    regular = representations.regular(D4).source
    assert homomorphism_defect(D4, regular, np.ones(8, bool)) == 0
    assert homomorphism_defect(D4, regular[D4.inverse], np.ones(8, bool)) > 0.3  # acts from the other side
    chance = np.stack([np.arange(60), *(np.random.default_rng(g).permutation(60) for g in range(3))])
    assert homomorphism_defect(C4, chance, np.ones(60, bool)) > 0.9


def test_dead_units_do_not_count():
    spec = Sequential((Dense(4, 6), Activation("relu")))
    weights = {"0.weight": jnp.ones((4, 6)), "0.bias": jnp.full(6, -100.0)}
    shift = representations.regular(C4)
    found = layer_equivariance(spec, weights, jnp.ones((6, 4)), shift, module="")
    assert found.rows[1][2:7] == (0, 0, 0, 0, 0)


def test_a_layer_that_refuses_the_group_is_named_and_still_matched():
    spec = Sequential((Conv(1, 8), Conv(8, 8, stride=2), Activation("relu"), Flatten(), Dense(32, 3)))
    found = layer_equivariance(spec, weights_of(spec), images(), GRID, module="")
    first, second, *later = found.rows
    assert first.refusal == "" and first.declared > 0
    assert "Conv '1': Conv with stride 2" in second.refusal and math.isnan(second.declared) and second.matched > 0
    assert all(row.refusal == second.refusal for row in later)


def test_vectors_sequences_and_equivariant_outputs():
    shift = representations.regular(C4)
    spec = Sequential((Dense(4, 8), Activation("tanh"), Dense(8, 4)))
    reps, _ = spec.representations(Field(shift), iter([HIDDEN.reshape(8), shift]))
    weights = {name: reps[name].project(w, tuple(range(w.ndim))) for name, w in weights_of(spec).items()}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((40, 4)), jnp.float32)
    found = layer_equivariance(spec, weights, x, shift, module="", hidden=[HIDDEN.reshape(8)], output=shift)
    assert max(found.of().values()) < 1e-10 and max(found.of("matched").values()) < 1e-10
    assert layer_equivariance(spec, weights, x, shift, module="", hidden=[HIDDEN.reshape(8)]).of()["2"] > 0.1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.ones((3, 4, 4, 1))}, OptionError, "at least 4, got 3"),
        ({"output": representations.trivial(C2, 3)}, GroupActionError, "output must be a representation of C4"),
        ({"hidden": [HIDDEN, HIDDEN]}, OptionError, "hidden= takes one representation"),
        ({"module": "other"}, OptionError, r"lacks the sites \['other.0.conv.weight'"),
        ({"x": jnp.full((4, 4, 4, 1), jnp.nan)}, DataError, "outputs of layer '0.conv' are not all finite"),
    ],
)
def test_layer_errors(change, error, message):
    options = {"params": weights_of(NET), "x": images(4), "module": ""} | change
    with pytest.raises(error, match=message):
        layer_equivariance(NET, options.pop("params"), options.pop("x"), GRID, **options)
