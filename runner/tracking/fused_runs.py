"""Record the runs of fused jobs: in bulk into a database, one by one into any other store.

A run that a store does not accept stays in the journal in its folder, from where it can be sent.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import UserError, first_line
from runner.system import folders
from runner.tracking import contract, journal, replay, store
from runner.tracking.store import bulk_runs, database, runs, writers
from runner.tracking.store.retry import Policy, Retry

# Stores that did not accept everything from the last `record`. They are asked once, and not waited for.
SILENT: set[str] = set()


class Sent(NamedTuple):
    """The id of a run, if it has one yet, and one line that says why the run is not wholly in the store, or None."""

    run_id: str | None
    left: str | None = None


def record(keys: Mapping[str, Any], jobs: Sequence[bulk_runs.Job], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Record whole runs. Return their ids, how many could not be sent, and why the first of these could not.

    A store that fails is asked again, `flush_timeout` seconds long.
    """
    began, at = time.monotonic(), contract.clock()
    retry = Policy(0 if keys["uri"] in SILENT else keys["flush_timeout"], lambda: began)
    # A run that has a journal already is continued in it.
    together = [job for job in jobs if journal.run_key(job.about.folder) != job.key]
    # Fixed times: if the store took the rows and only its answer was lost, the retry sends identical rows.
    times = dict(zip((job.key for job in together), bulk_runs.times(at, len(together)), strict=True))
    left, sent, unkept = None, {}, {}
    try:
        client, experiment_id, insert = retry(partial(reached, keys))
        if insert is not None and together:
            unkept = retry(partial(into_database, client, insert, experiment_id, together, at, settings))
            sent = {job.key: Sent(job.key) for job in together if job.key not in unkept}
    except Exception as error:
        left = first_line(error)
    for job in jobs:
        if job.key in unkept:
            spooled = by_spool(job, {**keys, **settings}, times[job.key], retry, unkept[job.key])
            sent[job.key] = spooled._replace(run_id=job.key)
        elif job.key not in sent:
            sent[job.key] = by_spool(job, {**keys, **settings}, times.get(job.key, at), retry, left)
            left = left or sent[job.key].left
    (SILENT.add if left else SILENT.discard)(keys["uri"])
    unsent = sum(each.left is not None for each in sent.values())
    return {
        "run_ids": [sent[job.key].run_id for job in jobs],
        "unsent": unsent,
        "left": left or next(iter(unkept.values()), None),
    }


def reached(keys: Mapping[str, Any]) -> tuple[Any, str, database.Insert | None]:
    """Return a client, the experiment's id, and the function that inserts into a database, if it is one; raises OSError."""
    try:
        client, experiment_id = store.opened(keys["uri"], keys["experiment"])
    except UserError as error:
        # The store worked when the sweep began.
        raise ConnectionError(first_line(error)) from error
    return client, experiment_id, writers.direct(client)


def into_database(
    client: Any,
    insert: database.Insert,
    experiment_id: str,
    jobs: Sequence[bulk_runs.Job],
    at: int,
    settings: Mapping[str, Any],
) -> dict[str, str]:
    """Insert runs together, unless this was done before; raises OSError if another process is inserting them.

    Returns by run key why the files of a run could not be stored.
    """
    try:
        if not bulk_runs.there(client, jobs, at):
            return bulk_runs.record(client, insert, experiment_id, jobs, at, **settings)
    except Exception as error:
        # An earlier process of these jobs may have died, and its recorder may be completing them.
        if type(error.__cause__).__name__ == "IntegrityError":
            raise ConnectionError(first_line(error)) from error
        raise
    return {}


def by_spool(job: bulk_runs.Job, keys: Mapping[str, Any], at: int, retry: Retry, left: str | None) -> Sent:
    """Append the missing messages to a run's journal, and send it, unless `left` gives the reason why this would fail."""
    folder = job.about.folder
    folders.claim(folder, "set hydra.sweep.dir=another")
    try:
        lock = journal.Lock(folder, "sending", journal.PATIENCE)
    except journal.Held as held:
        holder = f"process {held.holder.get('pid')} on {held.holder.get('host')}"
        raise UserError(f"{folder} is held by {holder}; wait for it, and give the same command again") from held
    try:
        new = journal.run_key(folder) != job.key
        if new:
            # The folder may hold the journal of another run, from an earlier sweep.
            journal.set_aside(folder, Path(keys["pending"]))
        said = runs.Begin(job.about, job.key, socket.gethostname(), {**keys, "uri": store.absolute(keys["uri"])})
        write(folder, said, job, at)
        return Sent(None, left) if left else send(folder, said, at, new, retry)
    finally:
        lock.release(remove=not (folder / journal.FILE).exists())


def write(folder: Path, said: runs.Begin, job: bulk_runs.Job, at: int) -> None:
    """Write or continue a run's journal, all with time `at`. Its replay replaces the run's data in a database."""
    rows, made = job.rows[journal.recorded(folder) :], journal.Spool(folder)
    made.say("begin", {**said._asdict(), "about": contract.fields_of(said.about), "whole": True}, at=at)
    if len(rows):
        made.say("record", *journal.row_fields(rows), at=at)
    made.say("finish", {"tags": job.tags, "metrics": job.metrics}, at=at)
    made.say("end", {}, at=at)
    made.close()
    journal.Pointer(Path(said.keys["pending"]), said.run_key).write(folder)


def send(folder: Path, said: runs.Begin, at: int, new: bool, retry: Retry) -> Sent:
    """Replay a run's journal to the store. The journal is removed if all of it has arrived."""
    try:
        run = replay.Run(*said.run(retry, at, new=new), retry)
    except Exception as error:
        return Sent(None, first_line(error))
    with (folder / journal.FILE).open("rb") as file:
        return Sent(
            run.run_id, replay.play(replay.Player(folder, Path(said.keys["pending"]), retry, run), journal.frames(file))
        )
