"""Faults in the midst of a run: how its command ends, what the store says of it, its rows, no traceback, one line at most.

Others stand elsewhere: spools that are cut or damaged, clocks that jump and servers that answer badly in test_spool.py;
checkpoints that are, and kills while one is written, in test_resume.py; stores that are of no use, in test_store.py.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import disks
import pytest
import servers
from commands import WARM, Command, Ended, metrics, printed, runs, same
from conftest import with_store

from runner import sync
from runner.tracking import store

STEPS = 200
SWEPT = 40
WORDS = ("loss=rosenbrock", "optimizer=adam", "execution=eager", f"max_iterations={STEPS}", "report=none")
# Each step is saved, which makes the most of what a kill may cost.
SAVED = (*WORDS, "checkpoint.every_seconds=0")
HEARTBEAT = 1.0
SWEEP = (
    "-m",
    *SAVED,
    f"max_iterations={SWEPT}",
    f"tracking.heartbeat={HEARTBEAT}",
    "optimizer.learning_rate=0.01,0.02,0.03",
)
OUTAGE = 5.0
OUT = "the tracking store does not take rows, which are kept in the run's folder meanwhile"


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/outputs/mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, migrated: Path) -> Path:
    return with_store(tmp_path / "folder", migrated)


def undisturbed(folder: Path, *words: str) -> tuple[str, list[Any]]:
    """Run a command that nothing disturbs, and return the store and its runs."""
    ended = Command(folder, *words).ended()
    assert ended == Ended(0, "")
    return uri_of(folder), sorted(runs(uri_of(folder)), key=lambda run: run.data.params["optimizer.learning_rate"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> tuple[str, Any]:
    """Return a store, and in it the run that nothing disturbed."""
    uri, (run,) = undisturbed(with_store(tmp_path_factory.mktemp("reference") / "folder", migrated), *WORDS)
    return uri, run


def complete(ended: Ended, uri: str, reference: tuple[str, Any], says: str | None = None) -> None:
    """Assert that the only run of a store is as if nothing had been, and that its command said no more than one line."""
    assert ended.code == 0 and "Traceback" not in ended.err
    assert ended.err.count("\n") == (says is not None) and (says or "") in ended.err
    (run,) = runs(uri)
    assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
    same((uri, run), reference)


def worth_it(kills: int, taken: int, needed: int) -> None:
    """Assert that no kill cost more than the one row between checkpoints, and all of them at most half of what was needed."""
    print(f"{kills} kills: {taken} rows printed, {needed} needed")
    assert needed <= taken <= min(needed + kills, 1.5 * needed)


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.long)])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(reference, folder, kills):
    moments, taken = random.Random(kills), 0
    for kill in range(kills):
        command = Command(folder, *SAVED)
        if moments.random() < 0.8:
            # It goes on until the signal comes.
            command.reach(moments.randint(1, STEPS // (2 * kills)))
        else:
            # Before its first step, as a rule.
            time.sleep(moments.uniform(0, 4))
        assert command.process.is_alive(), "it ended before it was killed"
        command.kill(everything=kill % 2 == 0)
        taken += len(command.rows())
    command = Command(folder, *SAVED)
    complete(command.ended(), uri_of(folder), reference)
    taken += len(command.rows())
    worth_it(kills, taken, STEPS + 1)


# tests/fused/test_fused_continued.py kills a sweep quickly.
@pytest.mark.long
@pytest.mark.parametrize("kills", [1, 12])
def test_a_sweep_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path, migrated, folder, kills):
    uri, wanted = undisturbed(with_store(tmp_path / "reference", migrated), *SWEEP)
    moments = random.Random(kills)

    def spooled() -> int:
        return sum(path.stat().st_size for path in folder.glob("outputs/sweeps/*/*/*/spool"))

    for kill in range(kills):
        before, more = spooled(), moments.randint(2_000, 2_000 + 30_000 // kills)
        command = Command(folder, *SWEEP)
        command.wait(lambda before=before, more=more: spooled() >= before + more)
        assert command.process.is_alive(), "it ended before it was killed"
        command.kill(everything=kill % 2 == 0)
    # What died together with its recorder is ended for its silence, as one that ends by itself cannot be.
    time.sleep(2 * HEARTBEAT + 1)
    ended = Command(folder, *SWEEP).ended()
    assert ended == Ended(0, "")
    found = sorted(runs(uri_of(folder)), key=lambda run: run.data.params["optimizer.learning_rate"])
    consoles = folder.glob("outputs/sweeps/*/*/*/console.txt")
    worth_it(kills, sum(len(printed(file)) for file in consoles), 3 * (SWEPT + 1))
    assert [run.info.status for run in found] == ["FINISHED"] * 3
    for one, other in zip(found, wanted, strict=True):
        same((uri_of(folder), one), (uri, other))


# Larger than SQLite's memory is here, so that a part is in the file when the process is killed.
WRITES = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for each in ("PRAGMA cache_size = 1", "BEGIN", "CREATE TABLE half (a)"):
    database.execute(each)
for _ in range(500):
    database.execute("INSERT INTO half VALUES (randomblob(2000))")
os.kill(os.getpid(), 9)
"""


