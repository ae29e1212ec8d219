"""The same command goes on with the run that it was interrupted in: one run in the store, each step there once."""

from __future__ import annotations

import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import processes
import pyarrow.parquet as pq
import pytest
from commands import Command, Ended
from conftest import history, store, with_store
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run

from runner import sync
from runner.system import signals
from runner.tracking import outbox
from runner.tracking.journal import frames

# Slow enough to be interrupted, and of numbers that differ in each step.
COMMAND = ("loss=rosenbrock", "optimizer=adam", "execution=eager", "max_iterations=400", "tracking.every=1")


def only_run(folder: Path) -> Run:
    """Return the one run of a folder's store."""
    client = store(folder)
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return run


def trajectory(folder: Path, run: Run) -> Path:
    """Return the file of a run's rows."""
    uri = store(folder).tracking_uri
    return Path(download_artifacts(run_id=run.info.run_id, artifact_path="trajectory.parquet", tracking_uri=uri))


def interrupted(folder: Path, number: int, *words: str, rows: int = 51) -> int | None:
    """Start the command, signal it when it has come to so many rows, and return its exit code."""
    command = Command(folder, *COMMAND, *words)
    command.reach(rows)
    command.signal(number)
    return command.ended().code


def finished(folder: Path, *words: str) -> str:
    """Run the command to its end and return what it prints."""
    command = Command(folder, *COMMAND, *words)
    assert command.ended() == Ended(0, "")
    return command.out.read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Path:
    """Return the folder of a run that nothing disturbed."""
    folder = with_store(tmp_path_factory.mktemp("undisturbed"), migrated)
    finished(folder, "report=none")
    return folder


def equal(folder: Path, undisturbed: Path) -> None:
    """Assert that both folders' runs recorded the same numbers, and each step and what the run came to once."""
    run, other = only_run(folder), only_run(undisturbed)
    assert pq.read_table(trajectory(folder, run)).equals(pq.read_table(trajectory(undisturbed, other)))
    for metric in ("loss", "x/0", "gradient/1", "gradient_norm"):
        assert history(folder, run.info.run_id, metric) == history(undisturbed, other.info.run_id, metric)
    for metric in ("system/iterations", "system/last_loss", "system/seconds_loop"):
        assert history(folder, run.info.run_id, metric).keys() == {0}
    seconds = {name for name in run.data.metrics if name.startswith("system/seconds_")}
    mine, theirs = ({name: value for name, value in each.data.metrics.items() if name not in seconds} for each in (run, other))
    assert mine == theirs
    assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit" and "stopped_by" not in run.data.tags
    assert not list(folder.glob("outputs/runs/*/*/checkpoint")), "a run that ended has a checkpoint"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)])
def test_a_run_that_a_signal_ended_goes_on(prepared, undisturbed, number, code):
    assert interrupted(prepared, number) == code
    before = only_run(prepared)
    assert before.info.status == "KILLED"
    out = finished(prepared)
    step = int(before.data.metrics["system/iterations"])
    assert f"continues run {before.info.run_id} from step {step}; resume=false starts anew\n" in out
    equal(prepared, undisturbed)


# tests/faults kills runs quickly.
@pytest.mark.long
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(prepared, undisturbed):
    assert interrupted(prepared, signal.SIGKILL, "checkpoint.every_seconds=0") == -signal.SIGKILL
    steps = [int(path.name) for path in prepared.glob("outputs/runs/*/*/checkpoint/[0-9]*") if path.suffix != ".tmp"]
    assert len(steps) == 2
    out = finished(prepared)
    assert f"from step {max(steps)};" in out
    equal(prepared, undisturbed)


@pytest.mark.long
def test_a_run_that_is_being_continued_is_left_to_the_process_that_does(prepared):
    words = ("execution=eager", "max_iterations=1000000", "report=none")
    first = Command(prepared, *words)
    first.reach(51)
    first.kill()
    second = Command(prepared, *words)
    try:
        second.reach(1)
        assert "continues run " in second.out.read_text()
        third = Command(prepared, *words, to=prepared / "third").ended()
    finally:
        second.kill()
    assert third.code == 1 and third.err.count("\n") == 1
    assert f"is being continued by process {second.process.pid} on " in third.err and "set resume=false" in third.err
    assert len(store(prepared).search_runs(["1"])) == 1


@pytest.mark.long
def test_a_run_that_was_killed_before_its_first_checkpoint_takes_its_steps_again(prepared, undisturbed):
    interrupted(prepared, signal.SIGKILL)
    assert "from step 0;" in finished(prepared)
    equal(prepared, undisturbed)


