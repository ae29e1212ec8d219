"""Runs whose spools are listed as pending: whose they are, and what they came to, for no store tells of them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from runner.tracking import contract, journal
from runner.tracking.store import parent_runs


class Unsent(NamedTuple):
    """A run: by what it is known, when it began, in ms since 1970, where its spool is, and the frames of that."""

    identity: str
    key: str
    began: int
    folder: Path
    frames: Iterator[journal.Frame]


def of(pending: Path, identities: Set[str] | None = None) -> Iterator[Unsent]:
    """Yield the runs that are listed there, those of these identities or of any."""
    for key, folder in journal.pointers(pending):
        # What is listed may be sent and removed meanwhile, or not be there now.
        with suppress(OSError), (folder / journal.FILE).open("rb") as file:
            read = journal.frames(file)
            first = next(read, None)
            identity = first and first.message.fields["about"]["tags"].get("identity")
            if first and identity and (identities is None or identity in identities):
                yield Unsent(identity, key, first.at, folder, chain([first], read))


def interrupted(pending: Path, identity: str) -> list[dict[str, Any]]:
    """Return the runs of this identity that did not end of themselves, the newest first."""
    found = [run for run in of(pending, {identity}) if came_to(run.frames)["status"] in ("KILLED", "RUNNING")]
    found.sort(key=lambda run: run.began, reverse=True)
    return [{"run_id": None, "folder": str(run.folder), "run_key": run.key} for run in found]


def known(pending: Path) -> dict[str, dict[str, Any]]:
    """Return the latest run of each identity, a finished one before all others."""
    found = sorted(((run.began, run.identity, came_to(run.frames)) for run in of(pending)), key=lambda each: each[0])
    return parent_runs.latest((identity, run) for _, identity, run in found)


def came_to(frames: Iterator[journal.Frame]) -> dict[str, Any]:
    """Return what a store would say of a run after the last of its messages, without which it is RUNNING."""
    said: dict[str, Any] = {"status": "FAILED", "tags": {}}
    ended = False
    for word, fields, _ in (frame.message for frame in frames):
        ended = word == "end"
        if word in ("finish", "fail"):
            said = fields
    status = said.get("status") or contract.status_of(said["tags"])
    return parent_runs.fields(None, status if ended else "RUNNING", said["tags"], said.get("metrics", {}))
