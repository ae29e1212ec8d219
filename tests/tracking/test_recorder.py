"""The recorder process: it outlives the run's by as long as it takes to end the run, and a run hears of all that befalls it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import processes
import pyarrow.parquet as pq
import pytest
from commands import Command, Ended
from conftest import own_loss, store
from mlflow.artifacts import download_artifacts

from runner import sync
from runner.errors import UserError
from runner.tracking import client as recorder_module
from runner.tracking import journal
from runner.tracking import process as recorder_process
from runner.tracking import store as tracking_store
from runner.tracking.journal import messages
from runner.tracking.store import heartbeat

LONG = ("execution=eager", "max_iterations=1000000", "report=none")


@contextmanager
def started(folder: Path, *words: str) -> Iterator[tuple[Command, int]]:
    """Start a run, wait until it has taken some steps, and give it and the recorder's id."""
    command = Command(folder, *words)
    try:
        command.reach(201)
        (recorder,) = children(command.process.pid)
        yield command, recorder
    finally:
        command.kill()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Tell whether a process ends within some seconds."""
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


def only_run(folder: Path):
    client = store(folder)
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return run


def test_a_run_whose_process_is_killed_ends_with_all_that_it_sent(prepared):
    with started(prepared, *LONG) as (command, recorder):
        assert only_run(prepared).info.status == "RUNNING"
        command.kill()
    assert gone(recorder)
    run = only_run(prepared)
    assert run.info.status == "KILLED" and run.info.end_time is not None
    assert run.data.tags["ending"] == "interrupted" and run.data.tags["stopped_by"] == "death"
    steps = [row.step for row in store(prepared).get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(len(steps))) and len(steps) > 200
    path = download_artifacts(
        run_id=run.info.run_id, artifact_path="trajectory.parquet", tracking_uri=store(prepared).tracking_uri
    )
    assert pq.read_table(path)["step"].to_pylist() == steps


def test_a_signal_to_both_processes_ends_the_run_as_one_to_the_run_does(prepared):
    with started(prepared, *LONG) as (command, recorder):
        for pid in (recorder, command.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert command.ended() == Ended(143, "")
    assert "interrupted (SIGTERM)" in command.out.read_text()
    assert only_run(prepared).data.tags["stopped_by"] == "SIGTERM" and gone(recorder)


def steps_of(folder: Path) -> list[int]:
    """Return the steps of the only run, in the order of the store."""
    return [row.step for row in store(folder).get_metric_history(only_run(folder).info.run_id, "loss")]


def test_a_run_goes_on_without_its_recorder_and_is_sent_at_its_end(prepared):
    with started(prepared, *LONG) as (command, recorder):
        os.kill(recorder, signal.SIGKILL)
        time.sleep(0.5)
        command.signal(signal.SIGTERM)
        ended = command.ended()
    text = (
        "WARNING: tracking: the recorder process ended by itself, with exit code -9; the run goes on, and is sent at its end\n"
    )
    assert ended == Ended(143, text)
    run, steps = only_run(prepared), steps_of(prepared)
    assert run.info.status == "KILLED" and steps == list(range(int(run.data.metrics["system/iterations"]) + 1))


def test_a_run_takes_its_steps_while_its_recorder_does_nothing(prepared):
    with started(prepared, "execution=eager", "max_iterations=400", "report=none") as (command, recorder):
        os.kill(recorder, signal.SIGSTOP)
        try:
            assert len(command.rows()) < 400
            command.reach(401)
            assert command.process.is_alive(), "it ended, and nobody has recorded its rows"
        finally:
            os.kill(recorder, signal.SIGCONT)
        assert command.ended() == Ended(0, "")
    assert steps_of(prepared) == list(range(401))


def test_a_run_deleted_meanwhile_goes_on_and_keeps_its_spool(prepared):
    with started(prepared, *LONG) as (command, recorder):
        store(prepared).delete_run(only_run(prepared).info.run_id)
        time.sleep(1.5)
        command.signal(signal.SIGTERM)
        code, err = command.ended()
    assert code == 143 and gone(recorder)
    (journal,) = prepared.glob("outputs/runs/*/*/spool")
    at_once, at_end = err.splitlines()
    assert "must be in the 'active' state" in at_once and "is not recorded further, and goes on" in at_once
    assert at_end.endswith(f"send it with: python -m runner.sync {journal.parent}")


def test_what_the_recorder_warns_of_is_in_the_log_of_the_run(prepared):
    (prepared / "sitecustomize.py").write_text(
        "from runner.tracking.store import database\n\ndatabase.REVISIONS = ('another',)\n"
    )
    ended = Command(prepared, "max_iterations=3", "report=none", paths=[prepared]).ended()
    assert ended.code == 0 and ended.err.startswith("WARNING: MLflow's schema ") and ended.err.count("\n") == 1
    (log,) = (prepared / "outputs" / "runs").glob("*/*/runner.log")
    assert "[runner.tracking.store.writers][WARNING] MLflow's schema " in log.read_text()


def test_a_mistake_found_after_the_store_was_prepared_leaves_none(tmp_path):
    ended = Command(tmp_path, "loss=rosenbrock", "guess=point", "guess.x=[1,2,3]").ended()
    assert ended.code == 1 and ended.err.count("\n") == 1
    # The recorder process, which may be making the store, ends a moment later.
    left = lambda: [path.name for path in (tmp_path / "outputs").iterdir()]  # noqa: E731
    assert processes.wait(lambda: left() == ["runs"], 20), left()


def test_a_store_that_was_being_made_leaves_nothing_of_sqlites_either(tmp_path, monkeypatch):
    made = tmp_path / "mlflow.db.0"
    for suffix in ("", "-journal", "-wal", "-shm"):
        made.with_name(made.name + suffix).touch()
    monkeypatch.setattr(tracking_store, "PREPARED", {tmp_path / "mlflow.db": made})
    tracking_store.discard()
    assert [*tmp_path.iterdir()] == [] and tracking_store.PREPARED == {}


def test_runs_started_together_on_a_new_store_all_get_into_it(tmp_path):
    several = [Command(tmp_path, "max_iterations=3", "report=none", to=tmp_path / str(i)) for i in range(2)]
    assert [each.ended() for each in several] == [Ended(0, "")] * 2
    client = store(tmp_path)
    experiment = client.get_experiment_by_name("runner")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 2
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"runs", "mlflow.db", "artifacts"}


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(3, 2), np.arange(10, dtype=np.float32)[::3], np.zeros((0, 4)), np.float64(3.5), np.array([True])],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_through_as_they_were(array):
    here, there = Pipe()
    messages.send(here, "rows", {"ä": [1, None]}, {"first": np.asarray(array), "second": np.ones(2)})
    word, fields, arrays = messages.receive(there)
    assert (word, fields) == ("rows", {"ä": [1, None]})
    np.testing.assert_array_equal(arrays["first"], array, strict=True)
    np.testing.assert_array_equal(arrays["second"], np.ones(2))
    here.close()
    with pytest.raises(EOFError):
        messages.receive(there)


SILENT = (*LONG[:1], "max_iterations=300", "report=none", "tracking.heartbeat=0.5")


def test_a_run_that_is_suspended_is_not_ended_here_and_takes_it_back_where_another_machine_ended_it(prepared):
    with started(prepared, *SILENT) as (command, recorder):
        client, run_id = store(prepared), only_run(prepared).info.run_id
        for pid in (command.process.pid, recorder):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(heartbeat.patience(0.5) + 0.5)
        assert heartbeat.reap(client) == []
        # As another machine sees it.
        client.set_tag(run_id, "machine", "elsewhere")
        assert heartbeat.reap(client) == []
        time.sleep(heartbeat.patience(0.5) + 0.5)
        assert heartbeat.reap(client) == [run_id] and only_run(prepared).info.status == "KILLED"
        os.kill(recorder, signal.SIGCONT)
        assert processes.wait(lambda: only_run(prepared).info.status == "RUNNING", 20)
        os.kill(command.process.pid, signal.SIGCONT)
        assert command.ended() == Ended(0, "")
    run = only_run(prepared)
    assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
    assert not {"stopped_by", "end_reason"} & {*run.data.tags}


@pytest.mark.parametrize("machine", ["this", "another"])
def test_a_killed_run_is_continued_under_another_host_name(prepared, machine):
    with started(prepared, *SILENT) as (command, _):
        command.kill(everything=True)
    client, before = store(prepared), only_run(prepared)
    assert before.info.status == "RUNNING"
    client.set_tag(before.info.run_id, "host", "another")
    if machine == "another":
        client.set_tag(before.info.run_id, "machine", "another")
        (lock,) = prepared.glob("outputs/runs/*/*/lock")
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "host": "another", "machine": "another"}))
    ended = Command(prepared, *SILENT).ended()
    run = only_run(prepared)
    assert ended.code == 0 and run.info.run_id == before.info.run_id and run.data.tags["resumed"] == "1"
    assert run.info.status == "FINISHED" and sorted(steps_of(prepared)) == list(range(301))
    lines = [f"WARNING: run {run.info.run_id} {text}" for text in WATCHED] if machine == "another" else []
    assert ended.err.splitlines() == lines


WATCHED = ("may be going on on host another: it is watched for 2 s", "is silent, and is continued here")


def test_one_that_goes_on_on_another_machine_is_left_alone(prepared):
    with started(prepared, *SILENT) as (command, _):
        command.kill(everything=True)
    client, before = store(prepared), only_run(prepared)
    for key in ("host", "machine"):
        client.set_tag(before.info.run_id, key, "another")
    (lock,) = prepared.glob("outputs/runs/*/*/lock")
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "host": "another", "machine": "another"}))
    with heartbeat.Heart(client, before.info.run_id, 0.1):
        ended = Command(prepared, *SILENT).ended()
    assert ended.code == 0 and ended.err.endswith("is going on: this is another run of the same configuration\n")
    statuses = {run.info.run_id: run.info.status for run in client.search_runs(["1"])}
    # Nor is its spool sent as that of a dead run, though the lock of its folder is free.
    assert statuses.pop(before.info.run_id) == "RUNNING" and [*statuses.values()] == ["FINISHED"]
    assert json.loads(lock.read_text())["host"] == "another"


def test_a_recorder_that_was_stopped_is_waited_for_no_longer_than_a_store(prepared):
    words = (LONG[0], "max_iterations=300", "report=none", "tracking.flush_timeout=2")
    with started(prepared, *words) as (command, recorder):
        os.kill(recorder, signal.SIGSTOP)
        command.reach(301)
        assert command.ended(240) == Ended(0, "")
        assert gone(recorder)
    assert only_run(prepared).info.status == "FINISHED" and steps_of(prepared) == list(range(301))


def test_an_answer_of_a_recorder_that_stands_still_is_not_waited_for(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    process = recorder_process.Process()
    where = {"uri": "sqlite:///outputs/mlflow.db", "experiment": "runner"}
    assert process.ask("sweep_known", where) == {"known": {}}
    os.kill(process.child.pid, signal.SIGSTOP)
    process.say("sweep_known", {**where, "cwd": str(prepared)})
    with pytest.raises(UserError, match="stood still and was ended"):
        process.answer(1)
    assert gone(process.child.pid)


AHEAD = """
def loss(x, *, way):
    return x * x
