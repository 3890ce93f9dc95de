"""One HTML page with tables and figures: no other file, no script, and everything that comes from files escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from .table import TITLES


__all__ = ["Figure", "Section", "page"]

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1f23; --soft: #5c626b; --line: #d9dce1; --band: #f5f6f8; --link: #1b5fb4; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --ink: #e4e6ea; --soft: #9aa1ab; --line: #34383f; --band: #1d2024; --link: #7db2f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .25rem; padding-top: 1rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; }
p, figcaption, dt { color: var(--soft); }
a { color: var(--link); }
nav ul { margin: .5rem 0 0; padding-left: 1.2rem; columns: 22rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding: .5rem 0 0; color: var(--soft); font-size: .85rem; }
th, td { padding: .35rem .75rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; white-space: normal; }
tbody tr:nth-child(even) { background: var(--band); }
tbody tr:last-child > * { border-bottom: 1px solid var(--ink); }
tbody th { position: sticky; left: 0; background: inherit; }
tbody tr:nth-child(odd) th { background: var(--paper); }
.text { text-align: left; }
.spread { color: var(--soft); }
.figures { display: flex; flex-wrap: wrap; gap: 1.25rem; }
figure { margin: .75rem 0 0; max-width: 100%; }
figure img { display: block; max-width: 100%; width: 36rem; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; }
figcaption { font-size: .85rem; padding-top: .3rem; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; margin: .5rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


class Figure(NamedTuple):
    """A PNG image: its name, what it shows in words, and its bytes in base64."""

    name: str
    shows: str
    content: str


class Section(NamedTuple):
    """A heading, a sentence, rows as tables, figures, and further facts by name."""

    title: str
    note: str
    rows: Sequence[Mapping[str, Any]]
    figures: Sequence[Figure]
    facts: Mapping[str, Any]


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    names = [f"{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}-{i}" for i, section in enumerate(sections)]
    contents = "".join(
        f'<li><a href="#{name}">{escape(section.title)}</a></li>' for name, section in zip(names, sections, strict=True)
    )
    body = "\n".join(_section(name, section) for name, section in zip(names, sections, strict=True))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _section(name: str, section: Section) -> str:
    tables = "\n".join(_table(rows, section.title) for rows in _alike(section.rows)) or "<p>It has no rows.</p>"
    figures = "\n".join(
        f'<figure><img src="data:image/png;base64,{figure.content}" alt="{escape(figure.shows)}">'
        f"<figcaption>{escape(figure.name)}</figcaption></figure>"
        for figure in section.figures
    )
    facts = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in section.facts.items())
    return f"""<section aria-labelledby="{name}">
<h2 id="{name}">{escape(section.title)}</h2>
<p>{escape(section.note)}</p>
{tables}
{f'<div class="figures">{figures}</div>' if figures else ""}
{f"<details><summary>Versions and options</summary><dl>{facts}</dl></details>" if facts else ""}
</section>"""


def _alike(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The rows in groups with the same keys, which share a table."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    yield from groups.values()


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    beside = {f"{key}{end}" for key in rows[0] for end in ("_se", "_low", "_high") if f"{key}{end}" in rows[0]}
    columns = [key for key in rows[0] if key not in beside]
    common = columns[1:] if len(rows) > 1 else []
    same = {key: rows[0][key] for key in common if all(row[key] == rows[0][key] and f"{key}_se" not in row for row in rows)}
    columns = [key for key in columns if key not in same]
    same = {key: value for key, value in same.items() if value is not None}
    texts = {key for key in columns if all(row[key] is None or isinstance(row[key], str) for row in rows)}
    head = "".join(_heading(key, key in texts) for key in columns)
    body = "\n".join(
        "<tr>" + "".join(_cell(row, key, i == 0, key in texts) for i, key in enumerate(columns)) + "</tr>" for row in rows
    )
    notes = []
    if any(row.get(f"{key}_low") is None and row.get(f"{key}_se") is not None for row in rows for key in columns):
        notes.append("± is a standard error over test data.")
    if same:
        notes.append("The same in all rows: " + ", ".join(f"{_title(key)} {_text(value)}" for key, value in same.items()) + ".")
    caption = f"<caption>{escape(' '.join(notes))}</caption>" if notes else ""
    return (
        f'<div class="wide" role="region" aria-label="Table: {escape(title)}" tabindex="0"><table>{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _heading(key: str, text: bool) -> str:
    return f'<th scope="col"{_class(text)} title="{escape(key)}">{escape(_title(key))}</th>'


def _cell(row: Mapping[str, Any], key: str, first: bool, text: bool) -> str:
    low, high, half = (row.get(f"{key}{end}") for end in ("_low", "_high", "_se"))
    if low is not None and high is not None:
        half = (high - low) / 2
    content = escape(_text(row[key]))
    if half is not None and _is_number(half) and _is_number(row[key]):
        value, spread = _rounded(row[key], half)
        content = f'{value} <span class="spread">± {spread}</span>'
    return f'<th scope="row" class="text">{content}</th>' if first else f"<td{_class(text)}>{content}</td>"


def _class(text: bool) -> str:
    return ' class="text"' if text else ""


def _title(key: str) -> str:
    return TITLES.get(key, key.replace("_", " "))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: float, spread: float) -> tuple[str, str]:
    """Both with as many decimals as two digits of the spread need; very small numbers with an exponent."""
    if not (math.isfinite(value) and math.isfinite(spread) and spread >= 1e-4):
        return _text(float(value)), _text(float(spread), 2)
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{value:,.{decimals}f}", f"{spread:,.{decimals}f}"


def _text(value: Any, digits: int = 4) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return str(value)
