"""Comparisons: scores against hand computation, the same numbers twice, and files that are whole and valid."""

import json
import os

import arviz as az
import jax
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

from bayes_sym import groups, representations
from bayes_sym.atomic import whole_file
from bayes_sym.errors import OptionError
from bayes_sym.experiments import EXPERIMENTS
from bayes_sym.experiments.cli import app
from bayes_sym.experiments.table import as_text
from bayes_sym.inference import (
    MAP,
    BestOnValidation,
    Cell,
    Comparison,
    Problem,
    Variational,
    compare,
    expand,
    fit,
    full_orbit,
    predict,
)
from bayes_sym.inference.figures import plot_evidence
from bayes_sym.inference.grid import COSTS
from bayes_sym.models import ConvClassifier


ACTION = representations.image(groups.cyclic(4), (4, 4))
MODEL = Problem(ConvClassifier((2,), classes=2))
KEYS = {
    "method", "accuracy", "orbit_accuracy", "nll", "ece", "equivariance_error", "equivariance_error_se", "orbit_agreement",
    "log_evidence", "evidence_kind", "averaged_accuracy", "averaged_nll", "parameters", "seeds_together", "data_checksum", *COSTS,
}  # fmt: skip


def _images(seed, count):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count).astype(np.int32)
    x = rng.normal(size=(count, 4, 4, 1)).astype(np.float32)
    return x + 2 * y[:, None, None, None] * np.eye(4, dtype=np.float32)[None, :, :, None], y


TRAIN, VALIDATION, TEST = _images(0, 24), _images(1, 16), _images(2, 20)


def _compare():
    variational = Variational(augment=full_orbit(ACTION), symmetrise=expand(ACTION, at=10))
    cells = [
        Cell("map", MODEL, MAP(optax.adam(1e-2)), 40, 8, select="orbit"),
        Cell("expansion", MODEL, variational, 40, 8),
    ]
    return compare(
        cells,
        jax.random.key(0),
        *TRAIN,
        test=TEST,
        validation=VALIDATION,
        action=ACTION,
        num_draws=8,
        chunk=10,
        progress=False,
        about={"experiment": "tiny", "seed": 0},
    )


@pytest.fixture(scope="module")
def comparison():
    return _compare()


def test_rows_carry_every_column(comparison):
    assert [row["method"] for row in comparison.rows] == ["map", "expansion"]
    for row in comparison.rows:
        assert set(row) >= KEYS
        assert 0 <= row["accuracy"] <= 1 and row["seconds"] > 0
    assert comparison.rows[0]["evidence_kind"] is None and comparison.rows[1]["evidence_kind"] == "elbo"
    assert comparison.table().loc["map", "parameters"] == 3 * 3 * 2 + 2 + 2 * 2 + 2
    assert comparison.rows[1]["parameters"] == 3 * 3 * 8 + 8 + 8 * 2 + 2


def test_scores_are_those_of_the_predictions(comparison):
    posterior = comparison.posteriors["map"]
    on_orbit = []
    for g in range(4):
        turned = np.rot90(TEST[0], g, axes=(1, 2)).copy()
        on_orbit.append(predict(MODEL, posterior, jax.random.key(5), turned, num_draws=1)[0])
    probabilities = np.stack(on_orbit)
    row = comparison.rows[0]
    rows = np.arange(len(TEST[1]))
    assert row["accuracy"] == pytest.approx((probabilities[0].argmax(-1) == TEST[1]).mean())
    assert row["orbit_accuracy"] == pytest.approx((probabilities.argmax(-1) == TEST[1]).mean())
    assert row["nll"] == pytest.approx(-np.log(probabilities[:, rows, TEST[1]]).mean(), rel=1e-4)
    assert row["averaged_nll"] == pytest.approx(-np.log(probabilities.mean(0)[rows, TEST[1]]).mean(), rel=1e-4)
    defect = ((probabilities - probabilities[0]) ** 2).sum(-1).mean()
    assert row["equivariance_error"] == pytest.approx(defect, rel=1e-3)


def test_the_same_table_twice(comparison):
    again = _compare()
    for first, second in zip(comparison.rows, again.rows, strict=True):
        assert {k: v for k, v in first.items() if k not in COSTS} == {k: v for k, v in second.items() if k not in COSTS}


