"""The datasets: splits that are disjoint, stratified and fixed by a seed, exact placements and turns, and generated sets."""

from functools import partial

import numpy as np
import pytest
import scipy.ndimage

from bayes_sym import groups, representations
from bayes_sym.datasets import (
    SLEEP_BANDS,
    SLEEP_MIRROR,
    SLEEP_POSITIONS,
    SLEEP_RMS,
    Images,
    digits,
    linear_gaussian,
    placements,
    quadrant_digits,
    quadrant_mnist,
    rings,
    rotated,
    rotated_digits,
    rotated_shapes,
    scaled,
    sinusoids,
    sleep_stages,
    translated,
)
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


@pytest.mark.parametrize("many", ["one", "all"])
def test_digits_are_moved_within_reach_of_their_quadrant(many):
    still, moved = (quadrant_digits(90, 60, 30, seed=3, task="quadrant", placements=many, shift=most) for most in (0, 2))
    seen = set()
    for part, before in zip(moved, still, strict=True):
        assert (part.y == before.y).all() and part.x.dtype == np.float32
        for image, unmoved in zip(part.x, before.x, strict=True):
            steps = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if (np.roll(unmoved, (i, j), (0, 1)) == image).all()]
            assert len(steps) == 1
            seen.update(steps)
    assert len(seen) == 25
    if many == "all":
        assert (placements(moved.train.x[:90]).reshape(360, 16, 16, 1) == moved.train.x).all()
    for part, same in zip(quadrant_digits(90, 60, 30, seed=3, placements=many, shift=2), moved, strict=True):
        assert (part.x == same.x).all() and (part.y == same.y % 10).all()


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
        (lambda: quadrant_digits(shift=4), OptionError, "shift must be 0 to 3 pixels on a canvas of 16, got 4"),
        (lambda: quadrant_digits(shift=-1), OptionError, "shift must be 0 to 3 pixels"),
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


# Generated sets: one table, and what all of them promise


TABLE = {
    "rings": (rings, 2, (2,)),
    "rotated_shapes": (partial(rotated_shapes, side=16), 4, (16, 16, 1)),
    "sinusoids": (partial(sinusoids, length=200), 4, (200, 1)),
    "sleep_stages": (partial(sleep_stages, seconds=4), 5, (256, 6)),
}
"""How to draw a set, how many classes it has, and the shape of an example: a new generator is one row."""
every_generator = pytest.mark.parametrize("name", TABLE)


@every_generator
def test_generated_sets_keep_their_promises(name):
    draw, classes, shape = TABLE[name]
    sets = draw(61, 20, 0, seed=3)
    assert [(part.x.shape, part.y.shape) for part in sets] == [((n, *shape), (n,)) for n in (61, 20, 0)]
    for x, y in sets:
        assert x.dtype == np.float32 and y.dtype == np.int32 and np.isfinite(x).all()
        counts = np.bincount(y, minlength=classes)
        assert len(counts) == classes and np.ptp(counts) <= 1
    assert (np.diff(sets.train.y) < 0).any()  # in random order
    assert len({row.tobytes() for part in sets for row in part.x}) == 81


@every_generator
def test_the_seed_fixes_generated_sets(name):
    draw = TABLE[name][0]
    one, same, other = draw(30, 10, 10, seed=3), draw(30, 25, 5, seed=3), draw(30, 10, 10, seed=4)
    assert (one.train.x == same.train.x).all() and (one.train.y == same.train.y).all()  # whatever the other sizes
    assert (one.train.x != other.train.x).any(axis=tuple(range(1, one.train.x.ndim))).all()
    for message, sizes in (("num_train .* at least 1, got 0", (0,)), ("num_test .* at least 0, got 2.5", (1, 1, 2.5))):
        with pytest.raises(DataError, match=message):
            draw(*sizes)


