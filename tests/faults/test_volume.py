"""Many rows of many coordinates: each is recorded, and neither process of the run grows by what it records."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import defaultdict
from contextlib import closing, suppress
from pathlib import Path

import processes
import pyarrow.parquet as pq
import pytest
from commands import Command, Ended, runs

from runner.tracking import journal

PAGE = os.sysconf("SC_PAGESIZE")
STEPS, COORDINATES, METRICS = 10_000, 1_000, 16


def memory(pid: int) -> int:
    """Return the bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


@pytest.mark.long
def test_a_run_of_a_thousand_coordinates_keeps_each_row_and_does_not_grow(prepared):
    words = ("loss=ellipsoid", f"loss.dimension={COORDINATES}", "optimizer=adam", "execution=xla", "report=none")
    command = Command(prepared, *words, f"max_iterations={STEPS}", f"tracking.max_coordinates={METRICS}")
    held: dict[int, list[int]] = defaultdict(list)
    largest = 0
    while command.process.is_alive():
        for path in prepared.glob(f"outputs/runs/*/*/{journal.FILE}"):
            for pid in (command.process.pid, *processes.below(command.process.pid)):
                with suppress(OSError, IndexError):
                    held[pid].append(memory(pid))
            with suppress(OSError):
                largest = max(largest, path.stat().st_size)
        time.sleep(0.02)
    assert command.ended() == Ended(0, "")
    print(f"a spool of {largest / 2**20:.0f} MiB;", {pid: f"+{(max(b) - b[0]) / 2**20:.0f} MiB" for pid, b in held.items()})
    assert len(held) >= 2 and largest > STEPS * COORDINATES * 8
    for sizes in held.values():
        assert max(sizes) - sizes[0] < 200 * 2**20
    (run,) = runs(f"sqlite:///{prepared}/outputs/mlflow.db")
    (path,) = prepared.glob("outputs/runs/*/*/trajectory.parquet")
    file = pq.ParquetFile(path)
    assert file.metadata.num_rows == STEPS + 1 and file.metadata.num_columns == 3 + 2 * COORDINATES
    assert file.read(["step"])["step"].to_pylist() == list(range(STEPS + 1))
    with closing(sqlite3.connect(prepared / "outputs/mlflow.db")) as database:
        select = "SELECT key, count(*), count(DISTINCT step), min(step), max(step) FROM metrics WHERE run_uuid = ? GROUP BY key"
        counts = {key: rest for key, *rest in database.execute(select, [run.info.run_id]) if not key.startswith("system/")}
    names = [f"{kind}/{i}" for kind in ("x", "gradient") for i in range(METRICS)]
    assert counts == {key: [STEPS + 1, STEPS + 1, 0, STEPS] for key in ("loss", "gradient_norm", *names)}
