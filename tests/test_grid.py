"""Grids of fits: seeds in one program, folders that survive kill -9, executors, costs and intervals."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import groups, representations
from bayes_sym.errors import CheckpointError, NonFiniteError, OptionError
from bayes_sym.inference import (
    MAP,
    NUTS,
    Cell,
    Laplace,
    Problem,
    Variational,
    checkpoints,
    compare,
    expand,
    fit,
    full_orbit,
    unit,
)
from bayes_sym.inference import grid as grid_module
from bayes_sym.inference.cost import measured
from bayes_sym.inference.executor import run_all
from bayes_sym.inference.fingerprint import describe
from bayes_sym.inference.grid import COSTS, run_job
from bayes_sym.inference.interrupt import STOP, Interrupted, gentle_interrupt
from bayes_sym.inference.intervals import interval_over, over_seeds
from bayes_sym.inference.seeds import fit_seeds, revive
from bayes_sym.models import ConvClassifier


ACTION = representations.image(groups.cyclic(4), (4, 4))
MODEL = Problem(ConvClassifier((2,), classes=2))
POINT = MAP(optax.adam(1e-2))
EXPANSION = Variational(augment=full_orbit(ACTION), symmetrise=expand(ACTION, at=10))


def images(seed, count):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count).astype(np.int32)
    x = rng.normal(size=(count, 4, 4, 1)).astype(np.float32)
    return x + 2 * y[:, None, None, None] * np.eye(4, dtype=np.float32)[None, :, :, None], y


TRAIN, VALIDATION, TEST = images(0, 24), images(1, 16), images(2, 20)


def run(cells, **options):
    options = {"progress": False, "chunk": 10, "num_draws": 4, **options}
    return compare(cells, jax.random.key(0), *TRAIN, test=TEST, validation=VALIDATION, action=ACTION, **options)


def numbers(rows):
    return [{name: value for name, value in row.items() if name not in COSTS} for row in rows]


def assert_same_arrays(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


# seeds in one program


@pytest.mark.parametrize(("scheme", "batch_size"), [(POINT, 8), (EXPANSION, 8), (POINT, None)])
def test_seeds_in_one_program_equal_fits_one_after_the_other(scheme, batch_size, key):
    keys = jax.random.split(key, 2)
    options = {"num_steps": 25, "batch_size": batch_size, "chunk": 10, "progress": False}
    seen = [[], []]
    together = fit_seeds(MODEL, scheme, keys, *TRAIN, callbacks=[(seen[0].append,), (seen[1].append,)], **options)
    for found, own, views in zip(together, keys, seen, strict=True):
        looks = []
        alone = fit(MODEL, scheme, own, *TRAIN, callbacks=(looks.append,), **options)
        np.testing.assert_allclose(found.losses, alone.losses, rtol=1e-4)
        assert found.problem == alone.problem and found.status() == alone.status()
        for a, b in zip(jax.tree.leaves(found.posterior), jax.tree.leaves(alone.posterior), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
        assert [view.step for view in views] == [look.step for look in looks]
        np.testing.assert_allclose(views[0].losses, looks[0].losses, rtol=1e-4)
    assert not np.allclose(together[0].losses, together[1].losses)


def test_seeds_go_on_from_a_checkpoint_bit_for_bit(tmp_path, key):
    keys, path = jax.random.split(key, 2), tmp_path / "part.npz"
    options = {"num_steps": 25, "batch_size": 8, "chunk": 10, "progress": False}
    whole = fit_seeds(MODEL, EXPANSION, keys, *TRAIN, **options)

    def stop(progress):
        return progress.step >= 20

    cut = fit_seeds(MODEL, EXPANSION, keys, *TRAIN, checkpoint=path, callbacks=[(stop,), ()], **options)
    assert [found.status()[:3] for found in cut] == [(True, "stopped", 20)] * 2
    again = fit_seeds(MODEL, EXPANSION, keys, *TRAIN, resume=path, **options)
    for first, second in zip(whole, again, strict=True):
        np.testing.assert_array_equal(first.losses, second.losses)
        assert_same_arrays((first.state, first.posterior), (second.state, second.posterior))
    with pytest.raises(CheckpointError, match="key: "):
        fit_seeds(MODEL, EXPANSION, keys[::-1], *TRAIN, resume=path, **options)


def test_a_seed_that_meets_nan_is_named_as_a_fit_of_it_alone_would(key):
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    fast = MAP(optax.sgd(1e4))
    keys = jax.random.split(key, 2)
    with pytest.raises(NonFiniteError, match="Lower the learning rate") as together:
        fit_seeds(Problem(model), fast, keys, x, x[:, 0], num_steps=200, progress=False)
    with pytest.raises(NonFiniteError) as alone:
        fit(Problem(model), fast, keys[0], x, x[:, 0], num_steps=200, progress=False)
    assert (together.value.step, together.value.sites) == (alone.value.step, alone.value.sites)


def test_schemes_that_do_not_vmap_are_refused_or_run_in_turn(key):
    with pytest.raises(OptionError, match="NUTS cannot run several seeds in one program"):
        fit_seeds(MODEL, NUTS(), jax.random.split(key, 2), *TRAIN)
    with pytest.raises(OptionError, match="needs keys"):
        fit_seeds(MODEL, POINT, key, *TRAIN)
    cells = [Cell("nuts", MODEL, NUTS(num_warmup=2, max_tree_depth=2), 4), Cell("map", MODEL, POINT, 10)]
    found = run(cells, seeds=2)
    assert [row["seeds_together"] for row in found.rows] == [1, 1, 2, 2]
    assert [(row["method"], row["seed"]) for row in found.rows] == [("nuts", 0), ("nuts", 1), ("map", 0), ("map", 1)]
    in_turn = run(cells[1:], seeds=2, vmap_seeds=False).rows
    assert [row["seeds_together"] for row in in_turn] == [1, 1]
    assert "seed" not in run(cells[1:]).rows[0]


@pytest.mark.parametrize("scheme", [Laplace(curvature="full"), EXPANSION, NUTS(num_warmup=5, max_tree_depth=2)])
def test_a_checkpoint_revives_its_fit_bit_for_bit(scheme, tmp_path, key):
    path, steps = tmp_path / "fit.npz", 20
    found = fit(MODEL, scheme, key, *TRAIN, num_steps=steps, checkpoint=path, progress=False)
    again = revive(path, MODEL, scheme, key, TRAIN, num_steps=steps, batch_size=None)
    assert (again.problem, again.status()) == (found.problem, found.status())
    np.testing.assert_array_equal(again.losses, found.losses)
    assert_same_arrays((found.state, found.posterior), (again.state, again.posterior))


# intervals over seeds


def test_the_interval_is_student_s():
    mean, low, high = interval_over([1.0, 2.0, 3.0])
    assert (
        mean == 2.0 and high - mean == pytest.approx(4.302652729911275 / np.sqrt(3)) and mean - low == pytest.approx(high - mean)
    )
    assert interval_over([1.0, 2.0]) == (1.5, None, None)
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 5))
    covered = np.mean([low <= 3.0 <= high for _, low, high in map(interval_over, draws)])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_rows_become_means_with_intervals_and_kinds_stay():
    rows = [
        {"method": "a", "seed": s, "nll": v, "nll_se": 0.1, "parameters": 7, "evidence_kind": "elbo", "log_evidence": -v}
        for s, v in enumerate([1.0, 2.0, 3.0])
    ]
    rows += [{**rows[0], "method": "b", "evidence_kind": None, "log_evidence": None}]
    three, one = over_seeds(rows)
    assert three["nll"] == 2.0 and three["nll_low"] < 2.0 < three["nll_high"] and three["seeds"] == 3
    assert three["nll_se"] == pytest.approx(0.1) and "nll_se_low" not in three
    assert three["parameters"] == 7 and three["evidence_kind"] == "elbo" and three["log_evidence"] == -2.0
    assert one["nll_low"] is None and one["log_evidence"] is None and one["seeds"] == 1


def test_a_comparison_over_seeds_is_one_tidy_result(tmp_path):
    found = run([Cell("map", MODEL, POINT, 10), Cell("vi", MODEL, Variational(), 10)], seeds=(0, 3, 4))
    nll = np.array([row["nll"] for row in found.rows]).reshape(2, 3)
    table = found.table()
    np.testing.assert_allclose(table["nll"], nll.mean(axis=1))
    assert (table["nll_low"] < table["nll"]).all() and list(table["seeds"]) == [3, 3]
    long = found.long()
    assert set(long.columns) == {"method", "seed", "score", "value"}
    np.testing.assert_array_equal(long.query("score == 'nll'")["value"].to_numpy().reshape(2, 3), nll)
    data = found.dataset()
    np.testing.assert_array_equal(data["nll"].values, nll)
    assert data["nll"].dims == ("cell", "seed") and list(data["seed"].values) == [0, 3, 4]
    np.testing.assert_allclose(data["nll_interval"].sel(cell="vi", bound="high"), table.loc["vi", "nll_high"])
    assert list(data["evidence_kind"].values) == ["", "elbo"] and np.isnan(data["log_evidence"].sel(cell="map")).all()
    assert found.evidence().loc["vi", "rank"] == 1
    assert found.fits["vi"] is found.runs["vi", 0].fit
    assert "3 seeds" in found.plot().axes[0].get_title(loc="right")
    folder = found.save(tmp_path)
    assert len(json.loads((folder / "results.json").read_text())["rows"]) == 6
    assert sorted(path.name for path in (folder / "posteriors").iterdir())[0] == "map.seed-0.nc"


# folders


def started(monkeypatch):
    """Counts the fits that are started, by the number of their seeds."""
    count = []
    for name, size in (("fit", lambda key: 1), ("fit_seeds", len)):
        whole = getattr(grid_module, name)

        def counted(problem, scheme, key, *data, whole=whole, size=size, **options):
            count.append((type(scheme).__name__, size(key)))
            return whole(problem, scheme, key, *data, **options)

        monkeypatch.setattr(grid_module, name, counted)
    return count


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch, capsys):
    cells = [Cell("map", MODEL, POINT, 20, 8, select="orbit"), Cell("vi", MODEL, EXPANSION, 20, 8, select="upright")]
    count = started(monkeypatch)
    alone = run(cells[:1], folder=tmp_path)
    assert count == [("MAP", 1)]
    whole = run(cells, folder=tmp_path, seeds=3)  # a new cell, and two new seeds
    assert count == [("MAP", 1), ("MAP", 2), ("Variational", 3)]
    again = run(cells, folder=tmp_path, seeds=3, progress=True)
    assert len(count) == 3 and "6 of 6 fits are finished already" in capsys.readouterr().err
    assert again.rows == whole.rows  # times too: they are those of the fits
    assert {**whole.rows[0], "seed": None} == {**alone.rows[0], "seed": None}
    for place in (("map", 0), ("vi", 2)):  # read from the folder, bit for bit
        assert_same_arrays(again.runs[place].posterior, whole.runs[place].posterior)
        np.testing.assert_array_equal(again.runs[place].fit.losses, whole.runs[place].fit.losses)
    assert not list(tmp_path.rglob("part.npz"))
    changed = [cells[0], Cell("vi", MODEL, EXPANSION, 21, 8, select="upright")]
    run(changed, folder=tmp_path, progress=True)
    assert count[3:] == [("Variational", 1)]
    assert "vi is fitted anew: it differs from what the folder has in num_steps" in capsys.readouterr().err
    (broken,) = tmp_path.glob("cells/map-*/seeds-0/rows.json")
    broken.write_text("[{")
    with pytest.raises(CheckpointError, match="Delete the folder .*seeds-0 to run this part"):
        run(cells[:1], folder=tmp_path)


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_interrupt_finishes_the_chunk_and_is_taken_up(seeds, tmp_path, monkeypatch, capsys):
    cells = [Cell("vi", MODEL, EXPANSION, 40, 8, select="orbit"), Cell("map", MODEL, POINT, 10)]
    whole = run(cells, seeds=seeds)
    look = grid_module._Looks._look

    def press(self, progress):
        if progress.step == 20 and self.seed == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return look(self, progress)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(grid_module._Looks, "_look", press)
        with pytest.raises(Interrupted, match="stopped at step 20 of 40 of vi.*run the same again"):
            run(cells, seeds=seeds, folder=tmp_path)
    assert "ctrl-C once more ends at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler and not STOP.is_set()
    again = run(cells, seeds=seeds, folder=tmp_path)
    assert numbers(again.rows) == numbers(whole.rows)
    assert_same_arrays(again.posteriors["vi"], whole.posteriors["vi"])


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("place", ["looks", "best", "part"])
def test_a_cut_between_any_two_files_changes_nothing(seeds, place, tmp_path, monkeypatch):
    """An error just before a file is written leaves on disk what kill -9 would leave there."""
    cells = [Cell("vi", MODEL, EXPANSION, 40, 8, select="orbit")]
    whole = run(cells, seeds=seeds)
    written = []

    def die(name, path):
        written.extend([path] * (place in path.name))
        if len(written) == 3 * (seeds if place == "looks" else 1):
            raise RuntimeError("cut")

    save_looks, save = unit.save_looks, checkpoints.save
    with monkeypatch.context() as patched:
        patched.setattr(unit, "save_looks", lambda *given: (die("looks", given[0] / "looks"), save_looks(*given)))
        patched.setattr(checkpoints, "save", lambda path, *given: (die("npz", path), save(path, *given)))
        with pytest.raises(RuntimeError, match="cut"):
            run(cells, seeds=seeds, folder=tmp_path)
    assert list(tmp_path.rglob("part.npz")) and not list(tmp_path.rglob("rows.json"))
    again = run(cells, seeds=seeds, folder=tmp_path)
    assert numbers(again.rows) == numbers(whole.rows)
    assert_same_arrays(again.posteriors["vi"], whole.posteriors["vi"])


@pytest.fixture
def heeds_interrupts():
    """A shell's background jobs start with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_the_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), gentle_interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        raise AssertionError("still running")