def test_a_run_that_is_only_spooled_goes_on_and_is_sent_as_one(tmp_path, undisturbed):
    assert interrupted(tmp_path, signal.SIGKILL, "tracking.offline=true", "checkpoint.every_seconds=0") == -signal.SIGKILL
    (spool,) = tmp_path.glob("outputs/runs/*/*/spool")
    assert interrupted(tmp_path, signal.SIGTERM, "tracking.offline=true", rows=100) == 143
    assert f"continues run in {spool.parent} from step " in finished(tmp_path, "tracking.offline=true")
    assert list(tmp_path.glob("outputs/runs/*/*/spool")) == [spool]
    with (spool.parent / "spool").open("rb") as file:
        identity = next(frames(file)).message.fields["about"]["tags"]["identity"]
    assert outbox.interrupted(tmp_path / "outputs/pending", identity) == [], "it has ended and would be continued"
    assert not (tmp_path / "outputs/mlflow.db").exists()
    assert sync.main([str(spool.parent)]) == 0
    assert only_run(tmp_path).data.tags["resumed"] == "2"
    equal(tmp_path, undisturbed)


@pytest.mark.long
def test_of_two_commands_at_once_one_goes_on_with_the_run(prepared):
    words = ("max_iterations=100000",)
    interrupted(prepared, signal.SIGTERM, *words)
    both = [Command(prepared, *COMMAND, *words, to=prepared / name) for name in ("one", "two")]
    refused = processes.wait(lambda: next((each for each in both if not each.process.is_alive()), None), 120)
    (other,) = {*both} - {refused}
    run_id, holder = only_run(prepared).info.run_id, f"process {other.process.pid} on {socket.gethostname()}"
    assert refused.ended() == Ended(
        1, f"error: run {run_id} is being continued by {holder}; wait for it, or set resume=false\n"
    )
    other.signal(signal.SIGTERM)
    assert other.ended() == Ended(143, "") and f"continues run {run_id} from" in other.out.read_text()
    assert only_run(prepared).data.tags["resumed"] == "1" and history(prepared, run_id, "loss")


def test_what_makes_another_run_starts_anew_and_leaves_the_interrupted_one(cli, runs, monkeypatch):
    words = ("loss=rosenbrock", "optimizer=adam", "max_iterations=500", "report=none")

    @contextmanager
    def caught() -> Iterator[Callable[[], str | None]]:
        yield iter([None, None, *["SIGTERM"] * 9]).__next__

    with monkeypatch.context() as patched:
        patched.setattr(signals, "caught", caught)
        assert cli(*words).code == 143
    (first,) = runs()
    others = ("optimizer=sgd", "optimizer.beta_1=0.8", "loss=ellipsoid", "loss.dimension=3", "dtype=float64", "seed=1")
    others += ("max_iterations=600",)
    for number, other in enumerate(others, 2):
        ended = cli(*words, other)
        assert (ended.code, ended.err) == (0, "") and "continues" not in ended.out and len(runs()) == number, other
    (again,) = [run for run in runs() if run.info.run_id == first.info.run_id]
    assert first.info.status == "KILLED" and again.to_dictionary() == first.to_dictionary()
    assert f"continues run {first.info.run_id} from" in cli(*words).out and len(runs()) == number


def everything(folder: Path) -> tuple[dict[str, bytes], dict[str, list]]:
    """Return each file below a folder but the store, and each row of the store."""
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "mlflow.db"}
    with closing(sqlite3.connect(folder / "outputs/mlflow.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return files, {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in tables}


def test_the_same_command_after_its_run_has_ended_is_a_new_run_and_leaves_that_as_it_is(drawn, runs, prepared):
    words = ("loss=rosenbrock", "optimizer=adam", "max_iterations=20")
    assert drawn(*words).code == 0
    files, tables = everything(prepared)
    assert {"trajectory.parquet", "report.png"} <= {Path(name).name for name in files} and len(tables["metrics"]) > 100
    again = drawn(*words)
    assert (again.code, again.err) == (0, "") and "continues" not in again.out
    assert [run.info.status for run in runs()] == ["FINISHED"] * 2
    later, rows = everything(prepared)
    assert {name: later[name] for name in files} == files
    for name, each in tables.items():
        assert [row for row in each if row not in rows[name]] == [], name


@pytest.mark.long
def test_another_configuration_and_resume_false_start_anew(prepared):
    interrupted(prepared, signal.SIGTERM)
    client = store(prepared)
    first = only_run(prepared).info.run_id
    for words in (["seed=1", "max_iterations=5"], ["optimizer.learning_rate=0.02"], ["resume=false"]):
        assert "continues run" not in finished(prepared, *words)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert len(runs) == 4
    assert client.get_run(first).info.status == "KILLED"
    assert f"continues run {first} from" in finished(prepared, "checkpoint.every_seconds=5")
