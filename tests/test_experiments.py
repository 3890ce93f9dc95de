"""Experiments that return findings: their table, figures and files, and how the command line runs and refuses them."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bayes_sym.errors import DataError, OptionError
from bayes_sym.experiments import EXPERIMENTS, Experiment, Findings, Options
from bayes_sym.experiments.cli import app


ROWS = [
    {"method": "a", "score": np.float64(0.25), "count": np.int64(3), "kept": np.bool_(True), "note": "x"},
    {"method": "b", "score": np.inf, "count": 4, "kept": False, "note": None},
]


def draw(figure):
    figure.add_subplot().plot([0, 1])


def findings(**options):
    return Findings(ROWS, about={"experiment": "toy", "seed": 0}, **options)


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def seen(monkeypatch):
    """Adds the experiment "toy" with two tasks and "reader", which reads files; gives the options they were run with."""
    options = []

    def run(given):
        options.append(given)
        return Findings(ROWS, {"curve": draw}, about={"experiment": "toy", "seed": given.seed})

    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment("toy", "A toy.", run, tasks=("add", "multiply")))
    monkeypatch.setitem(EXPERIMENTS, "reader", Experiment("reader", "A reader.", run, reads_files=True))
    return options


def test_findings_are_saved_whole_with_plain_numbers(tmp_path):
    folder = findings(figures={"curve": draw, "other": draw}).save(tmp_path / "deep" / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["curve.png", "other.png", "results.json"]
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    record = json.loads((folder / "results.json").read_text())
    assert record["experiment"] == "toy" and record["seed"] == 0 and "jax" in record["versions"]
    assert record["rows"] == [
        {"method": "a", "score": 0.25, "count": 3, "kept": True, "note": "x"},
        {"method": "b", "score": None, "count": 4, "kept": False, "note": None},
    ]


def test_a_figure_that_fails_leaves_no_results(tmp_path):
    def fail(figure):
        raise RuntimeError("no figure")

    broken = findings(figures={"curve": fail})  # nothing is drawn yet
    with pytest.raises(RuntimeError, match="no figure"):
        broken.save(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OptionError, match="there is no figure 'bar'; there are: curve"):
        broken.plot("bar")
    with pytest.raises(OptionError, match="there are: none"):
        findings().plot("bar")


def test_the_table_has_all_keys_or_the_columns_asked_for():
    lines = findings().text().splitlines()
    assert lines[0].split() == ["method", "score", "count", "kept", "note"]
    assert lines[2].split() == ["a", "0.25", "3", "True", "x"] and lines[3].split() == ["b", "inf", "4", "False", "-"]
    lines = findings(columns={"method": ("name", "{}"), "score": ("points", "{:.3f}")}).text().splitlines()
    assert lines[0].split() == ["name", "points"] and lines[2].split() == ["a", "0.250"]


def test_run_passes_the_options_and_writes_the_findings(seen, tmp_path):
    done = invoke("run", "toy", "--task", "multiply", "--seed", "3", "--out", str(tmp_path))
    assert done.exit_code == 0 and "method" in done.output and f" s; everything is in {tmp_path}" in done.output
    assert seen == [Options(3, task="multiply", folder=tmp_path)]
    assert json.loads((tmp_path / "results.json").read_text())["seed"] == 3
    several = invoke("run", "toy", "--seeds", "2", "--steps", "7", "--num-train", "9", "--out", str(tmp_path / "s"))
    folders = [tmp_path / "s" / f"seed-{seed}" for seed in (0, 1)]
    assert several.exit_code == 0 and seen[1:] == [Options(i, 7, 9, folder=folder) for i, folder in enumerate(folders)]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["seed-0", "seed-1"]


def test_every_task_has_a_default_folder_of_its_own():
    toy = Experiment("toy", "A toy.", lambda options: findings(), tasks=("add",))
    assert toy.folder(None) == Path("results/toy") and toy.folder(None, "add") == Path("results/toy/add")
    assert toy.folder(Path("here"), "add") == Path("here")


def test_only_experiments_that_read_files_take_a_folder(seen, tmp_path):
    assert invoke("run", "reader", "--data-dir", "data", "--out", str(tmp_path)).exit_code == 0
    assert seen[0].data_dir == Path("data")
    refused = invoke("run", "toy", "--data-dir", "data")
    assert refused.exit_code == 2 and "toy reads no local files: leave out --data-dir" in refused.output
    assert len(seen) == 1


def test_unknown_tasks_are_refused_with_the_list(seen):
    unknown = invoke("run", "toy", "--task", "divide")
    assert unknown.exit_code == 2 and "toy has no task 'divide'; it has: add, multiply" in unknown.output
    none = invoke("run", "digits-c4", "--task", "digit")
    assert none.exit_code == 2 and "digits-c4 has no task 'digit'; it has no tasks to choose from" in none.output
    assert not seen


def test_the_list_shows_tasks(seen):
    lines = invoke("list").output.splitlines()
    assert len(lines) == len(EXPERIMENTS) >= 4
    starts = {line.split()[0]: line for line in lines}
    assert starts["toy"].endswith("A toy. (--task add|multiply)") and starts["reader"].endswith("A reader.")
    assert "(--task equivariant|partial|broken)" in starts["planted-symmetry"]
    columns = {line.index(EXPERIMENTS[name].summary) for name, line in starts.items()}
    assert len(columns) == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(DataError("no such file"), 2, "bayes-sym: no such file"), (KeyboardInterrupt(), 130, "interrupted; results in")],
)
def test_errors_and_interrupts_end_a_run_with_a_message(monkeypatch, tmp_path, error, code, message):
    def run(options):
        raise error

    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment("toy", "A toy.", run))
    done = invoke("run", "toy", "--out", str(tmp_path / "out"))
    assert done.exit_code == code and message in done.output
    assert not (tmp_path / "out").exists()


def test_every_experiment_is_known_by_its_name():
    assert all(name == experiment.name for name, experiment in EXPERIMENTS.items())
    assert {"digits-c4", "planted-symmetry"} <= set(EXPERIMENTS)
