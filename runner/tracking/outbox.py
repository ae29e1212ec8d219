"""The outbox: runs that are still only in a local journal, with their config digest and their result so far."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from runner.tracking import contract, journal
from runner.tracking.store import parent_runs


class Unsent(NamedTuple):
    """A run in the outbox: config digest, key, time of its begin in ms since 1970, folder and frames of its journal."""

    identity: str
    key: str
    began: int
    folder: Path
    frames: Iterator[journal.Frame]


def of(pending: Path, identities: Set[str] | None = None) -> Iterator[Unsent]:
    """Yield the runs in the outbox, all or those with these config digests."""
    for key, folder in journal.pointers(pending):
        # A listed journal may be sent and removed meanwhile, or be unavailable.
        with suppress(OSError), (folder / journal.FILE).open("rb") as file:
            read = journal.frames(file)
            first = next(read, None)
            identity = first and first.message.fields["about"]["tags"].get("identity")
            if first and identity and (identities is None or identity in identities):
                yield Unsent(identity, key, first.at, folder, chain([first], read))


def interrupted(pending: Path, identity: str) -> list[dict[str, Any]]:
    """Return the runs with this config digest that are KILLED or RUNNING, the newest first."""
    found = [run for run in of(pending, {identity}) if came_to(run.frames)["status"] in ("KILLED", "RUNNING")]
    found.sort(key=lambda run: run.began, reverse=True)
    return [{"run_id": None, "folder": str(run.folder), "run_key": run.key} for run in found]


def known(pending: Path) -> dict[str, dict[str, Any]]:
    """Return the latest run of each config digest; a finished run goes before all others."""
    found = sorted(((run.began, run.identity, came_to(run.frames)) for run in of(pending)), key=lambda each: each[0])
    return parent_runs.latest((identity, run) for _, identity, run in found)


def came_to(frames: Iterator[journal.Frame]) -> dict[str, Any]:
    """Return the fields that a store would have of a run after its last message; without `end` the run is RUNNING."""
    said: dict[str, Any] = {"status": "FAILED", "tags": {}}
    ended = False
    for word, fields, _ in (frame.message for frame in frames):
        ended = word == "end"
        if word in ("finish", "fail"):
            said = fields
    status = said.get("status") or contract.status_of(said["tags"])
    return parent_runs.fields(None, status if ended else "RUNNING", said["tags"], said.get("metrics", {}))
