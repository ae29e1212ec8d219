"""A clock that is put back while a run goes on, while it is dead, and while it is continued."""

from __future__ import annotations

import time

import numpy as np
import pytest
from commands import Command, Ended, metrics, runs
from conftest import own_loss, store

STEPS, HOUR = 120, 3600
# This module shifts the clock of who imports it: the run, by way of its loss, and the recorder, as it starts.
CLOCK = """
import time
from pathlib import Path

now, file = time.time_ns, Path(__file__).with_name("hours")

def shifted():
    return now() + int(float(file.read_text()) * 3600 * 10**9)

time.time_ns, time.time = shifted, lambda: shifted() / 10**9
"""


# tests/tracking/test_spool.py holds the spool to it quickly.
@pytest.mark.long
def test_a_run_whose_clock_is_put_back_goes_on_as_if_it_had_not_been(prepared):
    own_loss(prepared, "mine", "import clock\n\ndef loss(x, *, way):\n    return (x - 4) ** 2\n")
    (prepared / "clock.py").write_text(CLOCK)
    (prepared / "sitecustomize.py").write_text("import clock\n")
    hours = prepared / "hours"
    words = ("--config-dir", "conf", "loss=mine", "guess=point", "guess.x=3", "execution=eager", "report=none")
    words += (f"max_iterations={STEPS}", "checkpoint.every_seconds=0")

    def put(at: float) -> None:
        """Put the clock so many hours on, for whoever looks at this moment too."""
        (new := hours.with_name("new")).write_text(str(at))
        new.replace(hours)

    def started(at: float, then: float) -> Command:
        """Start the command at one hour, and put the clock to another when it has come to some rows."""
        put(at)
        command = Command(prepared, *words, paths=[prepared])
        command.reach(15)
        put(then)
        return command

    first = started(2, 1)
    first.reach(40)
    first.kill(everything=True)
    again = started(0, -1)
    assert again.ended() == Ended(0, "") and "continues run" in again.out.read_text()
    uri = f"sqlite:///{prepared}/outputs/mlflow.db"
    (run,) = runs(uri)
    assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
    steps, x = zip(*metrics(uri, run)["x"], strict=True)
    assert list(steps) == list(range(STEPS + 1))
    # Of gradient descent at a rate of 0.1.
    np.testing.assert_allclose(x, 4 - 0.8 ** np.arange(STEPS + 1), rtol=1e-6)
    rows = sorted(store(prepared).get_metric_history(run.info.run_id, "x"), key=lambda row: row.step)
    times = [row.timestamp for row in rows]
    assert times == sorted(times) and run.info.start_time <= times[0] and times[-1] <= run.info.end_time
    # No row is said to be older than what the first process had seen.
    assert times[-1] / 1000 > time.time() + HOUR
