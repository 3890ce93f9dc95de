"""Tables of results as text, with the columns that a reader needs first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


__all__ = ["TITLES", "as_text"]

_COLUMNS = {
    "method": ("method", "{}"),
    "parameters": ("weights", "{:,}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "orbit_accuracy": ("orbit acc.", "{:.3f}"),
    "averaged_accuracy": ("averaged", "{:.3f}"),
    "rmse": ("RMSE", "{:.3f}"),
    "orbit_rmse": ("orbit RMSE", "{:.3f}"),
    "averaged_rmse": ("averaged", "{:.3f}"),
    "nll": ("NLL", "{:.3f}"),
    "averaged_nll": ("averaged", "{:.3f}"),
    "ece": ("ECE", "{:.3f}"),
    "equivariance_error": ("equiv. error", "{:.5f}"),
    "equivariance_error_se": ("s.e.", "{:.5f}"),
    "orbit_agreement": ("agreement", "{:.3f}"),
    "log_evidence": ("log evidence", "{:.1f}"),
    "evidence_kind": ("kind", "{}"),
    "seconds": ("seconds", "{:.1f}"),
}

TITLES = {
    **{key: title for key, (title, _) in _COLUMNS.items()},
    "averaged_accuracy": "accuracy, orbit-averaged",
    "averaged_nll": "NLL, orbit-averaged",
    "averaged_rmse": "RMSE, orbit-averaged",
    "orbit_accuracy": "accuracy on the orbit",
    "log_evidence": "log evidence [nats]",
    "evidence_kind": "kind of evidence",
    "equivariance_error": "equivariance error",
    "orbit_agreement": "orbit agreement",
    "peak_memory_mib": "peak memory [MiB]",
    "num_draws": "posterior draws",
}
"""Column titles that stand alone, by key of the rows."""


def as_text(
    rows: Sequence[dict[str, Any]], columns: Mapping[str, tuple[str, str]] | None = None, *, markdown: bool = False
) -> str:
    """One line per row; `markdown` makes it a Markdown table.

    Args:
        rows: flat dicts; what is missing or None is printed as "-", and what has an interval over seeds (``*_low`` and
            ``*_high``) with half its length.
        columns: by key of the rows, a title and a format. Those of a comparison by default, as far as a row has them: accuracy and
            RMSE are on upright test images; orbit accuracy, NLL and ECE on all their transforms; each "averaged" column is the
            same net after test-time averaging over the group.
    """
    if columns is None:
        columns = {key: column for key, column in _COLUMNS.items() if any(key in row for row in rows)}
    lines = [[title for title, _ in columns.values()]]
    lines += [[_cell(row, key, form) for key, (_, form) in columns.items()] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    if not markdown:
        rule = "  ".join("-" * width for width in widths)
        return "\n".join(["  ".join(padded[0]), rule, *("  ".join(line) for line in padded[1:])])
    alignment = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], alignment, *padded[1:]])


def _cell(row: Mapping[str, Any], key: str, form: str) -> str:
    if row.get(key) is None:
        return "-"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return form.format(row[key]) + ("" if low is None or high is None else " +- " + form.format((high - low) / 2))
