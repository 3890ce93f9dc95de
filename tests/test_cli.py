"""The command line: help, exit codes, JSON, dry runs, completion, warnings as lines, and ctrl-C that saves."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from typer.testing import CliRunner

from bayes_sym import groups, representations
from bayes_sym.errors import CollapseWarning, DataError, NonFiniteError
from bayes_sym.experiments import EXPERIMENTS, Experiment, Findings, Options
from bayes_sym.experiments.cli import app
from bayes_sym.experiments.dry_run import dry_run
from bayes_sym.experiments.notices import plain_warnings
from bayes_sym.inference import MAP, Cell, Laplace, Problem, Variational, compare, expand, fit
from bayes_sym.inference.estimate import estimate_fit
from bayes_sym.models import ConvClassifier


ACTION = representations.image(groups.cyclic(4), (4, 4))
MODEL = Problem(ConvClassifier((2,), classes=2))
POINT = MAP(optax.adam(1e-2))


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(24, 4, 4, 1)).astype(np.float32), rng.integers(0, 2, 24).astype(np.int32)


def plan(options):
    x, y = data(options.seed)
    steps = options.steps or 20
    return [Cell(name, MODEL, POINT, steps, 8, data=(x, y), test=(x, y), action=ACTION) for name in ("one", "two")]


def grid(options):
    return compare(
        plan(options),
        jax.random.key(options.seed),
        num_draws=4,
        progress=options.progress,
        folder=options.folder,
        about={"experiment": "toy-grid", "seed": options.seed},
    )


def invoke(*arguments, **options):
    return CliRunner().invoke(app, list(arguments), **options)


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """A small comparison, and an experiment with rows of another form."""
    monkeypatch.setitem(EXPERIMENTS, "toy-grid", Experiment("toy-grid", "A comparison.", grid, plan=plan))

    def run(options):
        time.sleep(0.002 * (options.steps or 0))
        return Findings([{"name": "a", "value": np.float32(0.5), "bad": np.nan}], about={"seed": options.seed})

    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment("toy", "A toy.", run, ("add", "multiply"), steps=500))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def test_help_has_examples_and_exit_codes():
    top = invoke("--help")
    assert top.exit_code == 0 and "First steps:" in top.output and "--install-completion" in top.output
    for command in ("run", "compare", "report"):
        text = invoke(command, "--help").output
        assert f"bayes-sym {'run' if command == 'compare' else command}" in text or command == "compare"
        assert "Exit codes:\n" in text and "130  interrupted with ctrl-C" in text
    assert "bayes-sym run digits-c4 --dry-run" in invoke("run", "--help").output
    assert "bayes-sym list --json" in invoke("list", "--help").output


def test_json_is_all_of_standard_output(tmp_path):
    listed = json.loads(invoke("list", "--json").stdout)
    (toy,) = [entry for entry in listed if entry["name"] == "toy"]
    assert toy.items() >= {"summary": "A toy.", "tasks": ["add", "multiply"], "reads_files": False}.items()
    done = invoke("run", "toy", "--task", "add", "--seeds", "2", "--json", "--out", str(tmp_path))
    assert json.loads(done.stdout) == [
        {"experiment": "toy", "task": "add", "seed": seed, "name": "a", "value": 0.5, "bad": None} for seed in (0, 1)
    ]
    assert "everything is in" in done.stderr
    assert invoke("run", "toy", "--json", "--quiet", "--out", str(tmp_path)).stderr == ""


def test_quiet_prints_the_table_only_and_verbose_the_versions(tmp_path):
    quiet = invoke("run", "toy", "-q", "--out", str(tmp_path))
    assert quiet.stdout.splitlines()[0].split() == ["name", "value", "bad"] and "everything" not in quiet.output
    assert quiet.stderr == ""
    assert f"jax {jax.__version__}" in invoke("run", "toy", "-v", "--out", str(tmp_path)).stderr


def test_several_seeds_of_a_comparison_end_with_their_means(tmp_path):
    done = invoke("run", "toy-grid", "--seeds", "3", "-q", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    summary = done.stdout[done.stdout.index("Means over 3 seeds, +- half of the 95% interval") :]
    assert summary.count(" +- ") > 6 and len([line for line in summary.splitlines() if line.startswith(("one", "two"))]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1", "seed-2"]
    assert not list(tmp_path.rglob("cells"))  # a second run is a new one


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("no such file"), 2), (NonFiniteError("the loss is nan", step=3, sites=()), 3), (PermissionError("not here"), 2)],
)
def test_exit_codes(monkeypatch, tmp_path, error, code):
    def fail(options):
        raise error

    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment("toy", "A toy.", fail))
    done = invoke("run", "toy", "--out", str(tmp_path))
    assert done.exit_code == code and done.stderr == f"bayes-sym: {error}\n" and done.stdout == ""
    loud = invoke("run", "toy", "-v", "--out", str(tmp_path))
    assert loud.exception is error
    assert invoke("run", "toy", "--nonsense").exit_code == 2


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    def fail(options):
        raise RuntimeError("bug")

    monkeypatch.setitem(EXPERIMENTS, "toy", Experiment("toy", "A toy.", fail))
    done = invoke("run", "toy", "--out", str(tmp_path))
    assert done.exit_code == 1 and isinstance(done.exception, RuntimeError)


def test_warnings_of_ours_are_one_line(capsys, monkeypatch):
    others = []
    with warnings.catch_warnings():
        monkeypatch.setattr(warnings, "showwarning", lambda *given: others.append(given))
        warnings.simplefilter("always")
        plain_warnings()
        plain_warnings()  # a second call changes nothing
        warnings.warn("the fit has\n  collapsed", CollapseWarning, stacklevel=1)
        warnings.warn("something else", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr().err == "bayes-sym: warning: the fit has collapsed\n"
    assert [given[1] for given in others] == [RuntimeWarning]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bayes-sym run toy", ["toy", "toy-grid"]),
        ("bayes-sym run toy --task m", ["multiply"]),
        ("bayes-sym rep", ["report"]),
        ("bayes-sym run toy --dr", ["--dry-run"]),
    ],
)
def test_the_shell_completes_names_tasks_and_options(words, expected):
    environment = {"_BAYES_SYM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = invoke(env=environment, prog_name="bayes-sym")
    assert sorted(done.stdout.split()) == expected


def test_completion_scripts_are_shown_for_the_shell():
    done = subprocess.run(
        [sys.executable, "-m", "bayes_sym.experiments.cli", "--show-completion", "bash"],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "SHELL": "/bin/bash"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0 and "COMP_WORDS" in done.stdout, done.stderr


# dry runs


def scaled(x, y=None):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0, scale).expand([16, 2]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=x.reshape(-1, 16) @ w), obs=y)


CLIMBING = Laplace(curvature="full", optimise=("scale",), burn_in=10, refresh=10, hyper_steps=2)


@pytest.mark.parametrize(("problem", "scheme", "crossings"), [(MODEL, POINT, 0), (Problem(scaled), CLIMBING, 4)])
def test_an_estimate_counts_steps_and_crossings(problem, scheme, crossings):
    found = estimate_fit(problem, scheme, *data(), num_steps=40, batch_size=8, chunk=10)
    assert (found.steps, found.crossings) == (40, crossings)  # before the steps 10, 20, 30 and 39
    expected = found.compile_seconds + 40 * found.step_seconds + crossings * found.crossing_seconds
    assert found.seconds == pytest.approx(expected) and found.compile_seconds > 0 and found.step_seconds > 0
    assert (found.crossing_seconds > 0) == (crossings > 0)
    x, y = data()
    assert (x.nbytes + y.nbytes) / 2**20 < found.memory_mib < 50


def test_an_estimate_of_an_expansion_knows_both_nets(key):
    scheme = Variational(symmetrise=expand(ACTION, at=10))
    small = estimate_fit(MODEL, Variational(), *data(), num_steps=20, batch_size=8, chunk=10)
    grown = estimate_fit(MODEL, scheme, *data(), num_steps=20, batch_size=8, chunk=10)
    assert grown.crossings == 1 and grown.memory_mib > small.memory_mib


def test_an_estimate_is_of_the_size_of_the_truth(key):
    x, y = (np.tile(leaf, (40,) + (1,) * (leaf.ndim - 1)) for leaf in data())
    problem, scheme = Problem(ConvClassifier((16,), classes=2)), MAP(optax.adam(1e-3))
    guess = estimate_fit(problem, scheme, x, y, num_steps=300)
    jax.clear_caches()
    truth = fit(problem, scheme, key, x, y, num_steps=300, chunk=100, progress=False)
    assert 0.2 < guess.seconds / truth.seconds < 5


def test_a_dry_run_fits_nothing(tmp_path, monkeypatch):
    def refuse(options):
        raise AssertionError("it ran")

    monkeypatch.setitem(EXPERIMENTS, "toy-grid", Experiment("toy-grid", "A comparison.", refuse, plan=plan))
    done = invoke("run", "toy-grid", "--dry-run", "--steps", "50", "--out", str(tmp_path / "out"), "--seeds", "2")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and [line.split()[0] for line in lines[2:5]] == ["one", "two", "all"]
    assert lines[2].split()[1] == "50" and "2 seeds: " in done.stdout and "Nothing was run. From compiling" in done.stdout
    assert not (tmp_path / "out").exists()
    rows = json.loads(invoke("run", "toy-grid", "--dry-run", "--json").stdout)
    assert [row["name"] for row in rows] == ["one", "two", "all"] and rows[-1]["seconds"] > rows[0]["seconds"]


def test_a_dry_run_without_a_plan_draws_a_line_through_short_runs():
    rows, how = dry_run(EXPERIMENTS["toy"], Options())
    assert "whole runs of 10 and 30 steps" in how and rows[0]["steps"] == 500
    assert rows[0]["seconds"] == pytest.approx(0.002 * 500, rel=0.5) and rows[0]["memory_mib"] > 50
    unknown = Experiment("toy", "A toy.", EXPERIMENTS["toy"].run)
    with pytest.raises(ValueError, match="give --steps with --dry-run"):
        dry_run(unknown, Options())


# ctrl-C


SCRIPT = """
import sys
import tests_toy as toy
from bayes_sym.experiments import EXPERIMENTS, Experiment
from bayes_sym.experiments.cli import main

