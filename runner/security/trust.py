"""Distinguish keys that the user sets, by command or environment, from keys that only a configuration file sets.

A file may be from somebody else. It must not write a file outside `outputs`, nor send the user's passwords anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import UserError
from runner.security import uris
from runner.system import started

# The folder below which all default paths lie.
ROOT = "outputs"
# The user's credentials, by the kind of store that receives them: variables that hold or name them, and files.
CREDENTIALS = ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")
TO_SERVERS = tuple(f"MLFLOW_TRACKING_{name}" for name in CREDENTIALS)
TO_SERVERS_FILES = ("~/.mlflow/credentials",)
TO_POSTGRESQL = ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE", "PGSSLKEY", "PGSSLCERT")
TO_POSTGRESQL_FILES = ("~/.pgpass", "~/.pg_service.conf", "~/.postgresql/postgresql.key")


class Command(NamedTuple):
    """A command: its words, and the folder in which it was started."""

    words: tuple[str, ...]
    folder: str


# This process's command. Without one (None), the user's own code gives all values.
COMMAND: Command | None = None


@contextmanager
def command(words: Sequence[str]) -> Iterator[None]:
    """Set this process's command, with these words, in this block."""
    global COMMAND
    before, COMMAND = COMMAND, Command(tuple(words), os.getcwd())
    try:
        yield
    finally:
        COMMAND = before


def arrive(given: Command | None) -> None:
    """Take over a command from another process."""
    global COMMAND
    COMMAND = given


@lru_cache(maxsize=8)
def values(words: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """Return the keys and values that a command's words set; empty if the words cannot be parsed, which Hydra reports."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    texts = [word for word in words if "=" in word and not word.startswith("-")]
    try:
        return tuple((each.key_or_group, each.value()) for each in OverridesParser.create().parse_overrides(texts))
    except OverrideParseException:
        return ()


def given(key: str) -> bool:
    """Return whether the command's words set a key, directly or within a node; always true without a command."""
    return COMMAND is None or any(sets(name, value, key) for name, value in values(COMMAND.words))


def sets(name: str, value: Any, key: str) -> bool:
    """Return whether the override `name=value` sets a key."""
    if name == key:
        return True
    if not key.startswith(f"{name}."):
        return False
    for part in key.removeprefix(f"{name}.").split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def below(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path, relative to the command's folder, lies below another folder; links are followed."""
    start = COMMAND.folder if COMMAND else os.getcwd()
    if ".." in Path(path).parts:
        return False
    return Path(start, path).resolve().is_relative_to(Path(start, folder).resolve())


def folder(key: str, path: str | Path) -> None:
    """Raise UserError for a folder or a file outside `outputs` that only a configuration file names."""
    if not given(key) and not below(path, ROOT):
        raise UserError(
            f"{key} {str(path)!r} comes from a file, which may name folders below {ROOT} alone; "
            f"if you trust it, name it yourself: {key}=…"
        )


def store(key: str, uri: Any, environment: str | None = None) -> None:
    """Raise UserError for a store that only a configuration file names and that is not safe.

    A network store is not safe if it would receive the user's credentials; an SQLite store, if its file is outside `outputs`.
    """
    if uri is None or given(key) or (environment and uri == os.environ.get(environment)):
        return
    if str(uri).startswith("sqlite:"):
        folder(key, str(uri).partition("?")[0].removeprefix("sqlite:///"))
    elif what := sent(str(uri)):
        ways = " or ".join(f"{name}=URI" for name in (key, environment) if name)
        said = f"{key} {uris.hidden(str(uri))!r} comes from a file, and would be sent {what}"
        raise UserError(f"{said}; if you trust it, name it yourself: {ways}")


def spooled(uri: str, names: Collection[str], place: Path) -> str | None:
    """Return, in one line, why a run must not be sent to the store that its journal names; None if it may be sent.

    A store that the user names is trusted. `place` is the journal's folder, or the outbox.
    """
    given = {*map(uris.absolute, filter(None, (*names, os.environ.get("MLFLOW_TRACKING_URI"))))}
    if uris.absolute(uri) in given:
        return None
    what = None if uri.startswith("sqlite:") else sent(uri)
    if (why := f"would be sent {what}" if what else stray(uri, place)) is None:
        return None
    said = f"its store {uris.hidden(uri)} {why}; if you trust it, name it yourself"
    return f"{said}: python -m runner.sync --tracking-uri URI"


def stray(uri: str, place: Path) -> str | None:
    """Return why a new SQLite file may not be made: it is outside `outputs`, the command's or that above `place`; else None."""
    file = uris.file_of(uri)
    if file is None or (file.is_file() and file.stat().st_size):
        return None
    around = next((each for each in started.absolute(place).parents if each.name == ROOT), started.absolute(ROOT))
    if any(file.resolve().is_relative_to(root.resolve()) for root in (around, started.absolute(ROOT))):
        return None
    return f"is not there, and is made below {ROOT} alone"


def artifacts(uri: str, place: Path | None) -> None:
    """Raise UserError for a server's local artifact folder outside `outputs`, `mlruns` and the folder that the user names."""
    user = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT", "").removeprefix("file://")
    roots = [started.absolute(each).resolve() for each in (ROOT, "mlruns", user) if each]
    if place is None or not any(place.resolve().is_relative_to(root) for root in roots):
        said = f"its server has them kept in {uri} of this machine"
        raise UserError(f"{said}; if you trust it, name that folder yourself: MLFLOW_DEFAULT_ARTIFACT_ROOT=FOLDER")


def sent(uri: str) -> str | None:
    """Return the user's credential that a store of this URI would receive, or None."""
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    if scheme in ("http", "https"):
        from requests.utils import get_netrc_auth

        return held(TO_SERVERS, TO_SERVERS_FILES) or ("your .netrc's password" if get_netrc_auth(uri) else None)
    if scheme in ("postgresql", "postgres"):
        # Its parameters may name a file of passwords.
        return (
            "what its parameters name"
            if "?" in uri
            else None
            if uris.password(uri)
            else held(TO_POSTGRESQL, TO_POSTGRESQL_FILES)
        )
    return "what such a store asks for"


def held(variables: Sequence[str], files: Sequence[str]) -> str | None:
    """Return, as a text, the first of these variables that is set or of these files that exists; None if there is none."""
    found = (f"your {name}" for name in variables if os.environ.get(name))
    return next(found, None) or next((f"your {name}" for name in files if Path(name).expanduser().exists()), None)


def service(key: str, address: Any, environment: str) -> None:
    """Raise UserError for a service that only a configuration file names: a service is trusted with all that it receives."""
    if address is not None and not given(key) and address != os.environ.get(environment):
        raise UserError(f"{key} {address!r} comes from a file; if you trust it, name it yourself: {key}=… or {environment}=…")
