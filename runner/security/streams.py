"""Standard streams on which no write fails: if one is closed, broken or narrow, text is lost but nothing ends."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from runner.security import secrets
from runner.system import startup

GONE = "the folder in which this command was started is no longer there; change to one that is"


class Lossy(io.FileIO):
    """An open file that accepts all writes; from the first write that fails on, it drops the data."""

    failed = False

    def write(self, data: Any, /) -> int | None:
        """Write bytes, or drop them after a failure: the reader may have gone (`| head -1`), or the disk may be full."""
        if not self.failed:
            try:
                return super().write(data)
            except OSError:
                self.failed = True
        return memoryview(data).nbytes


def hold() -> None:
    """Replace the standard streams of this process so that no write to them raises.

    While a standard stream is closed, the next opened file gets its number, and would receive the console's text.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # os.open returns the lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        encoding, by_line = getattr(stream, "encoding", "utf-8"), getattr(stream, "line_buffering", True)
        # A stream that has been replaced, as by Ray in its workers, stays.
        if stream is None or (type(stream) is io.TextIOWrapper and stream.fileno() == number and not is_lossy(stream)):
            file = io.BufferedWriter(Lossy(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=by_line))
    secrets.learn_environment()
    formatted = warnings.formatwarning
    if not hasattr(formatted, "__wrapped__"):
        warnings.formatwarning = escaped(formatted)


def is_lossy(stream: io.TextIOWrapper) -> bool:
    """Return whether a stream writes to a Lossy file already."""
    return isinstance(getattr(stream.buffer, "raw", None), Lossy)


def escaped(formatted: Callable[..., str]) -> Callable[..., str]:
    """Return a function that formats a warning without control characters and secrets."""

    def formatwarning(*args: Any, **keys: Any) -> str:
        return secrets.lines(formatted(*args, **keys))

    setattr(formatwarning, "__wrapped__", formatted)
    return formatwarning


def command(main: Callable[[], int]) -> None:
    """Run a command, and end the process with its exit code."""
    hold()
    try:
        os.getcwd()
    except FileNotFoundError:
        secrets.tell(f"error: {GONE}", sys.stderr)
        startup.leave(1)
    try:
        code = main()
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    startup.leave(code)
