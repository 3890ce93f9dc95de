"""Operations: one table of all of them, and for each the identity at 0, exact gradients, growth, noise and its checks."""

import ast
import inspect
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_sym import groups, representations, transforms
from bayes_sym.errors import OptionError, ShapeError
from bayes_sym.transforms import (
    Affine,
    AutoContrast,
    BandStop,
    Blur,
    Brightness,
    Chain,
    ChannelDropout,
    ChannelShuffle,
    ChannelSymmetry,
    Contrast,
    Equalize,
    Finite,
    FourierSurrogate,
    FrequencyShift,
    Gated,
    GaussianNoise,
    GroupAction,
    HorizontalFlip,
    Hue,
    Invert,
    Posterize,
    Rotate,
    SamplePairing,
    Saturation,
    Scale,
    SensorRotation,
    Sharpness,
    ShearX,
    ShearY,
    SignFlip,
    Solarize,
    Stretch,
    TimeMask,
    TimeReverse,
    Transform,
    TranslateX,
    TranslateY,
    VerticalFlip,
    beside,
    signed,
)


BATCH = 16
RATE = 32.0
SENSORS = ((1.0, 0.0, 0.3), (0.0, 1.0, 0.3), (-1.0, 0.0, 0.3), (0.0, -1.0, 0.3), (0.1, 0.1, 1.0))


@dataclass(frozen=True)
class Gamma(Transform):
    """What a user writes: tones to the power exp(t)."""

    limit: float = 1.0
    kind: ClassVar[str] = "image"

    def transform(self, x, magnitude, u):
        return x ** beside(jnp.exp(signed(self.limit * magnitude, u[:, 0])), x)


@dataclass(frozen=True)
class Transpose(Gated):
    """What a user writes for an operation that happens or not."""

    def other(self, x):
        return x.swapaxes(1, 2)


TABLE: tuple[Transform, ...] = (
    Rotate(180.0),
    TranslateX(),
    TranslateY(),
    Scale(),
    Stretch(),
    ShearX(),
    ShearY(),
    HorizontalFlip(),
    VerticalFlip(),
    GroupAction(representations.image(groups.cyclic(4), (7, 7))),
    Brightness(),
    Contrast(),
    Saturation(),
    Hue(),
    Invert(),
    Solarize(),
    Posterize(),
    AutoContrast(),
    Equalize(),
    Sharpness(),
    Blur(),
    SamplePairing(),
    TimeReverse(),
    SignFlip(),
    FourierSurrogate(),
    FrequencyShift(0.25, RATE),
    BandStop(4.0, RATE),
    GaussianNoise(),
    TimeMask(12.0),
    ChannelDropout(),
    ChannelShuffle(),
    ChannelSymmetry(permutation=(1, 0, 3, 2, 4)),
    SensorRotation(30.0, SENSORS),
    Gamma(),
    Transpose(),
)
IMAGES = tuple(op for op in TABLE if op.kind == "image" or isinstance(op, (GroupAction, Transpose, SamplePairing)))
every = pytest.mark.parametrize("op", TABLE, ids=lambda op: type(op).__name__)


def images(count=BATCH, size=7, channels=3, seed=0):
    """Smooth, lopsided images in (0, 1)."""
    rng = np.random.default_rng(seed)
    r, c = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    slope = rng.uniform(0.5, 1.0, (count, 1, 1, channels)) * rng.choice([-1, 1], (count, 1, 1, channels))
    bump = np.exp(-((r - 0.4) ** 2 + (c + 0.3) ** 2) / 0.3)[None, ..., None] * rng.uniform(0.3, 1, (count, 1, 1, channels))
    return 0.5 + 0.2 * slope * (r + 0.6 * c)[None, ..., None] + 0.25 * bump


def series(count=BATCH, time=32, channels=5, seed=0):
    """Sums of a few tones with random phases."""
    rng = np.random.default_rng(seed)
    t = np.arange(time) / RATE
    waves = [np.sin(2 * np.pi * (f * t[None, :, None] + rng.uniform(size=(count, 1, channels)))) for f in (1, 3, 6)]
    return sum(waves) + 0.1 * rng.standard_normal((count, time, channels))


def batch_for(op):
    return images() if op in IMAGES else series()


def noise_for(op, shape):
    """Stratified in every coordinate, so that rare draws occur."""
    rng, count = np.random.default_rng(1), op.num_uniforms(shape)
    strata = np.stack([rng.permutation(shape[0]) for _ in range(count)], axis=1) if count else np.zeros((shape[0], 0))
    return (strata + 0.5) / shape[0]


GRID = np.linspace(0, 1, 11)
PLACES = np.array([0.05, 0.33, 0.68])
STEP = 1e-6


apply = jax.jit(lambda op, x, m, u, prepared=None: op.apply(x, m, u, prepared), static_argnums=0)
draw = jax.jit(lambda op, key, x, m: op(key, x, m), static_argnums=0)


