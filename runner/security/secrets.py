"""What is written and printed holds no secret, neither a URI's password nor what stands under a key that names one.

And it goes to no file but the one that is meant.
"""

from __future__ import annotations

import errno
import html
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

MASK = "***"
# A key that ends so, and what is below it.
KEY = r"[\w.]*(?:password|passwd|secret|token|api[_-]?key|credentials?)(?:\.\w+)*"
NAMED = re.compile(rf"{KEY}\Z", re.IGNORECASE)
# user:password@ of a URI, where the password may hold what should have been quoted.
OF_URI = re.compile(r"(?<=://)([^\s/:@'\"]*):([^\s'\"]+)@")
# The same in a text that is nothing but a URI, and where the password is among the URI's parameters.
IN_URI = re.compile(r"://[^/:?#]*:(?P<before>.+)@|[?&](?:password|passwd|token|secret|api_?key)=(?P<after>[^&#]+)", re.DOTALL)
# key=value of an override, and `key: value` of YAML, a log or a message; not what is taken from elsewhere, nor an empty value.
GIVEN = re.compile(rf"({KEY}['\"]?\s*[=:]\s*)(?!\$\{{|null\b|\*\*\*)('[^'\n]*'|\"[^\"\n]*\"|[^\s,'\"}}\]]+)", re.IGNORECASE)
# An override: what stands before its value, a value that is elsewhere, and whether a secret's key is in it.
OVERRIDE = re.compile(r"([+~]{0,2}[\w./@:$-]+=)(?=.)", re.DOTALL)
FROM_ELSEWHERE = re.compile(r"['\"]?\$\{[^{}]*\}['\"]?\Z")
HOLDS = re.compile(rf"{KEY}['\"]?\s*[=:]", re.IGNORECASE)
# Shorter values are hidden where they stand, and not wherever else these signs occur.
SHORTEST = 4
# A word of so many letters may be part of others (a user "postgres" of postgresql://), and is hidden where it stands alone.
WORD = re.compile(r"[A-Za-z]{1,11}\Z")
VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
PLAIN = {"none", "null", "true", "false"}


class Known:
    """The secrets that configurations of this process hold, and how each may be written."""

    values: ClassVar[set[str]] = set()
    pattern: ClassVar[re.Pattern[str] | None] = None

    @classmethod
    def add(cls, found: Iterable[str]) -> None:
        """Remember secrets."""
        new = {value for value in found if len(value) >= SHORTEST and value.lower() not in PLAIN} - cls.values
        if new:
            cls.values |= new
            longest = sorted({*cls.values, *map(unquote, cls.values)}, key=len, reverse=True)
            cls.pattern = re.compile("|".join(map(written, longest)))


def written(value: str) -> str:
    """Return a pattern of a value, however quotes of YAML, JSON, Python, Hydra, a shell, a URI or a page write its signs."""
    if WORD.match(value):
        return rf"(?<![A-Za-z]){value}(?![A-Za-z])"
    return "".join(map(sign, re.findall(r"\s+|\\+|.", value.strip())))


def sign(text: str) -> str:
    """Return a pattern of a letter or another sign, or of a run of spaces or of backslashes, in whichever way it is written."""
    if text.isspace():
        return r"(?:\s|\\+[abfnrtv]|\\+x..|\\+u....|%[012].|\+)+"
    if text.startswith("\\"):
        return r"(?:\\|%5C)*"
    if text.isascii() and text.isalnum():
        return text
    forms = {
        text,
        text * 2,
        ascii(text)[1:-1],
        json.dumps(text)[1:-1],
        quote(text, safe=""),
        html.escape(text),
        f"'\"{text}\"'",
    }
    either = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    return rf"\\*(?:{either})"


def learn(plain: Any) -> None:
    """Remember the secrets of a configuration, so that they are hidden wherever they occur."""
    Known.add(secrets(plain))


def learn_given(given: Any) -> None:
    """Remember the secrets in an override that Hydra has parsed; of a sweep each value is one."""
    value = getattr(given._value, "list", given._value)
    learn({given.key_or_group: given._convert_value(value)})


def learn_words(words: Iterable[str]) -> None:
    """Remember the secrets in the words of a command; what cannot be read is told, without its value, by who reads it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for word in words:
        if HOLDS.search(word) or "://" in word:
            with suppress(HydraException):
                learn_given(parser.parse_override(word))


def learn_environment() -> None:
    """Remember the passwords in this process's environment."""
    learn({"uri": os.environ.get("MLFLOW_TRACKING_URI", ""), "password": [os.environ.get(name, "") for name in VARIABLES]})


def secrets(plain: Any, named: bool = False) -> Iterator[str]:
    """Yield what stands below a key that names a secret, and the passwords of URIs; what is interpolated is nothing yet."""
    if isinstance(plain, dict):
        for key, each in plain.items():
            yield from secrets(each, named or bool(NAMED.search(str(key))))
    elif isinstance(plain, list | tuple):
        for each in plain:
            yield from secrets(each, named)
    elif isinstance(plain, str | int | float) and not isinstance(plain, bool) and "${" not in str(plain):
        if named:
            yield str(plain)
        elif isinstance(plain, str) and "://" in plain:
            yield from (each for found in IN_URI.finditer(plain) for each in (found["before"] or found["after"],) if each)


def masked(text: str) -> str:
    """Return a text with each secret in it replaced."""
    if Known.pattern is not None:
        text = Known.pattern.sub(MASK, text)
    return GIVEN.sub(rf"\g<1>'{MASK}'", OF_URI.sub(rf"\1:{MASK}@", text))


def override(text: str) -> str:
    """Return an override without secrets: without its value, where that is one, or has one below some key."""
    given = OVERRIDE.match(text)
    if given and HOLDS.search(text) and not FROM_ELSEWHERE.match(text, given.end()):
        return f"{given[1]}'{MASK}'"
    return masked(text)


def hidden(plain: Any) -> Any:
    """Return plain data with each secret in them replaced."""
    if isinstance(plain, dict):
        return {
            masked(key) if isinstance(key, str) else key: MASK if each is not None and NAMED.search(str(key)) else hidden(each)
            for key, each in plain.items()
        }
    if isinstance(plain, list | tuple):
        return [hidden(each) for each in plain]
    if isinstance(plain, int | float) and str(plain) in Known.values:
        return MASK
    return override(plain) if isinstance(plain, str) else plain


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
