"""Compiled programs kept in a folder while a command runs, so that only the first of several seeds compiles them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


__all__ = ["cache_folder", "kept_compiled", "use"]

_SHORTEST = 0.2  # seconds that a program compiles from which on it is kept


@contextmanager
def kept_compiled(folder: Path) -> Iterator[None]:
    """Keeps what this process and the workers of `side_by_side` compile in `folder`, and deletes it at the end of a whole command.

    After an error or ctrl-C it stays, for the command that goes on. A cache of the user's own is used in its place.
    """
    if cache_folder() is not None:
        yield
        return
    before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    use(str(folder))
    try:
        yield
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
        use(None)


def cache_folder() -> str | None:
    """Where this process keeps what it compiles, if anywhere."""
    return jax.config.values["jax_compilation_cache_dir"]


def use(folder: str | None) -> None:
    """Makes this process read and write compiled programs there from now on; None for nowhere."""
    jax.config.update("jax_compilation_cache_dir", folder)
    if folder is not None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)
    compilation_cache.reset_cache()  # it remembers where it was