@jax.jit
def warped(x, matrices, places, slopes):
    """What all affine operations share, so that it compiles once: warps, and their derivatives along matrices."""
    warp = jax.vmap(lambda matrix: transforms.affine_warp(x, matrix))
    return warp(matrices), jax.jvp(warp, (places,), (slopes,))[1]


@cache
def measured(op):
    """In float64: values on a grid of magnitudes, and at three places the gradient and the central difference."""
    with jax.enable_x64(True):
        x = jnp.asarray(batch_for(op))
        u = jnp.asarray(noise_for(op, x.shape))

        value = lambda m: op.apply(x, m, u)  # noqa: E731
        if isinstance(op, Affine):
            value = lambda m: op.matrix(jnp.broadcast_to(m, (BATCH,)), u, x.shape[1:3])  # noqa: E731

        @jax.jit
        def run(magnitudes, places):
            slope = jax.vmap(lambda m: jax.jvp(value, (m,), (jnp.ones_like(m),))[1])(places)
            return jax.vmap(value)(magnitudes), slope

        values, slope = run(np.concatenate([GRID, PLACES - STEP, PLACES + STEP, PLACES]), PLACES)
        if isinstance(op, Affine):
            values, slope = warped(x, values, values[-len(PLACES) :], slope)
        values, slope = jax.device_get((values, slope))
    values, below, above, _ = np.split(values, len(GRID) + len(PLACES) * np.arange(3))
    return np.asarray(x), values, slope, (above - below) / (2 * STEP)


# Every operation


@every
def test_magnitude_0_is_the_identity(op):
    x, values, *_ = measured(op)
    assert np.abs(values[0] - x).max() <= 1e-12


@every
def test_gradients_in_the_magnitude_are_central_differences(op):
    x, _, slope, difference = measured(op)
    for found, expected in zip(slope, difference, strict=True):
        assert np.isfinite(found).all()
        assert np.linalg.norm(found) > 1e-3 * np.linalg.norm(x)
        assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


@every
def test_the_distance_from_the_identity_grows_with_the_magnitude(op):
    x, values, *_ = measured(op)
    distance = np.sqrt(((values - x) ** 2).sum(axis=tuple(range(2, values.ndim)))).mean(axis=1)
    assert (np.diff(distance) > 0).all(), distance


def test_the_table_holds_every_operation():
    abstract = {Transform, Affine, Finite, Gated}
    public = {value for value in vars(transforms).values() if inspect.isclass(value) and issubclass(value, Transform)}
    assert public - abstract == {type(op) for op in TABLE} - {Gamma, Transpose}
    assert all(hash(op) == hash(replace(op)) and op == replace(op) for op in TABLE)
    assert all(op.physical(0.5) == pytest.approx(op.limit / 2) for op in TABLE if not isinstance(op, (Scale, Stretch)))
    assert Scale(2.0).physical(1.0) == pytest.approx(np.log(2))


