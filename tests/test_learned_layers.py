"""Experiments on learned layers: what their fits report, their images, and local files in the place of the 8x8 digits."""

import struct
from functools import partial

import numpy as np
import pytest

from bayes_sym.errors import OptionError
from bayes_sym.experiments import EXPERIMENTS, Options
from bayes_sym.experiments.learned_layers import Job, learn, rows_of
from bayes_sym.experiments.mixed_groups import _digits as turned_digits
from bayes_sym.experiments.quadrant import _digits, _files
from bayes_sym.models import LadderClassifier


@pytest.mark.parametrize(("learned", "objective"), [(True, "kfac_reduce"), (True, "ntk"), (False, "kfac_reduce")])
def test_a_short_fit_reports_its_evidence_and_every_pathway(learned, objective):
    model = LadderClassifier("conv", 16, 1, 10, 1)
    outcome = learn(Job(model, learned, partial(_digits, "digit", 40, 0), 4, 0, objective=objective, evidence=True))
    net, *layers = rows_of(outcome)
    assert (layers[0]["precision"] != pytest.approx(9 / 2, rel=1e-3)) == learned  # fan_in / strength^2, from sqrt(2)
    assert net["evidence_kind"] == "laplace-dual-probes" and net["log_evidence"] < 0
    # 40 rows of 10 classes are fewer than the columns that may be drawn, so all count, and there are no more directions
    assert 0 < net["effective"] < 40 * 9
    assert net["effective"] == pytest.approx(sum(row["gamma"] for row in layers), rel=1e-4)
    assert net["parameters"] == sum(row["parameters"] for row in layers) == model.spec.num_weights()
    assert [row["pathway"] for row in layers] == ["conv"] * 6 + ["", ""]
    assert net["agreement"] == 1.0  # convolutions alone do not see shifts


def test_upright_and_turned_digits_differ_by_quarter_turns_alone():
    upright, turned = turned_digits("upright", 30, 1), turned_digits("rotated", 30, 1)
    for i in (0, 2):
        turns = np.stack([np.rot90(upright[i], k, axes=(1, 2)) for k in range(4)])
        same = np.isclose(turns, turned[i][None], atol=1e-5).all(axis=(2, 3, 4))
        assert same.any(axis=0).all() and 0.1 < same[0].mean() < 0.5
    assert np.array_equal(turned[4][3], np.rot90(turned[2], 3, axes=(1, 2)))


def test_local_files_of_mnist_take_the_place_of_the_small_digits(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 6)):
        for what, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(count, dtype=np.uint8) % 10),
        ):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{prefix}-{what}-ubyte").write_bytes(head + array.tobytes())
    x, y, x_test, y_test, placed = _files("quadrant", tmp_path, 12, 3)
    assert x.shape == (12, 32, 32, 1) and x_test.shape == (6, 32, 32, 1) and placed.shape == (4, 6, 32, 32, 1)
    assert (y_test % 10 == np.arange(6)).all() and set(y // 10) <= {0, 1, 2, 3} and len(set(y // 10)) > 1
    _, digit, *_ = _files("digit", tmp_path, 12, 3)
    assert (digit == y % 10).all() and not (np.sort(digit)[:10] == digit[:10]).all()
    # the digit lies in the quadrant that the label says
    energy = ((x - x.min()) ** 2).reshape(12, 2, 16, 2, 16).sum(axis=(2, 4)).reshape(12, 4)
    assert (energy.argmax(axis=1) == y // 10).all()


def test_cifar_needs_files():
    with pytest.raises(OptionError, match="cifar10 reads local files: pass --data-dir"):
        EXPERIMENTS["quadrant"].run(Options(task="cifar10"))
