"""An SQLite store's URI and its file: SQLAlchemy takes %41 in a URI for A, and all from the first ? on for options."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from runner import started

SQLITE = "sqlite:///"


def file_of(uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for another store."""
    if not uri.startswith(SQLITE):
        return None
    return started.absolute(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def uri_of(file: Path, options: str = "") -> str:
    """Return the URI of a file."""
    return SQLITE + str(file).replace("%", "%25").replace("?", "%3F") + (f"?{options}" if options else "")


def absolute(uri: str) -> str:
    """Return a URI that means the same from every folder; that of another store is left as it is."""
    file = file_of(uri)
    return uri if file is None else uri_of(file, uri.partition("?")[2])
