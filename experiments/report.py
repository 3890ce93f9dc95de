"""Collects every results.json below a folder, with the figures beside it, and puts all of it on one page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_sym.atomic import whole_file
from bayes_sym.errors import DataError
from bayes_sym.inference.figures import plot_evidence, plot_tradeoff
from bayes_sym.inference.intervals import over_seeds

from .report_page import Figure, Section, page


__all__ = ["Record", "collect", "write_report"]

_PNG = b"\x89PNG\r\n\x1a\n"
_MADE_OF = ("experiment", "task", "seed")

_SHOWS = {
    "tradeoff": "Scatter plot of the equivariance error against the negative log-likelihood, a marker per method with error bars; "
    "hollow markers are the test-time orbit averages",
    "evidence": "Log evidence against test negative log-likelihood, a panel per kind of evidence and a marker per method",
    "pathways": "Shares of the pathways of each layer",
    "ranges": "Learned ranges of the transforms with their intervals, beside the ranges of the oracle",
    "reliability": "Reliability diagram: accuracy against confidence",
}
"""What the figures of this library show, by file name, for those who cannot see them."""


@dataclass(frozen=True)
class Record:
    """A results.json.

    Attributes:
        path: the file.
        about: its facts, such as experiment and seed.
        versions: what the numbers depend on.
        rows: flat dicts.
        figures: PNG files in the same folder.
    """

    path: Path
    about: Mapping[str, Any]
    versions: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    figures: Sequence[Path]

    @property
    def name(self) -> str:
        """Experiment, task and seed, as far as they are known."""
        told = [str(self.about.get("experiment", self.path.parent.name))]
        told += [str(self.about[key]) for key in ("task",) if self.about.get(key) is not None]
        told += [f"seed {self.about['seed']}"] if self.about.get("seed") is not None else []
        return ", ".join(told)


def collect(folder: Path) -> list[Record]:
    """All results below a folder, in the order of their paths.

    Raises:
        DataError: there is no such folder, it holds no results, or a file of them is broken.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: give one that `bayes-sym run` has written to, for example results")
    found = [_read(path) for path in sorted(folder.rglob("results.json"))]
    if not found:
        raise DataError(
            f"there is no results.json in {folder} or below it: `bayes-sym run NAME --out {folder}` writes one when it is done"
        )
    return found


def write_report(folder: Path, out: Path) -> Path:
    """Writes the page; returns its path.

    Raises:
        DataError: there is nothing to report on, or a file is broken.
    """
    records = collect(folder)
    sections = _overviews(records) + [_section(record, folder) for record in records]
    with whole_file(out) as path:
        path.write_text(page(f"Results in {folder.resolve().name}", sections), encoding="utf-8")
    return out


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows, versions = record.pop("rows"), record.pop("versions", {})
        if not all(isinstance(row, dict) for row in rows) or not isinstance(versions, dict):
            raise TypeError("rows must be a list of objects, and versions an object")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"cannot read {path}: {reason}. It must be as `bayes-sym run` writes it: run that again, or move the file away"
        ) from error
    return Record(path, record, versions, rows, sorted(path.parent.glob("*.png")))


def _overviews(records: Sequence[Record]) -> list[Section]:
    """For every experiment and task with several seeds: the means over them."""
    groups: dict[tuple[Any, Any], list[Record]] = {}
    for record in records:
        if record.rows and all("method" in row for row in record.rows):
            groups.setdefault((record.about.get("experiment"), record.about.get("task")), []).append(record)
    found = []
    for (experiment, task), group in groups.items():
        seeds = {record.about.get("seed") for record in group}
        if len(group) < 2 or len(seeds) < len(group):  # the same seed twice is no repetition
            continue
        name = f"{experiment or 'results'}{'' if task is None else f', {task}'}: {len(group)} seeds"
        bars = "95% t-interval over seeds" if len(group) > 2 else "three seeds or more would give intervals"
        every = [{"seed": record.about.get("seed"), **row} for record in group for row in record.rows]
        rows = over_seeds(every)
        note = f"Means over the seeds {', '.join(map(str, sorted(seeds, key=str)))}; ± is half of the {bars}."
        if len(group) == 2:
            note = f"Means over the seeds {', '.join(map(str, sorted(seeds, key=str)))}; {bars}."
        found.append(Section(name, note, rows, _drawn(name, every), {}))
    return found


def _drawn(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The figures of a comparison, drawn from the rows of all its seeds."""
    found = []
    for kind, draw, needed in (
        ("tradeoff", plot_tradeoff, {"equivariance_error", "nll", "averaged_nll"}),
        ("evidence", plot_evidence, {"log_evidence", "evidence_kind", "nll"}),
    ):
        if all(needed <= set(row) for row in rows) and (
            kind != "evidence" or any(row["log_evidence"] is not None for row in rows)
        ):
            content = io.BytesIO()
            draw(rows).savefig(content, dpi=150, format="png")
            found.append(Figure(kind, f"{_SHOWS[kind]} ({name})", base64.b64encode(content.getvalue()).decode("ascii")))
    return found


def _section(record: Record, folder: Path) -> Section:
    others = {key: value for key, value in record.about.items() if key not in _MADE_OF}
    rows = record.rows
    repeated = len({row.get("method") for row in rows}) < len(rows) and all("method" in row and "seed" in row for row in rows)
    note = f"From {record.path.relative_to(folder)}."
    if repeated:  # a comparison over several seeds
        rows = over_seeds(rows)
        note += " Means over seeds; ± is half of the 95% t-interval over them, from three seeds on."
    figures = [_figure(path, record) for path in record.figures]
    return Section(record.name, note, rows, figures, {**others, **record.versions})


def _figure(path: Path, record: Record) -> Figure:
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise DataError(f"{path} is not a PNG image: draw it again, or move the file away")
    shows = _SHOWS.get(path.stem, path.stem.replace("_", " ").replace("-", " "))
    return Figure(path.stem, f"{shows} ({record.name})", base64.b64encode(content).decode("ascii"))
