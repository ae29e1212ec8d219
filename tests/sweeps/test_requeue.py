"""What submitit asks to make room goes on where it was: in the same run, each step once, as if nothing had been."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import runs, same
from conftest import environment, with_store
from processes import wait

from runner.sweeps.requeue import Call
from runner.sweeps.task import Ended, Outcome
from runner.system import signals

USR2, TERM = signal.SIGUSR2, signal.SIGTERM
# What submitit's local worker ends with to be started again.
REQUEUE = 144
EAGER = ["execution=eager", "max_iterations=1000", "optimizer.learning_rate=0.01,0.02"]
# Two groups of two jobs each, in turns; the second one is slow enough to be interrupted.
GROUPS = ["loss=rosenbrock", "optimizer=adam", "guess=normal", "seed=1,2", "execution=graph", "execution.chunk=500"]
GROUPS += ["max_iterations=1000,30000", "checkpoint.every_seconds=0.3", "tracking.every=50"]


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/outputs/mlflow.db"


class Sweep:
    """A sweep in a folder, in a process of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        command = [sys.executable, "-u", "-m", "runner", "-m", "report=none", *words]
        with (folder / "out").open("w") as out:
            self.process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=out, stderr=out)

    def ended(self) -> tuple[int, str]:
        """Wait for its end, and return its exit code and what it has printed."""
        return self.process.wait(timeout=600), (self.folder / "out").read_text()

    def outcome(self, number: int) -> dict[str, Any]:
        """Return what is written down of a job."""
        files = [*self.folder.glob(f"outputs/sweeps/*/*/outcomes/*/{number}.json")]
        return json.loads(files[0].read_text()) if files else {}

    def until(self, what: Callable[[], Any]) -> None:
        """Wait until something is so."""
        assert wait(lambda: what() or self.process.poll() is not None, 300) and self.process.poll() is None, self.ended()

    def make_room(self, number: int, sent: int = USR2) -> None:
        """Signal the worker that is at a job, and wait until it is gone."""
        pid = self.outcome(number)["pid"]
        os.kill(pid, sent)
        self.until(lambda: not Path(f"/proc/{pid}").exists())


def undisturbed(folder: Path, *words: str) -> list[Any]:
    """Run a sweep that nothing disturbs, and return its runs in the jobs' order."""
    code, out = Sweep(folder, *words).ended()
    assert code == 0, out
    return by_job(folder)


def by_job(folder: Path) -> list[Any]:
    return sorted(runs(uri_of(folder)), key=lambda run: int(run.data.tags["job"]))


def equal(folder: Path, reference: Path, wanted: list[Any]) -> None:
    """Assert that a folder's runs are finished, one a job, and those of the reference."""
    found = by_job(folder)
    assert [run.info.status for run in found] == ["FINISHED"] * len(wanted)
    for one, other in zip(found, wanted, strict=True):
        same((uri_of(folder), one), (uri_of(reference), other))


@pytest.fixture
def folders(tmp_path: Path, migrated: Path) -> Iterator[tuple[Path, Path]]:
    """Give a folder, and one for the reference."""
    yield with_store(tmp_path / "one", migrated), with_store(tmp_path / "reference", migrated)


@pytest.mark.long
def test_a_job_is_requeued_and_goes_on(folders):
    folder, reference = folders
    sweep = Sweep(folder, *EAGER, "hydra/launcher=submitit_local", "sweep.pack=1")

    def reached() -> int:
        """Return the last step that the first job has printed."""
        consoles = folder.glob("outputs/sweeps/*/*/0/console.txt")
        return max((int(step) for file in consoles for step in re.findall(r"^ +(\d+) ", file.read_text(), re.M)), default=0)

    run_ids = set()
    for _ in range(2):
        before = reached()
        sweep.until(lambda before=before: reached() > before + 50)
        sweep.make_room(0)
        run_ids.add(sweep.outcome(0)["run_id"])
        assert sweep.outcome(0)["iterations"] > before
    code, out = sweep.ended()
    assert code == 0 and "2 jobs: 2 iteration_limit" in out, out
    assert run_ids == {sweep.outcome(0)["run_id"]}
    equal(folder, reference, undisturbed(reference, *EAGER))


