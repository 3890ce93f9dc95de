"""Notebooks in percent format as pages: their cells, and the outputs that a full run of them left in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "notebooks"
CACHE = ROOT / "build" / "notebooks"
"""Where `docs/run_notebooks.py` puts outputs. It is not kept in git; without it pages show code only."""

_MARK = re.compile(r"^# %%( \[markdown\])?\s*$")


class Cell(NamedTuple):
    """A cell: whether it is text, and its source."""

    is_text: bool
    source: str


def cells(source: str) -> list[Cell]:
    """The cells of a notebook in percent format; what comes before the first mark is its header, and left out."""
    found: list[tuple[bool, list[str]]] = []
    for line in source.splitlines():
        mark = _MARK.match(line)
        if mark:
            found.append((mark.group(1) is not None, []))
        elif found:
            found[-1][1].append(line)
    plain = [(text, [re.sub(r"^# ?", "", line) for line in lines] if text else lines) for text, lines in found]
    return [Cell(text, "\n".join(lines).strip("\n")) for text, lines in plain]


def checksum(source: str) -> str:
    """Which version of a notebook some outputs belong to."""
    return hashlib.sha256(source.encode()).hexdigest()


def title(source: str) -> str:
    """The first heading."""
    return next(line[4:] for line in source.splitlines() if line.startswith("# # "))


def outputs(path: Path, cache: Path = CACHE) -> dict[str, Any]:
    """The outputs by the number of the cell, if the cache has those of this very source; else none."""
    kept = cache / path.stem / "outputs.json"
    if not kept.exists():
        return {}
    found = json.loads(kept.read_text())
    return found["cells"] if found["checksum"] == checksum(path.read_text()) else {}


def page(path: Path, kept: Mapping[str, Any]) -> str:
    """The notebook in markdown, with figures beside it as ``<notebook>-<cell>-<number>.png``."""
    parts = []
    for number, cell in enumerate(cells(path.read_text())):
        parts.append(cell.source if cell.is_text else f"```python\n{cell.source}\n```")
        shown = kept.get(str(number), {})
        if shown.get("text"):
            parts.append(f"```text\n{shown['text'].rstrip()}\n```")
        parts += [f"![A figure that this cell draws]({path.stem}-{figure})" for figure in shown.get("figures", [])]
    how = "with outputs of a full run" if kept else "without outputs: `python docs/run_notebooks.py` makes them"
    parts.append(f"---\n\nThis page is `notebooks/{path.name}`, {how}.")
    return "\n\n".join(parts) + "\n"


def run(path: Path, cache: Path = CACHE) -> Path:
    """Runs a notebook and keeps what it prints and draws; returns the folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    source, folder = path.read_text(), cache / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found: dict[str, Any] = {}
    for number, cell in enumerate(cells(source)):
        if cell.is_text:
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed, _no_show(plt):
            exec(compile(cell.source, f"{path.name}, cell {number}", "exec"), namespace)
        names = []
        for i, figure in enumerate(plt.get_fignums()):
            names.append(f"{number}-{i}.png")
            plt.figure(figure).savefig(folder / names[-1], dpi=110)
        plt.close("all")
        found[str(number)] = {"text": printed.getvalue(), "figures": names}
    (folder / "outputs.json").write_text(json.dumps({"checksum": checksum(source), "cells": found}))
    return folder


@contextlib.contextmanager
def _no_show(plt: Any) -> Iterator[None]:
    """Keeps figures open for us."""
    show, plt.show = plt.show, lambda *args, **options: None
    try:
        yield
    finally:
        plt.show = show


if __name__ == "__main__":
    run(Path(sys.argv[1]))
