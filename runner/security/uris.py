"""URIs of tracking stores: the password in one, and the file of an SQLite store.

SQLAlchemy takes %41 in a URI for A, and all from the first ? on for options.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from runner.system import started

SQLITE = "sqlite:///"
# A password: USER:…@HOST, which may hold an @ of its own, or ?password=….
SECRET = re.compile(r"(?P<before>://[^:/?#]*:|[?&]password=)(?P<secret>(?<=:).*(?=@)|(?<==)[^&#]+)")


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


def hidden(uri: str) -> str:
    """Return a URI with *** for its password."""
    return SECRET.sub(r"\g<before>***", uri)


def password(uri: str) -> str:
    """Return the password in a URI as it stands there, or an empty text."""
    found = SECRET.search(uri)
    return found["secret"] if found else ""
