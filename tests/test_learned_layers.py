"""Experiments on learned layers: what their fits report, their images, and local files in the place of the 8x8 digits."""

import struct
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayes_sym.diagnostics import PathwayShare, PathwayShares
from bayes_sym.errors import CurvatureError, OptionError
from bayes_sym.experiments import EXPERIMENTS, Options, mixed_groups
from bayes_sym.experiments.in_rounds import InRounds
from bayes_sym.experiments.learned_layers import Job, Outcome, _exact, _measured, learn, rows_of
from bayes_sym.experiments.mixed_groups import _digits as turned_digits
from bayes_sym.experiments.quadrant import _digits, _files
from bayes_sym.inference import MAP, Problem, fit, hold_evidence
from bayes_sym.layers import pathways
from bayes_sym.models import LadderClassifier


@pytest.mark.parametrize("learned", [True, False])
def test_a_short_fit_reports_its_evidence_and_every_pathway(learned):
    model = LadderClassifier("conv", 16, 1, 10, 1)
    outcome = learn(Job(model, learned, partial(_digits, "digit", 40, 0), 4, 0, evidence=True))
    net, *layers = rows_of(outcome)
    assert (layers[0]["precision"] != pytest.approx(9 / 2, rel=1e-3)) == learned  # fan_in / strength^2, from sqrt(2)
    assert net["evidence_kind"] == "laplace-dual-probes" and net["log_evidence"] < 0
    # 40 rows of 10 classes are fewer than the columns that may be drawn, so all count, and there are no more directions
    assert 0 < net["effective"] < 40 * 9
    assert net["effective"] == pytest.approx(sum(row["gamma"] for row in layers), rel=1e-4)
    assert net["parameters"] == sum(row["parameters"] for row in layers) == model.spec.num_weights()
    assert [row["pathway"] for row in layers] == ["conv"] * 6 + ["", ""]
    assert net["agreement"] == 1.0  # convolutions alone do not see shifts
    assert net["mackay"] < 0.011 if learned else net["mackay"] is None


def test_the_logits_start_centred_and_as_wide_as_asked():
    model = LadderClassifier("conv", 16, 1, 10, 1, 11.3, totals="held", activation="silu", smooth=2)
    x, y, *_ = data = _digits("digit", 40, 0)
    problem = Problem(model, starts=(("net.*bias", 0.0),))
    for spread in (0.5, 1.0):
        start, centred = _measured(Job(model, True, lambda: data, 4, 3, spread=spread), problem, x, y)
        still = MAP(optax.sgd(0.0), whiten=True, start=start)
        first = fit(centred, still, jax.random.key(3), x, y, num_steps=1, progress=False).state.z
        logits = model.spec.apply({name.removeprefix("net."): value for name, value in first.items()}, jnp.asarray(x))
        assert float(logits.std()) == pytest.approx(spread, rel=0.01)
        np.testing.assert_allclose(logits.mean(axis=0), 0, atol=1e-3 * spread)


def test_upright_and_turned_digits_differ_by_quarter_turns_alone():
    (upright, labels, *_), (turned, same, *_) = (turned_digits(task, 40, 1) for task in ("upright", "rotated"))
    assert np.array_equal(labels, same) and np.array_equal(labels, np.tile(labels[:10], 4))
    assert np.array_equal(upright, np.tile(upright[:10], (4, 1, 1, 1)))
    by_figure = turned.reshape(4, 10, 16, 16, 1).swapaxes(0, 1)
    for figure, copies in zip(upright, by_figure, strict=False):  # every turn of a figure is there, in some order
        turns = [np.rot90(figure, k) for k in range(4)]
        apart = np.abs(copies[:, None] - np.stack(turns)).max(axis=(2, 3, 4))
        assert apart.min(axis=0).max() < 1e-5 and sorted(apart.argmin(axis=0)) == [0, 1, 2, 3]
    test, transforms = turned_digits("rotated", 40, 1)[2::2]
    assert all(np.array_equal(transforms[k], np.rot90(test, k, axes=(1, 2))) for k in range(4))


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


