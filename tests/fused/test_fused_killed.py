"""A fused sweep that is killed, whenever that is: the same command goes on, and each job has one run, with its rows once."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import Command, Ended
from conftest import with_store

from runner import sync

HEARTBEAT = 1.0
SHARED = ("-m", "loss=rosenbrock", "optimizer=adam", "guess=normal", "execution=graph", "hydra/launcher=fused", "report=none")
SHARED += (f"tracking.heartbeat={HEARTBEAT}",)
STEPS, EVERY, JOBS = 2000, 500, 600
# The rows of a group's jobs go to the recorder in several messages.
MANY = (*SHARED, f"seed=range({JOBS})", f"max_iterations={STEPS}", "execution.chunk=250", f"tracking.every={EVERY}")
# Where each chunk is saved, a group goes on in its own lanes, whatever time takes.
SAVED = (*MANY, "checkpoint.every_seconds=0")


def query(folder: Path, statement: str) -> list[Any]:
    """Return the rows of a query of a folder's store."""
    with closing(sqlite3.connect(folder / "outputs/mlflow.db", timeout=30)) as database:
        return database.execute(statement).fetchall()


def statuses(folder: Path) -> list[str]:
    """Return the status of each run that there is, those of sweeps among them."""
    return [status for (status,) in query(folder, "SELECT status FROM runs WHERE lifecycle_stage = 'active'")]


def jobs(folder: Path) -> dict[str, str]:
    """Return the finished jobs' runs by seed; there is none but these, and of each seed one."""
    found = query(
        folder, "SELECT p.value, r.run_uuid, r.status FROM runs r JOIN params p USING (run_uuid) WHERE p.key = 'seed'"
    )
    assert {status for _, _, status in found} == {"FINISHED"}
    by_seed = {seed: run for seed, run, _ in found}
    assert len(by_seed) == len(found)
    return by_seed


def rows(folder: Path) -> dict[str, list[Any]]:
    """Return the metrics of each seed that have steps, in their order."""
    seeds = {run: seed for seed, run in jobs(folder).items()}
    found: dict[str, list[Any]] = {seed: [] for seed in seeds.values()}
    for run, *row in query(folder, "SELECT run_uuid, key, step, value FROM metrics WHERE key NOT LIKE 'system/%'"):
        found[seeds[run]].append(tuple(row))
    return {seed: sorted(each) for seed, each in found.items()}


def begun(folder: Path) -> int:
    """Return how many jobs are in the store, or have a spool."""
    in_store = query(folder, "SELECT count(*) FROM params WHERE key = 'seed'")[0][0]
    return in_store + sum(1 for _ in folder.glob("outputs/sweeps/*/*/*/spool"))


def saved(folder: Path) -> int:
    """Return the last step that a group in a folder was saved at."""
    return max((int(path.name) for path in folder.glob("outputs/pending/groups/*/*") if path.name.isdecimal()), default=0)


@pytest.mark.long
def test_a_group_that_is_killed_before_it_is_saved_begins_again(prepared):
    words = (*SHARED, "seed=1,2,3", "max_iterations=8000", "tracking.every=1000")
    command = Command(prepared, *words)
    command.wait(lambda: command.out.exists() and "3 jobs: 3 new" in command.out.read_text())
    time.sleep(1)
    assert command.process.is_alive() and statuses(prepared) == ["RUNNING"] and begun(prepared) == 0
    command.kill(everything=True)
    assert not (prepared / "outputs/pending").exists()
    # What died together with its recorder is ended for its silence.
    time.sleep(2 * HEARTBEAT + 1)
    again = Command(prepared, *words)
    assert again.ended() == Ended(0, "") and "continues" not in again.out.read_text()
    assert sorted(statuses(prepared)) == ["FINISHED"] * 4 + ["KILLED"] and jobs(prepared).keys() == {"1", "2", "3"}
    for found in rows(prepared).values():
        assert [step for key, step, _ in found if key == "loss"] == [*range(0, 8001, 1000)]
    assert not (prepared / "outputs/pending").exists()


def disturb(folder: Path, words: tuple[str, ...], kills: int) -> list[str]:
    """Give a command that is killed each time, the last two while jobs are recorded; returns in what it was each time."""
    moments, came = random.Random(kills), []
    for kill in range(kills):
        step, there = saved(folder), begun(folder)
        command = Command(folder, *words)
        if kill >= kills - 2:
            command.wait(lambda there=there: begun(folder) > there)
            time.sleep(moments.uniform(0, 0.2))
        elif moments.random() < 0.5:
            command.wait(lambda step=step: saved(folder) > step)
        else:
            # Before its first step, as a rule.
            time.sleep(moments.uniform(0, 4))
        alive = command.process.is_alive()
        command.kill(everything=kill % 2 == 0)
        came.append(f"{'killed' if alive else 'ended'} at step {saved(folder)} with {begun(folder)} recorded")
    return came


@pytest.mark.long
@pytest.mark.parametrize("offline", [False, True])
def test_a_sweep_of_hundreds_of_jobs_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path, migrated, monkeypatch, offline):
    folder, reference = (with_store(tmp_path / name, migrated) for name in ("folder", "reference"))
    words = (*SAVED, f"tracking.offline={str(offline).lower()}")
    assert Command(reference, *MANY).ended() == Ended(0, "")
    came = disturb(folder, words, 10)
    print(*came, sep="\n")
    assert sum(each.startswith("killed") for each in came) >= 9
    time.sleep(2 * HEARTBEAT + 1)
    assert Command(folder, *words).ended(300) == Ended(0, "")
    if offline:
        monkeypatch.chdir(folder)
        assert statuses(folder) == [] and sync.main([]) == 0
    assert "RUNNING" not in statuses(folder) and len(jobs(folder)) == JOBS
    assert rows(folder) == rows(reference)
    theirs = jobs(reference)
    for seed, run in jobs(folder).items():
        mine, other = (
            pq.read_table(place / f"outputs/artifacts/{each}/artifacts/trajectory.parquet")
            for place, each in ((folder, run), (reference, theirs[seed]))
        )
        assert mine.num_rows == STEPS + 1 and mine.equals(other), seed
    assert not (folder / "outputs/pending").exists() and not list(folder.glob("outputs/sweeps/*/*/*/spool"))
    assert Command(folder, *words).ended(300) == Ended(0, "") and len(jobs(folder)) == JOBS
