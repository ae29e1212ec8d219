"""Heartbeats, and the runs that are ended for want of one: those of the dead, once, and nobody else's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import servers

from runner.system import processes
from runner.tracking import store
from runner.tracking.store import heartbeat


@pytest.fixture(scope="module", params=["sqlite", "http"])
def client(request, tmp_path_factory, migrated) -> Iterator:
    """Give a client of a new store, which is an SQLite file or a server."""
    folder = tmp_path_factory.mktemp("alive")
    uri = f"sqlite:///{shutil.copy(migrated, folder)}"
    if request.param == "sqlite":
        yield store.client_of(uri)
    else:
        with servers.mlflow(uri, folder) as address:
            yield store.client_of(address)


def started(client, **tags: str) -> str:
    """Create a run that last beat an hour ago, in a process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    beat = {
        "heartbeat": repr(time.time() - 3600),
        "heartbeat_every": "1.0",
        "host": socket.gethostname(),
        "machine": processes.machine(),
    }
    return client.create_run("0", tags={**beat, "pid": f"{process.pid}:1", **tags}).info.run_id


def status(client, run_id: str) -> str:
    return client.get_run(run_id).info.status


def test_only_the_dead_are_ended_and_each_once(client):
    me = os.getpid()
    dead = [started(client), started(client, host="another container, which had this one's processes")]
    # A process that has the number of one that has ended.
    dead.append(started(client, pid=f"{me}:1"))
    live = [
        started(client, pid=f"{me}:{processes.start_of(me)}"),
        # Its beat of an hour ago may be its machine's now.
        started(client, machine="elsewhere", heartbeat_every="100.0"),
        # An hour is less than 2 x 2000 + 1 seconds.
        started(client, heartbeat_every="2000.0"),
        started(client, heartbeat="soon"),
        client.create_run("0").info.run_id,
    ]
    finished = started(client)
    client.set_terminated(finished, "FINISHED")
    found: list[str] = []
    reapers = [threading.Thread(target=lambda: found.extend(heartbeat.reap(client))) for _ in range(2)]
    for each in reapers:
        each.start()
    for each in reapers:
        each.join()
    if hasattr(client._tracking_client.store, "engine"):
        assert sorted(found) == sorted(dead)
    assert set(found) == set(dead)
    for run_id in dead:
        run = client.get_run(run_id)
        assert run.info.status == "KILLED" and run.info.end_time == int(float(run.data.tags["heartbeat"]) * 1000)
        assert [run.data.tags[key] for key in ("ending", "stopped_by", "end_reason")] == ["interrupted", "stale", "stale"]
    assert {status(client, run_id) for run_id in live} == {"RUNNING"} and status(client, finished) == "FINISHED"
    assert heartbeat.reap(client) == [] and heartbeat.reap(client, "0") == []


def test_a_heart_beats_until_its_block_ends(client):
    run_id = client.create_run("0", tags=heartbeat.first_tags(0.2, os.getpid())).info.run_id

    def beat() -> float:
        return float(client.get_run(run_id).data.tags["heartbeat"])

    with heartbeat.Heart(client, run_id, 0.2):
        first, began = beat(), time.time()
        while beat() == first:
            assert time.time() - began < 10
        tags = client.get_run(run_id).data.tags
        assert tags["host"] == socket.gethostname() and tags["pid"] == f"{os.getpid()}:{processes.start_of(os.getpid())}"
        assert tags["heartbeat_every"] == "0.2" and abs(beat() - time.time()) < 10
    time.sleep(0.5)
    last = beat()
    time.sleep(0.5)
    assert beat() == last


def test_a_store_that_is_gone_does_not_stop_a_heart(tmp_path):
    class Gone:
        calls = 0

        def set_tag(self, run_id: str, key: str, value: str) -> None:
            self.calls += 1
            raise ConnectionError("gone")

    gone = Gone()
    with heartbeat.Heart(gone, "run", 0.01) as heart:
        while gone.calls < 3:
            assert heart.thread.is_alive()
            time.sleep(0.01)


@pytest.mark.parametrize("ahead", [-3600, 0, 60])
def test_a_run_of_another_machine_is_ended_when_its_silence_was_seen_whatever_its_clock(client, monkeypatch, ahead):
    now, later = time.time, 0

    def beat() -> str:
        # A moment ago, by a clock that goes so far behind this one.
        return repr(time.time() - ahead)

    monkeypatch.setattr(heartbeat.time, "time", lambda: now() + later)
    keys = {"machine": "elsewhere", "heartbeat_every": "10.0"}
    live, dead = (started(client, heartbeat=beat(), **keys) for _ in range(2))
    found = []
    for later in range(0, 80, 10):
        client.set_tag(live, "heartbeat", beat())
        found += heartbeat.reap(client)
        # The first look takes note at most.
        assert later or not found
    assert found == [dead] and status(client, live) == "RUNNING"
    client.set_terminated(live)


def test_a_run_that_is_watched_is_silent_or_is_not(client):
    dead, live = (started(client) for _ in range(2))
    beat = client.get_run(live).data.tags["heartbeat"]
    with heartbeat.Heart(client, live, 0.1):
        assert not heartbeat.still(client, live, beat, 1)
    assert heartbeat.still(client, dead, client.get_run(dead).data.tags["heartbeat"], 0.1)
    client.set_terminated(dead)
    client.set_terminated(live)


def test_a_run_that_was_ended_for_a_silence_takes_that_back(client):
    run_id = client.create_run("0", tags=heartbeat.first_tags(0.2, os.getpid())).info.run_id
    end = heartbeat.end_by_sql if hasattr(client._tracking_client.store, "engine") else heartbeat.end_by_call
    heart = heartbeat.Heart(client, run_id, 0.1)
    waits = iter([lambda: end(client, run_id, client.get_run(run_id).data.tags["heartbeat"]) and time.sleep(1), lambda: None])
    heart.over.wait = lambda _: (next(waits, heart.over.set)(), heart.over.is_set())[1]
    heart.go_on()
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING" and not {*heartbeat.STALE} & {*run.data.tags}
    # Not of one that has ended since.
    end(client, run_id, run.data.tags["heartbeat"])
    heart.come_back()
    assert status(client, run_id) == "KILLED"


def test_a_store_of_ten_thousand_finished_runs_is_looked_through_at_once(tmp_path, migrated):
    client = store.client_of(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)"
    runs = f"""{numbers} INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id)
        SELECT printf('%032x', i), 'run', 'FINISHED', 0, 1, 'active', 0 FROM n"""
    tags = f"""{numbers}, k(name) AS (VALUES ('heartbeat'), ('heartbeat_every'), ('host'), ('pid'), ('ending'), ('identity'))
        INSERT INTO tags (key, value, run_uuid) SELECT name, 1, printf('%032x', i) FROM n, k"""
    with client._tracking_client.store.engine.begin() as connection:
        connection.exec_driver_sql(runs)
        connection.exec_driver_sql(tags)
    run_id = started(client)
    times = []
    for expected in ([run_id], [], [], []):
        began = time.perf_counter()
        assert heartbeat.reap(client) == expected
        times.append(time.perf_counter() - began)
    # A query for each of them would take seconds.
    assert min(times) < 1
