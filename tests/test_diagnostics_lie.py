"""Continuous groups: rotations of images and their generators against closed forms, and the Lie derivative of known predictors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_sym import groups, representations
from bayes_sym.diagnostics import (
    ImageRotation,
    ImageTranslation,
    LinearGenerator,
    SampledRotations,
    equivariance_error,
    lie_derivative,
)
from bayes_sym.diagnostics.rotations import rotated
from bayes_sym.errors import DataError, GroupActionError, OptionError, ShapeError
from bayes_sym.transforms import Rotate


PLANE = np.array([[0.0, -1.0], [1.0, 0.0]])


def blob(size=33, row=4.0, column=-2.0, width=2.0, turn=0.0):
    """A Gaussian off the centre, (1, size, size, 1), whose place is turned anticlockwise; and its slopes down and right."""
    r, c = np.cos(turn) * row - np.sin(turn) * column, np.sin(turn) * row + np.cos(turn) * column
    rows, columns = np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    values = np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (2 * width**2))
    down, right = -(rows - r) / width**2 * values, -(columns - c) / width**2 * values
    return (a[None, :, :, None] for a in (values, down, right, rows * np.ones_like(values), columns * np.ones_like(values)))


# Rotations


def test_rotations_move_a_blob_where_it_belongs(x64):
    x, *_ = blob()
    for angle in (0.4, -0.7):
        expected, *_ = blob(turn=angle)
        assert np.abs(rotated(jnp.asarray(x), jnp.asarray(angle), "fourier") - expected).max() < 1e-6
        # linear interpolation errs by an eighth of both second derivatives, which are at most 1/width^2
        assert np.abs(rotated(jnp.asarray(x), jnp.asarray(angle), "bilinear") - expected).max() < 2 / 8 / 2.0**2
    warped = Rotate(limit=90.0).apply(jnp.asarray(x), 0.5, jnp.full((1, 1), 1.0))
    np.testing.assert_allclose(rotated(jnp.asarray(x), jnp.asarray(math.pi / 4), "bilinear"), warped, atol=1e-12)


@pytest.mark.parametrize("size", [15, 16])
def test_fourier_rotations_keep_the_norm_and_can_be_undone(size, x64):
    # rough inside a disc that stays within the frame: nothing is lost at the border
    x = np.random.default_rng(0).standard_normal((2, size, size, 3))
    rows, columns = np.indices((size, size)) - (size - 1) / 2
    x[:, np.hypot(rows, columns) > size / 4] = 0
    turned = rotated(jnp.asarray(x), jnp.asarray(0.5), "fourier")
    back = rotated(turned, jnp.asarray(-0.5), "fourier")
    assert float(jnp.linalg.norm(turned)) == pytest.approx(np.linalg.norm(x), rel=0.02)
    by_lines = rotated(rotated(jnp.asarray(x), jnp.asarray(0.5), "bilinear"), jnp.asarray(-0.5), "bilinear")
    assert np.linalg.norm(back - x) < 0.5 * np.linalg.norm(by_lines - x)
    if size % 2:
        quarter = rotated(jnp.asarray(x), jnp.asarray(math.pi / 2), "fourier")
        np.testing.assert_allclose(quarter, jnp.rot90(x, axes=(1, 2)), atol=1e-12)


@pytest.mark.parametrize("method", ["fourier", "bilinear"])
def test_sampled_rotations_are_exact_at_right_angles_only(method, x64):
    x, *_ = blob(17, 2.0, -1.0, 1.4)
    four, eight = SampledRotations(4, method), SampledRotations(8, method)
    for k in range(4):
        np.testing.assert_array_equal(four.transform(k, x), np.rot90(x, k, axes=(1, 2)))
        np.testing.assert_array_equal(eight.transform(2 * k, x), four.transform(k, x))
    assert four.floor(x) == 0
    expected, *_ = blob(17, 2.0, -1.0, 1.4, turn=2 * math.pi * 3 / 8)
    assert np.abs(eight.transform(3, x) - expected).max() < (1e-3 if method == "fourier" else 0.25 / 1.4**2)
    assert 0 < eight.floor(x) < (1e-3 if method == "fourier" else 0.2)
    assert (eight.group, eight.transform(1, x[..., 0]).shape) == (groups.cyclic(8), (1, 17, 17))


def test_the_floor_is_large_on_small_images_and_smaller_by_fourier():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)), jnp.float32)
    floors = {method: SampledRotations(12, method).floor(x) for method in ("fourier", "bilinear")}
    assert floors["bilinear"] > 0.1 and floors["fourier"] < floors["bilinear"]


def test_the_error_under_sampled_rotations_has_its_floor_beside_it():
    x = np.concatenate([next(blob(17, row, column, 2.0)) for row, column in ((3.0, 0.0), (0.0, 2.0), (-2.0, 2.5))]).astype(
        np.float32
    )
    *_, rows, columns = blob(17)
    away = np.exp(-np.hypot(rows, columns) / 4)

    def radial(x):  # draws of an invariant regression
        return jnp.stack([(x * (scale * away).astype(np.float32)).sum((1, 2, 3)) for scale in (1.0, 2.0, 0.5)])

    def centroid(x):  # an equivariant one: it turns with the image
        places = [(x * place.astype(np.float32)).sum((1, 2, 3)) for place in (rows, columns)]
        return jnp.stack(places, axis=-1)[None] * jnp.asarray([1.0, 2.0, 0.5])[:, None, None]

    plain = equivariance_error(radial, x, representations.image(groups.cyclic(4), (17, 17)))
    assert plain.floor == 0 and abs(plain.predictive) < 1e-6
    eight = SampledRotations(8)
    found = equivariance_error(radial, x, eight)
    assert found.floor == pytest.approx(eight.floor(x)) and found.floor > 0 and found.member < 1e-4
    turns = representations.matrix(
        groups.cyclic(8), [[[math.cos(math.pi / 4), -math.sin(math.pi / 4)], [math.sin(math.pi / 4), math.cos(math.pi / 4)]]]
    )
    size = float((centroid(x) ** 2).mean())
    assert equivariance_error(centroid, x, eight, turns).member < 1e-4 * size
    assert equivariance_error(centroid, x, eight).member > 0.5 * size


# Generators


@pytest.mark.parametrize(("method", "tolerance"), [("fourier", 1e-6), ("bilinear", 0.0288)])
def test_generators_of_images_are_derivatives_of_a_blob(method, tolerance, x64):
    # central differences err by a sixth of the third derivative, at most 1.38 / 6 / width^3, times how far the blob reaches
    x, down, right, rows, columns = blob()
    turning = ImageRotation(method)(x)
    assert np.abs(turning - (columns * down - rows * right)).max() < 8 * tolerance
    assert np.abs(ImageTranslation("x", method)(x) + right).max() < tolerance
    assert np.abs(ImageTranslation("y", method)(x) + down).max() < tolerance
    if method == "fourier":
        step = 1e-5
        generator = ImageRotation(method)
        finite = (generator.move(jnp.asarray(x), step) - generator.move(jnp.asarray(x), -step)) / (2 * step)
        np.testing.assert_allclose(turning, finite, atol=1e-8)


def test_floors_of_generators(x64):
    x, *_ = blob(17, 2.0, -1.0, 1.4)
    assert LinearGenerator(PLANE).floor(np.ones((3, 2))) == 0
    assert ImageTranslation("x").floor(x) < 1e-12 < 0.001 < ImageTranslation("x", "bilinear").floor(x) < 0.1
    assert ImageRotation().floor(x) < 1e-3 < 0.01 < ImageRotation("bilinear").floor(x) < 0.2
    rough = np.random.default_rng(0).standard_normal((1, 17, 17, 1))
    assert ImageRotation().floor(rough) > 0.1


def test_linear_generators_move_by_the_exponential(x64):
    x = np.random.default_rng(0).standard_normal((4, 2, 3))
    generator = LinearGenerator(PLANE)
    turn = np.array([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    np.testing.assert_allclose(generator.move(jnp.asarray(x), 0.3), np.einsum("ij,njc->nic", turn, x), atol=1e-12)
    np.testing.assert_allclose(generator(x), np.einsum("ij,njc->nic", PLANE, x), atol=1e-12)
    assert hash(generator) == hash(LinearGenerator(PLANE.tolist()))


# The Lie derivative


def test_functions_of_the_norm_have_no_lie_derivative(x64):
    x = np.random.default_rng(0).standard_normal((20, 3))
    skew = np.random.default_rng(1).standard_normal((3, 3))
    scales = jnp.asarray([0.5, 1.0, 2.0])[:, None]

    def of_norm(x):
        norm = jnp.sqrt((x**2).sum(axis=1))[None]
        return jnp.stack([jnp.sin(3 * scales * norm), jnp.exp(-scales * norm), norm**3 * scales], axis=-1)

    found = lie_derivative(of_norm, x, LinearGenerator(skew - skew.T))
    assert found.member < 1e-6 and abs(found.predictive) < 1e-6 and found.floor == 0
    assert lie_derivative(of_norm, x, LinearGenerator(skew)).member > 0.1


def test_the_lie_derivative_of_linear_draws_is_its_definition(x64):
    generator = np.random.default_rng(0)
    x, weights = generator.standard_normal((7, 3)), generator.standard_normal((5, 2, 3))
    A, B = generator.standard_normal((3, 3)), generator.standard_normal((2, 2))
    predict = lambda x: jnp.einsum("tij,nj->tni", weights, x)  # noqa: E731
    found = lie_derivative(predict, x, LinearGenerator(A), LinearGenerator(B))
    L = np.einsum("tij,nj->tni", weights @ A - B @ weights, x)
    assert found.member == pytest.approx((L**2).sum(axis=-1).mean() / 2)
    pairs = np.einsum("snc,tnc->st", L, L)[~np.eye(5, dtype=bool)].mean()
    assert found.predictive == pytest.approx(pairs / 7 / 2)
    # how fast both ways part, for a nonlinear predictor
    curved = lambda x: jnp.tanh(predict(x))  # noqa: E731
    step = 1e-5
    ends = [curved(LinearGenerator(A).move(jnp.asarray(x), s)) for s in (step, -step)]
    finite = (ends[0] - ends[1]) / (2 * step) - np.einsum("ij,tnj->tni", B, curved(x))
    assert lie_derivative(curved, x, LinearGenerator(A), LinearGenerator(B)).member == pytest.approx(
        float((finite**2).mean()), rel=1e-6
    )


def test_the_predictive_lie_derivative_is_unbiased_and_the_plug_in_is_not(x64):
    generator = np.random.default_rng(0)
    mean, x = np.array([[0.5, 0.2]]), generator.standard_normal((30, 2))
    truth = ((x @ (mean @ PLANE).T) ** 2).mean()
    at = jnp.asarray(x)
    run = jax.jit(lambda w: jax.jvp(lambda x: jnp.einsum("tij,nj->tni", w, x), (at,), (LinearGenerator(PLANE)(at),))[1])
    values, plug_in = [], []
    for _ in range(400):
        weights = jnp.asarray(mean + 0.5 * generator.standard_normal((8, 1, 2)))
        values.append(lie_derivative(lambda x, w=weights: jnp.einsum("tij,nj->tni", w, x), x, LinearGenerator(PLANE)).predictive)
        plug_in.append(float((run(weights).mean(axis=0) ** 2).mean()))
    for found, expected in ((values, truth), (plug_in, truth + 0.25 * (x**2).sum(axis=1).mean() / 8)):
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / math.sqrt(len(found))


def test_rotated_members_cancel_in_the_mean_prediction(x64):
    # the law of the weights is invariant: the mean prediction is invariant, the members are not
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    weights = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=-1))
    x = np.random.default_rng(0).standard_normal((20, 2))
    found = lie_derivative(lambda x: jnp.tanh(x @ weights.T).T ** 2, x, LinearGenerator(PLANE))
    assert found.member > 0.1 and abs(found.predictive) < 0.02 * found.member and found.emergence > 0.98
    point = lie_derivative(lambda x: jnp.tanh(x @ weights[:1].T).T ** 2, x, LinearGenerator(PLANE))
    assert point.is_point_estimate and point.num_examples == 20


def test_images_that_turn(x64):
    x = np.concatenate([next(blob(17, row, column, 2.0)) for row, column in ((3.0, 0.0), (0.0, 2.0))])
    *_, rows, columns = blob(17)
    away, aside = np.exp(-(rows**2 + columns**2) / 30), np.exp(-((rows - 2) ** 2 + columns**2) / 30)
    score = lambda weight: lambda x: (x * weight).sum((1, 2, 3))[None]  # noqa: E731
    invariant = lie_derivative(score(away), x, ImageRotation())
    broken = lie_derivative(score(aside), x, ImageRotation())
    assert invariant.member < 1e-6 * broken.member and invariant.floor == broken.floor > 0
    centroid = lambda x: jnp.stack([(x * rows).sum((1, 2, 3)), (x * columns).sum((1, 2, 3))], axis=-1)[None]  # noqa: E731
    turning = lie_derivative(centroid, x, ImageRotation(), LinearGenerator(PLANE))
    assert turning.member < 1e-4 * lie_derivative(centroid, x, ImageRotation()).member


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LinearGenerator(np.ones((2, 3))), ShapeError, r"square matrix .* got shape \(2, 3\)"),
        (lambda: LinearGenerator(PLANE)(jnp.ones((4, 3))), ShapeError, r"vectors \(batch, 2, ...\), got shape \(4, 3\)"),
        (lambda: ImageRotation("cubic"), OptionError, "'fourier' or 'bilinear', got 'cubic'"),
        (lambda: ImageTranslation("z"), OptionError, "axis must be 'x' or 'y', got 'z'"),
        (lambda: ImageRotation()(jnp.ones((3, 4, 4))), ShapeError, r"float images .*\(3, 4, 4\)"),
        (lambda: SampledRotations(8).transform(1, jnp.ones((1, 4, 5, 1))), GroupActionError, r"square images, got \(4, 5\)"),
        (lambda: SampledRotations(0), GroupActionError, "n >= 1"),
        (lambda: lie_derivative(lambda x: x, jnp.ones((4, 2), int), LinearGenerator(PLANE)), ShapeError, "must be floats"),
        (lambda: lie_derivative(lambda x: x.sum(), jnp.ones((4, 2)), LinearGenerator(PLANE)), ShapeError, "must return draws"),
        (
            lambda: lie_derivative(lambda x: jnp.sqrt(0 * x)[None], jnp.ones((4, 2)), LinearGenerator(PLANE)),
            DataError,
            "not all finite",
        ),
    ],
)
def test_lie_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