def test_the_room_lists_its_names_in_order():
    imports = [node for node in ast.parse(Path(transforms.__file__).read_text()).body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert [node.module for node in imports] == sorted(node.module for node in imports)


@cache
def in_float32():
    """All operations in one program, on a few rows of the batches above: the first at magnitude 0, the second with other noise."""
    rows, noise = np.array([3, 5, 5, 2]), np.array([3, 9, 5, 2])
    data = [batch_for(op)[rows].astype(np.float32) for op in TABLE]
    us = [noise_for(op, batch_for(op).shape)[noise].astype(np.float32) for op in TABLE]
    banks = [batch_for(op).astype(np.float32) if op.mixes_rows else None for op in TABLE]
    magnitudes = jnp.array([0.0, 0.7, 0.7, 0.7])

    @jax.jit
    def run(data, us, banks):
        return [op.apply(x, magnitudes, u, bank) for op, x, u, bank in zip(TABLE, data, us, banks, strict=True)]

    return rows, data, run(data, us, banks)


@every
def test_float32_is_kept_and_rows_do_not_see_each_other(op):
    rows, data, found = in_float32()
    x, y = data[TABLE.index(op)], found[TABLE.index(op)]
    assert y.dtype == jnp.float32
    assert np.abs(y[0] - x[0]).max() <= 1e-6
    assert np.abs(y[2:] - measured(op)[1][7, rows[2:]]).max() <= 1e-4  # the same in float64, in another batch
    if op.num_uniforms(batch_for(op).shape):
        assert np.abs(y[1] - y[2]).max() > 1e-6  # the same example, other noise


def test_keys_decide_and_one_program_serves_all_magnitudes(key):
    op, x = Brightness(), jnp.asarray(images(4), jnp.float32)
    run = jax.jit(op)
    found = run(key, x, jnp.float32(0.2))
    assert (found == run(key, x, jnp.float32(0.2))).all()
    assert np.abs(found - run(jax.random.key(1), x, jnp.float32(0.2))).max() > 1e-3
    assert run._cache_size() == 1
    u = op.draw(key, x)
    one_each = apply(op, x, jnp.array([0.0, 0.1, 0.2, 0.3]), u)
    assert u.shape == (4, 1) and (one_each[0] == x[0]).all() and np.allclose(one_each[2], found[2])
    several = transforms.uniforms(key, (100_000,))
    assert 0 < several.min() and several.max() < 1 and (1 - (1 - several) == several).all()


# The warp, against scipy, and the groups


def moved_by_scipy(image, matrix):
    """One channel at a time; scipy wants the inverse, and counts from the corner."""
    from scipy import ndimage

    inverse, middle = np.linalg.inv(matrix), (np.array(image.shape[:2]) - 1) / 2
    offset = middle - inverse[:2, :2] @ middle + inverse[:2, 2]
    channels = [
        ndimage.affine_transform(image[..., c], inverse[:2, :2], offset, order=1, mode="grid-constant")
        for c in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_the_warp_is_that_of_scipy(size):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(12, *size, 2)).astype(np.float32)
    matrices = np.tile(np.eye(3), (12, 1, 1))
    matrices[1:, :2] += 0.5 * rng.standard_normal((11, 2, 3)) * np.array([1, 1, 4])
    matrices[1, :2, 2] = 30  # far out
    found = jax.jit(transforms.affine_warp)(x, matrices)
    expected = np.stack([moved_by_scipy(*pair) for pair in zip(x, matrices, strict=True)])
    assert found.dtype == jnp.float32
    assert np.abs(found - expected).max() <= 1e-5
    assert (found[0] == x[0]).all() and (found[1] == 0).all()


FIVE = Chain((TranslateX(), TranslateY(), Rotate(60.0), ShearX(), ShearY()))


def test_a_chain_of_affine_operations_is_one_warp_by_their_product(x64, monkeypatch):
    x = jnp.asarray(images(3, 9, 2))
    u = jnp.asarray(noise_for(FIVE, x.shape))
    magnitudes = jnp.array([0.2, 0.5, 0.8, 0.9, 0.4])
    matrix = np.eye(3)
    for k, op in enumerate(FIVE.operations):
        matrix = np.asarray(op.matrix(jnp.broadcast_to(magnitudes[k], (3,)), u[:, k : k + 1], (9, 9))) @ matrix
    expected = np.stack([moved_by_scipy(*pair) for pair in zip(np.asarray(x), matrix, strict=True)])
    warps = []
    monkeypatch.setattr("bayes_sym.transforms.affine.affine_warp", lambda *args: warps.append(1) or transforms.affine_warp(*args))
    found = jax.jit(FIVE.apply)(x, magnitudes, u)
    assert len(warps) == 1 and np.abs(found - expected).max() <= 1e-5


def test_a_chain_is_its_operations_in_order(key):
    x = jnp.asarray(images(4), jnp.float32)
    chain = Chain((Rotate(40.0), TranslateX(), Brightness(), SamplePairing(), ShearY()))
    magnitudes = jnp.array([0.5, 0.0, 0.6, 0.7, 0.0])
    u = chain.draw(key, x)
    assert u.shape == (4, 5) == (4, chain.num_uniforms(x.shape))
    step = x
    for k in (0, 2, 3):
        step = apply(chain.operations[k], step, magnitudes[k], u[:, k : k + 1])
    assert np.abs(draw(chain, key, x, magnitudes) - step).max() < 1e-5
    assert np.abs(apply(chain, x, jnp.zeros(5), u) - x).max() < 1e-6


def test_composed_warps_agree_with_warps_in_turn_on_smooth_images(x64):
    r, c = np.meshgrid(*[np.linspace(-2.5, 2.5, 32)] * 2, indexing="ij")
    x = jnp.asarray(np.exp(-(r**2) - (c - 0.4) ** 2 - 0.5 * r * c)[None, ..., None])
    u = jnp.asarray(noise_for(FIVE, x.shape)) + 0.15
    magnitudes = jnp.full(5, 0.4)
    step = x
    for k, op in enumerate(FIVE.operations):
        step = apply(op, step, magnitudes[k], u[:, k : k + 1])
    assert np.abs(apply(FIVE, x, magnitudes, u) - step).max() <= 0.02


def test_the_gradient_at_the_identity_is_the_central_slope(x64):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 6, 5, 2)))
    warp = jax.jit(lambda matrix: transforms.affine_warp(x, matrix))
    for i in range(2):
        for j in range(3):
            step = np.zeros((3, 3))
            step[i, j] = 1.0
            slope = jax.jvp(warp, (jnp.eye(3),), (jnp.asarray(step),))[1]
            difference = (warp(np.eye(3) + 1e-5 * step) - warp(np.eye(3) - 1e-5 * step)) / 2e-5
            assert np.abs(slope).max() > 0.1
            assert np.linalg.norm(slope - difference) <= 1e-3 * np.linalg.norm(difference)


