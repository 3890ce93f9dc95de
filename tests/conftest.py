"""Strict numerics for every test: no rank promotion, NumPyro's validation on, float32 unless a test asks for `x64`.

Tests compile thousands of small programs that run for a moment each, so the compiler is told not to optimise them (docs/decisions.md).
Programs in processes of their own keep its defaults, as users have them, but for the notebooks; flags of yours in XLA_FLAGS come last
and win.
"""

import gc
import os


os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two test processes on two cores: threads would wait for each other

from collections.abc import Iterator

import jax
import numpyro
import pytest


def quick_flags() -> str:
    """What XLA_FLAGS should be where much is compiled that runs for a moment; flags that are set already come last and win."""
    quick = (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        # jaxlib 0.12 has no other code to choose, and ends the process on a flag that it does not know
        *(["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []),
    )
    return " ".join([*quick, os.environ.get("XLA_FLAGS", "")])


def start_compiler(flags: str) -> None:
    """Starts XLA in this process with these flags, and leaves the environment as it is."""
    given = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = flags
    jax.devices()  # reads the flags, once
    if given is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = given


start_compiler(quick_flags())
gc.set_threshold(50_000, 20, 100)  # traces are many small objects that stay: looking through them all takes a tenth of the time
jax.config.update("jax_numpy_rank_promotion", "raise")
numpyro.enable_validation()


@pytest.fixture
def quick_compiler() -> str:
    """XLA_FLAGS for a process of its own."""
    return quick_flags()


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key() -> jax.Array:
    """A key; tests that need more split it."""
    return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drops the programs of a file after its last test: no other file runs them, and together they fill gigabytes."""
    yield
    jax.clear_caches()
