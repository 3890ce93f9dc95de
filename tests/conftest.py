"""Strict numerics for every test: no rank promotion, NumPyro's validation on, float32 unless a test asks for `x64`."""

import os


os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two test processes on two cores: threads would wait for each other

from collections.abc import Iterator

import jax
import numpyro
import pytest


jax.config.update("jax_numpy_rank_promotion", "raise")
numpyro.enable_validation()


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key() -> jax.Array:
    """A key; tests that need more split it."""
    return jax.random.key(0)