@pytest.mark.parametrize("arc", [60.0, 120.0, 360.0])
def test_rings_have_their_radii_and_their_arc(arc):
    n = 6000
    x, y = rings(n, 1, 1, arc=arc, noise=0.0).train
    radius, angle = np.hypot(*x.T), np.degrees(np.arctan2(*x.T[::-1])) % 360
    assert np.allclose(radius[y == 0], 0.5, atol=1e-6)
    near = radius[y == 1] < 0.5
    assert near.sum() == 1000 and np.allclose(radius[y == 1][~near], 1, atol=1e-6) and np.allclose(radius[y == 1][near], 0)
    for circle in (y == 0, (y == 1) & (radius > 0.5)):
        found = angle[circle]
        assert found.max() <= arc + 1e-3
        assert abs(found.mean() - arc / 2) < 4 * arc / np.sqrt(12 * len(found))
        assert abs(found.std() - arc / np.sqrt(12)) < 4 * arc / np.sqrt(60 * len(found)) * 1.5


def test_rings_have_the_noise_of_the_released_code():
    n, noise = 20_000, 0.06
    x, still = (rings(n, 1, 1, arc=360.0, noise=sd).train.x for sd in (noise, 0.0))
    circle = np.hypot(*still.T) > 0.25
    z = (x - still)[circle] / noise
    along = still[circle] / np.hypot(*still[circle].T)[:, None]
    # each coordinate has its own deviate, times its cosine or sine
    deviates = z / along
    ok = (np.abs(along) > 0.1).all(axis=1)
    assert np.abs(np.cov(deviates[ok].T) - np.eye(2)).max() < 4 * np.sqrt(2 / ok.sum())
    centre = (x - still)[~circle] / noise
    assert np.abs(np.cov(centre.T) - np.eye(2)).max() < 4 * np.sqrt(2 / len(centre))


def angles_of(images):
    """The direction from the middle of each image to the centre of its mass, in degrees, anticlockwise from up."""
    place = np.arange(images.shape[1]) - (images.shape[1] - 1) / 2
    mass = images[..., 0].sum(axis=(1, 2))
    down, right = (images[..., 0] * place[:, None]).sum(axis=(1, 2)) / mass, (images[..., 0] * place).sum(axis=(1, 2)) / mass
    return np.degrees(np.arctan2(-right, -down))


