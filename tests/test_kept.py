"""An experiment that was cut off goes on from the pieces and steps that it has finished, and only from those of the same run."""

import os
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_sym.diagnostics import PathwayShare, PathwayShares
from bayes_sym.errors import CheckpointError
from bayes_sym.experiments import kept
from bayes_sym.experiments.compiled import kept_compiled
from bayes_sym.experiments.experiment import Options
from bayes_sym.experiments.learned_layers import Outcome, outcome_of
from bayes_sym.experiments.side_by_side import side_by_side
from bayes_sym.inference import MAP, Interrupted, Problem, fit
from bayes_sym.inference.interrupt import StopRequest


calls = []


def piece(item, scale=1, options=None):
    calls.append(item)
    if item == "broken":
        raise KeyboardInterrupt
    return [{"item": item, "value": np.float32(scale / 3), "none": None}]


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)  # in this process
    calls.clear()
    return Options(seed=3, progress=False, folder=tmp_path)


def test_pieces_are_not_done_twice(options):
    with pytest.raises(KeyboardInterrupt):
        side_by_side(piece, ["a", "b", "broken", "c"], options)
    assert calls == ["a", "b", "broken"]
    found = side_by_side(piece, ["b", "a", "c"], replace(options, progress=True))
    assert calls == ["a", "b", "broken", "c"]
    assert found == [[{"item": name, "value": float(np.float32(1 / 3)), "none": None}] for name in "bac"]


def test_pieces_of_another_run_are_done_anew(options):
    for changed in (options, replace(options, seed=4), replace(options, steps=7), replace(options, folder=None)):
        side_by_side(partial(piece, options=changed), ["a"], changed)
    side_by_side(partial(piece, options=options, scale=2), ["a"], options)
    assert len(calls) == 5
    side_by_side(partial(piece, options=options, scale=2), ["a"], options)
    assert len(calls) == 5


def test_a_broken_file_is_named(options):
    side_by_side(piece, ["a"], options)
    (path,) = (options.folder / "cells").iterdir()
    path.write_text("[{")
    with pytest.raises(CheckpointError, match=rf"cannot read .*{path.name}.*Delete it to run this part"):
        side_by_side(piece, ["a"], options)


def model(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


class AfterTwo(StopRequest):
    """Asks to stop at the second look."""

    looks = 0

    def __call__(self, progress):
        self.looks += 1
        if self.looks == 2:
            self.set()
        return super().__call__(progress)


def test_a_fit_goes_on_after_its_last_chunk(options, monkeypatch):
    x = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    data, key = (x, x.sum(axis=1)), jax.random.key(0)
    problem, scheme = Problem(model), MAP()
    whole = fit(problem, scheme, key, *data, num_steps=40, chunk=10, progress=False)

    @contextmanager
    def impatient():
        yield AfterTwo()

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped at step 20 of 40 of mine"):
        patch.setattr(kept, "gentle_interrupt", impatient)
        kept.resumable_fit("mine", options, problem, scheme, key, *data, num_steps=40, chunk=10)
    (path,) = (options.folder / "cells").iterdir()
    assert path.suffix == ".npz"
    seen = []
    monkeypatch.setattr(kept, "fit", lambda *args, **more: seen.append(more["resume"]) or fit(*args, **more))
    # the file's name has the function's, so the same function
    monkeypatch.setattr(kept, "place_of", lambda *_: path)
    done = kept.resumable_fit("mine", options, problem, scheme, key, *data, num_steps=40, chunk=10)
    assert seen == [path] and np.array_equal(done.losses, whole.losses)
    assert np.array_equal(done.posterior.sample(key, 1)["w"], whole.posterior.sample(key, 1)["w"])


def test_what_was_kept_is_made_again(options):
    def again(rows):
        return [(row["item"], row["value"]) for row in rows]

    side_by_side(piece, ["a"], options, again=again)
    ((first,),) = side_by_side(piece, ["a"], options, again=again)
    assert first == ("a", float(np.float32(1 / 3))) and calls == ["a"]


def cores(_):
    return sorted(os.sched_getaffinity(0))


def flags(_):
    return os.environ.get("XLA_FLAGS", "").split(), jax.config.jax_compilation_cache_dir


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(cores(None)) < 2, reason="needs a choice of cores")
def test_every_process_has_its_share_of_the_cores():
    ours = cores(None)
    for found in side_by_side(cores, ["a", "b"], Options(seed=0, progress=False)):
        assert 2 * len(found) <= len(ours) + 1 and set(found) < set(ours)
    assert cores(None) == ours


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a system that says where a process may run")
def test_processes_compile_quickly_where_asked_unless_the_user_says_otherwise_and_keep_what_they_compile(monkeypatch, tmp_path):
    monkeypatch.setattr("bayes_sym.experiments.side_by_side._cores", lambda: 2 * sorted(os.sched_getaffinity(0))[:1])
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    with kept_compiled(tmp_path):
        for found, cache in side_by_side(flags, ["a", "b"], Options(seed=0, progress=False), quick=True):
            assert found[0] == "--xla_backend_optimization_level=1" and found[-1] == "--xla_backend_optimization_level=3"
            assert cache == str(tmp_path)
    assert os.environ["XLA_FLAGS"] == "--xla_backend_optimization_level=3"


def test_a_program_that_was_kept_is_read_and_not_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr("bayes_sym.experiments.compiled._SHORTEST", 0.0)
    read = []
    jax.monitoring.register_event_listener(lambda event, **_: read.append(event) if event.endswith("cache_hits") else None)

    def run(scale):
        return float(jax.jit(lambda x: scale * jnp.sin(x))(1.0))

    with pytest.raises(KeyboardInterrupt), kept_compiled(tmp_path / "compiled"):
        first, before = run(3.0), len(read)
        assert run(3.0) == first and len(read) == before + 1
        raise KeyboardInterrupt
    assert list((tmp_path / "compiled").iterdir())  # for the command that goes on
    with kept_compiled(tmp_path / "compiled"):
        assert run(3.0) == first and len(read) == before + 2
    assert jax.config.jax_compilation_cache_dir is None and not (tmp_path / "compiled").exists()
    assert run(3.0) == first and len(read) == before + 2


def test_a_cache_of_the_users_own_is_left_alone(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    try:
        with kept_compiled(tmp_path / "compiled"):
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs") and not (tmp_path / "compiled").exists()
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_outcomes_with_shares_of_pathways_are_made_again(tmp_path):
    shares = PathwayShares((PathwayShare("0", "conv", float("nan"), 3, 0.5, 1.0, 2.0, 1.0, 4.0),))
    for outcome in (Outcome({"nll": np.float64(0.5)}, shares, [(10, shares)]), Outcome({"nll": 1.0}, None, [])):
        kept.write(tmp_path / "one.json", outcome)
        again = outcome_of(kept.read(tmp_path / "one.json"))
        assert repr(again) == repr(replace(outcome, scores={"nll": float(outcome.scores["nll"])}))
