"""A command's folder: whatever it is called and wherever jobs and losses go, all lands in its one store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import own_loss, with_store

from runner import records, sync
from runner.security import uris
from runner.tracking import outbox

QUICK = ("max_iterations=3", "report=none")
NAMES = ["a%41", "100%", "a#b", "a?b=c", "a b", "ä語", "a%2Fb;c&d"]
MOVES = """
import os
from pathlib import Path

{early}

def loss(x, *, way):
    {late}
    return x * x + way
"""
TO = 'os.chdir(Path(__file__).parent / "elsewhere")'


def found(folder: Path) -> list:
    """Return the runs of the only store below a folder, the parents of sweeps too, and make sure that none is open."""
    assert [*folder.rglob("mlflow.db")] == [folder / "outputs/mlflow.db"]
    client = records.client(uris.uri_of(folder / "outputs/mlflow.db"))
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if "sweep" not in run.data.tags:
            assert {"config.yaml", "trajectory.parquet"} <= {each.path for each in client.list_artifacts(run.info.run_id)}
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_be_called_anything(cli, migrated, monkeypatch, tmp_path, name):
    folder = with_store(tmp_path / "inner" / name, migrated)
    monkeypatch.chdir(folder)
    assert cli(*QUICK).code == 0
    assert cli(*QUICK, "seed=1", "tracking.offline=true").code == 0
    assert sync.main([]) == 0
    assert cli("-m", *QUICK, "optimizer.learning_rate=0.2,0.3", "hydra/launcher=fused").code == 0
    assert len(found(folder)) == 5
    assert os.listdir(tmp_path / "inner") == [name]


def test_a_new_store_lands_in_a_folder_whose_name_has_to_be_quoted(cli, monkeypatch, tmp_path):
    folder = tmp_path / "inner" / "a%41?#b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert cli(*QUICK).code == 0
    assert len(found(folder)) == 1 and os.listdir(tmp_path / "inner") == [folder.name]


@pytest.mark.parametrize("name", [*NAMES, "a%41?#b"])
def test_a_uri_names_the_file_that_sqlalchemy_opens(name):
    from sqlalchemy.engine import make_url

    uri = uris.uri_of(Path("/folder", name), "timeout=9")
    assert make_url(uri).database == f"/folder/{name}" == str(uris.file_of(uri))
    assert make_url(uri).query == {"timeout": "9"} and uris.absolute(uri) == uri


WAYS = {
    "hydra": ((), "", "", ("hydra.job.chdir=true",)),
    "at import": (("loss=mine",), TO, "", ()),
    "at a step": (("loss=mine",), "", TO, ()),
}


@pytest.mark.parametrize("launcher", ["basic", "fused"])
@pytest.mark.parametrize("way", WAYS)
def test_where_a_job_goes_changes_nothing(cli, tmp_path, monkeypatch, way, launcher):
    own, early, late, words = WAYS[way]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    own_loss(tmp_path, "mine", MOVES.format(early=early, late=late or "pass"))
    (tmp_path / "elsewhere").mkdir()
    given = ("--config-dir", str(tmp_path / "conf"), *own, *words, *QUICK)
    given += ("execution=eager", "guess=point", "guess.x=1")
    for seed in (1, 2):
        monkeypatch.chdir(tmp_path)
        ended = cli(*given, f"seed={seed}")
        assert ended.code == 0 and "sqlite:///outputs/mlflow.db" in ended.out
    monkeypatch.chdir(tmp_path)
    sweep = ("-m", *given, "optimizer.learning_rate=0.1,0.2,0.3", f"hydra/launcher={launcher}")
    ended = cli(*sweep)
    assert ended.code == 0, ended
    monkeypatch.chdir(tmp_path)
    assert "reused" in cli(*sweep).out
    # Two runs, three jobs, and the parents of both sweeps.
    assert len(found(tmp_path)) == 7
    assert not os.listdir(tmp_path / "elsewhere")
    assert len([*tmp_path.glob("outputs/sweeps/*/*/*/.hydra")]) in (0, 3)


def test_an_interrupted_run_is_found_again_from_wherever_it_went(cli, tmp_path, monkeypatch):
    given = (*QUICK, "hydra.job.chdir=true", "tracking.offline=true")
    assert cli(*given).code == 0
    (run,) = outbox.of(tmp_path / "outputs/pending")
    assert run.folder.parent.parent == tmp_path / "outputs/runs"
