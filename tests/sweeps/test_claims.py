"""Equal sweeps at once: each job is run by one of them and reused by the others, and a sweep that dies holds nothing back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment, store
from test_sweeps import children

from runner.sweeps.claims import Claims
from runner.tracking import store as stores


def test_a_job_is_claimed_by_one_sweep_at_a_time(tmp_path):
    one, other, elsewhere = Claims(tmp_path, "store"), Claims(tmp_path, "store"), Claims(tmp_path, "another store")
    assert one.take({"a", "b"}) == (set(), False) and elsewhere.take({"a"}) == (set(), False)
    assert other.take({"b", "c"}) == ({"b"}, False) and one.take({"a", "b", "c"}) == ({"c"}, False)
    # What one of them has had until now may have ended.
    assert other.take({"d"}) == (set(), True) and other.take({"d"}) == (set(), False)
    one.release()
    assert other.take({"a", "b", "c"}) == (set(), True)
    for each in (other, elsewhere):
        each.release()
    assert not [*tmp_path.iterdir()] if tmp_path.exists() else True


def test_the_claims_of_a_sweep_that_was_killed_are_none(tmp_path):
    ready, wait = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        Claims(tmp_path, "store").take({"a"})
        os.write(ready[1], b"1")
        os.read(wait[0], 1)
    os.read(ready[0], 1)
    mine = Claims(tmp_path, "store")
    (tmp_path / "claims/notes.json").write_text("a user's own")
    assert mine.take({"a"}) == ({"a"}, False)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    mine.wait({"a"})
    assert mine.take({"a"}) == (set(), True)
    mine.release()
    assert {path.name for path in (tmp_path / "claims").iterdir()} == {".guard", "notes.json"}


def test_what_a_job_has_forked_holds_nothing(tmp_path):
    claims, ready, wait = Claims(tmp_path, "store"), os.pipe(), os.pipe()
    claims.take({"a"})
    child = os.fork()
    if not child:
        os.write(ready[1], b"1")
        os.read(wait[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    # As if this process had died.
    os.close(claims.file)
    assert Claims(tmp_path, "store").take({"a"}) == (set(), True)
    os.write(wait[1], b"1")
    os.waitpid(child, 0)


def test_a_job_that_another_sweep_is_at_is_waited_for_and_reused(cli, tmp_path, monkeypatch):
    words = ["-m", "optimizer.learning_rate=0.1,0.2", "max_iterations=5"]
    assert cli(*words).code == 0
    first, second = children(tmp_path)
    # One of the two has not ended yet, by another sweep.
    store(tmp_path).update_run(first.info.run_id, "RUNNING")
    uri = stores.absolute("sqlite:///outputs/mlflow.db")
    other = Claims(tmp_path / "outputs/pending", f"{uri} runner")
    other.take({first.data.tags["identity"]})

    waited, wait = [], Claims.wait

    def ends(claims, digests):
        waited.append(digests)
        store(tmp_path).update_run(first.info.run_id, "FINISHED")
        other.release()
        wait(claims, digests)

    monkeypatch.setattr(Claims, "wait", ends)
    ended = cli(*words, "optimizer.learning_rate=0.1,0.2,0.3")
    assert ended.code == 0 and waited == [{first.data.tags["identity"]}], ended
    assert "3 jobs: 1 being run by another sweep, 1 reused, 1 new" in ended.out and "2 of them reused" in ended.out
    assert "waits for 1 jobs that another sweep is running" in ended.out
    assert len(children(tmp_path)) == 3 and second.info.run_id in [run.info.run_id for run in children(tmp_path)]
    assert not (tmp_path / "outputs/pending").exists()


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_equal_sweeps_at_once_record_each_job_once(prepared, launcher):
    words = [sys.executable, "-m", "runner", "-m", "report=none", f"hydra/launcher={launcher}"]
    words += ["optimizer.learning_rate=logspace(-3,-1,6)", "max_iterations=2000"]
    how = {"cwd": prepared, "env": environment(), "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    sweeps = [subprocess.Popen(words, **how) for _ in range(2)]
    out = [each.communicate(timeout=600)[0] for each in sweeps]
    assert [each.returncode for each in sweeps] == [0, 0], out
    assert all("6 jobs: 6 iteration_limit" in each for each in out), out
    assert len({run.data.tags["identity"] for run in children(prepared)}) == len(children(prepared)) == 6
    assert not Path(prepared / "outputs/pending").exists()