@pytest.mark.parametrize("size", [(6, 6), (7, 7)])
def test_a_quarter_turn_is_that_of_numpy(size):
    x = np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)
    quarter = lambda x: apply(Rotate(90.0), x, 1.0, jnp.ones((2, 1)))  # noqa: E731
    turned = quarter(x)
    assert np.abs(turned - np.rot90(x, axes=(1, 2))).max() <= 1e-5
    assert np.abs(quarter(quarter(quarter(turned))) - x).max() <= 1e-5


def test_amounts_of_affine_operations_are_what_they_say():
    x = jnp.asarray(images(2, 8, 1), jnp.float32)
    right, up = apply(TranslateX(0.25), x, 1.0, jnp.ones((2, 1))), apply(TranslateY(0.25), x, 0.5, jnp.zeros((2, 1)))
    assert np.abs(right[:, :, 2:] - x[:, :, :-2]).max() < 1e-6 and (right[:, :, :2] == 0).all()
    assert np.abs(up[:, :-1] - x[:, 1:]).max() < 1e-6 and (up[:, -1:] == 0).all()
    matrix = lambda op, m=1.0, u=1.0: np.asarray(op.matrix(jnp.full(1, m), jnp.full((1, 1), u), (8, 8)))[0, :2, :2]  # noqa: E731
    assert np.allclose(matrix(Scale(2.0)), 2 * np.eye(2)) and np.allclose(matrix(Scale(2.0), u=0.0), np.eye(2) / 2)
    assert np.allclose(matrix(Stretch(2.0)), np.diag([0.5, 2])) and np.isclose(np.linalg.det(matrix(Stretch(3.0), 0.3)), 1)
    assert np.allclose(matrix(ShearX(0.3)) @ matrix(ShearX(0.3), u=0.0), np.eye(2), atol=1e-6)
    assert np.allclose(matrix(ShearX(0.3)), matrix(ShearY(0.3)).T)
    assert np.allclose(matrix(Rotate(60.0)) @ matrix(Rotate(30.0)), matrix(Rotate(90.0)), atol=1e-6)


INVOLUTIONS = (
    HorizontalFlip(),
    VerticalFlip(),
    Invert(),
    TimeReverse(),
    SignFlip(),
    ChannelSymmetry(permutation=(1, 0, 3, 2, 4)),
)


@pytest.mark.parametrize("op", INVOLUTIONS, ids=lambda op: type(op).__name__)
def test_flips_are_involutions_and_average_to_an_invariant(op, x64):
    x = jnp.asarray(batch_for(op)[:2])
    assert np.abs(op.other(op.other(x)) - x).max() <= 1e-12 < np.abs(op.other(x) - x).max()
    probabilities = op.probabilities(jnp.ones(()))
    assert np.allclose(probabilities, 0.5)
    f = lambda x: jnp.tanh(x * jnp.arange(x.size).reshape(x.shape)).sum()  # noqa: E731
    average = lambda x: sum(p * f(y) for p, y in zip(probabilities, op.outcomes(x), strict=True))  # noqa: E731
    assert abs(float(average(x) - average(op.other(x)))) <= 1e-6 * abs(float(f(x) - f(op.other(x))))


def test_group_actions_enumerate_and_draw_the_group(key):
    action = representations.image(groups.cyclic(4), (4, 4))
    op = GroupAction(action, hard=True)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 4, 4, 2)), jnp.float32)
    outcomes = op.outcomes(x)
    assert outcomes.shape == (4, 1, 4, 4, 2) and all((outcomes[g] == action.transform(g, x)).all() for g in range(4))
    assert np.allclose(op.probabilities(jnp.array([0.0, 0.5, 1.0])).T, [[1, 0, 0, 0], [0.625] + [0.125] * 3, [0.25] * 4])
    drawn = draw(op, key, jnp.repeat(x, 4000, axis=0), 0.5)
    counts = np.array([(np.abs(drawn - outcome).max(axis=(1, 2, 3)) < 1e-6).sum() for outcome in outcomes])
    assert counts.sum() == 4000
    assert ((counts - np.array([2500, 500, 500, 500])) ** 2 / np.array([2500, 500, 500, 500])).sum() < 16.3  # 99.9 % of chi2(3)


# Gates


