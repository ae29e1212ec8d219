"""Which runs are still alive: each says so every few seconds, and one that has fallen silent is ended by whoever comes next."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.processes import start_of

# The tags of a run: when it was last alive, in Unix seconds, how often it says so, and which process of which host it is.
BEAT, EVERY, HOST, PID = "heartbeat", "heartbeat_every", "host", "pid"
# The tags of a run that has fallen silent.
STALE = {
    "ending": "interrupted",
    "stopped_by": "stale",
    "end_reason": "stale",
    "mlflow.note.content": "**interrupted**: the run's process has fallen silent",
}
# Runs that one page of a search brings.
PAGE = 1000


class Heart:
    """Says of a run that has its first tags, while this block lasts, that it is alive, every so many seconds."""

    def __init__(self, client: Any, run_id: str, every: float) -> None:
        self.client, self.run_id, self.every = client, run_id, every
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.go_on, name=f"heart of {run_id}", daemon=True)

    def __enter__(self) -> Heart:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Say no more; a beat under way is left to end by itself, for a server may be gone."""
        self.over.set()

    def go_on(self) -> None:
        """Beat until it is over."""
        while not self.over.wait(self.every):
            # That a store cannot be reached is for others to find out.
            with suppress(Exception):
                self.client.set_tag(self.run_id, BEAT, repr(time.time()))


def first_tags(every: float, pid: int) -> dict[str, str]:
    """Return what a run of a process of this host is known by while it is alive, from its creation on."""
    process = f"{pid}:{start_of(pid)}"
    return {BEAT: repr(time.time()), EVERY: repr(float(every)), HOST: socket.gethostname(), PID: process}


def dead(tags: Mapping[str, str], now: float) -> bool:
    """Tell whether a run with these tags is silent for two beats and a second, and its process, if of this host, is gone."""
    try:
        silent = now - float(tags[BEAT]) > 2 * float(tags[EVERY]) + 1
        pid, _, start = tags[PID].partition(":")
        here = tags[HOST] == socket.gethostname() and Path(f"/proc/{os.getpid()}").exists()
        return silent and not (here and start_of(int(pid)) == start)
    except (KeyError, ValueError):
        return False


def reap(client: Any, experiment_id: str | None = None) -> list[str]:
    """End the runs of a store, or of an experiment, that have fallen silent, as KILLED, and return their ids.

    Several may do so at once: each run is ended by one of them.
    """
    store = client._tracking_client.store
    database = hasattr(store, "engine")
    found = by_sql(store, experiment_id) if database else by_search(client, experiment_id)
    end: Callable[[Any, str, str], bool] = end_by_sql if database else end_by_call
    return [run_id for run_id, tags in found if dead(tags, time.time()) and end(client, run_id, tags[BEAT])]


def by_sql(store: Any, experiment_id: str | None) -> list[tuple[str, dict[str, str]]]:
    """Return the RUNNING runs that have a heartbeat, and the tags that tell of it, in one query of a database."""
    from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag
    from sqlalchemy import select

    query = (
        select(SqlRun.run_uuid, SqlTag.key, SqlTag.value)
        .join(SqlTag, SqlTag.run_uuid == SqlRun.run_uuid)
        .where(SqlRun.status == "RUNNING", SqlRun.lifecycle_stage == "active", SqlTag.key.in_((BEAT, EVERY, HOST, PID)))
    )
    if experiment_id is not None:
        query = query.where(SqlRun.experiment_id == int(experiment_id))
    runs: dict[str, dict[str, str]] = {}
    with store.ManagedSessionMaker() as session:
        for run_id, key, value in session.execute(query):
            runs.setdefault(run_id, {})[key] = value
    return list(runs.items())


def by_search(client: Any, experiment_id: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the same by MLflow's own search."""
    experiments = [experiment_id] if experiment_id else [each.experiment_id for each in client.search_experiments()]
    words, token = f"attributes.status = 'RUNNING' and tags.{BEAT} LIKE '%'", None
    while True:
        page = client.search_runs(experiments, words, max_results=PAGE, page_token=token)
        yield from ((run.info.run_id, dict(run.data.tags)) for run in page)
        token = page.token
        if not token:
            return


def end_by_sql(client: Any, run_id: str, beat: str) -> bool:
    """End a run whose last beat is this one, and tell whether it was this call that did."""
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
    """End a run through MLflow's own interface, where it is RUNNING yet and has not beaten since; see `end_by_sql`."""
    run = client.get_run(run_id)
    if run.info.status != "RUNNING" or run.data.tags.get(BEAT) != beat:
        return False
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in STALE.items()])
    client.set_terminated(run_id, "KILLED", int(float(beat) * 1000))
    return True
