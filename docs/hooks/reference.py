"""Reference pages from docstrings: one per package, one entry per public name."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from types import ModuleType
from typing import Any


PACKAGES = {
    "bayes_sym": "Top level",
    "bayes_sym.groups": "Groups",
    "bayes_sym.representations": "Representations",
    "bayes_sym.layers": "Layers",
    "bayes_sym.transforms": "Transforms",
    "bayes_sym.priors": "Priors",
    "bayes_sym.inference": "Inference",
    "bayes_sym.inference.families": "Variational families",
    "bayes_sym.diagnostics": "Diagnostics",
    "bayes_sym.datasets": "Datasets",
    "bayes_sym.models": "Models",
    "bayes_sym.experiments": "Experiments",
    "bayes_sym.errors": "Errors",
}
"""The packages that have a page, with their titles."""

_SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields", "Example")
_ITEM = re.compile(r"^(?P<names>\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_][\w.]*)*): ?(?P<text>.*)$")


def public_names(module: ModuleType) -> list[str]:
    """The names that a package offers, in its own order: its `__all__`, or what it re-exports or defines without underscore."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", "bayes_sym").startswith("bayes_sym")
    ]


def anchor(package: str, name: str) -> str:
    """The id of an entry."""
    return f"{package}.{name}"


def page(package: str) -> str:
    """The page of a package in markdown."""
    module = importlib.import_module(package)
    names = public_names(module)
    index = ", ".join(f"[`{name}`](#{anchor(package, name)})" for name in names)
    parts = [f"# {PACKAGES[package]}", f"`{package}`: {_text(module.__doc__ or '')}", index]
    parts += [entry(package, name, getattr(module, name)) for name in names]
    return "\n\n".join(parts) + "\n"


def entry(package: str, name: str, value: Any) -> str:
    """The entry of one name: heading, signature, docstring, and for a class what it defines itself."""
    parts = [f"## `{name}` {{ #{anchor(package, name)} }}"]
    if not callable(value):
        shown = repr(value)
        shown = shown if len(shown) < 400 else shown[:397] + "..."
        return "\n\n".join([*parts, f"A constant: `{re.sub(' at 0x[0-9a-f]+', '', shown)}`"])
    if _signature(name, value):
        parts.append(f"```python\n{_signature(name, value)}\n```")
    parts.append(docstring(inspect.getdoc(value) or ""))
    if inspect.isclass(value):
        parts += [_member(value, own, member) for own, member in vars(value).items() if _is_shown(own, member)]
    return "\n\n".join(part for part in parts if part)


def docstring(text: str) -> str:
    """A docstring in markdown: its sections are headed lists."""
    parts: list[str] = []
    section: list[str] | None = None
    kind = ""
    for line in [*text.splitlines(), "End:"]:
        head = line.rstrip(":")
        if line.endswith(":") and (head in _SECTIONS or line == "End:"):
            if section is not None:
                parts += ["", _section(kind, section)]
            kind, section = head, []
        elif section is not None and line and not line.startswith(" "):  # prose after a section
            parts += ["", _section(kind, section), ""]
            section = None
            parts.append(_text(line))
        elif section is not None:
            section.append(line[4:])
        else:
            parts.append(_text(line))
    return "\n".join(parts).strip()


def _section(kind: str, lines: list[str]) -> str:
    title = {"Args": "Arguments", "Example": "Example"}.get(kind, kind)
    if not any(_ITEM.match(line) for line in lines):
        return f"**{title}**\n\n" + "\n".join(map(_text, lines)).strip()
    found: list[str] = []
    for line in lines:
        item = _ITEM.match(line)
        if item:
            names = ", ".join(f"`{name}`" for name in item["names"].split(", "))
            found.append(f"- {names}: {_text(item['text'])}")
        elif line.strip():
            found.append("    " + _text(line.strip()))
    return f"**{title}**\n\n" + "\n".join(found)


def _text(line: str) -> str:
    """A line with what markdown would take for markup escaped, outside code."""
    if line.startswith("    "):
        return line
    pieces = re.split(r"(``.*?``|`[^`]*`)", line)
    for i in range(0, len(pieces), 2):
        lead = re.match(r"\s*[*-] ", pieces[i]) if i == 0 else None
        kept = lead.group() if lead else ""
        rest = pieces[i][len(kept) :].replace("<", "&lt;").replace("*", r"\*").replace("](", r"]\(")
        pieces[i] = kept + rest
    return "".join(pieces)


def _is_shown(name: str, member: Any) -> bool:
    """Whether a class's own attribute is a public method or property with words to say."""
    if name.startswith("_"):
        return False
    kinds = (property, functools.cached_property, classmethod, staticmethod)
    return (inspect.isfunction(member) or isinstance(member, kinds)) and bool(_words(member))


def _words(member: Any) -> str:
    return inspect.cleandoc(getattr(member, "__doc__", None) or "")


def _member(owner: type, name: str, member: Any) -> str:
    """A method or property of a class."""
    inner = getattr(owner, name) if isinstance(member, classmethod | staticmethod) else member
    is_value = isinstance(member, property | functools.cached_property)
    signature = name if is_value else _signature(name, inner) or name
    return (
        f"### {owner.__name__}.{name} {{ data-toc-label='{name}' }}\n\n```python\n{signature}\n```\n\n{docstring(_words(member))}"
    )


def _signature(name: str, value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    pieces, marked = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            pieces.append("*")
        marked = marked or parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY)
        pieces.append(_parameter(parameter))
    returns = signature.return_annotation
    arrow = "" if returns is inspect.Signature.empty or inspect.isclass(value) else f" -> {_annotation(returns)}"
    short = f"{name}({', '.join(pieces)}){arrow}"
    if len(short) <= 100:
        return short
    return f"{name}(\n" + "".join(f"    {piece},\n" for piece in pieces) + f"){arrow}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    shown = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        shown += f": {_annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = repr(parameter.default)
        shown += f" = {default if len(default) <= 60 and ' at 0x' not in default and '<' not in default else '...'}"
    return shown


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")
