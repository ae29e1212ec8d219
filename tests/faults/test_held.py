"""What a store and a batch system do to runs while they are recorded: the steps go on, and no row is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import processes
import proxy
import pytest
import servers
from commands import Command, Ended, runs
from conftest import environment

LONG = ("loss=rosenbrock", "optimizer=adam", "execution=eager", "report=none")
STEPS = 400
# Runs at once, and the memory that one takes with its recorder, in MB.
CROWD, MEMORY = 200, 400
LOGIN = "somebody:S3CRETPW"


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/outputs/mlflow.db"


def rows_of(uri: str, run: Any) -> list[int]:
    """Return the steps of a run's loss, in order."""
    from mlflow import MlflowClient

    return sorted(row.step for row in MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "loss"))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_many_single_runs_at_once_all_get_into_one_store(tmp_path, kind):
    # Fewer on a machine that has no room for so many.
    count = min(CROWD, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (MEMORY * 10**6))
    if kind == "sqlite":
        crowd(tmp_path, count, uri_of(tmp_path))
        return
    # With the server's own limit of 100 connections.
    with servers.postgresql(tmp_path / "server") as uri:
        crowd(tmp_path, count, uri)


def crowd(folder: Path, count: int, uri: str) -> None:
    """Start so many runs at once, and assert that each is in the store as a whole."""
    words = ("max_iterations=20", "report=none", f"tracking.uri={uri}", "tracking.flush_timeout=300")
    several = [Command(folder, *words, f"seed={i}", to=folder / str(i)) for i in range(count)]
    ended = [each.ended(1200) for each in several]
    assert [each for each in ended if each.code != 0 or "Traceback" in each.err] == []
    found = runs(uri)
    assert sorted(int(run.data.params["seed"]) for run in found) == list(range(count))
    assert {run.info.status for run in found} == {"FINISHED"}
    assert all(rows_of(uri, run) == list(range(21)) for run in found)


# Those that a run hears of, and what ends a process that knows nothing of them.
HEARD = {signal.SIGINT: 130, signal.SIGTERM: 143}
UNHEARD = [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM]


@pytest.mark.long
@pytest.mark.parametrize("number", [*HEARD, *UNHEARD])
def test_a_signal_leaves_a_run_with_its_ending_and_all_its_rows(prepared, number):
    command = Command(prepared, *LONG, "max_iterations=1000000")
    command.reach(100)
    pids = processes.below(command.process.pid)
    command.signal(number)
    assert command.ended(60).code == HEARD.get(number, -number)
    assert processes.wait(lambda: not processes.left(pids), 60)
    (run,) = runs(uri_of(prepared))
    assert run.info.status == "KILLED" and run.data.tags["ending"] == "interrupted"
    assert run.data.tags["stopped_by"] == (number.name if number in HEARD else "death")
    steps = rows_of(uri_of(prepared), run)
    assert steps == list(range(len(steps))) and len(steps) >= 100


def edit(database: sqlite3.Connection) -> None:
    database.execute("UPDATE runs SET name = 'renamed'")
    database.execute("UPDATE tags SET value = 'edited' WHERE key = 'overrides'")


def delete_run(database: sqlite3.Connection) -> None:
    database.execute("UPDATE runs SET lifecycle_stage = 'deleted'")


def purge(database: sqlite3.Connection) -> None:
    for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
        database.execute(f"DELETE FROM {table}")


def delete_experiment(database: sqlite3.Connection) -> None:
    database.execute("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'runner'")


@pytest.mark.long
@pytest.mark.parametrize("done", [edit, delete_run, purge, delete_experiment])
def test_what_is_done_to_a_run_while_it_is_recorded_costs_it_no_step(prepared, done):
    command = Command(prepared, *LONG, f"max_iterations={STEPS}", "tracking.flush_timeout=2")
    command.reach(50)
    with closing(sqlite3.connect(prepared / "outputs/mlflow.db", timeout=20)) as database, database:
        done(database)
    ended = command.ended(60)
    kept(prepared, command, ended)
    if done is edit:
        (run,) = runs(uri_of(prepared))
        assert ended == Ended(0, "") and run.info.run_name == "renamed" and run.data.tags["overrides"] == "edited"
        assert run.info.status == "FINISHED" and rows_of(uri_of(prepared), run) == list(range(STEPS + 1))