def test_relaxed_draws_have_the_right_probability_and_gradient(key):
    u = transforms.uniforms(key, (100_000,))
    for p in (0.05, 0.5, 0.9):
        draw = lambda p: transforms.gate(jnp.full(u.shape, p), u)  # noqa: E731, B023
        assert abs((draw(p) > 0.5).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(u))
        assert jax.grad(lambda p: draw(p).mean())(p) == pytest.approx(1, abs=0.1)  # noqa: B023
        hard, slope = jax.value_and_grad(lambda p: transforms.gate(jnp.full(u.shape, p), u, hard=True).mean())(p)
        assert hard == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / len(u))) and slope == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_gates_are_exact_and_finite_at_the_ends(temperature):
    u = jnp.array([1e-7, 0.3, 1 - 1e-7], jnp.float32)
    for p in (0.0, 1.0):
        value, slope = jax.jvp(lambda p: transforms.gate(p, u, temperature), (jnp.full(3, p),), (jnp.ones(3),))
        assert (value == p).all() and np.isfinite(slope).all()
    for p in (1e-7, 1 - 1e-6):
        value, slope = jax.jvp(lambda p: transforms.gate(p, u, temperature), (jnp.full(3, p),), (jnp.ones(3),))
        assert np.isfinite(value).all() and np.isfinite(slope).all()


# Colours and filters


def test_colour_operations_are_their_formulas():
    x = images(2).astype(np.float32)
    one, zero = jnp.ones((2, 1)), jnp.zeros((2, 1))
    grey = (x * np.array([0.299, 0.587, 0.114])).sum(axis=-1, keepdims=True)
    assert np.allclose(apply(Brightness(), x, 0.5, zero), 0.5 * x, atol=1e-6)
    assert np.allclose(
        apply(Contrast(), x, 1.0, zero), np.broadcast_to(grey.mean(axis=(1, 2), keepdims=True), x.shape), atol=1e-6
    )
    assert np.allclose(apply(Saturation(), x, 1.0, zero), np.broadcast_to(grey, x.shape), atol=1e-6)
    assert np.allclose(apply(Saturation(), x, 1.0, one), 2 * x - grey, atol=1e-6)
    assert np.allclose(apply(Invert(hard=True), x, 1.0, one * 0.9), 1 - x, atol=1e-6)
    third = apply(Hue(1 / 3), x, 1.0, one)
    assert np.abs(third - np.roll(x, 1, axis=-1)).max() < 1e-6
    assert np.abs(third.mean(axis=-1) - x.mean(axis=-1)).max() < 1e-6
    assert np.abs(apply(Hue(1 / 3), third, 1.0, zero) - x).max() < 1e-6


def test_solarize_inverts_what_is_above_the_threshold():
    x = jnp.asarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4, 1))
    none = jnp.zeros((1, 0))
    found = apply(Solarize(softness=0.005), x, 0.5, none)
    assert np.abs(found - np.where(x > 0.5, 1 - x, x)).max() < 1e-3
    assert np.abs(apply(Solarize(), x, 1.0, none) - (1 - x)).max() < 1e-6
    assert np.abs(jax.jvp(lambda m: apply(Solarize(), x, m, none), (0.05,), (1.0,))[1][0, -1, -1, 0]) > 1


def test_posterize_cuts_off_bits():
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1)) / np.float32(256)
    none = jnp.zeros((1, 0))
    for bits in (1, 4, 7):
        kept = (np.round(x * 256).astype(int) >> bits << bits) / 256
        assert np.abs(apply(Posterize(), x, bits / 7, none) - kept).max() < 1e-6
    assert np.allclose(jax.grad(lambda x: Posterize().apply(x, 0.6, none).sum())(jnp.asarray(x)), 1)


def test_auto_contrast_and_equalize_spread_tones():
    x = np.round(images(2), 1).astype(np.float32)
    x[1, ..., 2] = 0.4
    stretched, even = jax.jit(lambda x: (AutoContrast().other(x), Equalize().other(x)))(x)
    for n in range(2):
        for c in range(3):
            tones = x[n, ..., c].ravel()
            if len(set(tones)) == 1:
                assert (stretched[n, ..., c] == x[n, ..., c]).all() and np.allclose(even[n, ..., c], x[n, ..., c])
                continue
            below = np.array([(tones <= tone).sum() for tone in tones])
            assert np.allclose(even[n, ..., c].ravel(), (below - below.min()) / (len(tones) - below.min()), atol=1e-6)
            assert np.allclose(stretched[n, ..., c].ravel(), (tones - tones.min()) / np.ptp(tones), atol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda x: (AutoContrast().other(x) ** 2).sum()))(x)).all()