@pytest.mark.long
def test_a_pack_is_requeued_and_what_had_ended_is_not_run_again(folders):
    folder, reference = folders
    sweep = Sweep(folder, *GROUPS, "hydra/launcher=submitit_local", "sweep.pack=4")
    sweep.until(lambda: [*folder.glob("outputs/pending/groups/*/*/state.json")] and "ending" in sweep.outcome(0))
    ended = [sweep.outcome(number) for number in (0, 2)]
    sweep.make_room(1)
    assert {sweep.outcome(number)["stopped_by"] for number in (1, 3)} == {"SIGUSR2"}
    code, out = sweep.ended()
    assert code == 0 and "4 jobs: 4 iteration_limit" in out, out
    told = re.findall(r"^(?:\d jobs as one program: .*|continues .* from step \d+)", out, re.M)
    assert told[0] == told[3] == "2 jobs as one program: 2 iteration_limit", out
    assert told[1] == "2 jobs as one program: 2 interrupted" and told[2].startswith("continues 2 jobs as one program ")
    assert len(told) == 4 and ended == [sweep.outcome(number) for number in (0, 2)]
    equal(folder, reference, undisturbed(reference, *GROUPS, "hydra/launcher=fused"))


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Be a worker of submitit, whose handlers are set; gives the signals for which it was asked to requeue."""
    came: list[int] = []

    def requeue(number: int, frame: Any) -> None:
        came.append(number)
        sys.exit(REQUEUE)

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    handlers = {USR2: requeue, TERM: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield came
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    for number, handler in before.items():
        signal.signal(number, handler)


def work(*sent: int) -> str:
    """Be a task during whose run these signals come, or in a run that comes later where none comes."""
    with signals.caught() as signal_name:
        for number in sent:
            os.kill(os.getpid(), number)
        if name := signal_name():
            raise Ended(Outcome((), ending="interrupted", stopped_by=name))
    return "done"


@pytest.mark.parametrize(
    ("sent", "code", "asked"),
    [((USR2,), REQUEUE, [USR2]), ((TERM,), 143, []), ((USR2, TERM), REQUEUE, [USR2]), ((TERM, USR2), REQUEUE, [USR2])],
)
def test_a_task_ends_by_what_came(requeued, sent, code, asked):
    with pytest.raises(SystemExit) as ended:
        Call(work)(*sent)
    assert ended.value.code == code and requeued == asked


def test_room_is_made_by_the_run_that_comes_next(requeued):
    def task() -> str:
        os.kill(os.getpid(), USR2)
        # At no run, it would end the process else.
        os.kill(os.getpid(), TERM)
        return work()

    with pytest.raises(SystemExit, match=str(REQUEUE)):
        Call(task)()
    assert requeued == [USR2]


def test_what_has_ended_needs_no_room(requeued):
    def task() -> str:
        done = work()
        os.kill(os.getpid(), USR2)
        return done

    assert Call(task)() == "done" and requeued == []
    # The next task was not asked.
    assert Call(work)() == "done"


def test_between_runs_sigterm_ends_a_worker_at_once():
    code = (
        "import os, signal, sys; from runner.sweeps.requeue import Call\n"
        "signal.signal(signal.SIGTERM, lambda *_: None); signal.signal(signal.SIGUSR2, lambda *_: None)\n"
        "Call(lambda: os.kill(os.getpid(), signal.SIGTERM))(); sys.exit(3)"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=environment() | {"SUBMITIT_EXECUTOR": "local"}, check=False)
    assert ended.returncode == 128 + TERM


def test_a_request_for_room_leaves_a_chunk_its_time(monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.1)
    with signals.making_room(USR2) as asked, signals.caught() as came:
        os.kill(os.getpid(), USR2)
        assert not wait(lambda: False, 0.5) and asked() == came() == "SIGUSR2"
