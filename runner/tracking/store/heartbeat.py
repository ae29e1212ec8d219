"""Heartbeats: each run writes one every few seconds, and the next process that looks ends the runs that have fallen silent.

Clocks of two machines are not compared. A run of another machine is silent if its heartbeat does not change from one look to
the next, by the clock of this machine. A run that was suspended, and ended as silent, takes that end back.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from runner.system import processes

# The tags of a run: its last heartbeat in Unix seconds, the seconds between two, and its process and machine.
BEAT, EVERY, HOST, PID, MACHINE = "heartbeat", "heartbeat_every", "host", "pid", "machine"
# The tags of a run that was ended as silent.
STALE = {
    "ending": "interrupted",
    "stopped_by": "stale",
    "end_reason": "stale",
    "mlflow.note.content": "**interrupted**: the run's process has fallen silent",
}
# Runs that one page of a search brings.
PAGE = 1000
# A clock that goes on while this machine, or this process, sleeps.
AWAKE = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Heart:
    """Writes the heartbeat of a run every `every` seconds within its block. The run has its first tags already."""

    def __init__(self, client: Any, run_id: str, every: float) -> None:
        self.client, self.run_id, self.every = client, run_id, every
        self.over, self.returning = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self.go_on, name=f"heart of {run_id}", daemon=True)

    def __enter__(self) -> Heart:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the heartbeat, and wait for a `come_back` under way: it must not reopen a run that ends now.

        A heartbeat under way is not waited for, since the server may be gone.
        """
        self.over.set()
        with self.returning:
            return

    def go_on(self) -> None:
        """Write heartbeats until `stop`."""
        last = time.clock_gettime(AWAKE)
        while not self.over.wait(self.every):
            # Other calls report a store that cannot be reached.
            with suppress(Exception):
                self.client.set_tag(self.run_id, BEAT, repr(time.time()))
                if time.clock_gettime(AWAKE) - last > patience(self.every) / 2:
                    self.come_back()
                last = time.clock_gettime(AWAKE)

    def come_back(self) -> None:
        """Reopen the run if it was ended as silent."""
        with self.returning:
            run = self.client.get_run(self.run_id)
            if self.over.is_set() or run.info.status == "RUNNING" or run.data.tags.get("end_reason") != STALE["end_reason"]:
                return
            for name in {*STALE} & {*run.data.tags}:
                self.client.delete_tag(self.run_id, name)
            self.client.update_run(self.run_id, "RUNNING")


def patience(every: float) -> float:
    """Return for how many seconds a run with this interval between heartbeats may be silent."""
    return 2 * every + 1


def first_tags(every: float, pid: int) -> dict[str, str]:
    """Return the heartbeat tags of a new run, whose process on this machine is `pid`."""
    process = {HOST: socket.gethostname(), PID: f"{pid}:{processes.start_of(pid)}", MACHINE: processes.machine()}
    return {BEAT: repr(time.time()), EVERY: repr(float(every)), **process}


def dead(tags: Mapping[str, str], now: float) -> bool:
    """Return whether a run with these tags is silent and, for a run of this machine, its process is gone.

    A run of this machine is silent if its last heartbeat is old. A run of another machine is silent if this machine has seen no
    new heartbeat for as long.

    Raises KeyError or ValueError if the tags are missing or invalid.
    """
    wait = patience(float(tags[EVERY]))
    if here(tags):
        pid, _, start = tags[PID].partition(":")
        return now - float(tags[BEAT]) > wait and processes.start_of(int(pid)) != start
    beat, _, since = tags.get(seen(), "").partition(" ")
    return beat == tags[BEAT] and now - float(since) > wait


def here(tags: Mapping[str, str]) -> bool:
    """Return whether a run is of this machine, where its process is known by its number."""
    return bool(processes.machine()) and tags.get(MACHINE) == processes.machine()


def suspect(tags: Mapping[str, str], now: float) -> bool:
    """Return whether a run of another machine looks silent, and this heartbeat is not noted yet; raises as `dead` does."""
    noted = tags.get(seen(), "").partition(" ")[0] == tags[BEAT]
    return not here(tags) and not noted and abs(now - float(tags[BEAT])) > patience(float(tags[EVERY]))


