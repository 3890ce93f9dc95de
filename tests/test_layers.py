"""Layers: their maps against jax.lax and numpy, their sites and priors, the action on their weights, and taps."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_sym import groups, representations, tap
from bayes_sym.diagnostics import check_equivariance
from bayes_sym.errors import GroupActionError, ModelError, OptionError, PriorError, ShapeError, TapError
from bayes_sym.layers import Activation, Conv, Dense, Field, Flatten, Pool, Residual, Role, Sequential, random_module
from bayes_sym.layers.module import ReplaceModules
from bayes_sym.priors import IndependentScales, ResidualPathways
from bayes_sym.taps import TapRecorder


C4, D4 = groups.cyclic(4), groups.dihedral(4)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def weights_of(layer, seed=1):
    return {site.name: jnp.asarray(numbers(*site.shape, seed=seed + i)) for i, site in enumerate(layer.sites())}


# The maps


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("kernel", [3, (2, 3)])
def test_conv_is_the_convolution_of_lax(kernel, padding, stride, x64):
    layer = Conv(2, 3, kernel, padding, stride)
    weights, x = weights_of(layer), numbers(2, 6, 5, 2)
    rows, columns = layer.window
    around = [((rows - 1) // 2, rows - 1 - (rows - 1) // 2), ((columns - 1) // 2, columns - 1 - (columns - 1) // 2)]
    padded = np.pad(x, [(0, 0), *around, (0, 0)], mode="wrap") if padding == "CIRCULAR" else x
    expected = jax.lax.conv_general_dilated(
        padded,
        weights["weight"],
        (stride, stride),
        around if padding == "SAME" else "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    out = layer.apply(weights, jnp.asarray(x))
    assert out.shape[1:3] == layer.output_grid((6, 5))
    assert np.abs(out - (expected + weights["bias"][None, None, None])).max() < 1e-12


@pytest.mark.parametrize("grid", [(4, 6), (5, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_wide_conv_has_the_values_and_gradients_of_its_patches(padding, grid, x64):
    layer = Conv(32, 33, 3, padding)
    weights, x = weights_of(layer), jnp.asarray(numbers(2, *grid, 32))
    ct = numbers(2, *layer.output_grid(grid), 33)
    patches, weight = jax.vjp(layer.patches, x), weights["weight"].reshape(-1, 33)
    by_frequencies = len(jax.make_jaxpr(layer.apply)(weights, x).jaxpr.eqns) > 50  # a product with patches has 10
    assert by_frequencies == (jax.default_backend() == "cpu")  # elsewhere it is that product

    z, pull = jax.vjp(lambda weights, x: layer.apply(weights, x), weights, x)
    np.testing.assert_allclose(z, patches[0] @ weight + weights["bias"][None, None, None], rtol=0, atol=1e-11)
    by_weights, by_x = pull(jnp.asarray(ct))
    np.testing.assert_allclose(
        by_weights["weight"].reshape(-1, 33), np.einsum("bhwi,bhwo->io", patches[0], ct), rtol=0, atol=1e-11
    )
    np.testing.assert_allclose(by_x, patches[1](ct @ weight.T)[0], rtol=0, atol=1e-11)


def test_conv_same_at_stride_one_is_same_in_lax(x64):
    layer = Conv(1, 2, 3, bias=False)
    weights, x = weights_of(layer), numbers(1, 5, 5, 1)
    expected = jax.lax.conv_general_dilated(x, weights["weight"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert np.abs(layer.apply(weights, jnp.asarray(x)) - expected).max() < 1e-12


def test_dense_is_a_matrix_on_the_last_axis(x64):
    layer = Dense(3, 4)
    weights, x = weights_of(layer), numbers(2, 5, 3)
    expected = x @ np.asarray(weights["weight"]) + np.asarray(weights["bias"])
    assert np.abs(layer.apply(weights, jnp.asarray(x)) - expected).max() < 1e-12
    plain = Dense(3, 4, bias=False)
    assert [site.name for site in plain.sites()] == ["weight"]
    assert np.abs(plain.apply(weights, jnp.asarray(x)) - x @ np.asarray(weights["weight"])).max() < 1e-12


def test_pool_takes_windows_or_everything():
    x = jnp.asarray(numbers(2, 4, 6, 3))
    for kind, reduce in (("mean", np.mean), ("max", np.max)):
        assert np.allclose(Pool(kind=kind).apply({}, x), reduce(x, axis=(1, 2)), atol=1e-6)
        pooled = Pool(2, kind).apply({}, x)
        assert pooled.shape == (2, 2, 3, 3)
        assert np.allclose(pooled[1, 0, 2], reduce(np.asarray(x)[1, 0:2, 4:6], axis=(0, 1)), atol=1e-6)


def test_flatten_and_activations():
    x = numbers(2, 3, 4).astype(np.float32)
    assert (Flatten().apply({}, jnp.asarray(x)) == x.reshape(2, 12)).all()
    assert (Activation().apply({}, jnp.asarray(x)) == np.maximum(x, 0)).all()
    assert np.allclose(Activation("tanh").apply({}, jnp.asarray(x)), np.tanh(x), atol=1e-6)
    assert (Activation("identity").apply({}, jnp.asarray(x)) == x).all()


def test_sequential_and_residual_compose(x64):
    first, left, right = Dense(3, 4), Dense(4, 2), Dense(4, 2, bias=False)
    net = Sequential([first, Activation("tanh"), Residual({"left": left, "right": right})])
    assert [site.name for site in net.sites()] == ["0.weight", "0.bias", "2.left.weight", "2.left.bias", "2.right.weight"]
    assert net.num_weights() == 12 + 4 + 8 + 2 + 8
    weights, x = weights_of(net), jnp.asarray(numbers(5, 3))
    w = {name: np.asarray(value) for name, value in weights.items()}
    h = np.tanh(np.asarray(x) @ w["0.weight"] + w["0.bias"])
    expected = h @ (w["2.left.weight"] + w["2.right.weight"]) + w["2.left.bias"]
    assert np.abs(net.apply(weights, x) - expected).max() < 1e-12
    assert [name for name, _ in Residual([left, ("free", right)]).pathways] == ["0", "free"]
    assert Pool().num_weights() == 0


def test_specs_are_values_and_static_arguments():
    net, same = (Sequential([Conv(1, 2), Activation(), Pool(), Dense(2, 3)]) for _ in range(2))
    assert net == same and hash(net) == hash(same)
    weights = {name: w.astype(jnp.float32) for name, w in weights_of(net).items()}
    x = jnp.ones((2, 4, 4, 1))
    out = jax.jit(lambda spec, weights, x: spec.apply(weights, x), static_argnums=0)(net, weights, x)
    assert np.allclose(out, net.apply(weights, x), atol=1e-5)


def test_expanded_layers_multiply_hidden_channels():
    net = Sequential([Conv(1, 2), Activation(), Pool(), Residual({"a": Dense(2, 4), "b": Dense(2, 4)}), Dense(4, 3)])
    roles = iter([Role(True, False), Role(False, False), Role(False, True)])
    wide = net.expand(4, roles)
    shapes = {site.name: site.shape for site in wide.sites()}
    assert shapes["0.weight"] == (3, 3, 1, 8)
    assert shapes["3.a.weight"] == shapes["3.b.weight"] == (8, 16)
    assert shapes["4.weight"] == (16, 3)
    assert wide.apply(weights_of(wide), jnp.ones((2, 4, 4, 1))).shape == (2, 3)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Conv(2, 3).apply(weights_of(Conv(2, 3)), jnp.ones((1, 4, 4, 5))), ShapeError, r"2 channels.*Conv\(inputs=5"),
        (lambda: Conv(1, 3).apply(weights_of(Conv(1, 3)), jnp.ones((1, 4, 4))), ShapeError, "Arrays are NHWC"),
        (lambda: Conv(1, 1, 5, "VALID").patches(jnp.ones((1, 4, 4, 1))), ShapeError, r"filters \(5, 5\) does not fit"),
        (lambda: Conv(1, 1, padding="REFLECT"), OptionError, "padding must be .* got 'REFLECT'"),
        (lambda: Dense(2, 3).apply(weights_of(Dense(2, 3)), jnp.ones((1, 4))), ShapeError, r"Dense\(inputs=4"),
        (lambda: Pool(3).apply({}, jnp.ones((1, 4, 4, 1))), ShapeError, r"Pool\(3\) needs a height and width that 3 divides"),
        (lambda: Pool().apply({}, jnp.ones((1, 4))), ShapeError, "Pool '' takes images"),
        (lambda: Pool(kind="median"), OptionError, "kind must be 'mean' or 'max', got 'median'"),
        (lambda: Activation("swoosh"), OptionError, "unknown activation 'swoosh'"),
        (lambda: Residual({}), ModelError, "at least one pathway"),
        (lambda: Residual({"a.b": Dense(1, 1)}), ModelError, "without '.'"),
        (lambda: Residual([("a", Dense(1, 1)), ("a", Dense(1, 1))]), ModelError, "different names"),
        (
            lambda: Residual([Dense(2, 2), Dense(2, 3)]).apply(
                weights_of(Residual([Dense(2, 2), Dense(2, 3)])), jnp.ones((1, 2))
            ),
            ShapeError,
            "outputs of one shape",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()


# The action on the weights


def hidden(group, copies=1):
    return representations.regular(group) * representations.trivial(group, copies)


def turns(group):
    """A signed representation on the plane: the generator turns it by 90 degrees, and the mirror flips one axis."""
    return representations.permutation(group, [[[1, 0], [-1, 1]], [[0, 1], [1, -1]]][: len(group.generators)])


LAYERS = {
    "conv-same": lambda G: (Conv(2, G.order, 3), {"channels": 2, "output": hidden(G)}),
    "conv-same-channels": lambda G: (Conv(G.order, 3, 3), {"channels": hidden(G)}),
    "conv-circular": lambda G: (Conv(1, 2 * G.order, 3, "CIRCULAR"), {"output": hidden(G, 2)}),
    "conv-valid-even": lambda G: (Conv(1, G.order, 2, "VALID"), {"output": hidden(G)}),
    "conv-valid-stride": lambda G: (Conv(1, G.order, 3, "VALID", 2), {"input": (5, 5), "output": hidden(G)}),
    "conv-same-stride-odd-grid": lambda G: (Conv(1, G.order, 3, "SAME", 2), {"input": (5, 5), "output": hidden(G)}),
    "conv-signed": lambda G: (Conv(2, 2, 3), {"channels": turns(G), "output": turns(G)}),
    "dense": lambda G: (Dense(G.order, G.order), {"input": representations.regular(G), "output": hidden(G)}),
    "flatten-dense": lambda G: (Sequential([Flatten(), Dense(32, G.order)]), {"channels": turns(G), "output": hidden(G)}),
    "pool-mean": lambda G: (Pool(2), {"channels": turns(G)}),
    "pool-max": lambda G: (Pool(2, "max"), {"channels": hidden(G)}),
    "pool-all": lambda G: (Pool(kind="max"), {"channels": hidden(G)}),
    "relu": lambda G: (Activation(), {"channels": hidden(G)}),
    "tanh-signed": lambda G: (Activation("tanh"), {"channels": turns(G)}),
    "residual": lambda G: (Residual({"wide": Conv(1, G.order, 3), "narrow": Conv(1, G.order, 1)}), {"output": hidden(G)}),
    "net": lambda G: (
        Sequential([Conv(1, 2 * G.order), Activation("gelu"), Pool(2, "max"), Flatten(), Dense(8 * G.order, 3)]),
        {"hidden": [hidden(G, 2)]},
    ),
    "net-trivial": lambda G: (Sequential([Conv(1, 2), Activation(), Residual([Conv(2, 2), Conv(2, 2, 1)]), Pool()]), {}),
}


@pytest.mark.parametrize("group", [C4, D4], ids=lambda group: group.name)
@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())
def test_transformed_weights_transform_the_outputs(case, group, key, x64):
    layer, options = case(group)
    check = check_equivariance(layer, group, **{"input": (4, 4), **options}, key=key, num_examples=2, tolerance=1e-12)
    assert check.passed and check.max_error <= 1e-12


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (Conv(1, 2, 3, "SAME", 2), {}, r"stride 2 on a grid \(4, 4\) samples one side"),
        (Conv(1, 2, 3, "VALID", 2), {}, "samples one side"),
        (Conv(1, 2, 2), {}, "even kernel"),
        (Conv(1, 2, (1, 3)), {}, "must be square"),
        (Conv(2, 2), {}, "takes 2 channels, but the group acts on 1"),
        (Dense(16, 2), {}, "put Flatten"),
        (Sequential([Flatten(), Dense(9, 2)]), {}, "takes 9 inputs, but the group acts on 16"),
        (Sequential([Pool(), Conv(1, 2)]), {}, "Conv needs images"),
        (Sequential([Pool(), Pool()]), {}, "Pool needs images"),
        (Activation(), {"channels": turns(C4)}, "relu is pointwise"),
        (Pool(2, "max"), {"channels": turns(C4)}, "a maximum commutes with permutations"),
        (Conv(1, 3), {"output": hidden(C4)}, "has 3 outputs under C4, got a representation of C4 of dimension 4"),
        (Residual([Conv(1, 2), Conv(1, 2, 2, "VALID")]), {}, "end in different actions"),
    ],
)
def test_actions_that_do_not_exist_are_refused(layer, options, message, key):
    with pytest.raises(GroupActionError, match=message):
        check_equivariance(layer, C4, input=(4, 4), **options, key=key)
    check = check_equivariance(layer, C4, input=(4, 4), **options, key=key, raise_if_broken=False)
    assert not check and check.max_error == np.inf and check.worst_element is None and check.reason


def test_fields_know_their_actions():
    field = Field.of(representations.image(C4, (3, 3)), 2)
    assert field.grid == (3, 3) and field.representation.shape == (3, 3, 2)
    with pytest.raises(GroupActionError, match="layers act on pixel grids by the exact rotations"):
        Field.of(representations.trivial(C4, 9).reshape(3, 3), 1)
    with pytest.raises(GroupActionError, match="give one per weighted layer"):
        Conv(1, 2).representations(Field.of(representations.image(C4, (3, 3)), 1), iter([]))


# Modules and priors


NET = Sequential([Conv(1, 2), Activation(), Pool(), Dense(2, 3)])


def sampled(prior=None, seed=0):
    trace = numpyro.handlers.trace(numpyro.handlers.seed(lambda: random_module("net", NET, prior=prior), seed)).get_trace()
    return {name: site for name, site in trace.items() if site["type"] == "sample"}


def test_modules_sample_named_sites_and_apply_them():
    sites = sampled()
    assert {name: site["value"].shape for name, site in sites.items()} == {
        "net.0.weight": (3, 3, 1, 2),
        "net.0.bias": (2,),
        "net.3.weight": (2, 3),
        "net.3.bias": (3,),
    }
    x = jnp.ones((2, 4, 4, 1))
    out = numpyro.handlers.seed(lambda: random_module("net", NET)(x), 0)()
    expected = NET.apply({name.removeprefix("net."): site["value"] for name, site in sites.items()}, x)
    assert (out == expected).all()


def test_the_default_prior_scales_by_fan_in():
    sites = sampled()
    assert sites["net.0.weight"]["fn"].variance.ravel()[0] == pytest.approx(1 / 9)
    assert sites["net.3.weight"]["fn"].variance.ravel()[0] == pytest.approx(1 / 2)
    assert sites["net.3.bias"]["fn"].variance.ravel()[0] == pytest.approx(1)


def test_priors_by_pattern_by_pathway_by_site_and_by_distribution():
    sites = sampled(IndependentScales({"0.*": 2.0, "*.bias": 0.1, "*": 1.0}))
    scales = {name: float(jnp.sqrt(site["fn"].variance.ravel()[0])) for name, site in sites.items()}
    assert scales == pytest.approx({"net.0.weight": 2 / 3, "net.0.bias": 2, "net.3.weight": 0.5**0.5, "net.3.bias": 0.1})

    pathways = Residual({"symmetric": Dense(4, 2), "free": Dense(4, 2)})
    prior = ResidualPathways({"symmetric": 3.0, "free": {"*.weight": 0.5, "*": 0.25}})
    found = {site.name: float(jnp.sqrt(prior(site).variance.ravel()[0])) for site in pathways.sites()}
    assert found == pytest.approx({"symmetric.weight": 1.5, "symmetric.bias": 3, "free.weight": 0.25, "free.bias": 0.25})

    assert sampled(dist.Laplace(0.0, 1.0))["net.3.bias"]["value"].shape == (3,)
    per_site = {site.name: dist.Normal(0.0, 2.0) for site in NET.sites()}
    assert sampled(per_site)["net.0.weight"]["fn"].variance.ravel()[0] == pytest.approx(4)


def test_modules_can_be_replaced_by_name():
    model = ReplaceModules(lambda: random_module("net", NET), {"net": Dense(2, 3), "other": NET})
    net = numpyro.handlers.seed(model, 0)()
    assert net.spec == Dense(2, 3) and net.weights.keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sampled({"0.weight": dist.Normal()}), "no entry for site '0.bias'; it has"),
        (lambda: sampled(lambda site: dist.Normal(jnp.zeros(7), 1.0)), r"batch shape \(7,\).*weight has shape \(3, 3, 1, 2\)"),
        (lambda: sampled(IndependentScales({"9.*": 1.0})), "no scale matches site '0.weight'"),
        (
            lambda: ResidualPathways({"a": 1.0, "b": 1.0})(Residual({"a": Residual({"b": Dense(1, 1)})}).sites()[0]),
            "belongs to several pathways",
        ),
    ],
)
def test_prior_errors(build, message):
    with pytest.raises(PriorError, match=message):
        build()


# Taps


def test_taps_are_the_identity_outside_inference():
    z, a = jnp.ones((2, 3)), jnp.ones((2, 4))
    assert tap("t", z, inputs=a, weight="w") is z
    # under other handlers they neither change the value nor break it
    with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
        assert (tap("t", z, inputs=a, weight="w") == z).all()
    assert [site["type"] for site in trace.values()] == ["tap"]


@pytest.mark.parametrize("layer", [Dense(3, 2), Conv(2, 2, 3), Conv(2, 2, 2, "VALID", 2)], ids=["dense", "conv", "strided"])
def test_recorded_inputs_times_shift_gradients_are_weight_gradients(layer, x64):
    x = jnp.asarray(numbers(2, 4, 3) if isinstance(layer, Dense) else numbers(2, 4, 4, 2))
    weights = weights_of(layer)

    def loss(weights, shifts):
        with (recorder := TapRecorder(shifts=shifts)):
            out = layer.apply(weights, x, path="net")
        return jnp.sin(out).sum(), (recorder.inputs, out)

    _, (inputs, out) = loss(weights, {})
    of_weights, of_shifts = jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, {"net": jnp.zeros_like(out)})[0]
    a = inputs["net"].reshape(-1, inputs["net"].shape[-1])
    b = of_shifts["net"].reshape(-1, out.shape[-1])
    assert np.abs(a.T @ b - of_weights["weight"].reshape(a.shape[1], -1)).max() < 1e-12
    assert np.abs(b.sum(axis=0) - of_weights["bias"]).max() < 1e-12


def test_the_recorder_names_the_sites_of_every_tap():
    x = jnp.ones((2, 4, 4, 1))
    with (recorder := TapRecorder()):
        numpyro.handlers.seed(lambda: random_module("net", NET)(x), 0)()
    assert {name: (meta.weight, meta.bias, meta.shape) for name, meta in recorder.meta.items()} == {
        "net.0": ("net.0.weight", "net.0.bias", (2, 4, 4, 2)),
        "net.3": ("net.3.weight", "net.3.bias", (2, 3)),
    }
    assert recorder.inputs["net.0"].shape == (2, 4, 4, 9)


def test_taps_under_a_scope_take_its_prefix():
    x = jnp.ones((2, 4))
    model = numpyro.handlers.scope(lambda: random_module("net", Dense(4, 2, bias=False))(x), prefix="left", divider=".")
    with (recorder := TapRecorder()), numpyro.handlers.trace() as trace:
        numpyro.handlers.seed(model, 0)()
    assert recorder.meta["left.net"].weight == "left.net.weight"
    assert recorder.meta["left.net"].bias is None
    assert "left.net.weight" in trace


def test_taps_refuse_vmap_repeats_and_inputs_of_another_shape():
    layer = Dense(3, 2)
    weights = weights_of(layer)
    with TapRecorder(), pytest.raises(TapError, match=r"tap 'net' stands under vmap: it sees one example of shape \(1, 2\)"):
        jax.vmap(lambda x: layer.apply(weights, x[None], path="net"))(jnp.ones((5, 3)))
    with TapRecorder(), pytest.raises(TapError, match="tap 'net' occurs twice"):
        for _ in range(2):
            layer.apply(weights, jnp.ones((5, 3)), path="net")
    with TapRecorder(), pytest.raises(TapError, match=r"inputs of shape \(2, 4, 3\) for pre-activations of shape \(2, 5\)"):
        tap("t", jnp.ones((2, 5)), inputs=jnp.ones((2, 4, 3)), weight="w")
