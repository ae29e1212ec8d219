"""URIs of tracking stores: the password in one, and the file of an SQLite store.

SQLAlchemy decodes %41 in a URI to A, and reads the text after the first ? as options.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from runner.system import started

SQLITE = "sqlite:///"
# A password: USER:…@HOST, which may itself contain an @, or ?password=….
SECRET = re.compile(r"(?P<before>://[^:/?#]*:|[?&]password=)(?P<secret>(?<=:).*(?=@)|(?<==)[^&#]+)")


def file_of(uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for another store."""
    if not uri.startswith(SQLITE):
        return None
    return started.absolute(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def uri_of(file: Path, options: str = "") -> str:
    """Return the URI of an SQLite file."""
    return SQLITE + str(file).replace("%", "%25").replace("?", "%3F") + (f"?{options}" if options else "")


def absolute(uri: str) -> str:
    """Return an SQLite store's URI with an absolute path; any other URI unchanged."""
    file = file_of(uri)
    return uri if file is None else uri_of(file, uri.partition("?")[2])


def hidden(uri: str) -> str:
    """Return a URI with its password replaced by ***."""
    return SECRET.sub(r"\g<before>***", uri)


def password(uri: str) -> str:
    """Return the password in a URI as it is written there, or an empty string."""
    found = SECRET.search(uri)
    return found["secret"] if found else ""
