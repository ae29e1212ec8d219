"""The fused launcher: Hydra's own suite for launchers, and jobs that leave what each would have left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import servers
from conftest import history, store
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite
from hydra.version import _UNSPECIFIED_, VersionBase
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

# The values of these tell one run from another, or when and how long it ran.
OWN = {"mlflow.parentRunId", "mlflow.runName", "job", "overrides", "mlflow.note.content", "run_key", "folder"}
# Only what is recorded while it runs has to say that it is alive.
ALIVE = {"heartbeat", "heartbeat_every", "pid", "machine"}
SWEEP = ["loss=rosenbrock", "optimizer=adam", "optimizer.learning_rate=0.01,0.1,5e18", "guess=normal", "seed=1,2"]
STOPS = ["stopping=[gradient_norm]", "stopping.gradient_norm.tolerance=1.9", "max_iterations=150"]


@pytest.fixture
def no_version(monkeypatch):
    """Forget which version of Hydra a program of this process asked for; its suite asks for none."""
    monkeypatch.setattr(VersionBase.instance(), "version_base", _UNSPECIFIED_)


@pytest.mark.usefixtures("no_version")
@pytest.mark.parametrize("launcher_name, overrides", [("fused", [])])
class TestFusedLauncher(LauncherTestSuite):
    """Hydra's tests of a launcher, whose tasks are not the runner's."""


@pytest.mark.parametrize("task_launcher_cfg, extra_flags", [({}, ["-m", "hydra/job_logging=disabled", "hydra/launcher=fused"])])
class TestFusedLauncherIntegration(IntegrationTestSuite):
    """Hydra's tests of a launcher in programs of their own."""


def by_key(runs: list) -> dict[tuple[str, str], object]:
    return {(run.data.params["optimizer.learning_rate"], run.data.params["seed"]): run for run in runs}


def trajectory(folder: Path, run_id: str):
    uri = store(folder).tracking_uri
    return pq.read_table(download_artifacts(run_id=run_id, artifact_path="trajectory.parquet", tracking_uri=uri))


def test_a_fused_job_leaves_what_it_leaves_alone(cli, runs, tmp_path):
    together = cli("-m", *SWEEP, *STOPS, "hydra/launcher=fused")
    assert together.code == 0 and together.err == "" and "6 jobs as one program" in together.out
    fused = by_key(runs())
    assert cli("-m", *SWEEP, *STOPS, "sweep.reuse=false").code == 0
    alone = by_key([run for run in runs() if run.info.run_id not in {each.info.run_id for each in fused.values()}])
    assert fused.keys() == alone.keys() and len(fused) == 6
    assert {run.data.tags["ending"] for run in fused.values()} == {"converged", "iteration_limit", "diverged"}
    for key, one in fused.items():
        other = alone[key]
        assert one.info.status == other.info.status and one.info.experiment_id == other.info.experiment_id
        assert one.data.params == other.data.params
        # Each says by which launcher it was run, unless that is the usual one.
        assert one.data.tags["options"] == "hydra/launcher=fused" and "options" not in other.data.tags
        assert one.data.tags.keys() | ALIVE == other.data.tags.keys() | {"options"}
        same = one.data.tags.keys() - OWN - {"options"}
        assert {tag: one.data.tags[tag] for tag in same} == {tag: other.data.tags[tag] for tag in same}
        assert one.data.metrics.keys() == other.data.metrics.keys()
        assert one.data.metrics["system/iterations"] == other.data.metrics["system/iterations"]
        for metric in ("x/0", "x/1", "loss", "gradient/0", "gradient_norm"):
            mine, theirs = (history(tmp_path, run.info.run_id, metric) for run in (one, other))
            assert list(mine) == list(theirs)
            # Another program rounds otherwise: by a rounding of single precision a step, of the largest numbers on the way.
            theirs = list(theirs.values())
            np.testing.assert_allclose(list(mine.values()), theirs, rtol=0, atol=150 * 6e-8 * np.abs(theirs).max())
        tables = [trajectory(tmp_path, run.info.run_id) for run in (one, other)]
        assert tables[0].schema == tables[1].schema and tables[0]["step"] == tables[1]["step"]
        files = [{each.path for each in store(tmp_path).list_artifacts(run.info.run_id)} for run in (one, other)]
        assert files == [{"config.yaml", "trajectory.parquet"}] * 2
        configs = [
            Path(
                download_artifacts(
                    run_id=run.info.run_id, artifact_path="config.yaml", tracking_uri=store(tmp_path).tracking_uri
                )
            ).read_text()
            for run in (one, other)
        ]
        assert configs[0].replace("reuse: true", "reuse: false") == configs[1]


