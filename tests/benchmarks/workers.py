"""One fused sweep on one to eight workers, by joblib and on Ray: how long it takes, and on what."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import servers

from benchmarks import report
from benchmarks.processes import ROOT, RUNNER, Folder, folder

GRID = ("loss=rosenbrock", "optimizer=adam", "max_iterations=200", "guess=normal", "report=none")
RATE = "optimizer.learning_rate"
COUNTS = (1, 2, 4, 8)
# Through a server each run is several requests, so there are fewer of them.
JOBS = {"PostgreSQL": 2_000, "server on PostgreSQL": 200}
HEAD = (
    "launcher",
    "store",
    "workers",
    "jobs",
    "seconds in all",
    "jobs/s",
    "composing",
    "starting",
    "computing",
    "recording",
)


class Taken(NamedTuple):
    """What the same sweep took, in seconds."""

    whole: float
    again: float  # once more, when all its jobs are reused
    unrecorded: float  # with tracking=none
    few: float  # of one job a worker, with tracking=none

    def cells(self, jobs: int) -> tuple[str, ...]:
        """Return the whole, and how it divides; parts that run side by side do not add up to it."""
        parts = (self.again, self.few, self.unrecorded - self.few, self.whole - self.unrecorded)
        return (
            f"{self.whole:.1f}",
            report.number(jobs / self.whole),
            *(f"{each:.1f}" for each in parts),
        )


def lines(quick: bool) -> Iterator[str]:
    """Measure in a network of its own, for Ray listens on all interfaces, and yield what stands in README.md."""
    code = "import sys; from benchmarks import workers; workers.main(sys.argv[1:] == ['quick'])"
    command = ["unshare", "--net", sys.executable, "-c", code, *(["quick"] if quick else [])]
    yield from (report.setting(), "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|")
    with tempfile.TemporaryDirectory() as home:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tests/support"), str(ROOT)]),
            "HOME": home,
        }
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            yield from map(str.rstrip, process.stdout or ())
    assert process.returncode == 0, f"the measurement ended with {process.returncode}"


def main(quick: bool) -> None:
    """Print a line of the table for each launcher, store and number of workers."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run([ray_command(), "get-auth-token", "--generate"], check=True, capture_output=True)
    with (
        tempfile.TemporaryDirectory() as data,
        servers.postgresql(Path(data) / "server") as database,
        servers.mlflow(database, Path(data), workers=None) as server,
        folder() as where,
    ):
        stores = dict(zip(JOBS, (database, server), strict=True))
        for (store, uri), launcher, workers in product(stores.items(), LAUNCHERS, COUNTS[:2] if quick else COUNTS):
            jobs = 16 if quick else JOBS[store]
            with LAUNCHERS[launcher](workers) as words:
                taken = measured(where, words, uri, workers, jobs)
            print(f"| {' | '.join((launcher, store, str(workers), f'{jobs:,}', *taken.cells(jobs)))} |", flush=True)


def ray_command() -> Path:
    """Return Ray's own command."""
    return Path(sys.executable).with_name("ray")


@contextmanager
def joblib(workers: int) -> Iterator[tuple[str, ...]]:
    """Give the words for joblib."""
    yield "hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"


@contextmanager
def ray(workers: int) -> Iterator[tuple[str, ...]]:
    """Give the words for a Ray cluster of so many workers, which is there before the sweep."""
    with servers.ray(os.environ | {"RAY_AUTH_MODE": "token"}, workers) as head:
        yield "hydra/launcher=ray", f"hydra.launcher.ray.init.address={head}"


LAUNCHERS: dict[str, Callable] = {"joblib": joblib, "ray": ray}


def measured(where: Folder, words: tuple[str, ...], uri: str, workers: int, jobs: int) -> Taken:
    """Return what sweeps of so many jobs took, each of them once, for together they take a quarter of an hour."""

    def seconds(*more: str) -> float:
        began = time.perf_counter()
        where.run(*RUNNER, "-m", *GRID, *words, *more)
        return time.perf_counter() - began

    rates = max(4, jobs // 50)
    grid, few = (f"{RATE}=logspace(-4,0,{rates})", f"seed=range({jobs // rates})"), f"seed=range({workers})"
    store = (f"tracking.uri={uri}", "tracking.every=20")
    # The store's tables are made before the clock runs.
    where.run(*RUNNER, *GRID, *store)
    recorded = (*grid, *store, f"tracking.experiment=at-{time.time_ns()}")
    unrecorded = seconds(*grid, "tracking=none"), seconds(few, "tracking=none")
    return Taken(seconds(*recorded), seconds(*recorded), *unrecorded)
