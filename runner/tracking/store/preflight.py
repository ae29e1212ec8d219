"""Find out in seconds whether a tracking store can be used: MLflow tries for minutes, and migrates foreign databases."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from runner.errors import EXTRAS, UserError, first_line
from runner.security import uris
from runner.tracking.store.retry import crowded

ALLOWED = "sqlite:///FILE, postgresql+psycopg://USER@HOST/DATABASE or http(s)://HOST"
# Further schemes that MLflow accepts. They are not checked here.
OTHERS = ("mysql", "mssql", "databricks")
# Seconds in which a server has to answer.
SECONDS = 4
# Bytes that an empty store takes, with a margin.
ROOM = 2 * 2**20
# The tables by which a database is known to be MLflow's.
TABLES = {"alembic_version", "experiments", "runs"}
# The environment variables of the credentials that MLflow sends to a server with every request.
CREDENTIALS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def check(uri: str) -> None:
    """Raise UserError if an SQLite file or a server cannot be used. A PostgreSQL database is checked when it is opened."""
    scheme = uri.partition(":")[0].partition("+")[0] if ":" in uri else ""
    if scheme in ("http", "https"):
        in_time(lambda: server(uri), uri)
    elif uri != uris.SQLITE and (file := uris.file_of(uri)):
        sqlite(uri, file)
    elif scheme not in ("postgresql", *OTHERS):
        raise UserError(
            f"tracking.uri {uris.hidden(uri)!r} names no tracking store; allowed are {ALLOWED}; set it with tracking.uri=…"
        )


def refusal(uri: str, reason: str) -> UserError:
    """Return the UserError that says why a store cannot be used, without its password."""
    shown = reason
    for word in filter(None, {uris.password(uri), unquote(uris.password(uri))}):
        shown = shown.replace(word, "***")
    return UserError(f"tracking.uri {uris.hidden(uri)!r} cannot be used: {shown}")


@cache
def warn(uri: str) -> None:
    """Warn, once in a process, of a password in a URI, and of a password that goes over a network in the clear."""
    log = logging.getLogger(__name__)
    if uris.password(uri):
        names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if uri.startswith("http") else "PGPASSWORD"
        log.warning(
            "tracking.uri %s has a password in it, which others may read; give it by %s instead", uris.hidden(uri), names
        )
    if uri.startswith("http:") and not loopback(uri) and (uris.password(uri) or any(map(os.environ.get, CREDENTIALS))):
        log.warning("tracking.uri %s: the password goes over the network in the clear; use https://", uris.hidden(uri))


def loopback(uri: str) -> bool:
    """Return whether a server is on this machine."""
    host = urlsplit(uri).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def in_time(ask: Callable[[], None], uri: str) -> None:
    """Call a function that asks a server, with a time limit, which the look-up of a host name lacks.

    Raises UserError after the time limit, or the function's own error.
    """
    raised: list[BaseException] = []

    def asked() -> None:
        try:
            ask()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=asked, name="asks the tracking server", daemon=True)
    thread.start()
    thread.join(SECONDS + 0.5)
    if thread.is_alive():
        raise refusal(uri, f"no answer within {SECONDS} s; start the server or set tracking.uri=sqlite:///…")
    if raised:
        raise raised[0]


def server(uri: str) -> None:
    """Raise UserError if no MLflow server answers."""
    import requests

    remedy = "start the server or set tracking.uri=sqlite:///…"
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    try:
        asked = requests.get(f"{uri.rstrip('/')}/health", timeout=SECONDS, allow_redirects=False, verify=verify)
    except requests.Timeout:
        raise refusal(uri, f"no answer within {SECONDS} s; {remedy}") from None
    except (requests.RequestException, ValueError) as error:
        raise refusal(uri, f"{cause(error)}; {remedy}") from error
    if asked.status_code >= 500:
        raise refusal(uri, f"its server answers {asked.status_code} {asked.reason}; {remedy}")


def cause(error: BaseException) -> str:
    """Return why a server could not be reached: a short text for known causes, else the error's first line."""
    text = first_line(error)
    for words, plain in (
        ("Connection refused", "connection refused"),
        ("NameResolutionError", "no such host"),
        ("SSLError", "its certificate is not valid"),
    ):
        if words in text:
            return plain
    return text


