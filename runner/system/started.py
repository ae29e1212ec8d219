"""The folder in which a command was started: relative paths start there, even if a job or a loss changes the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_folder: Path | None = None


def folder() -> Path:
    """Return the command's folder, or the process's current folder if no command was started."""
    return _folder or Path.cwd()


def absolute(path: str | Path) -> Path:
    """Return a path as an absolute path, relative to the command's folder."""
    return folder() / path


def remember() -> None:
    """Set the command's folder to the process's current folder."""
    global _folder
    _folder = Path.cwd()


def come_back() -> None:
    """Change to the command's folder, for code that accepts only relative paths."""
    with suppress(OSError):
        os.chdir(folder())


@contextmanager
def here() -> Iterator[None]:
    """Set the command's folder to the process's current folder in this block."""
    global _folder
    before = _folder
    remember()
    try:
        yield
    finally:
        _folder = before
