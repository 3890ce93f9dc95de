"""The folder of one job of a comparison: checkpoints while it runs, and its rows, written last, once it is finished."""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bayes_sym
from bayes_sym.atomic import whole_file
from bayes_sym.errors import CheckpointError

from . import checkpoints
from .fingerprint import fingerprint
from .rows import Data


__all__ = [
    "best", "cell_folder", "checksum", "finish", "finished", "last", "looks", "open_unit", "part", "save_looks", "source", "step_of",
]  # fmt: skip

_ROWS, _ASKED = "rows.json", "asked.json"


def cell_folder(folder: Path, name: str, identity: Mapping[str, str]) -> Path:
    """Where everything of a cell lies: a cell that is asked for in another way lies elsewhere."""
    return folder / "cells" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}-{fingerprint(identity)}"


def open_unit(cell: Path, seeds: tuple[int, ...], identity: Mapping[str, str]) -> Path:
    """The folder of a job, made if need be."""
    found = cell / ("seeds-" + "-".join(map(str, seeds)))
    found.mkdir(parents=True, exist_ok=True)
    with whole_file(cell / _ASKED) as path:
        path.write_text(json.dumps(dict(identity), indent=1) + "\n", encoding="utf-8")
    return found


def finished(cell: Path) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Seed, folder and row of all that is finished in a cell.

    Raises:
        CheckpointError: a file is broken.
    """
    for path in sorted(cell.glob(f"seeds-*/{_ROWS}")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            found = {int(row["seed"]): row for row in rows}
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"cannot read {path}: {error}. Delete the folder {path.parent} to run this part of the comparison again"
            ) from error
        yield from ((seed, path.parent, row) for seed, row in found.items())


def asked_before(cell: Path) -> list[dict[str, str]]:
    """The identities of other cells of the same name."""
    name = cell.name.rpartition("-")[0]
    others = [path for path in cell.parent.glob(f"{name}-????????/{_ASKED}") if path.parent != cell]
    return [json.loads(path.read_text(encoding="utf-8")) for path in others]


def part(unit: Path) -> Path:
    """The checkpoint of a job that is not finished."""
    return unit / "part.npz"


def last(unit: Path, seed: int) -> Path:
    """The checkpoint of a seed at its last step."""
    return unit / f"last-{seed}.npz"


def best(unit: Path, seed: int) -> Path:
    """The checkpoint of a seed where it was best on validation data."""
    return unit / f"best-{seed}.npz"


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has."""
    return checkpoints.read(checkpoint).step


def save_looks(unit: Path, seed: int, scores: list[tuple[int, float]]) -> None:
    """Keeps (step, score) of all looks at the validation data."""
    with whole_file(unit / f"looks-{seed}.json") as path:
        path.write_text(json.dumps(scores), encoding="utf-8")


def looks(unit: Path, seed: int) -> list[tuple[int, float]]:
    """All looks so far."""
    path = unit / f"looks-{seed}.json"
    return [(int(step), float(score)) for step, score in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def finish(unit: Path, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Writes the rows, after which the job counts as finished, and drops what only an interrupted one needs."""
    plain = [{name: item.item() if isinstance(item, np.generic) else item for name, item in row.items()} for row in rows.values()]
    with whole_file(unit / _ROWS) as path:
        path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    part(unit).unlink(missing_ok=True)


def checksum(data: Data | None) -> str:
    """Eight hexadecimal digits that tell data sets apart."""
    found = 0
    for leaf in jax.tree.leaves(data):
        found = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), found)
    return f"{found:08x}"


@functools.cache
def _code(*more: Path) -> str:
    found = 0
    for folder in (Path(bayes_sym.__file__).parent, Path(__file__).parent, *more):
        for path in sorted(folder.rglob("*.py")):
            found = zlib.crc32(path.read_bytes(), found)
    return f"{found:08x}"


def source(*more: Path) -> dict[str, str]:
    """What the numbers depend on besides what was asked: the library and the code in these folders, and the precision."""
    return {"version": bayes_sym.__version__, "code": _code(*more), "float": str(jnp.result_type(float))}