def sqlite(uri: str, file: Path) -> None:
    """Raise UserError if a file is no SQLite store of this MLflow, or cannot be written. A missing file is accepted."""
    if file.is_dir():
        raise refusal(uri, f"{file} is a directory; name a file, as in tracking.uri={uris.uri_of(file / 'mlflow.db')}")
    there = next(each for each in (file, *file.parents) if each.exists())
    if not there.is_dir() and there != file:
        raise refusal(uri, f"{there} is not a directory; set tracking.uri=sqlite:///…")
    # SQLite writes its journal beside the file.
    for each in {there, there if there.is_dir() else there.parent}:
        if not os.access(each, os.W_OK):
            raise refusal(uri, f"{each} is read-only; make it writable or set tracking.uri=sqlite:///…")
    free = shutil.disk_usage(there).free
    if free < ROOM:
        raise refusal(uri, f"the disk of {there} is full: {free:,} bytes are free; make room or set tracking.uri=sqlite:///…")
    if there == file and file.stat().st_size:
        content(uri, file)


def content(uri: str, file: Path) -> None:
    """Raise UserError if a file is no database, or the database of another program or another MLflow."""
    import sqlite3

    other = "it is left as it is; set tracking.uri=sqlite:///…"
    try:
        try:
            tables, revisions = read(file, "ro")
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_READONLY"):
                raise
            # A process was killed while it wrote. The next process that opens the file for writing rolls that back.
            tables, revisions = read(file, "rw")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            # MLflow waits longer for the lock.
            return
        raise refusal(uri, f"{error}; {other}") from error
    except sqlite3.DatabaseError as error:
        raise refusal(uri, f"{file} is damaged, or no database ({error}); {other}") from error
    if tables:
        schema(uri, tables, revisions)


def read(file: Path, mode: str) -> tuple[set[str], list[str]]:
    """Return the names of a database's tables and, if they are MLflow's, the revisions of their schema."""
    import sqlite3

    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode={mode}", uri=True, timeout=SECONDS)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        marks = connection.execute("SELECT version_num FROM alembic_version") if tables >= TABLES else []
        return tables, [revision for (revision,) in marks]


def schema(uri: str, tables: set[str], revisions: list[str]) -> None:
    """Raise UserError if tables are not MLflow's, or their schema is not that of the installed MLflow."""
    if not tables >= TABLES:
        raise refusal(uri, "it is the database of another program, and left as it is; name another with tracking.uri=…")
    from runner.tracking.store.database import REVISIONS

    if revisions and revisions[0] in REVISIONS:
        return
    import mlflow
    from mlflow.store.db.utils import _get_latest_schema_revision

    if revisions == [_get_latest_schema_revision()]:
        return
    known = Path(mlflow.__file__).parent.glob(f"store/db_migrations/versions/{revisions[0]}_*.py") if revisions else ()
    if any(known):
        remedy = f"back it up and run: mlflow db upgrade {uris.hidden(uri)}"
    else:
        remedy = "install the MLflow that wrote it, or name another store with tracking.uri=…"
    raise refusal(uri, f"its schema is that of another MLflow ({', '.join(revisions) or 'none'}); {remedy}")


def postgresql(uri: str, error: BaseException) -> UserError:
    """Return the UserError for an error of the database or its driver."""
    user, place = login(uri)
    text = first_line(error)
    if isinstance(error, ModuleNotFoundError):
        if error.name in EXTRAS:
            return refusal(uri, f"its driver is missing{text.partition('; ')[2] and '; ' + text.partition('; ')[2]}")
        return refusal(uri, f"its driver {error.name} is missing; write postgresql+psycopg://…")
    said = fatal(text)
    if any(words in text for words in ("authentication failed", "no password supplied", "does not exist")):
        remedy = "create it, or name another" if "database" in said else "give the password by PGPASSWORD"
        return refusal(uri, f"login failed for user {user} at {place}: {said}; {remedy}")
    if crowded(error):
        remedy = "wait until other runs have ended, or raise its max_connections: a run holds two"
        return refusal(uri, f"{said} at {place}; {remedy}")
    if "timeout" in text:
        return refusal(uri, f"no answer of {place} within {SECONDS} s; start the server or set tracking.uri=sqlite:///…")
    if "refused" in text:
        return refusal(uri, f"connection refused by {place}; start the server or set tracking.uri=sqlite:///…")
    return refusal(uri, f"{said}; start the server or set tracking.uri=sqlite:///…")


def login(uri: str) -> tuple[str | None, str]:
    """Return the user and the address of a database, as far as its URI can be read."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        return None, uris.hidden(uri)
    return url.username, f"{url.host or 'localhost'}:{url.port or 5432}/{url.database or ''}"


def fatal(text: str) -> str:
    """Return the server's message, without the text that its driver and SQLAlchemy add."""
    found = re.search(r"FATAL: +(.*?)(?= connection to server| Multiple connection| \(Background|$)", text)
    return found[1] if found else text


def connect_args(uri: str) -> Mapping[str, Any]:
    """Return the driver's arguments that limit the wait for a connection."""
    driver = uri.partition(":")[0].partition("+")[2]
    return {"connect_timeout": SECONDS} if driver in ("", "psycopg", "psycopg2") else {}
