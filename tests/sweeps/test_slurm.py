"""Sweeps on a real Slurm of this machine, with and without accounting: arrays, packs, tasks cancelled, killed and requeued."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm import slurm
from test_launchers import command, recorded
from test_requeue import EAGER, Sweep, equal, undisturbed, with_store

from runner.sweeps import slurm_queue

WORDS = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1", "report=none"]
# With submitit's own look at the accounting a dead task was waited for without end.
BOUND = 120


@pytest.fixture(scope="module", params=[False, True], ids=["without accounting", "with accounting"])
def cluster(request) -> Iterator[dict[str, str]]:
    with slurm(request.param) as env:
        yield {name: value for name, value in env.items() if name == "SLURM_CONF"}


@pytest.fixture(autouse=True)
def reached(cluster, monkeypatch) -> None:
    """Let what this process starts reach the cluster."""
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)


def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run a sweep in a folder with a store."""
    line, how = command(folder, f"sqlite:///{folder}/outputs/mlflow.db", *WORDS, *words)
    return subprocess.run(line, **how, capture_output=True, timeout=600, check=False)


def said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.long
def test_an_array_loses_the_job_alone_whose_task_died(prepared):
    began = time.monotonic()
    ended = sweep(prepared, "loss.way=0,4,5", "max_iterations=3", "execution=eager", "sweep.pack=1")
    assert time.monotonic() - began < BOUND
    assert ended.returncode == 1 and "1 of 3 jobs failed" in ended.stderr, ended
    assert re.search(r"^  .*loss.way=4.*: its process died", ended.stdout, re.M) and "2 iteration_limit" in ended.stdout
    _, children = recorded(prepared, f"sqlite:///{prepared}/outputs/mlflow.db")
    finished = [run for run in children if run.info.status == "FINISHED"]
    assert sorted(run.data.params["loss.way"] for run in finished) == ["0", "5"]
    assert all(run.data.metrics["x"] == pytest.approx(4 - 3 * 0.8**3, rel=1e-6) for run in finished)


@pytest.mark.long
def test_packs_are_tasks(prepared):
    words = ["guess.x=range(0,20)", "max_iterations=5", "sweep.pack=10"]
    ended = sweep(prepared, *words)
    assert ended.returncode == 0 and "20 jobs: 20 iteration_limit" in ended.stdout, ended
    assert ended.stdout.count("10 jobs as one program: 10 iteration_limit") == 2, ended
    assert "20 jobs: 20 reused" in sweep(prepared, *words).stdout


@pytest.mark.long
def test_a_task_that_is_cancelled_is_interrupted_and_the_other_goes_on(prepared):
    words = [*WORDS, "execution=eager", "max_iterations=100000", "stopping.time_limit=15", "sweep.pack=1"]
    running = Sweep(prepared, *words, "optimizer.learning_rate=0.01,0.02")
    running.until(lambda: "pid" in running.outcome(0) and "pid" in running.outcome(1) and steps(prepared, 0) > 20)
    task = next(line for line in said("squeue", "--noheader", "--array", "--format=%i").split() if line.endswith("_0"))
    said("scancel", task)
    code, out = running.ended()
    assert code == 128 + signal.SIGTERM and "2 jobs: 1 interrupted, 1 time_limit" in out, out


@pytest.mark.long
def test_a_task_that_is_requeued_goes_on_in_the_same_run(tmp_path, migrated):
    folder, reference = (with_store(tmp_path / name, migrated) for name in ("one", "reference"))
    running = Sweep(folder, *WORDS, *EAGER, "sweep.pack=1")
    run_ids = set()
    for _ in range(3):
        before = steps(folder, 0)
        running.until(lambda before=before: steps(folder, 0) > before + 50)
        task = next(line for line in said("squeue", "--noheader", "--array", "--format=%i").split() if line.endswith("_0"))
        pid = running.outcome(0)["pid"]
        said("scancel", f"--signal={slurm_signal()}", task)
        running.until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
        run_ids.add(running.outcome(0)["run_id"])
    code, out = running.ended()
    assert code == 0 and "2 jobs: 2 iteration_limit" in out, out
    assert run_ids == {running.outcome(0)["run_id"]}
    equal(folder, reference, undisturbed(reference, *EAGER))


def slurm_signal() -> str:
    """Return the signal by which submitit is asked to make room."""
    return os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")


def steps(folder: Path, job: int) -> int:
    """Return the last step that a job has printed."""
    consoles = folder.glob(f"outputs/sweeps/*/*/{job}/console.txt")
    return max((int(step) for file in consoles for step in re.findall(r"^ +(\d+) ", file.read_text(), re.M)), default=0)


def test_a_task_that_the_queue_no_longer_shows_is_gone(cluster):
    queue = slurm_queue.Queue()
    for name in ("7_0", "7_1", "8", "9"):
        queue.register_job(name)
    assert queue.read_info(b"7_0|RUNNING\n7_1|FAILED\n9|SUSPENDED\n1|FAILED\n") == {
        "7_0": {"State": "RUNNING"},
        "7_1": {"State": "FAILED"},
        "8": {"State": "GONE"},
        "9": {"State": "SUSPENDED"},
    }
    queue.update()
    assert [queue.is_done(name, mode="cache") for name in ("7_0", "8")] == [True, True]
