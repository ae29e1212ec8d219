"""What SIGKILLs cost: a command that is killed and given again until it ends, beside the same one left alone.

Commands are forked from a process that has imported TensorFlow, so that what is measured is the runner's own. KILLS=50 asks for
about so many kills in all, which take half an hour.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from commands import Command, runs, same

from benchmarks import report
from benchmarks.processes import RUNNER, Folder, folder

KILLS = int(os.environ.get("KILLS", "6"))
# How long a command has, drawn between these, and how long of that it gets on, about: in starts, which take longer on a machine
# that others use too, as steps do.
LIVES, GETS_ON = (2.5, 5.5), 3.0
LIMIT = 1.5
WORDS = ("loss=rosenbrock", "optimizer=adam", "checkpoint.every_seconds=1", "report=none")
EAGER = (*WORDS, "execution=eager")
# Each chunk is a step, so that a minute's rows are not gigabytes.
FUSED = (*WORDS, "hydra/launcher=fused", "execution=graph", "execution.chunk=1", "tracking.every=100", "guess=normal")
RATES = "optimizer.learning_rate=1e-4,2e-4,3e-4"


class Warm:
    """A command forked from a process that has imported TensorFlow."""

    def __init__(self, where: Path, *words: str) -> None:
        self.command = Command(where, *words)

    def ends(self, seconds: float) -> bool:
        """Wait so long for its end, and tell whether it came; any exit code but 0 is an error."""
        process = self.command.process
        process.join(seconds)
        assert process.exitcode in (None, 0), self.command.err.read_text()
        return process.exitcode == 0

    def kill(self) -> None:
        """Kill its process; its recorder sees to the rest by itself."""
        self.command.kill()


class Way(NamedTuple):
    """A command, and how it is started and killed."""

    name: str
    words: tuple[str, ...]
    start: Callable[..., Warm]
    share: float  # of all kills
    few: int  # steps that take long enough to be told from a start


WAYS = (
    Way("a run", EAGER, Warm, 0.4, 1_000),
    Way("a sweep, one by one", ("-m", *EAGER, RATES), Warm, 0.3, 1_000),
    Way("a sweep as one program", ("-m", *FUSED, "seed=1,2,3,4"), Warm, 0.3, 20_000),
)


def lines(quick: bool) -> Iterator[str]:
    """Yield a line of the table for each way, whose rows are held against those of the undisturbed one bit by bit."""
    head = ("command", "kills", "left alone, s", "killed, s", "compared", f"at most {LIMIT} ×", "a kill costs, s", "a start, s")
    yield from (report.setting(), "", f"| {' | '.join(head)} |", "|---" * len(head) + "|")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    for way in WAYS[:1] if quick else WAYS:
        with folder() as where:
            store = made(where)
            start = float(np.median([left_alone(way, copied(store, f"start{i}"), 1)[0] for i in range(1 if quick else 3)]))
            steps = 3 * way.few if quick else steps_of(way, store, start)
            alone, reference = left_alone(way, copied(store, "alone"), steps)
            kills, taken, found = killed(way, copied(store, "killed"), steps, start, 1 if quick else 3 * KILLS)
            equal(found, reference)
        numbers = (alone, taken, taken / alone, (taken - alone) / max(kills, 1), start)
        yield line(f"{way.name}, {steps:,} steps", kills, *numbers)


def line(name: str, kills: int, alone: float, taken: float, ratio: float, each: float, start: float) -> str:
    """Return a line of the table."""
    holds = "yes" if ratio <= LIMIT else "**no**"
    cells = (name, str(kills), f"{alone:.1f}", f"{taken:.1f}", f"{ratio:.2f} ×", holds, f"{each:.1f}", f"{start:.1f}")
    return f"| {' | '.join(cells)} |"


def made(where: Folder) -> Path:
    """Return a folder with an empty store, whose making takes seconds."""
    where.run(*RUNNER, "max_iterations=1", "report=none", "tracking.experiment=first")
    # What commands are forked from has imported TensorFlow then.
    assert Warm(where.path, "tracking=none", "max_iterations=1").ends(60)
    return where.path / "outputs/mlflow.db"


def copied(store: Path, name: str) -> Path:
    """Return a new folder with a copy of this store."""
    path = store.parents[1] / name
    (path / "outputs").mkdir(parents=True)
    shutil.copy(store, path / "outputs")
    return path


def left_alone(way: Way, where: Path, steps: int) -> tuple[float, tuple[str, list]]:
    """Return the seconds that a command takes undisturbed, and the runs that it leaves."""
    began = time.perf_counter()
    assert way.start(where, *way.words, f"max_iterations={steps}").ends(3600)
    return time.perf_counter() - began, recorded(where)


def killed(way: Way, where: Path, steps: int, start: float, most: int) -> tuple[int, float, tuple[str, list]]:
    """Return how often a command was killed until it ended, at most so often, the seconds, and the runs that it leaves."""
    moments, began, kills = random.Random(KILLS), time.perf_counter(), 0
    while True:
        command = way.start(where, *way.words, f"max_iterations={steps}")
        if command.ends(start * moments.uniform(*LIVES) if kills < most else 3600):
            return kills, time.perf_counter() - began, recorded(where)
        command.kill()
        kills += 1


def steps_of(way: Way, store: Path, start: float) -> int:
    """Return the steps that last as long as a command gets on in as many lives as it is killed, from two short runs."""
    few, more = (left_alone(way, copied(store, f"{steps}"), steps)[0] for steps in (way.few, 3 * way.few))
    return round(2 * way.few / (more - few) * GETS_ON * start * max(1, round(KILLS * way.share)))


def recorded(where: Path) -> tuple[str, list]:
    """Return the store in a folder, and its runs but for the one that made it, in the order of what tells them apart."""
    uri = f"sqlite:///{where}/outputs/mlflow.db"
    found = [run for run in runs(uri) if "tracking.experiment=first" not in run.data.tags["overrides"]]
    return uri, sorted(found, key=lambda run: (run.data.params["optimizer.learning_rate"], run.data.params["seed"]))


def equal(found: tuple[str, Sequence], reference: tuple[str, Sequence]) -> None:
    """Assert that all runs are finished, and bit by bit those of the reference."""
    assert [run.info.status for run in found[1]] == ["FINISHED"] * len(reference[1])
    for one, other in zip(found[1], reference[1], strict=True):
        same((found[0], one), (reference[0], other))