def test_mixed_groups_reports_both_sets_of_digits(monkeypatch):
    def outcome(shares):
        rows = [
            PathwayShare(str(2 * i), pathway, 3.0, 9, 0.3, part, 1.0, part / 2, 1.0)
            for i, share in enumerate(shares)
            for pathway, part in (("group", share), ("conv", 1 - share))
        ]
        return Outcome({"model": "mixed", "inference": "evidence", "accuracy": 0.5}, PathwayShares(tuple(rows)), [])

    asked = []

    def finished(fn, jobs, options, **_):
        asked.extend(jobs)
        return [outcome((0.9, 0.7)), outcome((0.5, 0.8))]

    monkeypatch.setattr(mixed_groups, "side_by_side", finished)
    found = mixed_groups.MIXED_GROUPS.run(Options(num_train=20))
    assert all(job.rounds and job.model.choose == "energy" for job in asked)  # the centroid's choice does not commute with turns
    (x, *_), (upright, *_) = (job.data() for job in asked)
    assert x.shape == upright.shape and not np.array_equal(x, upright)
    turned, plain = (row for row in found.rows if "accuracy" in row)
    assert (turned["task"], plain["task"]) == ("rotated", "upright")
    assert (turned["group_share"], turned["group_share_least"]) == pytest.approx((0.8, 0.7))
    assert (plain["group_energy"], plain["group_energy_least"]) == pytest.approx((0.325, 0.25))
    assert [row["task"] for row in found.rows if "pathway" in row] == 4 * ["rotated"] + 4 * ["upright"]


@pytest.mark.filterwarnings("ignore:the fit has collapsed")  # after nine steps it has not yet learned
def test_strengths_move_between_rounds_to_where_the_evidence_is_stationary():
    model = LadderClassifier("conv", 16, 1, 10, 1, activation="silu", smooth=2)
    x, y, *_ = _digits("digit", 12, 0)
    problem = Problem(model, starts=(("net.*bias", 0.0), ("strength", model.start())))
    seen = []
    options = {"optimise": ("strength",), "objective": "dual", "whiten": True}
    scheme = InRounds(optax.adam(3e-3), None, rounds=2, columns=200, **options)
    assert (scheme.boundaries(9), scheme.boundaries(1), scheme.boundaries(1600)) == ((7, 8), (), (1200, 1400))
    given, how = (jax.random.key(0), x, y), {"num_steps": 9, "callbacks": (seen.append,), "progress": False}
    found = fit(problem, scheme, *given, **how)
    assert [progress.step for progress in seen] == [7, 8, 9]
    strengths = [np.exp(np.asarray(progress.state.hyper["strength"])) for progress in seen]
    np.testing.assert_allclose(strengths[0], model.start(), rtol=1e-6)
    # the weights at the end of a round say what the next starts with
    for before, after in zip(seen, strengths[1:], strict=False):
        params = {**before.state.z, "strength": jnp.asarray(after)}
        held = hold_evidence(problem, params, x, y, optimise=("strength",), curvature="dual")  # 12 rows have all their columns
        slope = jax.grad(lambda log, held=held: held({"strength": jnp.exp(log)}).value)(jnp.log(jnp.asarray(after)))
        gamma = held.effective_parameters({"strength": jnp.asarray(after)})
        by_pathway = [
            sum(float(gamma[f"net.{name}"]) * site.share for name, site in sites.items() if name in pathway.sites)
            for sites in [{site.name: site for site in model.spec.sites()}]
            for pathway in pathways(model.spec)
        ]
        np.testing.assert_allclose(np.asarray(slope) / by_pathway, 0, atol=0.02)
    assert set(found.posterior.sample(jax.random.key(0), 1)) == {*problem.structure(x, y).latent}
    # a MAP takes the same first steps, and its strengths stay
    still = fit(problem, replace(scheme, still=True), *given, **how)
    np.testing.assert_allclose(np.exp(still.state.hyper["strength"]), model.start(), rtol=1e-6)
    for name, value in seen[0].state.z.items():
        np.testing.assert_array_equal(value, seen[3].state.z[name])


def test_the_exact_evidence_survives_priors_that_are_too_wide_for_float32(x64):
    model = LadderClassifier("conv", 16, 1, 10, 1, 1e4, totals="held", activation="silu", smooth=2)
    x, y, *_ = _digits("digit", 12, 0)
    options = {"optimise": ("strength",), "curvature": "dual", "correction": "seen"}
    with jax.enable_x64(False):
        params = Problem(model, starts=(("net.*bias", 0.0),)).initial(jax.random.key(0), (x, y), start=1e-4)
        params = {**params, "strength": jnp.asarray(model.start())}
        _, evidence, gamma = _exact(Job(model, False, lambda: None, 0, 0, columns=200), Problem(model), params, x, y)
        with pytest.raises(CurvatureError, match=r"dual evidence is nan.*Work in float64"):
            hold_evidence(Problem(model), params, x, y, **options)({"strength": params["strength"]})
    wide = {name: np.asarray(value, float) for name, value in params.items()}
    held = hold_evidence(Problem(model), wide, x.astype(float), y, **options)  # with all columns, as there are few
    assert float(evidence.value) == pytest.approx(float(held({"strength": wide["strength"]}).value), rel=1e-6)
    assert evidence.value.dtype == np.float64, "float32 was good enough, so this test shows nothing"
    assert 0 < sum(float(value) for value in gamma.values()) < 12 * 9