def kept(folder: Path, command: Command, ended: Ended) -> None:
    """Assert that a command took all its steps and said where its rows are if the store does not have them."""
    assert ended.code == 0 and "Traceback" not in ended.err and len(command.rows()) == STEPS + 1
    if left := [*folder.glob("outputs/runs/*/*/spool")]:
        assert ended.err.endswith(f"send it with: python -m runner.sync {left[0].parent}\n")


@pytest.mark.long
def test_a_database_that_is_deleted_meanwhile_costs_no_step_and_is_made_again(prepared, migrated):
    command = Command(prepared, *LONG, f"max_iterations={STEPS}", "tracking.flush_timeout=2")
    command.reach(50)
    (prepared / "outputs/mlflow.db").unlink()
    kept(prepared, command, command.ended(60))
    assert Command(prepared, *LONG, "max_iterations=3").ended(60).code == 0
    # It may have begun to send the first one's rows.
    assert subprocess.run([sys.executable, "-m", "runner.sync"], cwd=prepared, env=environment(), check=False).returncode == 0
    assert "FINISHED" in {run.info.status for run in runs(uri_of(prepared))}


@pytest.mark.long
def test_a_server_in_whose_place_another_stands_gets_its_run_by_sync_or_says_so(prepared, tmp_path, migrated):
    port, first, second = servers.free_port(), tmp_path / "first.db", tmp_path / "second.db"
    for file in (first, second):
        shutil.copy(migrated, file)
    words = (*LONG, f"max_iterations={STEPS}", "tracking.flush_timeout=2")
    with servers.mlflow(f"sqlite:///{first}", tmp_path, port=port, by=signal.SIGKILL) as uri:
        command = Command(prepared, *words, f"tracking.uri={uri}")
        command.reach(50)
    with servers.mlflow(f"sqlite:///{second}", tmp_path, port=port) as uri:
        kept(prepared, command, command.ended(60))
        sent = subprocess.run([sys.executable, "-m", "runner.sync"], cwd=prepared, env=environment(), capture_output=True)
        assert sent.returncode == 0, sent.stderr
    (run,) = runs(f"sqlite:///{second}")
    assert run.info.status == "FINISHED" and rows_of(f"sqlite:///{second}", run) == list(range(STEPS + 1))


@pytest.mark.long
def test_sync_that_is_killed_twelve_times_sends_each_row_once(prepared):
    steps = 200_000
    words = ("max_iterations=200000", "optimizer.learning_rate=1e-6", "report=none", "tracking.offline=true")
    assert Command(prepared, *words).ended().code == 0
    moments = random.Random(12)
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-m", "runner.sync"], cwd=prepared, env=environment(), stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(2, 6))
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
    done = subprocess.run([sys.executable, "-m", "runner.sync"], cwd=prepared, env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    (run,) = runs(uri_of(prepared))
    assert run.info.status == "FINISHED" and rows_of(uri_of(prepared), run) == list(range(steps + 1))
    assert not (prepared / "outputs/pending").exists()


@pytest.mark.long
def test_a_server_that_asks_for_a_login_gets_it_from_the_environment_alone(prepared, tmp_path, migrated, monkeypatch):
    user, password = LOGIN.split(":")
    file = shutil.copy(migrated, tmp_path / "server.db")
    words = (*LONG, "max_iterations=20")
    with servers.mlflow(f"sqlite:///{file}", tmp_path) as uri, proxy.faulty(uri, lambda *_: None, LOGIN) as address:
        refused = Command(prepared, *words, f"tracking.uri={address}").ended(60)
        assert refused.code == 1 and refused.err.count("\n") == 1 and "401" in refused.err
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        own = environment() | {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
        own["MLFLOW_TRACKING_URI"] = address
        done = subprocess.run(
            [sys.executable, "-m", "runner", *words], cwd=prepared, env=own, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    (run,) = runs(f"sqlite:///{file}")
    assert run.info.status == "FINISHED" and rows_of(f"sqlite:///{file}", run) == list(range(21))
    told = subprocess.run(["grep", "-rl", password, str(prepared)], capture_output=True, text=True, check=False).stdout
    assert not told and password not in done.stdout + done.stderr