def test_filters_are_those_of_scipy(x64):
    from scipy import ndimage, special

    x = np.random.default_rng(0).uniform(size=(1, 9, 6, 1))
    weights = np.ones((3, 3)) + 4 * (np.indices((3, 3)) == 1).all(axis=0)
    smooth = ndimage.convolve(x[0, ..., 0], weights / 13, mode="mirror")
    assert np.abs(apply(Sharpness(), x, 1.0, jnp.zeros((1, 1)))[0, ..., 0] - smooth).max() < 1e-12
    assert np.abs(apply(Sharpness(), x, 0.5, jnp.ones((1, 1)))[0, ..., 0] - (1.5 * x[0, ..., 0] - 0.5 * smooth)).max() < 1e-12
    blur = lambda x, v: apply(Blur(4.0), x, v / 4, jnp.ones((1, 1)))  # noqa: E731
    kernel = special.ive(np.abs(np.arange(-30, 31)), 1.3)  # exp(-v) I_k(v)
    expected = x[0, ..., 0]
    for axis in (0, 1):
        expected = ndimage.convolve1d(expected, kernel, axis=axis, mode="reflect")
    assert np.abs(blur(x, 1.3)[0, ..., 0] - expected).max() < 1e-12
    assert np.abs(blur(blur(x, 0.5), 0.8) - blur(x, 1.3)).max() < 1e-12


def test_pairing_mixes_a_share_of_a_partner():
    x, bank = images(4).astype(np.float32), images(3, seed=9).astype(np.float32)
    u = jnp.array([[0.1], [0.4], [0.6], [0.99]])
    assert np.allclose(apply(SamplePairing(0.5), x, 0.6, u), 0.7 * x + 0.3 * x[[0, 1, 2, 3]], atol=1e-6)
    assert np.allclose(apply(SamplePairing(0.5), x, 0.6, 1 - u), 0.7 * x + 0.3 * x[[3, 2, 1, 0]], atol=1e-6)
    assert np.allclose(apply(SamplePairing(0.5), x, 0.6, u, bank), 0.7 * x + 0.3 * bank[[0, 1, 1, 2]], atol=1e-6)


# Time series


def tones(frequency, time=1000, rate=100.0):
    return np.sin(2 * np.pi * frequency * np.arange(time) / rate + 0.3)[None, :, None].astype(np.float32)


def test_a_shifted_tone_is_the_tone_of_the_shifted_frequency():
    x = tones(4.0)
    for u, moved in ((1.0, 5.5), (0.0, 2.5), (0.75, 4.75)):
        shift = FrequencyShift(1.5, 100.0)
        assert np.abs(apply(shift, x, 1.0, jnp.full((1, 1), u)) - tones(moved)).max() <= 1e-3
        padded = apply(replace(shift, pad=1024), x, 1.0, jnp.full((1, 1), u))
        assert np.abs(padded - tones(moved))[:, 100:900].max() <= 0.01


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 4.8e-7), (np.float64, 8.9e-16)])
def test_turns_have_the_sines_and_cosines_of_numpy(dtype, bound, x64):
    from bayes_sym.transforms.spectral import cos_sin_turns

    t = np.linspace(-2.5, 2.5, 1001).astype(dtype)
    run = lambda t: jnp.stack(cos_sin_turns(t))  # noqa: E731
    value, slope = jax.jit(lambda t: jax.jvp(run, (t,), (jnp.ones_like(t),)))(t)
    angle = 2 * np.pi * (t.astype(float) - np.round(t.astype(float)))
    assert value.dtype == dtype and np.abs(value - np.stack([np.cos(angle), np.sin(angle)])).max() <= bound
    assert np.abs(slope / (2 * np.pi) - np.stack([-np.sin(angle), np.cos(angle)])).max() <= 2 * bound


def test_a_cached_shift_needs_no_fourier_transform(key):
    x = jnp.asarray(series(3), jnp.float32)
    shift = FrequencyShift(2.0, RATE)
    ready = shift.prepare(x)
    assert np.abs(apply(shift, x, 0.7, shift.draw(key, x), ready) - shift(key, x, 0.7)).max() < 1e-6
    program = str(jax.make_jaxpr(lambda x, ready: apply(shift, x, 0.7, jnp.ones((3, 1)), ready))(x, ready))
    assert "fft" not in program
    analytic = np.fft.fft(np.asarray(x) + 1j * np.asarray(ready), axis=1)
    assert np.abs(analytic[:, 17:]).max() < 1e-4 * np.abs(analytic).max()  # no negative frequencies


@pytest.mark.parametrize("time", [32, 33])
def test_surrogates_keep_powers_means_and_if_shared_cross_spectra(time, key):
    x = jnp.asarray(series(4, time), jnp.float32)
    spectrum = lambda x: np.fft.rfft(np.asarray(x, float), axis=1)  # noqa: E731
    for op in (FourierSurrogate(), FourierSurrogate(shared=False)):
        found = draw(op, key, x, 1.0)
        assert found.dtype == jnp.float32 and np.abs(found - x).max() > 0.5
        assert np.abs(np.abs(spectrum(found)) - np.abs(spectrum(x))).max() <= 1e-4
        assert np.abs(found.mean(axis=1) - x.mean(axis=1)).max() < 1e-6
        cross = [s[..., 0] * s[..., 1].conj() for s in (spectrum(x), spectrum(found))]
        assert (np.abs(cross[0] - cross[1]).max() < 1e-3 * np.abs(cross[0]).max()) == op.shared


