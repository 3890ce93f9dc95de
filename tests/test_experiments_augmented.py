"""Experiments on learned augmentation, at small sizes: what rows say, ranges that stand still, and figures."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from bayes_sym.errors import GroupActionError
from bayes_sym.experiments import EXPERIMENTS, Options, augmented_figures, capacity, eeg_like, rings, rotated_shapes, sinusoids
from bayes_sym.experiments.augmented import learn, num_steps
from bayes_sym.experiments.rotated_evidence import learn_by_evidence
from bayes_sym.experiments.rotated_posterior import learn_posterior
from bayes_sym.experiments.series_net import Frames, OverTime, series_net


SMALL = Options(steps=8, num_train=48, progress=False)
SHAPES = replace(rotated_shapes.TASK, seeds=3, copies=2)


def drawn(draw, *given):
    """The axes that a figure has after drawing."""
    figure = Figure()
    draw(*given, figure)
    figure.canvas.draw()
    return figure.axes


def test_the_experiments_are_listed():
    assert {"rotated-shapes", "sinusoids", "rings", "capacity", "eeg-like"} <= set(EXPERIMENTS)


@pytest.fixture(scope="module")
def learned():
    return learn(rotated_shapes.ARMS["learned"], SHAPES, SMALL)


def test_rows_say_what_was_learned_beside_the_oracle(learned):
    scores, ranges, history = learned
    assert [row["fit"] for row in scores] == [0, 1, 2] and {row["method"] for row in scores} == {"learned"}
    assert all(0 <= row["accuracy"] <= 1 and row["nll"] > 0 and 0 <= row["total_variation"] <= 1 for row in scores)
    values = [row["learned"] for row in ranges]
    assert all(
        abs(value - 22.5) < 10 and value != 22.5 for value in values
    )  # started exactly there, rested for two of eight steps
    assert len(set(values)) == 3 and all(row["oracle"] == pytest.approx(46.17, abs=0.1) for row in ranges)
    assert ranges[0]["learned_low"] < np.mean(values) < ranges[0]["learned_high"] and ranges[0]["selected"]
    resting = [report[0]["range"] for _, step, report in history if step <= 2]
    assert len(resting) == 6 and np.allclose([float(value) for value in resting], 22.5, atol=1e-4)


def test_fixed_ranges_stand_still():
    fixed = learn(rotated_shapes.ARMS["fixed"], replace(SHAPES, seeds=1), SMALL)
    assert fixed.ranges[0]["learned"] == pytest.approx(90, abs=1e-3) and fixed.ranges[0]["oracle"] == 45


def test_posteriors_of_ranges_have_an_interval():
    arm, weights = rotated_shapes.POSTERIORS["variational"]
    outcome = learn_posterior(arm, SHAPES, SMALL, weights=weights)
    (row,) = outcome.ranges
    assert row["learned_low"] < row["learned"] < row["learned_high"] and row["oracle"] == pytest.approx(46.17, abs=0.1)


def test_epochs_are_passes_over_the_training_data():
    assert num_steps(rotated_shapes.TASK, Options(epochs=2)) == 2 * 8000 // 64
    assert num_steps(rotated_shapes.TASK, Options(epochs=2, steps=5)) == 5
    assert num_steps(rotated_shapes.TASK, Options()) == rotated_shapes.TASK.steps


def test_figures_show_methods_with_the_operation(learned):
    rows = [*learned.scores, *learned.ranges]
    (axes,) = drawn(augmented_figures.draw_ranges, rows, "Rotate")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["learned"]
    assert not drawn(augmented_figures.draw_ranges, rows, "Invert")
    ranges, chances = drawn(augmented_figures.draw_history, {"learned": learned.history, "none": []}, "Rotate")
    assert len(ranges.lines) == len(chances.lines) == 3


def test_runs_write_rows_and_figures(tmp_path):
    found = EXPERIMENTS["sinusoids"].run(replace(SMALL, steps=2, task="augnet"))
    found.save(tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    names = [row["operation"] for row in rows if row["part"] == "range" and row["fit"] == 0]
    assert names == ["FrequencyShift", "FourierSurrogate", "GaussianNoise"]
    for fit in range(3):
        assert sum(row["probability"] for row in rows if row["part"] == "range" and row["fit"] == fit) == pytest.approx(1)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "ranges.png", "training.png"}
    assert "FrequencyShift" in found.text()


def test_shifted_series_are_those_of_other_frequencies():
    data = sinusoids.data_of(0, 8)
    times = np.arange(1000) / 100

    def peak(x):
        bins = np.arange(1, 10, 0.02)
        return bins[np.abs(np.exp(-2j * np.pi * bins[:, None] * times) @ (x * np.hanning(1000))).argmax()]

    for version, hertz in zip(data.moved, (-0.5, -0.25, 0.25, 0.5), strict=True):
        moved = [peak(version[n, :, 0]) - peak(data.x_test[n, :, 0]) for n in range(4)]
        assert np.allclose(moved, hertz, atol=0.05)


# Rings


def test_points_turn_about_the_origin():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2)), jnp.float32)
    turned = rings.Turn().apply(x, 0.5, jnp.full((5, 1), 1.0))  # by 90 degrees, anticlockwise
    assert np.allclose(turned, np.stack([-x[:, 1], x[:, 0]], axis=1), atol=1e-6)
    assert np.allclose(rings.Turn().apply(x, 0.0, jnp.full((5, 1), 0.3)), x)


def test_a_small_run_of_the_rings_moves_the_range_by_the_evidence():
    outcome = rings.learn((120.0, 5.0, 0), replace(SMALL, steps=60, num_train=30))
    scores, row = outcome.rows
    assert scores["evidence_kind"] == "laplace-full" and scores["log_evidence"] > scores["first_log_evidence"]
    assert row["oracle"] == 60 and row["learned"] != pytest.approx(5.0, abs=0.01)
    plain = {**scores, "learned_low": None, "learned_high": None}
    several = [{**row, "arc": arc, "learned_low": 1.0, "learned_high": 70.0} for arc in (120.0, 60.0)]
    assert len(drawn(rings._draw_ranges, [plain, *several])) == 1
    assert len(drawn(rings._draw_history, {(120.0, 5.0, 0): outcome.history, (120.0, 150.0, 0): outcome.history})[0].lines) == 3


def test_a_small_run_by_the_evidence_has_a_row_per_operation():
    outcome = learn_by_evidence(replace(SMALL, steps=4, num_train=12))
    assert [row["operation"] for row in outcome.ranges] == [
        type(op).__name__ for op in rotated_shapes.ARMS["augerino"].layers[0].operations
    ]
    assert [row["oracle"] for row in outcome.ranges] == [None, None, 90.0, None, None, None]
    assert all(0 < row["magnitude"] < 0.2 for row in outcome.ranges)
    assert outcome.ranges[2]["learned"] == pytest.approx(180 * outcome.ranges[2]["magnitude"]) != pytest.approx(5.0, abs=0.01)


# Capacity


def test_summaries_leave_dead_fits_out():
    rows = [
        {
            "part": "method",
            "method": "none",
            "width": w,
            "depth": d,
            "fit": fit,
            "invariance": value,
            "accuracy": 0.5,
            "constant": fit == 2,
        }
        for (w, d), base in zip(capacity.CAPACITIES, np.linspace(0.1, 0.8, 8), strict=True)
        for fit, value in enumerate((base, base + 0.02, 99.0))
    ]
    (found,) = capacity.summaries(rows)
    assert found["invariance"] == pytest.approx(0.46) and found["spread"] == pytest.approx(0.7) and found["dead"] == 8
    assert len(drawn(capacity._draw, rows)) == 2


@pytest.mark.parametrize("cell", [("none", 2, 1), ("learned", 4, 2), ("oracle", 16, 2)])
def test_arms_of_the_capacities_have_their_nets(cell):
    method, width, depth = cell
    arm = capacity.arm(*cell)
    shapes = [site.shape for site in arm.net.sites() if site.name.endswith("weight")]
    assert shapes == [(1000, width), *[(width, width)] * (depth - 1), (width, 4)]
    assert (arm.strength is not None) == (method == "learned") and bool(arm.layers) == (method != "none")


# Signals like sleep


def test_what_is_true_of_the_stages_has_an_oracle_and_the_rest_has_none():
    known = {
        name
        for name in ("SignFlip", "ChannelSymmetry", "TimeReverse", "ChannelShuffle", "FrequencyShift")
        if eeg_like.oracle(name, 0.5)
    }
    assert known == {"SignFlip", "ChannelSymmetry", "TimeReverse"}
    data = eeg_like.TASK.data(0, 10)
    assert np.array_equal(data.moved[0], -data.x_test) and np.array_equal(data.moved[2], data.x_test[:, ::-1])
    assert np.array_equal(data.moved[1][..., 0], data.x_test[..., 1])
    rows = [
        {
            "part": "range",
            "method": "learned",
            "fit": 0,
            "layer": 0,
            "operation": type(op).__name__,
            "learned": 0.2,
            "probability": 1.0,
        }
        for op in eeg_like.ARMS["learned"].layers[0].operations
    ]
    assert len(drawn(eeg_like._draw, rows)) == 1 and not drawn(eeg_like._draw, [])


def test_windows_of_series_are_those_of_a_loop():
    x = np.random.default_rng(0).standard_normal((2, 11, 3)).astype(np.float32)
    found = Frames(4, 3).apply({}, jnp.asarray(x))
    assert np.array_equal(found, np.stack([x[:, s : s + 4].reshape(2, 12) for s in (0, 3, 6)], axis=1))
    assert np.allclose(OverTime().apply({}, found), found.mean(axis=1))
    net = series_net(3, 5, 4, size=4, hop=3)
    weights = {site.name: jnp.ones(site.shape) for site in net.sites()}
    assert jax.jit(net.apply)(weights, jnp.asarray(x)).shape == (2, 4)
    with pytest.raises(GroupActionError, match="no group acts on Frames"):
        Frames(4, 3).representations(None, iter([]))
    assert Frames(4, 3).expand(2, iter([])) == Frames(4, 3) and not OverTime().stages()