def test_what_cannot_be_fused_runs_one_by_one_in_the_same_sweep(cli, runs):
    words = ["optimizer=sgd,lamb", "optimizer.learning_rate=0.01,0.02,0.03", "execution=xla,eager", "max_iterations=5"]
    ended = cli("-m", *words, "hydra/launcher=fused")
    assert ended.code == 0 and ended.err == "" and "12 jobs: 12 iteration_limit" in ended.out
    assert len(runs()) == 12 and {run.info.status for run in runs()} == {"FINISHED"}
    assert sorted(int(run.data.tags["job"]) for run in runs()) == list(range(12))


def test_a_mistake_spoils_only_its_job(cli, runs):
    ended = cli("-m", "optimizer.learning_rate=0.1,fast,0.2", "max_iterations=2", "hydra/launcher=fused")
    assert ended.code == 1 and "1 of 3 jobs failed" in ended.err and "must be a number, got 'fast'" in ended.out
    assert sorted(run.data.params["optimizer.learning_rate"] for run in runs()) == ["0.1", "0.2"]


def test_nothing_is_recorded_where_nothing_is_to_be(cli, runs):
    ended = cli("-m", "optimizer.learning_rate=0.1,0.2", "max_iterations=2", "hydra/launcher=fused", "tracking=none")
    assert ended.code == 0 and "2 iteration_limit" in ended.out and runs() == []


def test_each_job_is_tracked_in_its_own_way(cli, runs, tmp_path):
    words = ["optimizer=sgd,adam", "tracking.every=1,5", "seed=range(3)", "guess=normal", "max_iterations=20"]
    zipped = "sweep.zip=[[optimizer,tracking.every]]"
    assert cli("-m", *words, zipped, "hydra/launcher=fused").out.count("3 jobs as one program") == 2
    rows = {run.data.tags["optimizer"]: len(history(tmp_path, run.info.run_id, "loss")) for run in runs()}
    assert len(runs()) == 6 and rows == {"sgd": 21, "adam": 5}


def test_a_plan_says_what_would_run_and_runs_nothing(cli, runs, tmp_path):
    assert cli("optimizer.learning_rate=0.1", "max_iterations=20").code == 0
    words = ["optimizer=sgd,lamb", "optimizer.learning_rate=0.1,0.2,0.3", "max_iterations=20"]
    ended = cli("-m", *words, "hydra/launcher=fused", "sweep.plan=true")
    assert ended.code == 0 and "6 jobs: 1 reused, 5 new" in ended.out
    assert "2 jobs as one program, with learning_rate of each job's own" in ended.out
    assert "3 jobs one by one: " in ended.out
    # Three metrics, 21 rows, five jobs.
    assert "315 metric rows at the most" in ended.out
    assert len(runs()) == 1 and store(tmp_path).search_runs(["1"], "tags.sweep = 'parent'") == []


@pytest.mark.parametrize("kind", ["postgresql", "server"])
def test_other_stores_get_the_same(cli, tmp_path, migrated, kind):
    words = ["-m", "optimizer.learning_rate=0.1,0.2,0.3", "max_iterations=20", "hydra/launcher=fused"]

    def check(uri: str) -> None:
        assert cli(*words, f"tracking.uri={uri}", "tracking.experiment=named").code == 0
        client = MlflowClient(tracking_uri=uri)
        (experiment,) = [each for each in client.search_experiments() if each.name == "named"]
        found = client.search_runs([experiment.experiment_id], "tags.identity LIKE '%'")
        assert len(found) == 3 and {run.info.status for run in found} == {"FINISHED"}
        for run in found:
            rate = float(run.data.params["optimizer.learning_rate"])
            rows = client.get_metric_history(run.info.run_id, "x")
            expected = 4 - 4 * (1 - 2 * rate) ** np.arange(21)
            # x is near 4, where single precision has a spacing of 2.4e-7.
            np.testing.assert_allclose([row.value for row in rows], expected, atol=20 * 2.4e-7)
            assert {each.path for each in client.list_artifacts(run.info.run_id)} == {"config.yaml", "trajectory.parquet"}
        assert "3 reused" in cli(*words, f"tracking.uri={uri}", "tracking.experiment=named").out

    if kind == "postgresql":
        with servers.postgresql(tmp_path / "server") as uri:
            check(uri)
    else:
        with servers.mlflow(f"sqlite:///{shutil.copy(migrated, tmp_path)}", tmp_path) as address:
            check(address)