def test_a_stopped_band_loses_its_tones_only():
    x = tones(4.0) + tones(20.0)
    centre = jnp.full((1, 1), 20.0 / 50)
    found = apply(BandStop(10.0, 100.0), x, 0.8, centre)
    assert np.abs(found - tones(4.0)).max() < 1e-2
    assert np.abs(apply(BandStop(10.0, 100.0), x, 0.8, jnp.full((1, 1), 0.7)) - x).max() < 1e-3


def test_noise_is_normal_and_antithetic(key):
    x = jnp.zeros((50, 40, 5))
    u = GaussianNoise().draw(key, x)
    noise = apply(GaussianNoise(0.5), x, 0.4, u)
    assert noise.std() == pytest.approx(0.2, rel=0.03) and abs(noise.mean()) < 0.01
    assert np.abs(noise + apply(GaussianNoise(0.5), x, 0.4, 1 - u)).max() < 1e-5
    assert draw(GaussianNoise(), key, jnp.zeros((2, 3)), 1.0).shape == (2, 3)


def test_time_masks_hide_one_stretch():
    x = jnp.ones((1, 60, 2))
    found = np.asarray(apply(TimeMask(20.0, softness=0.05), x, 0.5, jnp.full((1, 1), 0.4)))[0, :, 0]
    expected = np.ones(60)
    expected[20:30] = 0  # 0.4 * (60 - 10)
    assert np.abs(found - expected)[[*range(20), *range(21, 30), *range(31, 60)]].max() < 1e-3


def test_channels_are_dropped_and_shuffled_as_often_as_asked(key):
    x = jnp.asarray(np.tile(np.arange(1.0, 9.0, dtype=np.float32), (500, 2, 1)))
    dropped = draw(ChannelDropout(hard=True), key, x, 0.3)
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.03) and ((dropped == 0) | (dropped == x)).all()
    shuffled = draw(ChannelShuffle(hard=True), key, x, 1.0)
    assert (np.sort(shuffled, axis=2) == np.asarray(x)).all() and (shuffled == x).mean() == pytest.approx(1 / 8, abs=0.03)
    some = draw(ChannelShuffle(hard=True), key, x, 0.4)
    assert (some != x).mean() == pytest.approx(0.4 * 7 / 8, abs=0.03)
    swapped = ChannelSymmetry(permutation=(2, 1, 0)).other(x[:, :, :3])
    assert (swapped == x[:, :, 2::-1]).all()


def test_the_spline_kernel_is_the_legendre_series_of_the_paper():
    from scipy.special import eval_legendre

    from bayes_sym.transforms.sensors import spherical_spline

    cosine, n = np.linspace(-1, 1, 21), np.arange(1, 51)[:, None]
    for m in (3, 4):
        expected = ((2 * n + 1) / (n * (n + 1.0)) ** m * eval_legendre(n, cosine)).sum(axis=0) / (4 * np.pi)
        assert np.abs(spherical_spline(cosine, m) - expected).max() < 1e-15


def test_turned_sensors_take_the_places_of_others_and_come_back():
    x = series(2).astype(np.float32)
    ring = ((1.0, 0.0, 0.3), (0.0, 1.0, 0.3), (-1.0, 0.0, 0.3), (0.0, -1.0, 0.3), (0.0, 0.0, 1.0))
    quarter = SensorRotation(90.0, ring, "z", regularisation=1e-7)
    assert np.abs(apply(quarter, x, 1.0, jnp.ones((2, 1))) - x[..., [1, 2, 3, 0, 4]]).max() <= 1e-2

    golden = (1 + 5**0.5) / 2
    corners = [(a, b, 0.0) for a in (1.0, -1.0) for b in (golden, -golden)]
    icosahedron = np.concatenate([np.roll(corners, k, axis=1) for k in range(3)]) / np.hypot(1, golden)
    dipole = (icosahedron @ np.array([[0.3, 1.0], [0.5, -1.0], [0.2, 0.4]])).T[:, None, :].astype(np.float32)
    for axis, turned in (("x", (1, 2)), ("y", (2, 0)), ("z", (0, 1))):
        op = SensorRotation(20.0, tuple(map(tuple, icosahedron.tolist())), axis)
        there = apply(op, dipole, 1.0, jnp.ones((2, 1)))
        moved = icosahedron.copy()
        cos, sin, (i, j) = np.cos(np.pi / 9), np.sin(np.pi / 9), turned
        moved[:, [i, j]] = icosahedron[:, [i, j]] @ np.array([[cos, sin], [-sin, cos]])
        expected = (moved @ np.array([[0.3, 1.0], [0.5, -1.0], [0.2, 0.4]])).T[:, None, :]
        change = np.abs(there - dipole).max()
        assert change > 0.1 and np.abs(there - expected).max() <= 0.1 * change
        assert np.abs(apply(op, there, 1.0, jnp.zeros((2, 1))) - dipole).max() <= 0.1 * change


