"""The datasets: splits that are disjoint, stratified and fixed by a seed, exact placements and turns, and generated sets."""

import numpy as np
import pytest
import scipy.ndimage

from bayes_sym.datasets import digits, placements, quadrant_digits, quadrant_mnist, rotated_digits
from bayes_sym.errors import DataError, OptionError, ShapeError


def rows(images):
    """Each image as a hashable value."""
    return [image.tobytes() for image in images.x]


def test_sizes_shapes_and_dtypes():
    data = digits(100, 50, 200)
    assert [len(part.x) for part in data] == [len(part.y) for part in data] == [100, 50, 200]
    train, validation, test = digits()
    assert (len(train.y), len(validation.y), len(test.y)) == (300, 300, 1197)
    assert train.x.shape == (300, 8, 8, 1) and train.x.dtype == np.float32 and train.y.dtype == np.int32
    assert isinstance(train.x, np.ndarray)
    assert len(digits(1000, 0, 0).test.y) == len(digits(1000, 797).test.y) == 0


def test_the_sets_are_disjoint_and_cover_everything():
    from sklearn.datasets import load_digits

    parts = [set(rows(part)) for part in digits(600, 600)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len({image.tobytes() for image in load_digits().images})


def test_images_keep_their_labels():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    label_of = {image.tobytes(): label for image, label in zip(bunch.images, bunch.target, strict=True)}
    for part in digits():
        # undo the standardisation: the smallest and the largest grey level of a set are 0 and 16
        grey = np.round((part.x - part.x.min()) / (part.x.max() - part.x.min()) * 16)[..., 0].astype(float)
        assert [label_of[image.tobytes()] for image in grey] == part.y.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sizes", [(300, 300, None), (50, 500, 100)])
def test_the_split_is_stratified(sizes, seed):
    data = digits(*sizes, seed=seed)
    overall = sum(np.bincount(part.y, minlength=10) for part in digits()) / 1797
    for part in data:
        assert np.abs(np.bincount(part.y, minlength=10) - overall * len(part.y)).max() <= 2


def test_the_seed_fixes_the_split():
    for one, other in zip(digits(seed=3), digits(seed=3), strict=True):
        assert (one.x == other.x).all() and (one.y == other.y).all()
    assert (digits(seed=3).train.y != digits(seed=4).train.y).any()
    # the split itself, so that a change of it does not go unseen
    assert digits(12, 10).train.y.tolist() == [1, 9, 8, 4, 5, 2, 6, 0, 7, 3, 1, 9]


def test_larger_training_sets_contain_smaller_ones():
    small, large = digits(50).train, digits(400).train
    assert (small.y == large.y[:50]).all()


def test_training_pixels_are_standardised_by_two_numbers():
    data = digits()
    assert abs(data.train.x.mean()) < 1e-5 and abs(data.train.x.std() - 1) < 1e-5
    # one affine map for all pixels and sets: 17 grey levels give 17 values, equally spaced
    levels = np.unique(np.concatenate([part.x.ravel() for part in data]))
    assert len(levels) == 17 and np.ptp(np.diff(levels)) < 1e-5
    # of training pixels only: the other sets are not standardised exactly
    assert abs(data.validation.x.mean()) > 1e-4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1000, 798), "num_train 1000 .* num_validation 798 .* more than the 1797 digits"),
        ((300, 300, 1198), "num_test 1198 is more than"),
        ((0,), "num_train must be a whole number of at least 1, got 0"),
        ((10, -1), "num_validation must be a whole number of at least 0, got -1"),
        ((10, 10, 2.5), "num_test must be a whole number of at least 0, got 2.5"),
        ((True,), "num_train must be a whole number"),
    ],
)
def test_errors(sizes, message):
    with pytest.raises(DataError, match=message):
        digits(*sizes)


# Digits in quadrants


def grey(x):
    """Undoes the standardisation of a set that holds the grey levels 0 and 16."""
    return np.round((x - x.min()) / (x.max() - x.min()) * 16).astype(int)