def seen() -> str:
    """Return the tag in which this machine notes the last heartbeat it has seen, and since when by its clock."""
    name = processes.machine() or socket.gethostname()
    return f"seen.{zlib.crc32(name.encode()):08x}"


def still(client: Any, run_id: str, beat: str, every: float, sleep: Callable[[float], Any] = time.sleep) -> bool:
    """Watch a run for `patience(every)` seconds, and return whether its heartbeat remains `beat`."""
    until = time.monotonic() + patience(every)
    while (left := until - time.monotonic()) > 0:
        sleep(min(left, 1.0))
        if client.get_run(run_id).data.tags.get(BEAT) != beat:
            return False
    return True


def reap(client: Any, experiment_id: str | None = None) -> list[str]:
    """End the silent runs of a store, or of an experiment, as KILLED, and return their ids.

    Several processes may do so at once; in a database, only one of them ends a run. The silence of a run of another machine is
    noted first.
    """
    store = client._tracking_client.store
    database = hasattr(store, "engine")
    found = by_sql(store, experiment_id) if database else by_search(client, experiment_id)
    end: Callable[[Any, str, str], bool] = end_by_sql if database else end_by_call
    ended = []
    for run_id, tags in found:
        # Another program may have written the tags.
        with suppress(KeyError, ValueError):
            if dead(tags, time.time()):
                ended += [run_id] if end(client, run_id, tags[BEAT]) else []
            elif suspect(tags, time.time()):
                # Another process may note the same at this moment.
                with suppress(Exception):
                    client.set_tag(run_id, seen(), f"{tags[BEAT]} {time.time()!r}")
    return ended


def by_sql(store: Any, experiment_id: str | None) -> list[tuple[str, dict[str, str]]]:
    """Return the RUNNING runs and their heartbeat tags, by one query of a database."""
    from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag
    from sqlalchemy import select

    keys = (BEAT, EVERY, HOST, PID, MACHINE, seen())
    query = (
        select(SqlRun.run_uuid, SqlTag.key, SqlTag.value)
        .join(SqlTag, SqlTag.run_uuid == SqlRun.run_uuid)
        .where(SqlRun.status == "RUNNING", SqlRun.lifecycle_stage == "active", SqlTag.key.in_(keys))
    )
    if experiment_id is not None:
        query = query.where(SqlRun.experiment_id == int(experiment_id))
    runs: dict[str, dict[str, str]] = {}
    with store.ManagedSessionMaker() as session:
        for run_id, key, value in session.execute(query):
            runs.setdefault(run_id, {})[key] = value
    return list(runs.items())


def by_search(client: Any, experiment_id: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the RUNNING runs that have a heartbeat, and their tags, by MLflow's own search."""
    experiments = [experiment_id] if experiment_id else [each.experiment_id for each in client.search_experiments()]
    words, token = f"attributes.status = 'RUNNING' and tags.{BEAT} LIKE '%'", None
    while True:
        page = client.search_runs(experiments, words, max_results=PAGE, page_token=token)
        yield from ((run.info.run_id, dict(run.data.tags)) for run in page)
        token = page.token
        if not token:
            return


def end_by_sql(client: Any, run_id: str, beat: str) -> bool:
    """End a run if its last heartbeat is this one, and return whether this call ended it."""
    from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag
    from sqlalchemy import exists, update

    same = exists().where(SqlTag.run_uuid == run_id, SqlTag.key == BEAT, SqlTag.value == beat)
    running = update(SqlRun).where(SqlRun.run_uuid == run_id, SqlRun.status == "RUNNING", same)
    ended = running.values(status="KILLED", end_time=int(float(beat) * 1000))
    with client._tracking_client.store.ManagedSessionMaker(read_only=False) as session:
        done = session.execute(ended.execution_options(synchronize_session=False)).rowcount == 1
        if done:
            for key, value in STALE.items():
                session.merge(SqlTag(run_uuid=run_id, key=key, value=value))
    return done


def end_by_call(client: Any, run_id: str, beat: str) -> bool:
    """End a run through MLflow's own interface if it is RUNNING and its last heartbeat is this one; see `end_by_sql`."""
    run = client.get_run(run_id)
    if run.info.status != "RUNNING" or run.data.tags.get(BEAT) != beat:
        return False
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in STALE.items()])
    client.set_terminated(run_id, "KILLED", int(float(beat) * 1000))
    return True