def test_a_database_whose_writer_was_killed_is_opened_without_what_was_half_written(tmp_path, migrated):
    file = shutil.copy(migrated, tmp_path)
    subprocess.run([sys.executable, "-c", WRITES, file], check=False)
    assert Path(f"{file}-journal").stat().st_size and Path(file).stat().st_size > migrated.stat().st_size
    client, experiment_id = store.opened(f"sqlite:///{file}", "runner")
    assert client.get_experiment(experiment_id).name == "runner" and not Path(f"{file}-journal").exists()
    with closing(sqlite3.connect(file)) as database:
        assert not database.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall()


@pytest.mark.long
def test_a_database_that_stops_and_starts_again_loses_nothing(reference, folder, tmp_path):
    server = tmp_path / "server"
    with servers.postgresql(server) as uri:
        command = Command(folder, *WORDS, f"tracking.uri={uri}", "tracking.flush_timeout=60")
        command.reach(50)
        servers.pg_ctl(server, "-m", "immediate", "stop")
        time.sleep(OUTAGE)
        servers.pg_ctl(server, "start")
        complete(command.ended(), uri, reference, outage(command))


# A server that goes away is in test_spool.
@pytest.mark.long
def test_a_server_that_is_killed_and_started_again_loses_nothing(reference, folder, tmp_path, migrated):
    port, database = servers.free_port(), f"sqlite:///{shutil.copy(migrated, tmp_path)}"
    with servers.mlflow(database, tmp_path, port=port, by=signal.SIGKILL) as uri:
        command = Command(folder, *WORDS, f"tracking.uri={uri}", "tracking.flush_timeout=60")
        command.reach(50)
    time.sleep(OUTAGE)
    with servers.mlflow(database, tmp_path, port=port) as uri:
        complete(command.ended(), uri, reference, outage(command))


def outage(command: Command) -> str | None:
    """Return what the command has to say of an outage, nothing where that was short."""
    return OUT if command.ended().err else None


# SQLite itself waits for 20 s.
@pytest.mark.parametrize(("seconds", "says"), [(5, None), pytest.param(30, OUT, marks=pytest.mark.long)])
def test_a_locked_database_loses_nothing(reference, folder, seconds, says):
    command = Command(folder, *WORDS, "tracking.flush_timeout=60")
    command.reach(20)
    with closing(sqlite3.connect(folder / "outputs/mlflow.db", timeout=20)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        database.rollback()
    complete(command.ended(), uri_of(folder), reference, says)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a disk of 48 kB."""
    with disks.small(tmp_path / "disk", "48k") as path:
        yield path


def test_a_disk_that_fills_ends_a_run_with_what_it_has_and_takes_the_next_when_there_is_room(reference, folder, disk):
    words, uri = (*WORDS, f"hydra.run.dir={disk}/run"), uri_of(folder)
    ended = Command(folder, *words).ended()
    # Even where the recorder, whose file is there too, is the first to find it full.
    (error,) = ended.err.splitlines()
    assert ended.code == 1
    assert error.startswith("error: ") and "No space left on device" in error and "make room there" in error
    (run,) = runs(uri)
    assert run.info.status == "FAILED"
    found, wanted = metrics(uri, run), metrics(*reference)
    assert found.keys() == wanted.keys()
    for name, rows in found.items():
        assert 20 < len(rows) < STEPS and rows == wanted[name][: len(rows)]
    disks.remount(disk, "size=8m")
    assert Command(folder, *words).ended() == Ended(0, "")
    (again,) = [each for each in runs(uri) if each.info.run_id != run.info.run_id]
    assert again.info.status == "FINISHED"
    same((uri, again), reference)


@pytest.mark.long
def test_a_store_whose_disk_fills_gets_the_rows_when_there_is_room(reference, folder, tmp_path, migrated):
    with disks.small(tmp_path / "disk", "4m") as disk:
        uri = f"sqlite:///{shutil.copy(migrated, disk)}"
        command = Command(folder, *WORDS, f"tracking.uri={uri}", "tracking.flush_timeout=1")
        command.reach(20)
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        ended = command.ended()
        (path,) = folder.glob("outputs/runs/*/*/spool")
        assert ended.code == 0 and "Traceback" not in ended.err, ended
        assert "full" in ended.err or "No space left" in ended.err
        assert ended.err.endswith(f"send it with: python -m runner.sync {path.parent}\n")
        (disk / "filler").unlink()
        # In a process of its own, for MLflow lets go of a file only with that.
        sends = WARM.Process(target=sync.main, args=([str(path.parent)],))
        sends.start()
        sends.join()
        assert not path.exists()
        uri = f"sqlite:///{shutil.copy(disk / 'mlflow.db', tmp_path)}"
        (run,) = runs(uri)
        assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
        same((uri, run), reference)


def test_a_disk_that_is_read_only_is_told_before_a_run_begins(folder, disk):
    disks.remount(disk, "ro")
    ended = Command(folder, *WORDS, f"hydra.run.dir={disk}/run").ended()
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert "Read-only file system" in ended.err and str(disk) in ended.err and "Traceback" not in ended.err
    with closing(sqlite3.connect(folder / "outputs/mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (0,)
