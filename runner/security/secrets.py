"""Remove secrets from all that is written and printed: passwords of URIs, and values under a key that names a secret.

Nothing is written through a link to another file.
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
# A key that ends with such a word, and the keys below it.
KEY = r"[\w.]*(?:password|passwd|secret|token|api[_-]?key|credentials?)(?:\.\w+)*"
NAMED = re.compile(rf"{KEY}\Z", re.IGNORECASE)
# user:password@ of a URI; the password may hold characters that should have been quoted.
OF_URI = re.compile(r"(?<=://)([^\s/:@'\"]*):([^\s'\"]+)@")
# The same in a text that is only a URI, and a password among the URI's parameters.
IN_URI = re.compile(r"://[^/:?#]*:(?P<before>.+)@|[?&](?:password|passwd|token|secret|api_?key)=(?P<after>[^&#]+)", re.DOTALL)
# key=value of an override, and `key: value` of YAML, a log or a message; not an interpolation, null or a masked value.
GIVEN = re.compile(rf"({KEY}['\"]?\s*[=:]\s*)(?!\$\{{|null\b|\*\*\*)('[^'\n]*'|\"[^\"\n]*\"|[^\s,'\"}}\]]+)", re.IGNORECASE)
# An override: the part before its value, a value that is an interpolation, and whether it contains a secret's key.
OVERRIDE = re.compile(r"([+~]{0,2}[\w./@:$-]+=)(?=.)", re.DOTALL)
FROM_ELSEWHERE = re.compile(r"['\"]?\$\{[^{}]*\}['\"]?\Z")
HOLDS = re.compile(rf"{KEY}['\"]?\s*[=:]", re.IGNORECASE)
# Shorter values are masked under their key, but not wherever else the same characters occur.
SHORTEST = 4
# So short a word may be part of another (a user "postgres" of postgresql://): it is masked only as a whole word.
WORD = re.compile(r"[A-Za-z]{1,11}\Z")
VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
PLAIN = {"none", "null", "true", "false"}


class Known:
    """The secrets in this process's configurations, and a pattern of all forms in which they may be written."""

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
    """Return a pattern of a value in any quoting: of YAML, JSON, Python, Hydra, a shell, a URI or HTML."""
    if WORD.match(value):
        return rf"(?<![A-Za-z]){value}(?![A-Za-z])"
    return "".join(map(sign, re.findall(r"\s+|\\+|.", value.strip())))


def sign(text: str) -> str:
    """Return a pattern, in any quoting, of one character, of a run of spaces or of a run of backslashes."""
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
    """Remember the secrets of a configuration, so that they are masked wherever they occur."""
    Known.add(secrets(plain))


def learn_given(given: Any) -> None:
    """Remember the secrets in an override that Hydra has parsed; each value of a sweep is one."""
    value = getattr(given._value, "list", given._value)
    learn({given.key_or_group: given._convert_value(value)})


def learn_words(words: Iterable[str]) -> None:
    """Remember the secrets in a command's words; a word that Hydra cannot parse is reported later, without its value."""
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
    """Yield the values below a key that names a secret, and the passwords of URIs; interpolations are skipped."""
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
    """Return a text with each secret in it masked."""
    if Known.pattern is not None:
        text = Known.pattern.sub(MASK, text)
    return GIVEN.sub(rf"\g<1>'{MASK}'", OF_URI.sub(rf"\1:{MASK}@", text))


def override(text: str) -> str:
    """Return an override without secrets; its whole value is masked if it is a secret or contains a key of one."""
    given = OVERRIDE.match(text)
    if given and HOLDS.search(text) and not FROM_ELSEWHERE.match(text, given.end()):
        return f"{given[1]}'{MASK}'"
    return masked(text)


def hidden(plain: Any) -> Any:
    """Return plain data with each secret in them masked."""
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
    """Return the descriptor of a file open for writing, made for its user alone; raises OSError for a link to another file."""
    file = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if os.fstat(file).st_nlink > 1:
        os.close(file)
        raise OSError(errno.EMLINK, "it is a link to another file")
    return file


def unlinked(path: Path) -> Path:
    """Return the path of a file to be written; a link at that path, which leads to another file, is removed first."""
    if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
        path.unlink()
    return path


def printable(text: str) -> str:
    """Return a text with its control characters escaped: they would move a terminal's cursor or begin a new line."""
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in text)


def escaped(text: str) -> str:
    """Return a text of several lines in which all control characters but the line ends are escaped."""
    return "\n".join(map(printable, text.split("\n")))


def lines(text: str) -> str:
    """Return a text of several lines with secrets masked and control characters escaped."""
    return escaped(masked(text))


def tell(text: str, to: Any = None) -> None:
    """Print one line, with secrets masked and control characters escaped, to standard output or another stream."""
    print(printable(masked(text)), file=to or sys.stdout, flush=True)


def tell_lines(text: str, end: str = "\n") -> None:
    """Print a text of several lines, with secrets masked and control characters escaped."""
    print(lines(text), end=end, flush=True)


class Formatter(logging.Formatter):
    """A formatter of one line per message; secrets are masked in the line and in a traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return a record's line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's line and its traceback."""
        return lines(super().format(record))


class LogFile(logging.FileHandler):
    """A log file in UTF-8; a link at its path is replaced by a new file."""

    def __init__(self, filename: str, mode: str = "a", encoding: str = "utf-8", **keys: Any) -> None:
        super().__init__(filename, mode, encoding, **keys)

    def _open(self) -> Any:
        unlinked(Path(self.baseFilename))
        return super()._open()


def guard() -> None:
    """Patch Hydra so that it writes its own files without secrets."""
    from hydra.core import utils

    if not hasattr(utils._save_config, "__wrapped__"):
        utils._save_config = guarded(utils._save_config)


def guarded(save: Callable[..., None]) -> Callable[..., None]:
    """Return a function that saves a configuration, or a list of overrides, without secrets."""

    @wraps(save)
    def save_config(cfg: Any, filename: str, output_dir: Any) -> None:
        Path(output_dir, filename).unlink(missing_ok=True)
        save(unresolved(cfg), filename, output_dir)

    return save_config


def unresolved(cfg: Any) -> Any:
    """Return a configuration without secrets and with unresolved interpolations."""
    from omegaconf import OmegaConf

    return OmegaConf.create(hidden(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)))