SCRIPT = """
import json, os, signal, sys
import jax, numpy as np, numpyro, optax
import numpyro.distributions as dist
from bayes_sym import groups, representations
from bayes_sym.inference import MAP, NUTS, Cell, Laplace, Problem, Variational, checkpoints, compare, grid, unit

def net(x, y=None):  # a linear classifier, which compiles fast
    w = numpyro.sample("w", dist.Normal(0, 1).expand([16, 2]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=x.reshape(-1, 16) @ w), obs=y)

folder, die = sys.argv[1], sys.argv[2] == "die"
log = open(os.path.join(folder, "log"), "a")

def note(name):
    whole = getattr(grid, name)
    def noted(problem, scheme, key, *data, **options):
        print(type(scheme).__name__, np.asarray(jax.random.key_data(key)).tolist(), file=log, flush=True)
        return whole(problem, scheme, key, *data, **options)
    setattr(grid, name, noted)

note("fit")
note("fit_seeds")
finish, save, seen = unit.finish, checkpoints.save, {"finished": 0, "saved": 0}

def finish_and_count(*given):
    finish(*given)
    seen["finished"] += 1

def save_or_die(path, *given):
    save(path, *given)
    seen["saved"] += seen["finished"] == 3 and str(path).endswith("part.npz")
    if die and seen["saved"] == 2:  # in the middle of the second of NUTS' seeds
        os.kill(os.getpid(), signal.SIGKILL)

unit.finish, checkpoints.save = finish_and_count, save_or_die
unit._code = lambda: ""  # somebody may be editing the library while this runs
rng = np.random.default_rng(0)
x, y = rng.normal(size=(24, 4, 4, 1)).astype(np.float32), rng.integers(0, 2, 24).astype(np.int32)
action = representations.image(groups.cyclic(4), (4, 4))
model = Problem(net)
cells = [
    Cell("map", model, MAP(optax.adam(1e-2)), 20, 8, "orbit"),
    Cell("laplace", model, Laplace(curvature="full"), 20),
    Cell("nuts", model, NUTS(num_warmup=5, max_tree_depth=1), 20),
    Cell("vi", model, Variational(), 20, 8, "upright"),
]
found = compare(
    cells, jax.random.key(0), x, y, test=(x, y), validation=(x, y), action=action,
    seeds=3, num_draws=4, chunk=5, folder=folder, progress=False,
)
rows = [{k: v for k, v in row.items() if k not in grid.COSTS} for row in found.rows]
print(json.dumps(rows))
"""

FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # the flags of conftest.py
    FAST += " --xla_cpu_use_fusion_emitters=false"


def start(script, *arguments, flags=FAST):
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_comparison_killed_midway_finishes_with_the_same_table(tmp_path):
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole, killed = (start(SCRIPT, str(folder), str(mode)) for folder, mode in zip(folders, ("live", "die"), strict=True))
    _, errors = killed.communicate(timeout=200)
    assert killed.returncode == -signal.SIGKILL, errors
    output, errors = whole.communicate(timeout=200)
    assert whole.returncode == 0, errors
    finished = {path: path.stat().st_mtime_ns for path in folders[1].rglob("rows.json")}
    assert len(finished) == 3 and len(list(folders[1].rglob("part.npz"))) == 1  # map and laplace, all seeds; nuts, one seed
    before = (folders[1] / "log").read_text().splitlines()
    again = start(SCRIPT, str(folders[1]), "live")
    output_again, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    rows = json.loads(output)
    assert len(rows) == 12 and json.loads(output_again) == rows
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    fits = (folders[0] / "log").read_text().splitlines()
    after = (folders[1] / "log").read_text().splitlines()[len(before) :]
    assert len(fits) == 6 and before == fits[:4]  # the fourth is the one that was cut off
    assert after == fits[3:]


