"""Runs of many numbers and many steps: no picture ends one, rows of large x are lists, and what is large is told first."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import Command
from conftest import store

from runner import diff, experiment, records, verify
from runner.cli import run
from runner.experiment import Parts
from runner.loop import Rules
from runner.losses import Loss
from runner.pictures import landscape, thinning
from runner.report.tables import reading, trajectories
from runner.report.tables.facts import UNKNOWN
from runner.trace import Trace
from runner.tracking.store import artifacts


def rows(d: int, n: int = 5) -> Trace:
    x = np.random.default_rng(0).normal(size=(n, d) if d else n).astype(np.float32)
    return Trace(0, x, np.arange(n, 0, -1, dtype=np.float32), 2 * x)


@pytest.mark.parametrize("d", [0, 1, 3, artifacts.COLUMNS, artifacts.COLUMNS + 1, 10**5])
def test_rows_come_back_from_either_layout(tmp_path: Path, d: int) -> None:
    trace = rows(d)
    made = artifacts.Trajectory(tmp_path / "trajectory.parquet")
    for part in (trace[:2], trace[2:]):
        made.write(part)
    made.close()
    again = records.trajectory(tmp_path / "trajectory.parquet")
    for name in ("x", "gradient"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trace, name).reshape(5, -1))
    seen = reading.follow(tmp_path / "trajectory.parquet", 0.0, UNKNOWN, np.arange(5))
    assert seen.dimension == max(d, 1) and seen.rows == 5 and seen.last_loss == 1
    np.testing.assert_allclose(seen.x0, trace.x.reshape(5, -1)[0, : trajectories.COORDINATES])
    columns = pq.ParquetFile(tmp_path / "trajectory.parquet").schema_arrow.names
    assert len(columns) == (5 if d > artifacts.COLUMNS else 3 + 2 * max(d, 1))


def test_a_large_run_has_its_picture_and_is_read_by_every_command(drawn, runs, tmp_path, capfd):
    words = ("loss=sphere", "loss.dimension=60000", "max_iterations=2")
    ended = drawn(*words)
    assert ended.code == 0 and ended.err == ""
    (run,) = runs()
    assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
    assert {each.path for each in store(tmp_path).list_artifacts(run.info.run_id)} >= {"report.png", "report.html"}
    assert verify.report([run.info.run_id]) == records.SAME
    assert diff.report([run.info.run_id] * 2) == records.SAME


def test_a_path_takes_no_more_room_than_it_may_whatever_x_is() -> None:
    for d in (10**4, 10**6):
        report = thinning.Report("title", 1000)
        trace = Trace(0, np.zeros((1, d), np.float32), np.zeros(1, np.float32), np.zeros((1, d), np.float32))
        for _ in range(100):
            report.watch(trace)
        assert report.kept["x"].nbytes <= thinning.BYTES
        assert (report.kept["x"].size > 0) == (d == 10**4)


def test_a_loss_that_is_slow_at_one_point_is_not_asked_for_a_row_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(landscape, "BUDGET", -1.0)
    loss = Loss(lambda x: sizes.append(len(x)) or x[:, 0], (2,))
    found = landscape.landscape(loss, np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert "too long" in found.note and sizes == [1, 1]


# A summary takes no time in which Ctrl-C could be pressed.
@pytest.mark.parametrize(
    ("part", "error"),
    [
        *((part, error) for part in ("summary", "drawing") for error in (MemoryError("no room"), ValueError("odd"))),
        ("drawing", KeyboardInterrupt()),
    ],
)
def test_nothing_that_is_made_of_a_run_ends_it(drawn, runs, monkeypatch, part, error):
    def fails(*_, **__):
        raise error

    where = (thinning.Report, "drawing") if part == "drawing" else (experiment, "summary")
    monkeypatch.setattr(*where, fails)
    ended = drawn("max_iterations=2")
    (run,) = runs()
    assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
    if isinstance(error, Exception):
        assert ended.code == 0 and ended.err.startswith("WARNING: ") and ended.err.count("\n") == 1, ended.err
        assert ("report" if part == "drawing" else "summary") in ended.err


def test_a_run_that_is_killed_while_it_is_drawn_is_finished(prepared: Path) -> None:
    (prepared / "mine.py").write_text(
        "import os\nfrom runner.pictures.thinning import Report\n\n\nclass Dies(Report):\n"
        f"    def drawing(self, *_):\n        os.kill(os.getpid(), {int(signal.SIGKILL)})\n\n\n"
        "def run(title, *, points, sweep):\n    return Dies(title, points)\n"
    )
    command = Command(prepared, "--allow-target", "mine", "report._target_=mine.run", "max_iterations=3", paths=[prepared])
    assert command.ended().code == -signal.SIGKILL
    client = store(prepared)
    of = [each.experiment_id for each in client.search_experiments()]
    until = time.monotonic() + 60
    # Its recorder outlives it.
    while (run := client.search_runs(of)[0]).info.status == "RUNNING" and time.monotonic() < until:
        time.sleep(0.2)
    assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
    assert run.data.metrics["system/iterations"] == 3


def test_what_takes_much_of_the_disk_is_told_first_with_what_takes_less(cli, monkeypatch) -> None:
    def told(d: int, steps: int, **tracking: int) -> list[str]:
        x0 = np.zeros(d or (), np.float32)
        keys = {"every": 1, "max_coordinates": 16, **tracking}
        return list(run.large(Parts(None, x0, Rules({}, 0, steps, None), None, 0.0), keys))  # pyright: ignore

    assert told(0, 10**5) == told(100, 1000) == told(0, 10**7, every=100) == []
    (rows,) = told(10**7, 100)
    assert "16.2 GB" in rows and "max_iterations=" in rows and "tracking=none" in rows
    (metrics,) = told(0, 10**7)
    assert "6.9 GB" in metrics and "tracking.every=10," in metrics
    monkeypatch.setattr(run, "LARGE", 10)
    ended = cli("max_iterations=2")
    assert ended.code == 0 and ended.err.count("WARNING: ") == 2
