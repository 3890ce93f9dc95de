"""Saved results: results.json, with one flat dict per row and the versions that they depend on."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bayes_sym.atomic import whole_file


__all__ = ["plain", "save_results", "versions"]


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("bayes-sym", "jax", "jaxlib", "numpyro", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "device": jax.devices()[0].device_kind}


def save_results(folder: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Writes results.json into `folder`, whole or not at all: ``{**about, "versions": {...}, "rows": [...]}``.

    Write it after all other files: where it is, the results are complete.

    Args:
        folder: where to.
        rows: flat dicts. Numbers become JSON numbers, what is not finite null.
        about: facts of the run, such as the experiment's name and the seed.
    """
    record = {**about, "versions": versions(), "rows": [plain(row) for row in rows]}
    with whole_file(folder / "results.json") as path:
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as JSON can hold it: numbers as plain numbers, what is not finite None."""

    def value(item: Any) -> Any:
        item = item.item() if isinstance(item, np.generic) else item
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return {name: value(item) for name, item in row.items()}
