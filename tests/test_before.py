"""What an earlier version recorded goes on: its names, digests, runs, sweeps, journals and checkpoints.

`data/runner-0.1.0.tar.xz` holds the outputs of commands at dbd6fc9, made in a folder of that name in /tmp: a run by Newton's
method and one by SciPy, an interrupted run, a sweep of four jobs, an interrupted one of two, and a run in its journal alone.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from commands import Command, Ended
from conftest import CONF, store
from hydra import compose, initialize_config_dir

from runner import diff, records, sync, verify
from runner.config import parameters, schema
from runner.report import command as report
from runner.security import names, targets
from runner.system import started

ARCHIVE = Path(__file__).parent / "data/runner-0.1.0.tar.xz"
# Its runs hold absolute paths.
FOLDER = Path("/tmp/runner-0.1.0")
ADAM = ("loss=rosenbrock", "optimizer=adam", "report=none")
# By the version before.
DIGESTS = {
    "strategy=newton optimizer=none loss=rosenbrock": "5a78d303977c8e89b669ff4be2f43b48",
    "strategy=scipy optimizer=none loss=rosenbrock": "84b5ad683541ad338e26262522b18a65",
    "strategy=gauss_newton optimizer=none loss=rosenbrock": "c9d23a1146f3435ed9d69d84a3d9375b",
    "loss=softmax_regression noise=gaussian stopping=plateau": "2f5b24f8822b1c72dc082a6dd0d93040",
    "": "67e553241de4171eb8eb27c6d161217f",
}


@pytest.fixture(scope="module")
def before():
    """Give the folder of the earlier version's runs."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(FOLDER.parent, filter="data")
    yield FOLDER
    shutil.rmtree(FOLDER)


@pytest.fixture
def here(before, monkeypatch):
    """Be in that folder."""
    monkeypatch.chdir(before)
    monkeypatch.setattr(started, "_folder", None)
    for name in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    return before


def runs(condition: str) -> list:
    client = store(FOLDER)
    return client.search_runs([each.experiment_id for each in client.search_experiments()], condition)


@pytest.mark.parametrize("words", DIGESTS)
def test_a_configuration_has_the_digest_that_it_had(words):
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=words.split())
    assert parameters.digest(parameters.resolved(cfg)) == DIGESTS[words]


# The classes of logging are had by a file's words, below.
@pytest.mark.parametrize("name", [name for name in names.RENAMED if not name.startswith("runner.private.")])
def test_a_part_that_has_moved_is_had_by_its_old_name(name, caplog):
    targets.moved.cache_clear()
    assert targets.target("report._target_", name) is targets.target("report._target_", names.RENAMED[name])
    assert [each.message for each in caplog.records] == [f"report._target_ {name} is now {names.RENAMED[name]}"]


def test_a_file_with_old_names_runs_as_the_same_experiment(cli, runs, tmp_path):
    (tmp_path / "conf/strategy").mkdir(parents=True)
    (tmp_path / "conf/hydra/job_logging").mkdir(parents=True)
    (tmp_path / "conf/strategy/old.yaml").write_text("defaults: [newton, _self_]\n_target_: runner.second_order.newton\n")
    logging = (CONF / "hydra/job_logging/file.yaml").read_text().replace("runner.security.secrets.", "runner.private.")
    (tmp_path / "conf/hydra/job_logging/old.yaml").write_text(logging)
    words = ("loss=rosenbrock", "optimizer=none", "max_iterations=5")
    assert cli("strategy=newton", *words).code == 0
    ended = cli("--config-dir", "conf", "strategy=old", "hydra/job_logging=old", *words)
    assert ended.code == 0, ended.err
    new, old = runs()
    assert old.data.tags["identity"] == new.data.tags["identity"] and old.data.tags["strategy"] == "old"


def test_a_journal_is_sent(here):
    assert runs("tags.loss = 'sphere'") == [] and sync.main([]) == 0
    (run,) = runs("tags.loss = 'sphere'")
    assert run.info.status == "FINISHED" and run.data.metrics["system/iterations"] == 40


def test_recorded_runs_come_out_again_and_are_those_of_today(here, capsys, monkeypatch):
    (newton,), (scipy,) = (runs(f"tags.strategy = '{name}'") for name in ("newton", "scipy"))
    for run in (newton, scipy):
        monkeypatch.setattr(sys, "argv", ["runner.verify", run.info.run_id])
        assert verify.main() == records.SAME, capsys.readouterr()
    words = ("strategy=newton", "loss=rosenbrock", "optimizer=none", "execution=graph", "max_iterations=20", "report=none")
    assert Command(FOLDER, *words).ended() == Ended(0, "")
    (again,) = (run for run in runs("tags.strategy = 'newton'") if run.info.run_id != newton.info.run_id)
    assert again.data.tags["identity"] == newton.data.tags["identity"]
    capsys.readouterr()
    assert diff.report([newton.info.run_id, again.info.run_id]) == records.SAME
    assert "configuration, versions and ending are the same" in capsys.readouterr().out


def test_a_sweep_is_reused_and_reported(here, capsys):
    ended = Command(FOLDER, "-m", "hydra/launcher=fused", *ADAM, "max_iterations=50", "seed=range(4)")
    assert ended.ended() == Ended(0, "") and "4 jobs: 4 reused" in ended.out.read_text()
    assert records.answered(report.report, ["runner"]) == 0
    assert "newton" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(here):
    words = (*ADAM, "execution=eager", "max_iterations=2000", "checkpoint.every_seconds=0.3", "seed=3", "tracking.every=100")
    (run,) = runs("params.seed = '3' and attributes.status = 'KILLED'")
    command = Command(FOLDER, *words)
    assert command.ended() == Ended(0, "") and f"continues run {run.info.run_id}" in command.out.read_text()
    assert store(FOLDER).get_run(run.info.run_id).info.status == "FINISHED"


def test_an_interrupted_group_goes_on(here):
    words = (*ADAM, "execution.chunk=1", "max_iterations=3000", "checkpoint.every_seconds=0.05", "tracking.every=1000")
    assert list(FOLDER.glob("outputs/pending/groups/*/*/sums.json"))
    command = Command(FOLDER, "-m", "hydra/launcher=fused", *words, "seed=11,12")
    assert command.ended(240) == Ended(0, "")
    found = runs("params.seed = '11'") + runs("params.seed = '12'")
    assert {run.info.status for run in found} == {"FINISHED"} and all("resumed" in run.data.tags for run in found)
