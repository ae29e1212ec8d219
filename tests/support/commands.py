"""Commands of the runner that are started warm, told by what they print, and killed; and what a store has of their runs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

# A process that has imported TensorFlow, and has not used it: each command is forked from that, and imports this module, which
# is why that imports nothing else that takes long.
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["warm"])


class Ended(NamedTuple):
    """What a command left: its exit code, minus the signal's number where one killed it, and its errors."""

    code: int | None
    err: str


class Command:
    """`python -m runner` with these words in a folder, in a process of its own; what it prints goes to that folder or another.

    Python, in the processes that it starts, finds these paths too.
    """

    def __init__(self, folder: Path, *words: str, to: Path | None = None, paths: Sequence[Path] = ()) -> None:
        from conftest import environment

        to = to or folder
        to.mkdir(exist_ok=True)
        self.out, self.err = to / "out", to / "err"
        for file in (self.out, self.err):
            # Of the command before.
            file.unlink(missing_ok=True)
        self.process = WARM.Process(target=command, args=(folder, words, to, environment(*paths)))
        self.process.start()

    def rows(self) -> list[int]:
        """Return the steps of the rows that it has printed, which a run does that is eager."""
        return printed(self.out)

    def wait(self, what: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something is so, or the command has ended."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and not what():
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.01)

    def reach(self, count: int) -> None:
        """Wait until it has printed so many rows; it has to do that."""
        self.wait(lambda: len(self.rows()) >= count)
        assert len(self.rows()) >= count, self.err.read_text()

    def signal(self, number: int) -> None:
        """Send it a signal; its session is another, so that no shell has it ignore SIGINT."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self, everything: bool = False) -> None:
        """Kill it, and at the same moment its recorder too where that is asked for."""
        import processes

        pids = [self.process.pid, *(processes.below(self.process.pid) if everything else ())]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.join()

    def ended(self, seconds: float = 120) -> Ended:
        """Wait for its end."""
        self.wait(lambda: False, seconds)
        self.process.join()
        return Ended(self.process.exitcode, self.err.read_text())


def printed(file: Path) -> list[int]:
    """Return the steps of the rows that a run has printed to a file."""
    lines = file.read_text().splitlines() if file.exists() else []
    words = [line.split(maxsplit=1) for line in lines if line.startswith(" ")]
    # The last line may be half written.
    return [int(each[0]) for each in words if each and each[0].isdigit()]


def command(folder: Path, words: tuple[str, ...], to: Path, environment: dict[str, str]) -> None:
    """Become the command line."""
    from runner.cli import entry

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(to / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = ["runner", *words]
    entry.command()


def runs(uri: str) -> list[Any]:
    """Return all runs of a store that have a row, but for those that stand for sweeps; none of any kind is RUNNING.

    One that is killed before its first row may be known to its spool alone, from where it comes into the store later.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert "RUNNING" not in [run.info.status for run in found]
    return [run for run in found if "sweep" not in run.data.tags and "loss" in run.data.metrics]


def metrics(uri: str, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Return each metric that has steps, by step; a step that stands there twice is twice in it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    return {name: sorted((row.step, row.value) for row in history) for name, history in histories.items()}


def trajectory(uri: str, run: Any) -> dict[str, Any]:
    """Return the columns of a run's trajectory.parquet."""
    import pyarrow.parquet as pq
    from mlflow import MlflowClient

    path = MlflowClient(tracking_uri=uri).download_artifacts(run.info.run_id, "trajectory.parquet")
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def same(one: tuple[str, Any], other: tuple[str, Any]) -> None:
    """Assert that two runs, each of a store, have the same rows, bit for bit and each step once."""
    assert metrics(*one) == metrics(*other)
    import numpy as np

    columns, wanted = trajectory(*one), trajectory(*other)
    assert list(columns["step"]) == list(range(len(columns["step"]))) and columns.keys() == wanted.keys()
    for name, column in wanted.items():
        np.testing.assert_array_equal(columns[name], column, strict=True, err_msg=name)
