"""What the command line says on standard error: the library's warnings as a line each, between progress bars."""

from __future__ import annotations

import sys
import warnings
from typing import TextIO

from tqdm import tqdm

from bayes_sym import errors


__all__ = ["plain_warnings", "say"]

_OURS = tuple(kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserWarning))


def say(message: str) -> None:
    """Prints a line on standard error, above the bars."""
    tqdm.write(f"bayes-sym: {message}", file=sys.stderr)


def plain_warnings() -> None:
    """From now on this process prints warnings of this library without Python's file name, line number and source."""
    others = warnings.showwarning
    if getattr(others, "is_plain", False):
        return

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, _OURS):
            say("warning: " + " ".join(str(message).split()))
        else:
            others(message, category, filename, lineno, file, line)

    show.is_plain = True  # type: ignore[attr-defined]
    warnings.showwarning = show
