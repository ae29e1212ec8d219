"""A process is known by its number and its start: a number that another process has been given keeps nobody waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import optuna
import pytest

from runner.errors import UserError
from runner.sweeps.optuna import study as studies
from runner.sweeps.task import Task
from runner.system import orphans, processes
from runner.tracking import journal

# A process that had the number of this one, before this one was started.
RECYCLED = {**processes.name(), "start": "1"}


def finishes(call, seconds: float = 5) -> bool:
    """Tell whether a function comes back within so many seconds."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_a_process_is_there_as_long_as_it_has_its_number_and_its_start():
    assert processes.there(processes.name()) and processes.there({"pid": os.getpid()})
    assert not processes.there(RECYCLED)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        named = {"pid": child.pid, "start": processes.start_of(child.pid)}
        assert processes.there(named)
        child.communicate(b"\n")
    assert not processes.there(named) and not processes.there({"pid": child.pid})


def test_a_job_whose_process_is_gone_is_not_waited_for_where_another_has_its_number(tmp_path):
    task = Task(tmp_path, fail_fast=False)
    task.begin(0)
    assert not finishes(lambda: task.read(0), 1), "this process is at it"
    task.write(0, RECYCLED)
    assert task.read(0) is True


def test_a_worker_ends_with_its_launcher_where_another_process_has_its_number(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(orphans.os, "kill", lambda *_: ended.set())
    monkeypatch.setattr(orphans.time, "sleep", lambda _: None)
    monkeypatch.setattr(orphans, "_watched", set())
    monkeypatch.setattr(orphans, "_orphaned", threading.Event())
    parent = {**RECYCLED, "pid": os.getppid()}
    orphans.end_with(parent)
    assert ended.wait(5)


def test_a_study_is_free_where_another_process_has_the_number_of_the_one_that_was_at_it():
    study = optuna.create_study()
    parent = {**RECYCLED, "pid": os.getppid()}
    study.set_user_attr("process", [*parent.values()])
    with studies.owned(study):
        assert study.user_attrs["process"] == [*processes.name().values()]
    study.set_user_attr("process", [*{**parent, "start": processes.start_of(os.getppid())}.values()])
    with pytest.raises(UserError, match="is run by process"), studies.owned(study):
        pass


def test_a_lock_names_the_start_of_its_holder(tmp_path):
    journal.Lock(tmp_path, "run")
    with pytest.raises(journal.Held) as held:
        journal.Lock(tmp_path, "run")
    assert held.value.holder == {**processes.name(), "role": "run"}