"""


def test_a_run_waits_where_more_lies_unsent_than_a_disk_should_hold_and_heeds_signals(prepared):
    own_loss(prepared, "mine", AHEAD)
    words = (
        "--config-dir",
        "conf",
        "loss=mine",
        "guess=point",
        "guess.x=1",
        "tracking.flush_timeout=2",
        "tracking.max_unsent=2e-5",
    )
    command = Command(prepared, *words, *LONG, paths=[prepared])
    command.reach(201)
    (recorder,) = children(command.process.pid)
    os.kill(recorder, signal.SIGSTOP)
    (journal,) = prepared.glob("outputs/runs/*/*/spool")
    size = journal.stat().st_size

    def stands() -> bool:
        before = journal.stat().st_size
        time.sleep(1)
        return journal.stat().st_size == before

    assert processes.wait(stands, 60)
    assert journal.stat().st_size < size + 40_000
    command.signal(signal.SIGTERM)
    ended = command.ended(240)
    assert ended.code == 143 and gone(recorder)
    assert "the run waits whenever" in ended.err and "record fewer metrics with tracking.every=100" in ended.err
    assert only_run(prepared).info.status == "KILLED"


def test_a_store_that_is_slower_than_the_run_sets_its_pace(cli, runs, monkeypatch):
    unsent, record = [], recorder_module.Session.record

    def watched(session, rows) -> None:
        record(session, rows)
        unsent.append(session.spool.end - session.process.pulse.taken())

    monkeypatch.setattr(recorder_module.Session, "record", watched)
    ended = cli("max_iterations=200000", "report=none", "optimizer.learning_rate=1e-6", "tracking.max_unsent=1e-4")
    assert ended.code == 0 and "the run waits whenever" in ended.err
    assert max(unsent) <= 1e-4 * 2**30
    (run,) = runs()
    assert run.info.status == "FINISHED"


FEW = "tracking.max_unsent=2e-5"
TOO_MANY = "2e-05 GiB of rows are spooled in "


def test_an_offline_run_says_first_that_it_fills_its_spool_and_is_interrupted_there_and_goes_on(prepared):
    words = (*LONG[:1], "max_iterations=3000", "report=none", "tracking.offline=true")
    code, err = Command(prepared, *words, FEW).ended()
    (spooled,) = prepared.glob("outputs/runs/*/*/spool")
    first, last = err.splitlines()
    assert code == 143 and "is interrupted at 2e-05 GiB, or set tracking.max_unsent=" in first
    assert TOO_MANY in last and last.endswith("the same command goes on with it, with more room by tracking.max_unsent=8e-05")
    assert spooled.stat().st_size < 2e-5 * 2**30 + 60_000
    steps = journal.recorded(spooled.parent)
    assert 0 < steps < 3001
    assert Command(prepared, *words).ended() == Ended(0, "") and sync.main([str(spooled.parent)]) == 0
    assert only_run(prepared).info.status == "FINISHED" and steps_of(prepared) == list(range(3001))


def test_a_run_whose_recorder_has_died_is_interrupted_where_its_spool_is_full_and_is_sent(prepared):
    with started(prepared, *LONG, FEW) as (command, recorder):
        os.kill(recorder, signal.SIGKILL)
        code, err = command.ended(240)
    assert code == 143 and TOO_MANY in err
    run = only_run(prepared)
    assert run.info.status == "KILLED" and run.data.tags["ending"] == "interrupted"
    steps = steps_of(prepared)
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize("most", ["0", "-1", "nan"])
def test_a_bound_of_no_size_is_told(cli, runs, most):
    ended = cli("max_iterations=2", f"tracking.max_unsent={most}")
    assert ended.code == 1 and "tracking.max_unsent must be a positive number of GiB" in ended.err and runs() == []
