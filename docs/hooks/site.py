"""What the site has besides the pages in this folder: tutorials, the reference, and the guides at the top of the repository."""

from __future__ import annotations

import re
from typing import Any

import reference
from mkdocs.structure.files import File, Files

import notebooks


GUIDES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that are files at the top of the repository."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""
    for path in sorted(notebooks.SOURCES.glob("*.py")):
        kept = notebooks.outputs(path)
        _add(files, config, f"tutorials/{path.stem}.md", content=notebooks.page(path, kept))
        for figure in sorted({name for cell in kept.values() for name in cell["figures"]}):
            place = notebooks.CACHE / path.stem / figure
            _add(files, config, f"tutorials/{path.stem}-{figure}", abs_src_path=str(place))
    for package in reference.PACKAGES:
        _add(files, config, f"reference/{package}.md", content=reference.page(package))
    for page, source in GUIDES.items():
        _add(files, config, page, content=(notebooks.ROOT / source).read_text())
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Indented commands of the guides are shell blocks here."""
    return re.sub(r"(?m)^    (?=make |bayes-sym )", "    $ ", markdown) if page.file.src_uri in GUIDES else markdown


def _add(files: Files, config: Any, uri: str, **content: Any) -> None:
    files.append(File.generated(config, uri, **content))
