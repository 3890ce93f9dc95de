"""The datasets: splits that are disjoint, stratified and fixed by a seed, exact placements and turns, files not trusted."""

import gzip
import os
import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from bayes_sym.datasets import cifar10, digits, mnist, placements, quadrant_digits, quadrant_mnist, rotated_digits
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


# Files


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, *, side=28, classes=10, compressed=False, counts=(30, 12)):
    """Four tiny files in the published format; returns their arrays."""
    rng, arrays = np.random.default_rng(0), []
    for prefix, count in zip(("train", "t10k"), counts, strict=True):
        x, y = rng.integers(0, 256, (count, side, side), np.uint8), rng.integers(0, classes, count, np.uint8)
        arrays += [x, y]
        for name, content in ((f"{prefix}-images-idx3-ubyte", idx(x)), (f"{prefix}-labels-idx1-ubyte", idx(y))):
            (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(content) if compressed else content)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_reads_what_was_written(tmp_path, compressed):
    x, y, x_test, y_test = write_mnist(tmp_path, compressed=compressed)
    split = mnist(str(tmp_path))
    assert split.train.x.shape == (30, 28, 28, 1) and split.train.x.dtype == np.float32 and split.train.y.dtype == np.int32
    assert (split.train.y == y).all() and (split.test.y == y_test).all()
    mean, sd = (x / 255).mean(), (x / 255).std()
    assert np.abs(split.train.x[..., 0] - (x / 255 - mean) / sd).max() < 1e-6
    assert np.abs(split.test.x[..., 0] - (x_test / 255 - mean) / sd).max() < 1e-6


def test_mnist_reads_other_spellings_and_sizes(tmp_path):
    x, *_ = write_mnist(tmp_path, side=5, classes=40)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert mnist(tmp_path).train.x.shape == (30, 5, 5, 1)
    with pytest.raises(DataError, match=r"28x28 images with labels 0..9, .* has images of shape \(5, 5, 1\)"):
        quadrant_mnist(tmp_path)


