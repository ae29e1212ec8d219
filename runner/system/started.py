"""The folder in which a command was started: relative paths are relative to it, wherever a job or a loss has gone since."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_folder: Path | None = None


def folder() -> Path:
    """Return the folder; that of this process where no command was started."""
    return _folder or Path.cwd()


def absolute(path: str | Path) -> Path:
    """Return a path that means the same from every folder."""
    return folder() / path


def remember() -> None:
    """Take the folder of this process for that of the command."""
    global _folder
    _folder = Path.cwd()


def come_back() -> None:
    """Go to the folder, for what knows relative paths alone."""
    with suppress(OSError):
        os.chdir(folder())


@contextmanager
def here() -> Iterator[None]:
    """Take the folder of this process for that of the command, in this block."""
    global _folder
    before = _folder
    remember()
    try:
        yield
    finally:
        _folder = before