# executors


DEVICES = """
import json
from concurrent.futures import ThreadPoolExecutor
import jax, numpy as np, numpyro, optax
import numpyro.distributions as dist
from bayes_sym import groups, representations
from bayes_sym.inference import MAP, Cell, Problem, Variational, compare, grid

def net(x, y=None):  # a linear classifier, which compiles fast
    w = numpyro.sample("w", dist.Normal(0, 1).expand([16, 2]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=x.reshape(-1, 16) @ w), obs=y)

rng = np.random.default_rng(0)
x, y = rng.normal(size=(24, 4, 4, 1)).astype(np.float32), rng.integers(0, 2, 24).astype(np.int32)
action = representations.image(groups.cyclic(4), (4, 4))
model = Problem(net)
cells = [Cell("map", model, MAP(optax.adam(1e-2)), 10, 8, "orbit"), Cell("vi", model, Variational(), 10, 8)]

def run(executor):
    found = compare(cells, jax.random.key(0), x, y, test=(x, y), validation=(x, y), action=action, num_draws=4, chunk=5,
                    progress=False, executor=executor)
    devices = [sorted({d.id for leaf in jax.tree.leaves(run.fit.state) for d in leaf.devices()}) for run in found.runs.values()]
    return [{k: v for k, v in row.items() if k not in grid.COSTS} for row in found.rows], devices

with ThreadPoolExecutor(2) as pool:
    print(json.dumps([run(None), run(pool)]))
"""


