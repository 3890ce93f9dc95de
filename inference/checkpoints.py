"""Checkpoints: one file per fit, written atomically, that only continues the fit it belongs to."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bayes_sym
from bayes_sym.atomic import whole_file
from bayes_sym.errors import CheckpointError

from . import rows
from .problem import Problem
from .rows import Data
from .scheme import Scheme


__all__ = ["File", "Saved", "identify", "read", "restore", "save"]

_FORMAT = 1


class File(NamedTuple):
    """A checkpoint as it was read, before anybody asked whose it is."""

    path: str | Path
    step: int
    header: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def boundaries(self) -> tuple[int, ...] | None:
        """Those of the fit when it was written, also the ones that a condition set; None in a file of many seeds."""
        found = self.header.get("boundaries")
        return None if found is None else tuple(int(boundary) for boundary in found)


class Saved(NamedTuple):
    """What a checkpoint holds: the number of steps, the scheme's state after them, the losses and the records so far."""

    step: int
    state: Any
    losses: np.ndarray
    records: dict[str, np.ndarray] | None


def identify(
    problem: Problem, scheme: Scheme, key: jax.Array, data: Data, batch_size: int | None, boundaries: Iterable[int] = ()
) -> dict[str, str]:
    """What must agree between the fit that wrote a checkpoint and the one that resumes from it."""
    structure = problem.structure(*data)
    sites = json.dumps({name: list(site.shape) for name, site in structure.latent.items()})
    checksum = 0
    for leaf in jax.tree.leaves(data):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    return {
        "format": str(_FORMAT),
        "version": bayes_sym.__version__,
        "model": f"{getattr(problem.model, '__module__', '')}.{getattr(problem.model, '__qualname__', type(problem.model).__name__)}",
        "sites": hashlib.sha256(sites.encode()).hexdigest()[:16] + f" ({len(structure.latent)} sites)",
        "scheme": type(scheme).__name__,
        "data": f"{rows.describe(data)}, checksum {checksum:08x}",
        "key": np.asarray(jax.random.key_data(key)).tolist().__repr__(),
        "batch size": str(batch_size),
        "boundaries": str(sorted(boundaries)),
        "float": str(jnp.result_type(float)),
    }


def save(
    path: str | Path,
    identity: dict[str, str],
    step: int,
    state: Any,
    losses: np.ndarray,
    records: list[Any],
    boundaries: Iterable[int] | None = None,
) -> None:
    """Writes the checkpoint beside its place and moves it there, so that a crash leaves the old one whole."""
    leaves, structure = jax.tree.flatten(state)
    names = [] if not records or records[0] is None else list(records[0])
    arrays: dict[str, Any] = {f"state{i}": np.asarray(_plain(leaf)) for i, leaf in enumerate(leaves)}
    arrays |= {f"record.{name}": np.concatenate([record[name] for record in records]) for name in names}
    header = {
        "identity": identity,
        "step": step,
        "structure": str(structure),
        "leaves": len(leaves),
        "boundaries": None if boundaries is None else sorted(boundaries),
    }
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), losses=losses, **arrays)


def read(path: str | Path) -> File:
    """Reads a checkpoint.

    Raises:
        CheckpointError: this is no file that `save` wrote.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes())
        return File(path, int(header["step"]), header, arrays)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(
            f"cannot read checkpoint {path}: {error}. Is it a file that fit(..., checkpoint=...) wrote?"
        ) from error


def restore(file: File, identity: dict[str, str] | None, template: Any) -> Saved:
    """What the checkpoint holds, its state in the structure of `template`.

    Raises:
        CheckpointError: it belongs to another problem, scheme, data, key or version.
    """
    path, step, header, arrays = file
    different = [
        f"{name}: {header['identity'].get(name)} there, {here} here"
        for name, here in (identity or {}).items()
        if header["identity"].get(name) != here
    ]
    leaves, structure = jax.tree.flatten(template)
    shapes = [arrays[f"state{i}"].shape for i in range(header["leaves"])] if not different else []
    if not different and (header["structure"] != str(structure) or shapes != [_plain_shape(leaf) for leaf in leaves]):
        different = ["the scheme's options: its state has another structure"]
    if different:
        raise CheckpointError(
            f"checkpoint {path} belongs to another fit ({'; '.join(different)}): resume with the same model, scheme, key, data and "
            "version, or start anew without resume"
        )
    state = jax.tree.unflatten(structure, [_revive(arrays[f"state{i}"], leaf) for i, leaf in enumerate(leaves)])
    records = {name.removeprefix("record."): array for name, array in arrays.items() if name.startswith("record.")}
    return Saved(step, state, arrays["losses"], records or None)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _plain_shape(leaf: Any) -> tuple[int, ...]:
    return jax.eval_shape(jax.random.key_data, leaf).shape if _is_key(leaf) else leaf.shape


def _revive(array: np.ndarray, leaf: Any) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(leaf) else jnp.asarray(array)