EXPERIMENTS["toy-grid"] = Experiment("toy-grid", "A comparison.", toy.grid)
main()
"""

TOY = """
import jax, numpy as np, numpyro, os, time
import numpyro.distributions as dist
from bayes_sym import groups, representations
from bayes_sym.inference import MAP, Cell, Problem, checkpoints, compare, unit
from bayes_sym.inference.interrupt import STOP

def net(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([16, 2]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=x.reshape(-1, 16) @ w), obs=y)

unit._code = lambda: ""
save, seen = checkpoints.save, []

def save_slowly(path, *given):
    save(path, *given)
    seen.append(path)
    if os.environ.get("PRESS") and len(seen) == 9:  # within the second cell
        print("saved", flush=True)
        while not STOP.is_set():  # until the terminal sends ctrl-C
            time.sleep(0.01)

checkpoints.save = save_slowly

def grid(options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 4, 4, 1)).astype(np.float32), rng.integers(0, 2, 24).astype(np.int32)
    action = representations.image(groups.cyclic(4), (4, 4))
    cells = [Cell(name, Problem(net), MAP(), 50) for name in ("one", "two", "three")]
    return compare(cells, jax.random.key(0), x, y, test=(x, y), action=action, chunk=10, progress=False, folder=options.folder)
"""


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    (tmp_path / "tests_toy.py").write_text(TOY)
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"

    def start(out, **more):
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": flags, **more}
        command = [sys.executable, "-c", SCRIPT, "run", "toy-grid", "--json", "--out", str(out)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    cut = start(tmp_path / "cut", PRESS="1")
    assert cut.stdout.readline() == "saved\n"
    cut.send_signal(signal.SIGINT)
    output, errors = cut.communicate(timeout=200)
    assert cut.returncode == 130 and output == "", errors
    assert "finishing the steps under way" in errors
    assert "stopped at step 30 of 50 of two" in errors, errors
    assert "the same command goes on from there" in errors and "Traceback" not in errors
    assert len(list((tmp_path / "cut").rglob("rows.json"))) == 1 and not (tmp_path / "cut" / "results.json").exists()
    again = start(tmp_path / "cut")
    rows = [json.loads(process.communicate(timeout=200)[0]) for process in (whole, again)]
    times = {"seconds", "compile_seconds", "run_seconds", "peak_memory_mib"}
    first, second = ([{k: v for k, v in row.items() if k not in times} for row in some] for some in rows)
    assert first == second and len(first) == 3
    assert (tmp_path / "cut" / "results.json").exists() and not (tmp_path / "cut" / "cells").exists()
