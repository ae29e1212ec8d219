"""What is written and printed holds no secret, neither a URI's password nor what stands under a key that names one.

And it goes to no file but the one that is meant.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

MASK = "***"
KEY = r"[\w.]*(?:password|passwd|secret|token|api_?key|credentials?)"
NAMED = re.compile(rf"{KEY}\Z", re.IGNORECASE)
# user:password@ of a URI, where the password may hold what should have been quoted.
OF_URI = re.compile(r"(?<=://)([^\s/:@'\"]*):([^\s/'\"]+)@")
# key=value of an override, and `key: value` of YAML, a log or a message; not what is taken from elsewhere, nor an empty value.
GIVEN = re.compile(rf"({KEY}['\"]?\s*[=:]\s*)(?!\$\{{|null\b|\*\*\*)('[^'\n]*'|\"[^\"\n]*\"|[^\s,'\"}}\]]+)", re.IGNORECASE)


def masked(text: str) -> str:
    """Return a text with each secret in it replaced."""
    return GIVEN.sub(rf"\g<1>'{MASK}'", OF_URI.sub(rf"\1:{MASK}@", text))


def hidden(plain: Any) -> Any:
    """Return plain data with each secret in them replaced."""
    if isinstance(plain, dict):
        return {key: MASK if each is not None and NAMED.match(str(key)) else hidden(each) for key, each in plain.items()}
    if isinstance(plain, list | tuple):
        return [hidden(each) for each in plain]
    return masked(plain) if isinstance(plain, str) else plain


def opened(path: Path, flags: int) -> int:
    """Open a file to be written, or make it, for its user alone; raises OSError for a link, which leads to another file."""
    file = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if os.fstat(file).st_nlink > 1:
        os.close(file)
        raise OSError(errno.EMLINK, "it is a link to another file")
    return file


def unlinked(path: Path) -> Path:
    """Return the path of a file to be written, after a link there, which would lead to another file, has been removed."""
    if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
        path.unlink()
    return path


def printable(text: str) -> str:
    """Return a text without what moves a terminal's cursor or begins a line of its own."""
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in text)


def escaped(text: str) -> str:
    """Return a text of several lines in which nothing but a line's end moves a terminal's cursor."""
    return "\n".join(map(printable, text.split("\n")))


def lines(text: str) -> str:
    """Return a text of several lines as it may be shown."""
    return escaped(masked(text))


def tell(text: str, to: Any = None) -> None:
    """Print one line as it may be shown, to standard output or another stream; the only way by which this package prints."""
    print(printable(masked(text)), file=to or sys.stdout, flush=True)


def tell_lines(text: str, end: str = "\n") -> None:
    """Print a text of several lines as it may be shown."""
    print(lines(text), end=end, flush=True)


class Formatter(logging.Formatter):
    """A log's lines: one for each message, and no secret in it nor in a traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return a record's line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's line and its traceback."""
        return lines(super().format(record))


class LogFile(logging.FileHandler):
    """A log's file in UTF-8, made anew in the place of a link."""

    def __init__(self, filename: str, mode: str = "a", encoding: str = "utf-8", **keys: Any) -> None:
        super().__init__(filename, mode, encoding, **keys)

    def _open(self) -> Any:
        unlinked(Path(self.baseFilename))
        return super()._open()


def guard() -> None:
    """Have Hydra write its own files without secrets."""
    from hydra.core import utils

    if not hasattr(utils._save_config, "__wrapped__"):
        utils._save_config = guarded(utils._save_config)


def guarded(save: Callable[..., None]) -> Callable[..., None]:
    """Return what saves a configuration, or a list of overrides, without secrets."""

    @wraps(save)
    def save_config(cfg: Any, filename: str, output_dir: Any) -> None:
        Path(output_dir, filename).unlink(missing_ok=True)
        save(unresolved(cfg), filename, output_dir)

    return save_config


def unresolved(cfg: Any) -> Any:
    """Return a configuration without secrets, and with its interpolations as they stand."""
    from omegaconf import OmegaConf

    return OmegaConf.create(hidden(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)))
