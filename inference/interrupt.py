"""Ctrl-C that lets a fit finish its chunk and save: the first one asks it to stop, the second one ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm


__all__ = ["Interrupted", "StopRequest", "gentle_interrupt"]


class Interrupted(KeyboardInterrupt):
    """The user interrupted, and what was under way has been saved."""


class StopRequest:
    """Whether the user has asked to stop. As a callback of `fit`, it stops the fit after the chunk."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self, progress: Any) -> bool:
        """True once asked."""
        return self._event.is_set()

    def set(self) -> None:
        """Asks to stop."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether asked."""
        return self._event.is_set()


STOP = StopRequest()
"""The request that the keyboard makes: one for the process, so that fits in other threads see it too."""


@contextmanager
def gentle_interrupt() -> Iterator[StopRequest]:
    """While this is open, the first ctrl-C sets the request and says so; the second one acts as usual.

    Only the main thread can answer signals: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield STOP
        return
    before = signal.getsignal(signal.SIGINT)
    STOP._event.clear()

    def answer(number: int, frame: FrameType | None) -> None:
        STOP.set()
        signal.signal(signal.SIGINT, before)
        tqdm.write("interrupted: finishing the steps under way, then saving; ctrl-C once more ends at once", file=sys.stderr)

    signal.signal(signal.SIGINT, answer)
    try:
        yield STOP
    finally:
        signal.signal(signal.SIGINT, before)
        STOP._event.clear()