def test_saves_whole_files(comparison, tmp_path):
    folder = comparison.save(tmp_path / "out")
    record = json.loads((folder / "results.json").read_text())
    assert record["experiment"] == "tiny" and record["seed"] == 0 and "jax" in record["versions"]
    assert [row["method"] for row in record["rows"]] == ["map", "expansion"]
    assert record["rows"][0]["log_evidence"] is None and isinstance(record["rows"][1]["log_evidence"], float)
    assert (folder / "table.csv").read_text().splitlines()[0].startswith("method,accuracy")
    assert (folder / "tradeoff.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "evidence.png").read_bytes()[:4] == b"\x89PNG"
    names = ["evidence.png", "posteriors", "results.json", "table.csv", "tradeoff.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for path in sorted((folder / "posteriors").iterdir()):
        tree = az.from_netcdf(str(path))
        assert np.isfinite(tree["posterior"]["net.0.weight.rms"].values).all()


def test_a_crash_leaves_the_old_file(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as path:
        path.write_text("half")
        raise RuntimeError("crash")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["results.json"]


def test_text_and_markdown_tables_hold_every_method(comparison):
    text = as_text(comparison.rows)
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["map", "expansion"]
    assert as_text(comparison.rows, markdown=True).count("\n| ") == 2 + 1


def test_selection_keeps_the_best_look_and_stops():
    best = BestOnValidation(jax.random.key(0), (VALIDATION[0],), VALIDATION[1], patience=2)
    found = fit(
        MODEL, MAP(optax.adam(0.3)), jax.random.key(1), *TRAIN, num_steps=400, callbacks=(best,), chunk=10, progress=False
    )
    scores = dict(best.scores)
    assert scores[best.step] == min(scores.values())
    assert found.status().reason == "stopped" and len(found.losses) == best.step + 20
    mean = predict(MODEL, best.posterior, jax.random.key(0), VALIDATION[0], num_draws=1)[0]
    assert -np.log(mean[np.arange(16), VALIDATION[1]]).mean() == pytest.approx(scores[best.step], rel=1e-4)


@pytest.mark.parametrize(
    ("cells", "match"),
    [
        ([Cell("a", MODEL, MAP()), Cell("a", MODEL, MAP())], "different names"),
        ([], "at least one cell"),
        ([Cell("a", MODEL, MAP(), select="test")], "'upright' or 'orbit'"),
        ([Cell("a", MODEL, MAP(), select="orbit")], "need validation"),
        ([Cell("a", MODEL, MAP(), test=TEST)], "'a' has no test set or no action"),
    ],
)
def test_bad_comparisons_are_refused(cells, match):
    action = None if "no action" in match else ACTION
    with pytest.raises(OptionError, match=match):
        compare(cells, jax.random.key(0), *TRAIN, test=TEST, action=action)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seeds": 0}, "seeds must be a number of at least 1"),
        ({"seeds": (1, 1)}, "different numbers from 0 on"),
        ({"executor": "threads"}, "executor must have submit"),
        ({"executor": object(), "mesh": jax.make_mesh((1,), ("data",))}, "choose one of them"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(OptionError, match=match):
        compare([Cell("a", MODEL, MAP())], jax.random.key(0), *TRAIN, test=TEST, action=ACTION, progress=False, **options)


def test_evidence_is_ranked_within_a_kind_and_a_training_set():
    def row(method, kind, data, value):
        return {"method": method, "evidence_kind": kind, "data_checksum": data, "log_evidence": value}

    rows = [row("a", "elbo", "1", -3.0), row("b", "elbo", "1", -1.0), row("c", "elbo", "2", -9.0), row("d", "laplace", "1", -2.0)]
    rows += [row("e", None, "1", None)]
    table = Comparison(rows, {(r["method"], 0): None for r in rows}, {}).evidence()
    assert table["rank"].drop("e").to_dict() == {"b": 1, "a": 2, "c": 1, "d": 1}
    assert table["difference"].drop("e").to_dict() == {"b": 0.0, "a": -2.0, "c": 0.0, "d": 0.0}
    assert np.isnan(table.loc["e", "difference"])


def test_figures_are_known_by_name(comparison):
    panels = comparison.plot("evidence").axes
    assert [axes.get_title() for axes in panels] == ["elbo"]
    with pytest.raises(OptionError, match="no figure 'bars'; there are: tradeoff, evidence"):
        comparison.plot("bars")
    with pytest.raises(OptionError, match="no row has an evidence"):
        plot_evidence(comparison.rows[:1])


def test_the_command_line_lists_and_refuses(tmp_path):
    runner = CliRunner()
    listed = runner.invoke(app, ["list"])
    assert listed.exit_code == 0 and all(name in listed.output for name in EXPERIMENTS)
    unknown = runner.invoke(app, ["run", "nothing"])
    assert unknown.exit_code == 2 and "digits-c4" in unknown.output
    devices = runner.invoke(app, ["run", "digits-c4", "--mesh", "64"])
    assert devices.exit_code == 2 and "64 devices" in devices.output
    data = runner.invoke(app, ["run", "digits-c4", "--num-train", "5000", "--quiet", "--out", str(tmp_path)])
    assert data.exit_code == 2 and "1797" in data.output and not list(tmp_path.iterdir())