def test_threads_place_each_cell_on_a_device_and_change_nothing():
    done = start(DEVICES, flags=f"{FAST} --xla_force_host_platform_device_count=2")
    output, errors = done.communicate(timeout=200)
    assert done.returncode == 0, errors
    (serial, at), (parallel, at_parallel) = json.loads(output)
    assert serial == parallel
    assert at == [[0], [0]] and at_parallel == [[0], [1]]


class Pickling:
    """An engine that sends jobs and results through a pickle, as those of processes do."""

    def __init__(self, pickler):
        self.pickler = pickler
        self.sent = 0

    def submit(self, fn, *args):
        self.sent += 1
        fn, args = pickle.loads(self.pickler.dumps((fn, args)))
        result = pickle.loads(self.pickler.dumps(fn(*args)))
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: result)


def test_jobs_and_results_survive_pickling(tmp_path):
    nuts = [Cell("nuts", MODEL, NUTS(num_warmup=2, max_tree_depth=2), 4)]
    engine = Pickling(pickle)
    assert numbers(run(nuts, executor=engine).rows) == numbers(run(nuts).rows) and engine.sent == 1
    cloudpickle = pytest.importorskip("cloudpickle")
    cells = [Cell("map", MODEL, POINT, 10, 8), Cell("vi", MODEL, EXPANSION, 20, 8)]
    serial = run(cells, seeds=2)
    parallel = run(cells, seeds=2, executor=Pickling(cloudpickle))
    assert numbers(parallel.rows) == numbers(serial.rows)
    assert_same_arrays(parallel.posteriors["vi"], serial.posteriors["vi"])
    kept = run(cells, seeds=2, executor=Pickling(cloudpickle), folder=tmp_path)
    assert numbers(kept.rows) == numbers(serial.rows)
    assert_same_arrays(kept.posteriors["vi"], serial.posteriors["vi"])


def test_the_first_error_cancels_the_rest():
    class Future:
        def __init__(self, value):
            self.value, self.cancelled = value, False

        def result(self):
            return 1 / self.value

        def cancel(self):
            self.cancelled = True

    class Engine:
        futures = []

        def submit(self, fn, run, job, place):
            self.futures.append(Future(job))
            return self.futures[-1]

    with pytest.raises(ZeroDivisionError):
        run_all(abs, [1, 0, 2], "abc", Engine(), progress=False)
    assert Engine.futures[2].cancelled