@pytest.mark.parametrize("spread", [0.0, 45.0, 80.0])
def test_shapes_are_upright_or_inverted_within_their_spread(spread):
    x, y = rotated_shapes(1200, 1, 1, spread=spread).train
    assert x.min() == 0 and x.max() == 1
    angles = angles_of(x)
    turned = (angles - 180 * (y % 2) + 180) % 360 - 180
    assert np.abs(turned).max() < spread + 0.5
    for label in range(4):
        found = turned[y == label]
        assert abs(found.mean()) < 4 * spread / np.sqrt(3 * len(found)) + 0.2
        assert found.std() == pytest.approx(spread / np.sqrt(3), abs=0.08 * spread + 0.2)
    # one mass per shape at any angle, so nothing leaves the image; and that of the other is no tell-tale
    mass = x.sum(axis=(1, 2, 3))
    for shape in range(2):
        assert np.ptp(mass[y // 2 == shape]) < 0.02 * mass.mean()
    assert np.ptp(mass) < 0.05 * mass.mean()
    assert np.abs(x[y == 0].mean(axis=0) - x[y == 2].mean(axis=0)).max() > 0.3


def test_shapes_are_drawn_where_a_turn_puts_them():
    x, y = rotated_shapes(400, 1, 1, spread=45.0, side=64).train
    upright, _ = rotated_shapes(8, 1, 1, spread=0.0, side=64).train
    upright_y = rotated_shapes(8, 1, 1, spread=0.0, side=64).train.y
    turns = angles_of(x)
    for image, label, turn in zip(x[:40], y[:40], turns[:40], strict=True):
        plain = upright[np.flatnonzero(upright_y == 2 * (label // 2))[0]]
        expected = scipy.ndimage.rotate(plain[..., 0], turn, reshape=False, order=1, mode="grid-constant")
        assert np.abs(image[..., 0] - expected).mean() < 0.012  # the edges differ, by interpolation


@pytest.mark.parametrize("phase", ["full", "original"])
def test_sinusoids_have_their_frequencies_phases_and_noise(phase):
    n = 400
    x, y = sinusoids(n, 1, 1, phase=phase).train
    t = np.arange(1000) / 100
    # the most likely frequency of each, on a fine grid
    grid = np.arange(1.0, 9.5, 0.005)
    waves = np.exp(-2j * np.pi * grid[:, None] * t) @ x[..., 0].T
    best = np.abs(waves).argmax(axis=0)
    moved = grid[best] - np.array([2.0, 4.0, 6.0, 8.0])[y]
    assert np.abs(moved).max() < 0.52
    assert abs(moved.mean()) < 4 * 0.5 / np.sqrt(3 * n) and moved.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.08)
    assert x.var() == pytest.approx(0.5 + 0.25, abs=4 * np.sqrt(2 * 0.75**2 / x.size) + 0.003)
    phases = (np.angle(waves[best, np.arange(n)]) + np.pi / 2) % (2 * np.pi)
    for label, frequency in enumerate((2, 4, 6, 8)):
        highest = 2 * np.pi if phase == "full" else 4 * np.pi / frequency
        found = phases[y == label]
        found = found[found < 2 * np.pi - 0.3]  # a phase of almost 0 may be found below it
        assert found.max() < highest + 0.3 and found.max() > 0.85 * min(highest, 2 * np.pi - 0.3)


def test_sinusoids_without_noise_and_shift_are_the_formula():
    x, y = sinusoids(8, 1, 1, noise=0.0, shift=0.0, amplitude=3.0, length=100).train
    t = np.arange(100) / 100
    for series, label in zip(x[..., 0], y, strict=True):
        angle = 2 * np.pi * (2.0, 4.0, 6.0, 8.0)[label] * t
        design = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        found, rest, *_ = np.linalg.lstsq(design, series, rcond=None)
        assert rest[0] < 1e-9
        assert 1 / 3 - 1e-6 <= np.hypot(*found) <= 3 + 1e-6
    plain = sinusoids(8, 1, 1, noise=0.0, shift=0.0, length=100).train
    assert np.allclose((plain.x**2).mean(axis=(1, 2)), 0.5, atol=1e-6)


def stage_statistics(n=500, gain=1.0):
    """Power per stage and channel within each band, and the correlation between the channels there."""
    x, y = sleep_stages(n, 1, 1, gain=gain, seconds=10).train
    waves, frequencies = np.fft.rfft(x, axis=1), np.fft.rfftfreq(x.shape[1], 1 / 64)
    found = {}
    for stage in range(5):
        for band, (low, high) in SLEEP_BANDS.items():
            inside = (frequencies >= low) & (frequencies <= high)
            part = waves[y == stage][:, inside] / x.shape[1]
            found[stage, band] = 2 * (np.abs(part) ** 2).sum(axis=1), int(inside.sum()), part
    return found


def test_sleep_stages_have_their_rhythms():
    for (stage, band), (power, bins, part) in stage_statistics().items():
        name = list(SLEEP_RMS)[stage]
        rms = np.repeat(SLEEP_RMS[name].get(band, (0, 0, 0)), 2)
        white = 0.3**2 * 2 * bins / 640  # what the white noise has in this band
        expected = rms**2 + white
        if (name, band) == ("rem", "slow"):
            expected = (
                expected + 1.5**2 * np.array([1, 1, 0, 0, 0, 0]) * 6 / 9
            )  # of the eyes' 9 bins from 0.2 to 1 Hz, 6 lie here
        if band == "spindle" and name == "n2":
            # a window exp(-t^2/2s^2) at a random place keeps s sqrt(pi)/T of the power, less what is cut off at the ends
            edge = (1 - 0.3 / np.sqrt(np.pi) / 10) * 0.3 * np.sqrt(np.pi) / 10
            assert np.allclose(power.mean(axis=0), rms**2 * edge * 0.8 + white, rtol=0.25)  # a fifth spreads out of the band
            continue
        se = power.std(axis=0) / np.sqrt(len(power))
        assert (np.abs(power.mean(axis=0) - expected) < 4.5 * se).all(), (name, band)
        if len(set(rms)) > 1 and name in ("wake", "n1", "n3") and rms.min() > 0:
            cross = 2 * (part[..., 0] * part[..., 4].conj()).real.sum(axis=1)
            assert abs(cross.mean() - 0.6 * rms[0] * rms[4]) < 4.5 * cross.std() / np.sqrt(len(cross))


@pytest.mark.parametrize("stage", range(5))
def test_sleep_stages_are_symmetric_as_promised(stage):
    """Odd moments vanish, and cross moments are the same for both sides and both directions of time."""
    x, y = sleep_stages(1500, 1, 1, gain=1.0, seconds=4, seed=5).train
    x = x[y == stage].astype(float)
    mirror = np.array(SLEEP_MIRROR)
    assert (mirror[mirror] == np.arange(6)).all()
    positions = np.array(SLEEP_POSITIONS)
    assert np.abs(np.linalg.norm(positions, axis=1) - 1).max() < 0.01
    assert (positions[mirror] == positions * [-1, 1, 1]).all()

    def agrees(values):
        return (np.abs(values.mean(axis=0)) < 4.5 * values.std(axis=0) / np.sqrt(len(values)) + 1e-12).all()

    assert agrees((x**3).mean(axis=1))  # sign
    lagged = np.einsum("ntc,ntd->ncd", x[:, 3:], x[:, :-3]) / x.shape[1]
    assert agrees(lagged - lagged[:, mirror][:, :, mirror])  # left and right
    skewed = (x[:, 3:] ** 2 * x[:, :-3] ** 2 * (x[:, 3:] - x[:, :-3]) ** 2 * np.sign(x[:, 3:] ** 2 - x[:, :-3] ** 2)).mean(axis=1)
    assert agrees(skewed)  # time
    assert not agrees(lagged[:, 0, 0] - lagged[:, 4, 4])  # front and back differ
    if stage == 4:
        assert lagged[:, 0, 1].mean() < -1 < 1 < lagged[:, 0, 0].mean()  # eyes


def test_the_gain_of_sleep_stages_is_common():
    (x, _), (plain, _) = sleep_stages(40, 1, 1, gain=4.0).train, sleep_stages(40, 1, 1, gain=1.0).train
    factors = np.median(x / plain, axis=(1, 2))
    assert np.abs(x - factors[:, None, None] * plain).max() < 1e-4
    assert 0.25 <= factors.min() < 0.6 and 1.7 < factors.max() <= 4


C4 = groups.cyclic(4)
ACTION = representations.regular(C4) + representations.regular(C4)


def posterior_of(data):
    """Mean and precision of the exact posterior under full augmentation."""
    rows = data.orbits.reshape(-1, data.x.shape[1])
    outputs = np.tile(data.y, len(data.orbits)) / len(data.orbits)
    precision = rows.T @ rows / len(data.orbits) / data.noise**2 + np.eye(rows.shape[1]) / data.prior_sd**2
    return np.linalg.solve(precision, rows.T @ outputs / data.noise**2 + data.prior_mean / data.prior_sd**2), precision


def mean_divergence(data):
    """mean_g KL(q || g q), by the formula for two Gaussians."""
    mean, precision = posterior_of(data)
    total = 0.0
    for rho in ACTION.matrices():
        moved = rho @ precision @ rho.T
        assert np.abs(moved - precision).max() < 1e-9 * np.abs(precision).max()
        apart = rho @ mean - mean
        total += 0.5 * apart @ moved @ apart
    return total / C4.order


@pytest.mark.parametrize("num_rows", [20, 320])
def test_the_prior_alone_breaks_the_symmetry_of_the_linear_gaussian_model(num_rows):
    broken, kept = (linear_gaussian(ACTION, num_rows, prior=prior, seed=1) for prior in ("random", "invariant"))
    assert (broken.x == kept.x).all() and (broken.y == kept.y).all()
    assert (linear_gaussian(ACTION, 10, seed=1).x == kept.x[:10]).all()
    asymmetric = np.eye(8) - ACTION.projector
    assert np.abs(asymmetric @ broken.weights).max() < 1e-14 and np.abs(asymmetric @ kept.prior_mean).max() < 1e-14
    assert np.allclose(ACTION.projector @ broken.prior_mean, kept.prior_mean)
    mean, _ = posterior_of(broken)
    identity = (asymmetric @ mean) @ (asymmetric @ broken.prior_mean) / broken.prior_sd**2
    assert mean_divergence(broken) == pytest.approx(identity, rel=1e-8)
    assert mean_divergence(kept) < 1e-12 < 1e-4 < mean_divergence(broken)


def test_the_cost_of_the_prior_falls_as_one_over_the_rows():
    sizes = np.array([320, 640, 1280, 2560])
    found = [np.mean([mean_divergence(linear_gaussian(ACTION, n, prior="random", seed=s)) for s in range(5)]) for n in sizes]
    assert np.polyfit(np.log(sizes), np.log(found), 1)[0] == pytest.approx(-1, abs=0.1)


def test_outputs_of_the_linear_gaussian_model_are_its_own():
    data = linear_gaussian(ACTION, 20_000, noise=0.3, prior_sd=2.0)
    residual = data.y - data.x @ data.weights
    assert residual.std() == pytest.approx(0.3, rel=4 / np.sqrt(40_000)) and (data.noise, data.prior_sd) == (0.3, 2.0)
    assert np.abs(np.cov(data.x.T) - np.eye(8)).max() < 5 * np.sqrt(2 / 20_000)
    for g, rho in enumerate(ACTION.matrices()):
        assert np.allclose(data.orbits[g], data.x @ rho.T)
        assert np.allclose(data.orbits[g] @ data.weights, data.x @ data.weights)


# Sets that are moved


MOVES = {"rotated": (rotated, 50.0), "translated": (translated, 3.0), "scaled": (scaled, 1.6)}


def expected_move(name, extent, u, image):
    """What scipy makes of one image, from uniform numbers."""
    amount = 2 * u - 1
    if name == "rotated":
        a = np.radians(extent * amount[0])
        matrix, shift = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]), np.zeros(2)
    elif name == "translated":
        matrix, shift = np.eye(2), extent * amount
    else:
        matrix, shift = np.eye(2) * extent ** amount[0], np.zeros(2)
    back, centre = np.linalg.inv(matrix), (np.array(image.shape) - 1) / 2
    return scipy.ndimage.affine_transform(image, back, centre - back @ (centre + shift), order=1, mode="grid-constant")


@pytest.mark.parametrize("name", MOVES)
def test_moved_sets_are_those_of_scipy(name):
    move, extent = MOVES[name]
    plain = quadrant_digits(30, 12, 5, seed=2)
    moved = move(plain, extent, seed=7)
    assert type(moved) is type(plain)
    outside = plain.train.x.min()
    for i, (part, before) in enumerate(zip(moved, plain, strict=True)):
        assert (part.y == before.y).all() and part.x.dtype == np.float32 and part.x.shape == before.x.shape
        u = np.random.default_rng([7, 1 + i]).uniform(size=(len(before.y), 2 if name == "translated" else 1))
        for image, row, found in zip(before.x[..., 0], u, part.x[..., 0], strict=True):
            assert np.abs(found - outside - expected_move(name, extent, row, image.astype(float) - outside)).max() < 2e-5
    one = move(plain.train, extent, seed=7)  # one set alone
    assert type(one) is type(plain.train) and (one.x == moved.train.x).all()
    assert (move(plain, extent, seed=7).test.x == moved.test.x).all()
    assert (move(plain, extent, seed=8).train.x != moved.train.x).any()


def test_longer_sets_start_with_the_same_moves_in_blocks(monkeypatch):
    x = np.random.default_rng(0).standard_normal((11, 6, 6, 2)).astype(np.float32)
    whole = rotated(Images(x, np.zeros(11, np.int32)), outside=(0.5, -1.0))
    part = rotated(Images(x[:4], np.zeros(4, np.int32)), outside=(0.5, -1.0))
    assert np.abs(whole.x[:4] - part.x).max() < 1e-6
    monkeypatch.setattr("bayes_sym.datasets.warped._ROWS", 3)
    assert np.abs(rotated(Images(x, np.zeros(11, np.int32)), outside=(0.5, -1.0)).x - whole.x).max() < 1e-6


def test_what_comes_in_has_the_level_of_the_outside():
    ones = Images(np.ones((50, 9, 9, 2), np.float32), np.zeros(50, np.int32))
    assert (translated(ones, 4.0).x == 1).all()  # the lowest level is 1
    dark = translated(ones, 4.0, outside=(0.0, 3.0))
    assert dark.x[..., 0].min() == 0 and dark.x[..., 0].max() == 1 and dark.x[..., 1].min() == 1 and dark.x[..., 1].max() == 3


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: rotated(digits(), 0.0), OptionError, "degrees must be between 0.001 and 180 degrees, got 0.0"),
        (lambda: rotated(digits(), 200), OptionError, "degrees must be between .*, got 200"),
        (lambda: translated(digits(), 9), OptionError, "pixels must be between 0.001 and 7 for images of side 8, got 9"),
        (lambda: scaled(digits(), 1.0), OptionError, r"factor must be between 1.001 and 10 \(a factor of 1 changes nothing\)"),
        (lambda: rotated(rings()), ShapeError, r"only sets of images can be moved.*got \[\(200, 2\)"),
        (lambda: rotated((np.zeros((3, 4, 4, 1)),)), ShapeError, r"only sets of images can be moved"),
        (lambda: rotated(digits(), outside=(0, 0)), ShapeError, r"one for each of 1 channels, got \(0, 0\)"),
        (lambda: rings(arc=400), OptionError, "arc must be between 0 and 360 degrees, got 400"),
        (lambda: rings(noise=0.3), OptionError, "noise must be between 0 and 0.25"),
        (lambda: rotated_shapes(spread=91), OptionError, "spread must be between 0 and 90 degrees, got 91"),
        (lambda: rotated_shapes(side=16.5), OptionError, "side must be a whole number between 12 and 256 pixels, got 16.5"),
        (lambda: sinusoids(phase="none"), OptionError, "phase must be 'full' or 'original', got 'none'"),
        (lambda: sinusoids(amplitude=0.5), OptionError, "amplitude must be between 1 and 100, got 0.5"),
        (lambda: sinusoids(shift="x"), OptionError, "shift must be between 0 and 1 Hz, got 'x'"),
        (lambda: sleep_stages(rate=32), OptionError, "rate must be a whole number between 50 and 512"),
        (lambda: linear_gaussian(ACTION, 0), DataError, "num_rows must be a whole number of at least 1, got 0"),
        (lambda: linear_gaussian(ACTION, 5, prior="flat"), OptionError, "prior must be 'invariant' or 'random', got 'flat'"),
        (lambda: linear_gaussian(ACTION, 5, noise=0), OptionError, "noise must be between 1e-06 and 1e.06, got 0"),
        (
            lambda: linear_gaussian(representations.matrix(groups.cyclic(2), [[[1.0, 1.0], [0.0, -1.0]]]), 5),
            OptionError,
            "the representation must be orthogonal",
        ),
    ],
)
def test_options_of_generated_sets_are_checked(build, error, message):
    with pytest.raises(error, match=message):
        build()
