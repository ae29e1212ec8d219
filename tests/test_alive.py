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

from runner import alive, store


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
    """Create a run that last beat an hour ago, in a process of this host that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    beat = {"heartbeat": repr(time.time() - 3600), "heartbeat_every": "1.0", "host": socket.gethostname()}
    return client.create_run("0", tags={**beat, "pid": f"{process.pid}:1", **tags}).info.run_id


def status(client, run_id: str) -> str:
    return client.get_run(run_id).info.status


def test_only_the_dead_are_ended_and_each_once(client):
    me = os.getpid()
    dead = [started(client), started(client, host="elsewhere")]
    # A process that has the number of one that has ended.
    dead.append(started(client, pid=f"{me}:1"))
    live = [
        started(client, pid=f"{me}:{alive.start_of(me)}"),
        # An hour is less than 2 x 2000 + 1 seconds.
        started(client, heartbeat_every="2000.0", host="elsewhere"),
        started(client, heartbeat="soon"),
        client.create_run("0").info.run_id,
    ]
    finished = started(client)
    client.set_terminated(finished, "FINISHED")
    found: list[str] = []
    reapers = [threading.Thread(target=lambda: found.extend(alive.reap(client))) for _ in range(2)]
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
    assert alive.reap(client) == [] and alive.reap(client, "0") == []


def test_a_heart_beats_until_its_block_ends(client):
    run_id = client.create_run("0", tags=alive.first_tags(0.2, os.getpid())).info.run_id

    def beat() -> float:
        return float(client.get_run(run_id).data.tags["heartbeat"])

    with alive.Heart(client, run_id, 0.2):
        first, began = beat(), time.time()
        while beat() == first:
            assert time.time() - began < 10
        tags = client.get_run(run_id).data.tags
        assert tags["host"] == socket.gethostname() and tags["pid"] == f"{os.getpid()}:{alive.start_of(os.getpid())}"
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
    with alive.Heart(gone, "run", 0.01) as heart:
        while gone.calls < 3:
            assert heart.thread.is_alive()
            time.sleep(0.01)


def test_a_process_is_known_by_its_number_and_its_start():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        began = alive.start_of(process.pid)
        assert began.isdigit() and int(began) >= int(alive.start_of(os.getpid()))
        process.communicate(b"\n")
    assert alive.start_of(process.pid) == ""


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
        assert alive.reap(client) == expected
        times.append(time.perf_counter() - began)
    # A query for each of them would take seconds.
    assert min(times) < 1
