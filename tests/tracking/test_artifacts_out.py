"""What keeps a run's files is out: its metrics and its ending are in the store nevertheless, and the files are sent later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from mlflow import MlflowClient

from runner import sync
from runner.errors import UserError
from runner.security import trust
from runner.tracking.store import artifacts

QUICK = ("max_iterations=3",)
FILES = {"config.yaml", "trajectory.parquet"}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Give a file that lies where the folder of all artifacts has to be."""
    path = tmp_path / "outputs/artifacts"
    path.write_text("")
    return path


def whole(tmp_path: Path, run, files: set[str]) -> None:
    """Assert that a run has its ending and all its rows, and these files."""
    from conftest import history, store

    assert run.info.status == "FINISHED" and run.data.tags["ending"] == "iteration_limit"
    assert [*history(tmp_path, run.info.run_id, "loss")] == [0, 1, 2, 3] and run.data.metrics["system/iterations"] == 3
    assert run.data.tags.get("recording") == (None if files else "incomplete")
    if files:
        assert {each.path for each in store(tmp_path).list_artifacts(run.info.run_id)} >= files


def test_a_run_ends_as_it_ended_where_its_files_cannot_be_kept(drawn, runs, tmp_path, broken):
    ended = drawn(*QUICK, "tracking.flush_timeout=0")
    assert ended.code == 0 and ended.err.count("\n") == 1
    assert "could not be sent as a whole, its files could not be stored: " in ended.err
    (path,) = tmp_path.glob("outputs/runs/*/*/spool")
    assert ended.err.endswith(f"send it with: python -m runner.sync {path.parent}\n")
    whole(tmp_path, *runs(), set())
    broken.unlink()
    assert sync.main([]) == 0 and not path.exists() and not (tmp_path / "outputs/pending").exists()
    whole(tmp_path, *runs(), FILES | {"report.html"})


@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_so_do_the_runs_of_a_sweep(cli, runs, tmp_path, broken, launcher):
    words = ("-m", *QUICK, "tracking.flush_timeout=0", "report=none", "seed=1,2", f"hydra/launcher={launcher}")
    ended = cli(*words)
    assert ended.code == 0 and "Traceback" not in ended.err and "2 iteration_limit" in ended.out
    for run in runs():
        whole(tmp_path, run, set())
    assert len(runs()) == 2 and "its table could not be stored" in ended.err
    broken.unlink()
    assert sync.main([]) == 0 and not (tmp_path / "outputs/pending").exists()
    for run in runs():
        whole(tmp_path, run, FILES)
    from conftest import store

    (parent,) = store(tmp_path).search_runs(["1"], "tags.sweep LIKE '%'")
    path = store(tmp_path).download_artifacts(parent.info.run_id, "jobs.json")
    assert parent.info.status == "FINISHED" and len(json.loads(Path(path).read_text())["data"]) == 2


def test_a_file_that_cannot_be_written_keeps_no_row_out(cli, runs, tmp_path, monkeypatch, capfd):
    assert cli(*QUICK, "tracking.offline=true", "report=none").code == 0

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(artifacts.Trajectory, "write", full)
        assert sync.main([]) == 1
    assert "its files could not be stored: OSError: [Errno 28] No space left on device" in capfd.readouterr().err
    whole(tmp_path, *runs(), set())
    assert sync.main([]) == 0
    whole(tmp_path, *runs(), FILES)


@pytest.fixture
def elsewhere(tmp_path: Path, migrated: Path) -> Iterator[tuple[str, Path]]:
    """Give the address of a server that has artifacts kept in a folder of its clients' machine, and the folder."""
    folder, place = tmp_path.parent / f"{tmp_path.name}-home" / ".ssh", tmp_path / "server"
    folder.mkdir(parents=True)
    place.mkdir()
    uri = f"sqlite:///{shutil.copy(migrated, place)}"
    MlflowClient(tracking_uri=uri).create_experiment("theirs", artifact_location=folder.as_uri())
    with servers.mlflow(uri, place) as address:
        yield address, folder


def test_a_server_has_no_file_kept_in_a_folder_of_this_machine_that_the_user_does_not_name(
    cli, tmp_path, elsewhere, monkeypatch, capfd
):
    uri, folder = elsewhere
    to = (f"tracking.uri={uri}", "tracking.experiment=theirs", "report=none")
    ended = cli(*QUICK, *to)
    (path,) = tmp_path.glob("outputs/runs/*/*/spool")
    assert ended.code == 0 and ended.err.count("\n") == 1 and [*folder.iterdir()] == []
    assert f"its files could not be stored: its server has them kept in {folder.as_uri()}/" in ended.err
    assert "name that folder yourself: MLFLOW_DEFAULT_ARTIFACT_ROOT=FOLDER" in ended.err
    assert (path.parent / "trajectory.parquet").is_file()
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("theirs").experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["recording"] == "incomplete"
    swept = cli("-m", *QUICK, *to, "seed=1,2")
    assert swept.code == 0 and "its table could not be stored" in swept.err and [*folder.iterdir()] == []
    with pytest.raises(UserError, match="MLFLOW_DEFAULT_ARTIFACT_ROOT=FOLDER"):
        artifacts.log(client, run.info.run_id, path)
    capfd.readouterr()
    assert sync.main([str(path.parent)]) == 1 and [*folder.iterdir()] == []
    for user in (folder.parent, folder.as_uri()):
        monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", str(user))
        trust.artifacts("", folder / "1")
    assert sync.main([str(path.parent)]) == 0 and not path.exists()
    assert {each.name for each in folder.rglob("*") if each.is_file()} == FILES
