"""Compiled programs kept in a folder while a command runs, so that only the first of several seeds compiles them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache


__all__ = ["Cache", "cache", "kept_compiled", "use"]

_SHORTEST = 0.2  # seconds that a program compiles from which on it is kept


class Cache(NamedTuple):
    """Where a process keeps what it compiles, if anywhere, and the seconds that a program compiles from which on it is kept."""

    folder: str | None
    shortest: float


@contextmanager
def kept_compiled(folder: Path) -> Iterator[None]:
    """Keeps what this process and the workers of `side_by_side` compile in `folder`, and deletes it at the end of a whole command.

    After an error or ctrl-C it stays, for the command that goes on. A cache of the user's own is used in its place.
    """
    before = cache()
    if before.folder is not None:
        yield
        return
    use(Cache(str(folder), _SHORTEST))
    try:
        yield
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        use(before)


def cache() -> Cache:
    """That of this process."""
    settings = jax.config.values
    return Cache(settings["jax_compilation_cache_dir"], settings["jax_persistent_cache_min_compile_time_secs"])


def use(cache: Cache) -> None:
    """Makes it that of this process, from now on."""
    jax.config.update("jax_compilation_cache_dir", cache.folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", cache.shortest)
    compilation_cache.reset_cache()  # it remembers where it was
