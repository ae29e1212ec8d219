"""SIGINT and SIGTERM end a run after the chunk under way; a second one ends the process at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def caught() -> Iterator[Callable[[], str | None]]:
    """Give a function that returns the name of the signal that came in this block, or None."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    # Python lets only the main thread set handlers; elsewhere the process's own stay.
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: signal.Signals(came[0]).name if came else None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
