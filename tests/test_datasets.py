"""The digits: sizes, a split that is disjoint, stratified and fixed by its seed, and the scaling of the pixels."""

import numpy as np
import pytest

from bayes_sym.datasets import digits
from bayes_sym.errors import DataError


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