def test_quadrants_of_mnist_are_the_resized_canvas_and_commute_with_rolls(tmp_path):
    x, y, *_ = write_mnist(tmp_path)
    split, digit = quadrant_mnist(tmp_path, seed=4, task="quadrant"), quadrant_mnist(tmp_path, seed=4)
    assert (split.train.x == digit.train.x).all() and (split.train.y % 10 == digit.train.y).all() and (digit.train.y == y).all()
    canvas = np.zeros((30, 56, 56), np.float32)
    for i, q in enumerate(split.train.y // 10):
        canvas[i, 28 * (q in (2, 3)) :, 28 * (q in (1, 3)) :][:28, :28] = x[i] / np.float32(255)
    resized = np.asarray(jax.image.resize(jnp.asarray(canvas), (30, 32, 32), "bilinear", antialias=False))
    mean, sd = resized.astype(np.float64).mean(), resized.astype(np.float64).std()
    assert np.abs(split.train.x[..., 0] - (resized - mean) / sd).max() < 1e-5
    assert len(np.unique(split.train.y // 10)) == 4
    # the resize itself commutes with rolls by half a side, up to the rounding of its weights in float32
    rolled = jax.image.resize(jnp.roll(jnp.asarray(canvas), (28, 28), (1, 2)), (30, 32, 32), "bilinear", antialias=False)
    assert np.abs(np.asarray(rolled) - np.roll(resized, (16, 16), (1, 2))).max() < 1e-5
    # and here exactly: another seed has the same digits in other quadrants
    other = quadrant_mnist(tmp_path, seed=5, task="quadrant")
    moved = split.train.y // 10 ^ other.train.y // 10
    assert len(np.unique(moved)) == 4
    assert (placements(split.train.x)[moved, np.arange(30)] == other.train.x).all()


DAMAGE = {
    "cut off": (lambda b: b[:-7], r"announces 23520 bytes of shape \(30, 28, 28\) and holds 23513"),
    "too long": (lambda b: b + b"x", "and holds more"),
    "no header": (lambda b: b[:9], "no IDX file of bytes with 3 axes, it starts with 00 00 08 03"),
    "empty": (lambda b: b"", "no IDX file"),
    "another format": (lambda b: b"PK" + b, "it starts with 50 4b 00 00"),
    "floats": (lambda b: b"\0\0\x0d" + b[3:], "it starts with 00 00 0d 03"),
    "huge": (lambda b: b[:4] + b"\xff" * 12, "more than any such set has"),
    "fewer": (lambda b: idx(np.zeros((29, 28, 28), np.uint8)), "29 train images and 30 labels"),
    "flat": (lambda b: idx(np.zeros((30, 28, 28), np.uint8)), "all training pixels of a colour have one level"),
    "other shape": (lambda b: idx(np.zeros((30, 28, 27), np.uint8)), r"shape \(28, 27\) and others of \(28, 28\)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_mnist_files_are_named(tmp_path, damage, message):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        mnist(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40] + b"junk" + b[44:], lambda b: b"junk" + b])
def test_damaged_archives_are_named(tmp_path, damage):
    write_mnist(tmp_path, compressed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz cannot be read .* get it again from https"):
        mnist(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="has no train-images-idx3-ubyte, nor .*gz: get it from https"):
        mnist(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no data_batch_1: get https.*cifar-10-python.tar.gz"):
        cifar10(tmp_path)


def python2_pickle(x, labels, *, fortran=False, dtype=b"u1"):
    """A batch as Python 2 wrote it, which is how the files are published: strings of bytes, and numpy's old names."""

    def text(value):
        return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING

    def number(value):
        return b"J" + struct.pack("<i", value)

    content = x.tobytes(order="F" if fortran else "C")
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    kind = b"cnumpy\ndtype\n(" + text(dtype) + b"K\x00K\x01tR(K\x03U\x01|NNN" + number(-1) * 2 + b"K\x00tb"
    state = b"(K\x01(" + b"".join(map(number, x.shape)) + b"t" + kind + (b"\x88" if fortran else b"\x89")
    state += b"T" + struct.pack("<i", len(content)) + content + b"t"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return (
        b"\x80\x02}("
        + text(b"batch_label")
        + text(b"batch")
        + text(b"data")
        + array
        + state
        + b"b"
        + text(b"labels")
        + listed
        + b"u."
    )


def write_cifar(folder, **options):
    rng, arrays = np.random.default_rng(1), []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        x, y = rng.integers(0, 256, (4, 3072), np.uint8), rng.integers(0, 10, 4)
        arrays.append((x, y))
        (folder / name).write_bytes(python2_pickle(x, y.tolist(), **options))
    return arrays


def test_the_python_2_pickle_of_the_tests_is_a_pickle(tmp_path):
    x = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for fortran in (False, True):
        found = pickle.loads(python2_pickle(x, [1, 2], fortran=fortran), encoding="bytes")
        assert (found[b"data"] == x).all() and found[b"labels"] == [1, 2]


@pytest.mark.parametrize("fortran", [False, True])
def test_cifar10_reads_what_was_written(tmp_path, fortran):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    arrays = write_cifar(folder, fortran=fortran)
    split = cifar10(tmp_path)
    assert split.train.x.shape == (20, 32, 32, 3) and split.test.x.shape == (4, 32, 32, 3)
    assert split.train.x.dtype == np.float32 and split.train.y.dtype == np.int32
    pixels = np.concatenate([x for x, _ in arrays[:5]]).reshape(-1, 3, 32, 32) / 255
    mean, sd = (reduce(pixels, axis=(0, 2, 3), keepdims=True) for reduce in (np.mean, np.std))
    assert np.abs(split.train.x - ((pixels - mean) / sd).transpose(0, 2, 3, 1)).max() < 1e-6
    assert (split.train.y == np.concatenate([y for _, y in arrays[:5]])).all()
    assert np.abs(split.test.x[2, 7, 9, 1] - (arrays[5][0][2, 1024 + 7 * 32 + 9] / 255 - mean[0, 1]) / sd[0, 1]).max() < 1e-6
    assert (split.test.y == cifar10(folder).test.y).all()


class Attack:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_runs_nothing(tmp_path, protocol):
    write_cifar(tmp_path)
    target = tmp_path / "attacked"
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({"data": Attack(target), "labels": [1]}, protocol))
    with pytest.raises(DataError, match=r"data_batch_3 is no batch of CIFAR-10 .*asks for posix.mkdir"):
        cifar10(tmp_path)
    assert not target.exists()


BATCH = python2_pickle(np.zeros((2, 3072), np.uint8), [0, 1])
BAD_BATCHES = {
    "cut off": (BATCH[:-900], "truncated|ran out of input"),
    "empty": (b"", "EOFError"),
    "text": (b"<html>not found</html>", "no batch of CIFAR-10"),
    "no data": (pickle.dumps({b"labels": [1]}), "KeyError: b'data'"),
    "a list": (pickle.dumps([1, 2]), "no batch of CIFAR-10"),
    "no array": (pickle.dumps({b"data": [1], b"labels": [1]}), "no batch of CIFAR-10"),
    "a dtype": (b"\x80\x02}(U\x04datacnumpy\ndtype\nU\x06labels](K\x01eu.", "no batch of CIFAR-10"),
    "objects": (python2_pickle(np.zeros((2, 3072), np.uint8), [0, 1], dtype=b"O8"), "no array of unsigned bytes"),
    "floats": (python2_pickle(np.zeros((2, 3072), np.uint8), [0, 1], dtype=b"f4"), "no array of unsigned bytes"),
    "other shape": (python2_pickle(np.zeros((2, 3071), np.uint8), [0, 1]), r"shape \(2, 3071\), and there are 2 labels"),
    "more labels": (python2_pickle(np.zeros((2, 3072), np.uint8), [0, 1, 2]), "there are 3 labels"),
    "another class": (python2_pickle(np.zeros((2, 3072), np.uint8), [0, 10]), r"whole numbers 0..9"),
    "no labels": (BATCH.replace(b"labels", b"titles"), "KeyError: b'labels'"),
    "short content": (BATCH.replace(struct.pack("<i", 3072), struct.pack("<i", 3073)), "cannot reshape"),
}


@pytest.mark.parametrize(("content", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_damaged_batches_are_named(tmp_path, content, message):
    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        cifar10(tmp_path)
    assert f"{tmp_path / 'test_batch'} is no batch of CIFAR-10" in str(caught.value) and "cifar-10-python.tar.gz" in str(
        caught.value
    )