# costs and fingerprints


def test_compile_and_run_seconds_add_up():
    @jax.jit
    def slow(x):
        return jax.lax.fori_loop(0, 20, lambda i, x: jnp.sin(jax.jit(jnp.cos)(x) @ x), x)

    x, large = jnp.ones((8, 8)), np.ones(40_000_000 // 4, np.float32)
    jax.block_until_ready(jax.device_put(large))  # its program is not what is measured
    with measured() as first:
        slow(x).block_until_ready()
        time.sleep(0.1)
    with measured() as second:
        slow(x).block_until_ready()
        block = jax.device_put(large), large.copy()  # on a device whose memory is counted, or on the host
        time.sleep(0.1)
        del block
    with measured() as third:
        time.sleep(0.05)
    assert first.compile_seconds > 0 and second.compile_seconds < 0.1 * first.compile_seconds
    assert first.run_seconds >= 0.1 and first.seconds == pytest.approx(first.compile_seconds + first.run_seconds)
    assert second.peak_bytes - third.peak_bytes > 20_000_000 and third.peak_bytes > 0


def test_nothing_is_compiled_for_a_comparison_the_second_time():
    cells = [Cell("map", MODEL, POINT, 10)]
    run(cells, seeds=2)
    assert all(row["compile_seconds"] < 0.1 for row in run(cells, seeds=2).rows)


FINGERPRINTS = """
import jax, jax.numpy as jnp, numpy as np, optax
from functools import partial
from bayes_sym import groups, representations
from bayes_sym.inference import Laplace, MAP, Variational, expand
from bayes_sym.inference.fingerprint import describe
from bayes_sym.models import ConvClassifier
action = representations.image(groups.cyclic(4), (4, 4))
schedule = optax.cosine_decay_schedule(1e-2, 100)
for value in (MAP(optax.adam(schedule)), Laplace(optimise=("a",)), Variational(symmetrise=expand(action)), ConvClassifier((2,)),
              partial(jnp.sin, np.arange(3)), {"a": {1, 2}}, action, jax.random.key(3)):
    print(describe(value))
"""


def test_descriptions_are_the_same_in_another_process():
    first, second = (start(FINGERPRINTS) for _ in range(2))
    outputs = [done.communicate(timeout=200) for done in (first, second)]
    assert outputs[0][0] == outputs[1][0] and len(outputs[0][0].splitlines()) == 8, outputs[0][1]
    assert " at 0x" not in outputs[0][0]


CLASS = "class M:\n def __call__(self): return {}\nmodel = M()"


def model_with(body):
    scope = {}
    exec(body, scope)
    return scope["model"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MAP(optax.adam(1e-2)), MAP(optax.adam(2e-2))),
        (MAP(optax.adam(optax.cosine_decay_schedule(1e-2, 9))), MAP(optax.adam(optax.cosine_decay_schedule(1e-2, 8)))),
        (ConvClassifier((2,), scale=1.0), ConvClassifier((2,), scale=2.0)),
        (Problem(ConvClassifier((2,))), Problem(ConvClassifier((3,)))),
        (np.zeros(3), np.zeros((3, 1))),
        (np.zeros(3), np.ones(3)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (jax.random.key(0), jax.random.key(1)),
        (model_with("def model(x): return x + 1"), model_with("def model(x): return x + 2")),
        (model_with("def model(x): return x.a()"), model_with("def model(x): return x.b()")),
        (model_with("def model(x, a=1): return x"), model_with("def model(x, a=2): return x")),
        (model_with(CLASS.format(1)), model_with(CLASS.format(2))),
    ],
)  # fmt: skip
def test_every_difference_shows(one, other):
    assert describe(one) == describe(one) and describe(one) != describe(other)


def test_functions_that_close_over_themselves_are_described():
    def outer(x):
        return outer(x)

    assert "^" in describe(outer) and describe(model_with("def model(x): return x + 1")) == describe(
        model_with("\n\ndef model(x): return x + 1")
    )


def test_jobs_that_are_asked_to_stop_do_not_start():
    STOP.set()
    try:
        with pytest.raises(Interrupted):
            run_job(None)
    finally:
        STOP._event.clear()