@pytest.mark.parametrize("canvas", [16, 32])
def test_every_digit_lies_in_the_quadrant_that_its_label_says(canvas):
    half = canvas // 2
    split, plain = quadrant_digits(100, 80, 60, seed=2, task="quadrant", canvas=canvas), digits(100, 80, 60, seed=2)
    counts = np.zeros(4, int)
    for part, upright in zip(split, plain, strict=True):
        assert part.x.shape == (len(upright.y), canvas, canvas, 1)
        assert part.x.dtype == np.float32 and part.y.dtype == np.int32 and (part.y % 10 == upright.y).all()
        for image, digit, q in zip(grey(part.x), grey(upright.x), part.y // 10, strict=True):
            expected = np.zeros((canvas, canvas, 1), int)
            row, column = half * (q in (2, 3)), half * (q in (1, 3))
            expected[row : row + half, column : column + half] = np.kron(digit, np.ones((half // 8, half // 8, 1), int))
            assert (image == expected).all()
        counts += np.bincount(part.y // 10, minlength=4)
    assert counts.min() > 40  # of 240, 60 expected


def test_both_tasks_have_the_same_images_and_the_seed_fixes_them():
    for one, other in zip(quadrant_digits(50, 40, 30), quadrant_digits(50, 40, 30, task="quadrant"), strict=True):
        assert (one.x == other.x).all() and (one.y == other.y % 10).all()
    small, large = quadrant_digits(30, 0, 0, task="quadrant").train, quadrant_digits(70, 0, 0, task="quadrant").train
    assert (small.y == large.y[:30]).all()
    other = quadrant_digits(30, 0, 0, task="quadrant", seed=1).train
    assert (small.y // 10 != other.y // 10).any()
    # the quadrants themselves, so that a change of them does not go unseen
    assert (small.y[:10] // 10).tolist() == [2, 3, 3, 2, 1, 3, 0, 3, 3, 0]
    assert [len(part.y) for part in quadrant_digits()] == [1000, 300, 497]


def test_canvases_are_standardised_over_the_training_set():
    split = quadrant_digits(200, 100, 100)
    assert abs(split.train.x.mean()) < 1e-5 and abs(split.train.x.std() - 1) < 1e-5
    assert len(np.unique(np.concatenate([part.x.ravel() for part in split]))) == 17
    everywhere = quadrant_digits(200, 100, 100, placements="all").train
    assert abs(everywhere.x.mean()) < 1e-5 and abs(everywhere.x.std() - 1) < 1e-5


@pytest.mark.parametrize("canvas", [16, 32])
def test_a_roll_by_half_the_canvas_is_another_placement(canvas):
    one = quadrant_digits(20, 5, 5, task="quadrant", canvas=canvas)
    everywhere = quadrant_digits(20, 5, 5, task="quadrant", canvas=canvas, placements="all")
    assert everywhere.train.x.shape == (80, canvas, canvas, 1)
    by_quadrant = everywhere.train.x.reshape(4, 20, canvas, canvas, 1)
    assert (everywhere.train.y.reshape(4, 20) == (one.train.y % 10)[None] + 10 * np.arange(4)[:, None]).all()
    rolled = placements(one.train.x)
    for i, q in enumerate(one.train.y // 10):
        for k in range(4):
            assert (rolled[k, i] == by_quadrant[q ^ k, i]).all()
    assert (rolled[0] == one.train.x).all()
    for part, same in zip(everywhere[1:], one[1:], strict=True):
        assert (part.x == same.x).all() and (part.y == same.y).all()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: quadrant_digits(task="place"), OptionError, "task must be 'digit' or 'quadrant', got 'place'"),
        (lambda: quadrant_digits(placements="two"), OptionError, "placements must be 'one' or 'all', got 'two'"),
        (lambda: quadrant_digits(canvas=20), OptionError, "canvas must be 16 or 32, got 20"),
        (lambda: quadrant_digits(2000), DataError, "num_train 2000 .* more than the 1797 digits"),
        (lambda: quadrant_mnist("nowhere", task="place"), OptionError, "task must be"),
        (lambda: placements(np.zeros((2, 5, 4, 1))), ShapeError, r"even sides, got \(2, 5, 4, 1\)"),
        (lambda: placements(np.zeros((4, 4))), ShapeError, r"canvases have the shape"),
        (lambda: rotated_digits(angle="half"), OptionError, "angle must be 'quarter' or 'any', got 'half'"),
        (lambda: rotated_digits(canvas=32), OptionError, "canvas must be 8 or 16, got 32"),
        (lambda: rotated_digits(0), DataError, "num_train must be a whole number"),
    ],
)
def test_options_out_of_range_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


# Rotated digits


@pytest.mark.parametrize("canvas", [8, 16])
def test_quarter_turns_are_exact_and_the_twin_is_upright(canvas):
    upright = rotated_digits(60, 40, 30, seed=1, rotate=False, canvas=canvas)
    turned = rotated_digits(60, 40, 30, seed=1, canvas=canvas)
    found = np.zeros(4, int)
    for one, other, plain in zip(upright, turned, digits(60, 40, 30, seed=1), strict=True):
        assert one.x.shape == (len(plain.y), canvas, canvas, 1) and one.x.dtype == np.float32
        assert (one.y == other.y).all() and (one.y == plain.y).all()
        margin = (canvas - 8) // 2
        padded = np.pad(grey(plain.x), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        assert (grey(one.x) == padded).all()
        for a, b in zip(one.x, other.x, strict=True):
            # the two sets are standardised by sums in different orders
            matches = [np.abs(np.rot90(a, k) - b).max() < 1e-5 for k in range(4)]
            assert any(matches)
            found[matches.index(True)] += 1
    assert found.min() > 15  # of 130
    assert abs(turned.train.x.mean()) < 1e-5 and abs(turned.train.x.std() - 1) < 1e-5


@pytest.mark.parametrize("canvas", [8, 16])
def test_any_angle_is_the_rotation_of_scipy(canvas):
    turned = rotated_digits(12, 4, 0, seed=3, angle="any", canvas=canvas)
    margin = (canvas - 8) // 2
    for i, (part, plain) in enumerate(zip(turned[:2], digits(12, 4, 0, seed=3)[:2], strict=True)):
        angles = np.random.default_rng([3, 1 + i]).uniform(0, 2 * np.pi, len(part.y))
        images = np.pad(grey(plain.x)[..., 0] / 16, ((0, 0), *[(margin, margin)] * 2))
        expected = np.stack(
            [
                scipy.ndimage.rotate(image, np.degrees(angle), reshape=False, order=1, mode="grid-constant")
                for image, angle in zip(images, angles, strict=True)
            ]
        )
        if i == 0:
            mean, sd = expected.mean(), expected.std()
        assert np.abs(part.x[..., 0] - (expected - mean) / sd).max() < 1e-5
        assert (part.y == plain.y).all()
