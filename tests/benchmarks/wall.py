"""The parts of whole runs: the command line, a second job of one process, and a long run."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import hydra
import numpy as np
from rich.console import Console

from benchmarks.measure import Contender, Row, Target, seconds
from benchmarks.processes import ROOT, RUNNER, TENSORFLOW, Folder, folder, smallest_app
from runner import experiment
from runner.cli import run
from runner.config import schema
from runner.loop import Result
from runner.tracking import contract

# What needs no run: words, and the exit code that they end with.
SHORT = {"--help": (("--help",), 0), "--cfg job": (("--cfg", "job"), 0), "a misspelt key": (("max_iteration=3",), 1)}
# So small a rate that x is on its way to the end: equal rows would take no room in a Parquet file.
# Pictures, which cost the same however long a run is, are left to the parts above.
LONG = ("optimizer.learning_rate=5e-8", "tracking.every=100", "report=none")
# A thousand starts and rates, and the same by Hydra alone, with rows sent as MLflow's client takes them; both without a report.
GRID = ("loss=rosenbrock", "optimizer=adam", "max_iterations=200", "guess=normal", "sweep.reuse=false")
BARE = "report=none"
HYDRA = """import sys
sys.path.append(TESTS)
from runner.cli import entry
from runner.tracking.store import database
database.REVISIONS = ()
sys.argv[1:1] = ["-m", "hydra/sweeper=basic", "tracking._target_=direct.mlflow", "--allow-target=direct"]
sys.exit(entry.main())""".replace("TESTS", repr(str(ROOT / "tests/support")))


def process(quick: bool) -> Iterator[Row]:
    """Measure the example from the command line, and what needs no run."""
    repeats = 1 if quick else 7
    with folder() as kept, folder() as new:
        example = {
            "there": Contender(lambda: kept.run(*RUNNER)),
            "new": Contender(lambda: new.run(*RUNNER), prepare=new.clear),
            "import": Contender(lambda: kept.run(*TENSORFLOW)),
        }
        taken = seconds(example, repeats)
        for name, cell, limit in (("there", "a store that exists", 0.9), ("new", "a new store", 1.2)):
            values = {"runner": taken[name], "import tensorflow": taken["import"]}
            yield Row("process", f"python -m runner, {cell}", "s", values, Target("≤", limit))
        app = smallest_app(new.path)
        for cell, (words, code) in SHORT.items():
            ways = {"runner": Contender(lambda w=words, c=code: kept.run(*RUNNER, *w, code=c))}
            ways["smallest Hydra app"] = Contender(lambda w=words, c=code: new.run(*app, *w, code=c))
            yield Row("process", f"python -m runner, {cell}", "s", seconds(ways, repeats), Target("≤", 1.2))


def second_job(quick: bool) -> Iterator[Row]:
    """Measure two jobs of one process that differ in guess and learning rate: all of the second beside the first's loop."""
    schema.register()
    steps, repeats = (1_000, 1) if quick else (40_000_000, 7)
    ours, peer = np.zeros(repeats), np.zeros(repeats)
    for repeat in range(repeats):
        experiment.PROGRAMS.kept.clear()
        first = job(steps, "guess.x=[-1.2,1]", "optimizer.learning_rate=1e-6")
        second = job(steps, "guess.x=[0.5,-0.25]", "optimizer.learning_rate=2e-6")
        peer[repeat] = first.seconds["loop"]
        ours[repeat] = second.seconds["compile"] + second.seconds["loop"]
    values = {"second job": ours, "first job's loop": peer}
    yield Row("second_job", f"rosenbrock d = 2, adam, {steps:,} steps", "s", values, Target("≤", 1.2))


def job(steps: int, *words: str) -> Result:
    """Run one job in this process, which records nothing and shows nothing."""
    chosen = {
        "loss": "rosenbrock",
        "guess": "point",
        "optimizer": "adam",
        "strategy": "tape",
        "execution": "xla",
        "tracking": "none",
    }
    overrides = [f"{group}={choice}" for group, choice in chosen.items()] + [f"max_iterations={steps}", *words]
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose("config", overrides)
    return run.run(cfg, contract.Nothing(), contract.About(Path(), "", {}, {}, ""), chosen, Console(file=io.StringIO()))


def long(quick: bool) -> Iterator[Row]:
    """Measure a run of ten million steps, and the memory that it takes more than the example."""
    steps, repeats, peaks = (1_000, 1, 1) if quick else (10_000_000, 3, 2)
    words = (*RUNNER, f"max_iterations={steps}")
    with ExitStack() as stack:
        where: Folder = stack.enter_context(folder())
        ways = {
            "runner": Contender(lambda: where.run(*words, *LONG)),
            "tracking=none": Contender(lambda: where.run(*words, LONG[0], "tracking=none")),
        }
        cell = f"{steps:,} steps, every 100th to MLflow, all to Parquet"
        yield Row("long", cell, "s", seconds(ways, repeats), Target("≤", 1.5))
        taken = np.array([[where.peak(*words, *LONG), where.peak(*RUNNER)] for _ in range(peaks)])
        values = {"runner": taken[:, 0], "the example": taken[:, 1]}
        yield Row("long", "its peak memory", "MB", values, Target("≤", 300, "MB more"))


def sweep(quick: bool) -> Iterator[Row]:
    """Measure a thousand jobs as one program, beside the example, and beside Hydra's way with fifty of them."""
    rates, starts, repeats = (3, 2, 1) if quick else (40, 25, 3)
    few = 2 if quick else 50
    with folder() as where:
        grid = (*GRID, f"optimizer.learning_rate=logspace(-4,0,{rates})", f"seed=range({starts})")
        words = (*RUNNER, "-m", *grid, "hydra/launcher=fused")
        ways = {
            "runner": Contender(lambda: where.run(*words, BARE)),
            "the example": Contender(lambda: where.run(*RUNNER)),
            "with the sweep's report": Contender(lambda: where.run(*words)),
        }
        taken = seconds(ways, repeats)
        jobs = rates * starts
        cell = f"{jobs:,} jobs of rosenbrock d = 2, adam, 200 steps, every one recorded"
        yield Row("sweep", cell, "s", taken, Target("≤", 4))
        began = time.perf_counter()
        where.run(sys.executable, "-c", HYDRA, *GRID, BARE, f"seed=range({few})")
        values = {"runner": jobs / taken["runner"], "basic launcher": np.full(repeats, few / (time.perf_counter() - began))}
        yield Row(
            "sweep", f"the same, beside Hydra's basic launcher and log_batch with {few} jobs", "jobs/s", values, Target("≥", 20)
        )
