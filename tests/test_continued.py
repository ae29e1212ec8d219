"""The same command goes on with the run that it was interrupted in: one run in the store, each step there once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
import pyarrow.parquet as pq
import pytest
from conftest import history, store
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run

from runner import signals, sync, unsent
from runner.spool import frames

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


def interrupted(folder: Path, number: int, *words: str, at: str = "50") -> subprocess.Popen[str]:
    """Start the command, signal it when it has come to a step, and return its process when that has ended."""
    process = processes.started(folder, *COMMAND, *words)
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:1] == [at]:
            break
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    return process


def finished(folder: Path, *words: str) -> str:
    """Run the command to its end and return what it prints."""
    process = processes.started(folder, *COMMAND, *words)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", err
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finished(folder)
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
def test_a_run_that_a_signal_ended_goes_on(tmp_path, undisturbed, number, code):
    assert interrupted(tmp_path, number).returncode == code
    before = only_run(tmp_path)
    assert before.info.status == "KILLED"
    out = finished(tmp_path)
    step = int(before.data.metrics["system/iterations"])
    assert f"continues run {before.info.run_id} from step {step}; resume=false starts anew\n" in out
    equal(tmp_path, undisturbed)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path, undisturbed):
    assert interrupted(tmp_path, signal.SIGKILL, "checkpoint.every_seconds=0").returncode == -signal.SIGKILL
    steps = [int(path.name) for path in tmp_path.glob("outputs/runs/*/*/checkpoint/[0-9]*") if path.suffix != ".tmp"]
    assert len(steps) == 2
    out = finished(tmp_path)
    assert f"from step {max(steps)};" in out
    equal(tmp_path, undisturbed)


@pytest.mark.long
def test_a_run_that_was_killed_before_its_first_checkpoint_takes_its_steps_again(tmp_path, undisturbed):
    interrupted(tmp_path, signal.SIGKILL)
    assert "from step 0;" in finished(tmp_path)
    equal(tmp_path, undisturbed)


def test_a_run_that_is_only_spooled_goes_on_and_is_sent_as_one(tmp_path, undisturbed):
    assert interrupted(tmp_path, signal.SIGKILL, "tracking.offline=true", "checkpoint.every_seconds=0").returncode < 0
    (spool,) = tmp_path.glob("outputs/runs/*/*/spool")
    assert interrupted(tmp_path, signal.SIGTERM, "tracking.offline=true", at="150").returncode == 143
    assert f"continues run in {spool.parent} from step " in finished(tmp_path, "tracking.offline=true")
    assert list(tmp_path.glob("outputs/runs/*/*/spool")) == [spool]
    with (spool.parent / "spool").open("rb") as file:
        identity = next(frames(file)).message.fields["about"]["tags"]["identity"]
    assert unsent.interrupted(tmp_path / "outputs/pending", identity) == [], "it has ended and would be continued"
    assert not (tmp_path / "outputs/mlflow.db").exists()
    assert sync.main([str(spool.parent)]) == 0
    assert only_run(tmp_path).data.tags["resumed"] == "2"
    equal(tmp_path, undisturbed)


def test_of_two_commands_at_once_one_goes_on_with_the_run(tmp_path):
    words = (*COMMAND, "max_iterations=100000")
    interrupted(tmp_path, signal.SIGTERM, *words)
    both = [processes.started(tmp_path, *words) for _ in range(2)]
    refused = processes.wait(lambda: next((each for each in both if each.poll() is not None), None), 120)
    (other,) = {*both} - {refused}
    _, err = refused.communicate()
    run_id, holder = only_run(tmp_path).info.run_id, f"process {other.pid} on {socket.gethostname()}"
    assert refused.returncode == 1
    assert err == f"error: run {run_id} is being continued by {holder}; wait for it, or set resume=false\n"
    os.kill(other.pid, signal.SIGTERM)
    out, err = other.communicate(timeout=60)
    assert (other.returncode, err) == (143, "") and f"continues run {run_id} from" in out
    assert only_run(tmp_path).data.tags["resumed"] == "1" and history(tmp_path, run_id, "loss")


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
    for number, other in enumerate(others, 2):
        ended = cli(*words, other)
        assert (ended.code, ended.err) == (0, "") and "continues" not in ended.out and len(runs()) == number, other
    (again,) = [run for run in runs() if run.info.run_id == first.info.run_id]
    assert first.info.status == "KILLED" and again.to_dictionary() == first.to_dictionary()
    assert f"continues run {first.info.run_id} from" in cli(*words).out and len(runs()) == number


@pytest.mark.long
def test_another_configuration_and_resume_false_start_anew(tmp_path):
    interrupted(tmp_path, signal.SIGTERM)
    client = store(tmp_path)
    first = only_run(tmp_path).info.run_id
    for words in (["seed=1", "max_iterations=5"], ["optimizer.learning_rate=0.02"], ["resume=false"]):
        assert "continues run" not in finished(tmp_path, *words)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert len(runs) == 4
    assert client.get_run(first).info.status == "KILLED"
    assert f"continues run {first} from" in finished(tmp_path, "checkpoint.every_seconds=5")
