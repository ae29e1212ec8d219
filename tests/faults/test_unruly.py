"""Losses that do more than to compute: they print, fork, start threads and processes, or do not come back."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from commands import Command, Ended, metrics, runs, trajectory
from conftest import own_loss, store

STEPS = 24
# Something else before each row where `way` is `much`; `slow` or `stuck` from the ninth on.
LOSS = """
import itertools, os, sys, threading, time
from multiprocessing import get_context
import tensorflow as tf

FORK = get_context("fork")

def forks(child, code):
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    else:
        child()

def fails():
    raise RuntimeError("of a child")

def process(target, *args, end=False, wait=True):
    one = FORK.Process(target=target, args=args)
    one.start()
    if end:
        one.terminate()
    if wait:
        one.join()
        assert one.exitcode == (-15 if end else 0)
    return one

def pool():
    # Its end sends each worker a SIGTERM.
    with FORK.Pool(1) as workers:
        assert workers.map(abs, [-1]) == [1]

def stays():
    if not staying:
        staying.append(process(time.sleep, 3600, wait=False))
        with open("stays", "a") as file:
            print(staying[0].pid, file=file)

DOES = itertools.cycle([
    lambda: print("printed", flush=True),
    lambda: forks(lambda: os._exit(5), 5),
    lambda: forks(lambda: sys.exit(3), 3),
    lambda: forks(fails, 1),
    lambda: forks(lambda: None, 0),
    lambda: process(int),
    lambda: process(time.sleep, 3600, end=True),
    pool,
    lambda: threading.Thread(target=time.sleep, args=(3600,)).start(),
    stays,
])
rows, staying = 0, []

def loss(x, *, way):
    global rows
    # Not while it is only looked at.
    if not tf.is_symbolic_tensor(x):
        rows += 1
        if way == "much":
            next(DOES)()
        elif rows > 8:
            open(way, "w").close()
            time.sleep(3600 if way == "stuck" else 0.2)
    return tf.square(x - 4)
"""
WORDS = ("--config-dir", "conf", "loss=bad", "guess=point", "guess.x=3", "execution=eager", "report=none")


@pytest.fixture
def folder(prepared: Path) -> Path:
    """Give a folder with a store and the loss."""
    own_loss(prepared, "bad", LOSS)
    (prepared / "conf/loss/bad.yaml").write_text("_target_: bad.loss\nway: much\n")
    return prepared


def only(folder: Path) -> tuple[str, Any]:
    """Return a folder's store and its only run, when that has ended."""
    uri = f"sqlite:///{folder}/outputs/mlflow.db"

    def status() -> str:
        (run,) = store(folder).search_runs(["1"])
        return run.info.status

    assert processes.wait(lambda: status() != "RUNNING", 30), "its process is gone, and it is RUNNING"
    (run,) = runs(uri)
    return uri, run


def has(folder: Path, count: int, status: str, ending: str) -> None:
    """Assert that the only run of a folder has the first so many rows, each once: of (x - 4)², from 3, at a rate of 0.1."""
    uri, run = only(folder)
    assert (run.info.status, run.data.tags["ending"]) == (status, ending)
    columns, wanted = trajectory(uri, run), 4 - 0.8 ** np.arange(count)
    np.testing.assert_allclose(columns["x/0"], wanted, rtol=1e-6)
    for name, rows in metrics(uri, run).items():
        assert [step for step, _ in rows] == list(range(count)) == list(columns["step"]), name


@pytest.mark.long
def test_what_a_loss_forks_and_starts_has_no_part_in_its_run(folder):
    words = (*WORDS, f"max_iterations={STEPS}")
    first = Command(folder, *words)
    try:
        first.reach(STEPS // 2)
        first.kill()
        # What stays is no sign of life.
        assert only(folder)[1].info.status == "KILLED"
        again = Command(folder, *words)
        assert again.ended(60) == Ended(0, "") and "continues run" in again.out.read_text()
    finally:
        first.kill()
        stay = (folder / "stays").read_text().split() if (folder / "stays").exists() else []
        for pid in stay:
            os.kill(int(pid), signal.SIGKILL)
    assert len(stay) == 2 and again.out.read_text().count("printed") > 1
    has(folder, STEPS + 1, "FINISHED", "iteration_limit")
    assert not list(folder.glob("outputs/runs/*/*/lock"))


# tests/cli/test_runs.py holds a run to its limit quickly, tests/system/test_signals.py gives up what does not come back.
@pytest.mark.long
def test_a_loss_that_takes_long_is_held_to_the_time_limit(folder):
    command = Command(folder, *WORDS, "loss.way=slow", "stopping.time_limit=1")
    assert command.ended() == Ended(0, "")
    assert 8 < len(command.rows()) < 20
    has(folder, len(command.rows()), "FINISHED", "time_limit")


@pytest.mark.long
def test_a_loss_that_does_not_come_back_is_given_up_at_a_signal(folder):
    command = Command(folder, *WORDS, "loss.way=stuck")
    try:
        command.wait((folder / "stuck").exists)
        command.signal(signal.SIGTERM)
        code, err = command.ended(30)
    finally:
        command.kill()
    assert code == 143 and err.count("\n") == 1 and "the step under way takes more than" in err
    has(folder, len(command.rows()), "KILLED", "interrupted")