# What is refused


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Rotate(-1.0), OptionError, "limit of Rotate must be a positive number, got -1.0"),
        (lambda: Rotate(float("nan")), OptionError, "limit of Rotate must be a positive number, got nan"),
        (lambda: Scale(1.0), OptionError, "limit of Scale is the largest factor, so greater than 1, got 1.0"),
        (lambda: HorizontalFlip(2.0), OptionError, "limit of HorizontalFlip is a probability, so at most 1, got 2.0"),
        (lambda: HorizontalFlip(temperature=0), OptionError, "temperature of HorizontalFlip must be a positive number"),
        (lambda: ChannelDropout(1.5), OptionError, "limit of ChannelDropout is a probability"),
        (lambda: Posterize(9.0), OptionError, "limit of Posterize is at most 8, got 9.0"),
        (lambda: SamplePairing(1.2), OptionError, "limit of SamplePairing is a share, so at most 1"),
        (lambda: GroupAction(representations.trivial(groups.trivial(), 3)), OptionError, "a group of at least 2 elements"),
        (lambda: ChannelSymmetry(permutation=(0, 0)), OptionError, r"must hold each of 0..channels-1 once, got \(0, 0\)"),
        (lambda: FrequencyShift(20.0, 32.0), OptionError, r"32.0 samples per second hold frequencies up to 16.0 Hz only"),
        (lambda: SensorRotation(), OptionError, r"positions of SensorRotation must be \(x, y, z\)"),
        (lambda: SensorRotation(3.0, ((0.0, 0, 0), (1.0, 0, 0))), OptionError, "lies in the centre of the head"),
        (lambda: SensorRotation(3.0, SENSORS, "w"), OptionError, "axis must be 'x', 'y' or 'z', got 'w'"),
        (lambda: SensorRotation(3.0, SENSORS, stiffness=1), OptionError, "stiffness must be at least 2"),
        (lambda: Chain(()), OptionError, "Chain takes one or more operations"),
        (lambda: Chain((abs,)), OptionError, "Chain takes one or more operations"),
        (
            lambda: Rotate()(KEY, jnp.ones((2, 4, 4, 1)), 1.5),
            OptionError,
            r"magnitude of Rotate lies in \[0, 1\].*30.0 degrees, got 1.5",
        ),
        (
            lambda: Rotate()(KEY, jnp.ones((4, 4, 1)), 0.5),
            ShapeError,
            r"Rotate takes \(batch, height, width, channels\), got an array of",
        ),
        (lambda: Rotate()(KEY, jnp.ones((2, 4, 4, 1), int), 0.5), ShapeError, "Rotate takes floats, got int32: convert first"),
        (lambda: TimeReverse()(KEY, jnp.ones((4, 4)), 0.5), ShapeError, r"TimeReverse takes \(batch, time, channels\)"),
        (lambda: SignFlip()(KEY, jnp.ones(4), 0.5), ShapeError, r"SignFlip takes \(batch, ...\)"),
        (lambda: Hue()(KEY, jnp.ones((2, 4, 4, 1)), 0.5), ShapeError, "Hue takes images with 3 channels.*got 1"),
        (lambda: Rotate().apply(jnp.ones((2, 4, 4, 1)), 0.5, jnp.ones((2, 3))), ShapeError, r"uniform numbers of shape \(2, 1\)"),
        (
            lambda: Rotate().apply(jnp.ones((2, 4, 4, 1)), jnp.ones(3), jnp.ones((2, 1))),
            ShapeError,
            r"one per example \(2,\), got",
        ),
        (
            lambda: TimeMask(50.0)(KEY, jnp.ones((2, 20, 1)), 0.5),
            ShapeError,
            "limit of TimeMask is 50.0 samples, but the series have 20",
        ),
        (lambda: SensorRotation(3.0, SENSORS)(KEY, jnp.ones((2, 9, 3)), 0.5), ShapeError, "has 5 positions, got series of shape"),
        (
            lambda: ChannelSymmetry(permutation=(1, 0))(KEY, jnp.ones((2, 9, 3)), 0.5),
            ShapeError,
            "permutes 2 channels, got series",
        ),
        (
            lambda: FIVE.apply(jnp.ones((2, 4, 4, 1)), jnp.ones(4), jnp.ones((2, 5))),
            ShapeError,
            r"takes magnitudes \(5,\) or \(2, 5\)",
        ),
        (lambda: transforms.affine_warp(jnp.ones((2, 4, 4)), jnp.eye(3)), ShapeError, "affine_warp takes images"),
        (lambda: transforms.quadrature(jnp.ones((1, 9, 1)), pad=4), ShapeError, "pads to at least their length"),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()


KEY = jax.random.key(0)
