"""Runs whose spools are listed as pending: whose they are, and which were interrupted, for no store tells of them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from runner import spool


def of(pending: Path, identities: Set[str]) -> Iterator[tuple[str, Path, Iterator[spool.Frame]]]:
    """Yield the runs of these identities that are listed there: their keys, folders, and frames."""
    for pointer in (each for each in pending.glob("*") if each.is_file()):
        # What is listed may be sent and removed meanwhile.
        with suppress(FileNotFoundError):
            folder = Path(pointer.read_text().strip())
            with (folder / spool.FILE).open("rb") as file:
                read = spool.frames(file)
                first = next(read, None)
                if first and first.message.fields["about"]["tags"].get("identity") in identities:
                    yield pointer.name, folder, chain([first], read)


def interrupted(pending: Path, identity: str) -> list[dict[str, Any]]:
    """Return the runs of this identity that did not end of themselves, the newest first."""
    found = []
    for run_key, folder, read in of(pending, {identity}):
        began = next(read).at
        if not finished(read):
            found.append((began, {"run_id": None, "folder": str(folder), "run_key": run_key}))
    return [run for _, run in sorted(found, key=lambda each: each[0], reverse=True)]


def finished(read: Iterator[spool.Frame]) -> bool:
    """Tell whether a run ended of itself, by the last of its messages: it has a result, or has failed."""
    killed, ended = False, False
    for word, fields, _ in (frame.message for frame in read):
        ended = word == "end"
        if word in ("finish", "fail"):
            killed = fields.get("status") == "KILLED" or fields["tags"].get("ending") == "interrupted"
    return ended and not killed
