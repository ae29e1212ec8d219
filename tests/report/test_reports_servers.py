"""A sweep's report from real servers: MLflow's on PostgreSQL, after joblib's workers, and in MLflow's own page in Chromium."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest
import servers
from conftest import environment
from mlflow import MlflowClient
from processes import below, left, wait

from runner.report.tables import reading, selection

pytestmark = pytest.mark.long

# SGD on (x - 4)², of which a step leaves 1 - 2 rate.
RATES = (0.05, 0.5, 0.9, 1.1)
SWEEP = ["-m", "optimizer.learning_rate=0.05,0.5,0.9,1.1", "guess=uniform", "seed=0,1,2", "dtype=float64", "max_iterations=150"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def database(folder: Path) -> Iterator[str]:
    with servers.postgresql(folder / "postgresql") as uri:
        yield uri


@pytest.fixture(scope="module")
def address(folder: Path, database: str) -> Iterator[str]:
    with servers.mlflow(database, folder) as address:
        yield address


@pytest.fixture(scope="module")
def swept(address: str, folder: Path) -> str:
    """Run a sweep by workers of joblib's that track to the server, and give what it prints."""
    return told(folder, "runner", *SWEEP, *JOBLIB, f"tracking.uri={address}", "tracking.experiment=joblib")


def told(folder: Path, *words: str) -> str:
    """Run a module of the runner's and return what it prints."""
    line = [sys.executable, "-m", *words]
    ended = subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0 and ended.stderr == "", ended
    return ended.stdout


def sweep_of(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """Return a client, and the id of an experiment's sweep."""
    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], "tags.sweep = 'parent'")
    return client, found[0].info.run_id


def logged(client: MlflowClient, run_id: str, folder: Path) -> Path:
    """Return what a sweep's own run has of its report."""
    assert {"report.html", "ranking.png", "stability.png"} <= {each.path for each in client.list_artifacts(run_id)}
    return Path(client.download_artifacts(run_id, "tables", str(folder)))


def as_the_formula_has_them(tables: Path) -> None:
    """Hold the runs of a report against (1 - 2 rate)^2k, the part of the first gap that is left after k steps."""
    runs = pd.read_parquet(tables / "runs.parquet")
    assert sorted(runs["learning_rate"]) == sorted(RATES * 3)
    for row in runs[runs["learning_rate"] != 1.1].itertuples():
        first, shrinks = (row.x0 - 4) ** 2, max((1 - 2 * row.learning_rate) ** 2, 1e-300)
        steps = np.ceil(np.log(reading.TARGETS / first) / np.log(shrinks)).clip(0)
        np.testing.assert_array_equal(row[-8:], np.where(steps <= 150, steps, np.nan))
    row = pd.read_csv(tables / "stability.csv").iloc[0]
    assert (row["low"], row["high"], row["best"], row["edge"], row["limit"]) == (0.05, 0.9, 0.5, 1.1, 1)


def test_workers_of_joblib_that_track_to_a_server(swept, address, database, tmp_path):
    client, run_id = sweep_of(address, "joblib")
    assert (
        f"12 runs are being reported; Ctrl-C leaves that to python -m runner.report {run_id} --tracking-uri {address}" in swept
    )
    assert re.search(rf"report: outputs/reports/{run_id}/report.html \(tables in .*; made in \d+\.\d s\)\n$", swept)
    as_the_formula_has_them(logged(client, run_id, tmp_path))
    # What the server tells of runs is what is in its database.
    selected = selection.sweep(client, client.get_run(run_id))
    found, named = selection.records(client, selected), selected._replace(found={})
    assert len(found) == 12
    for each in (client, MlflowClient(tracking_uri=database)):
        assert selection.records(each, named) == found


def test_workers_of_joblib_that_track_to_postgresql(database, folder, tmp_path):
    out = told(folder, "runner", *SWEEP, *JOBLIB, f"tracking.uri={database}", "tracking.experiment=direct")
    client, run_id = sweep_of(database, "direct")
    assert f"report: outputs/reports/{run_id}/report.html" in out and "are being reported" not in out
    as_the_formula_has_them(logged(client, run_id, tmp_path))


def test_ctrl_c_leaves_the_report_and_the_sweep_as_it_ended(address, folder):
    where = [f"tracking.uri={address}", "tracking.experiment=left"]
    start = [sys.executable, "-u", "-m", "runner", *SWEEP, "hydra/launcher=fused", *where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell's background job, as these tests may be one, ignores SIGINT, and so do its children.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    child = subprocess.Popen(start, cwd=folder, env=environment(), text=True, start_new_session=True, preexec_fn=heed, **pipes)
    assert child.stdout is not None
    while "are being reported" not in (line := child.stdout.readline()):
        assert line, child.communicate()
    others = below(child.pid)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=20)
    client, run_id = sweep_of(address, "left")
    again = f"python -m runner.report {run_id} --tracking-uri {address}"
    assert (child.returncode, out, err) == (130, f"no report; it is made by {again}\n", "")
    assert wait(lambda: not left(others), 10), left(others)
    assert client.get_run(run_id).info.status == "FINISHED" and [each.path for each in client.list_artifacts(run_id)] == [
        "jobs.json"
    ]
    assert ": 12 runs, 1 problem, 1 method" in told(folder, *shlex.split(again)[2:])
    logged(client, run_id, folder)


@pytest.mark.usefixtures("swept")
def test_the_report_in_the_page_of_the_sweeps_own_run(address):
    client, run_id = sweep_of(address, "joblib")
    experiment = client.get_experiment_by_name("joblib").experiment_id
    errors = []
    with browser.page() as tab:
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)
        tab.goto(f"{address}/#/experiments/{experiment}/runs/{run_id}/artifacts/report.html?workflowType=machine_learning")
        page = tab.frame_locator("iframe")
        page.locator(".bk-Figure canvas").nth(2).wait_for(state="attached")
        heads = page.locator("h2").all_inner_texts()
        assert heads[:4] == ["Answer", "Ranking", "Convergence", "Learning rates"]
        # It is narrower than a window of its own, and nothing is cut off.
        room = page.locator("body").evaluate("body => [document.documentElement.scrollWidth, innerWidth]")
        assert room[0] <= room[1] < 900, room
        page.get_by_label("Against", exact=True).select_option("evaluations")
    # MLflow asks for a user that it does not know.
    assert all("users/current" in each or "404 (NOT FOUND)" in each.upper() for each in errors), errors
    assert len(errors) <= 2


def test_a_file_that_is_gone_is_a_run_without_rows_and_one_that_cannot_be_fetched_an_error(swept, address, folder):
    client, run_id = sweep_of(address, "joblib")
    found = selection.sweep(client, client.get_run(run_id)).found.values()
    gone, broken = (folder / each.artifact_uri.replace("mlflow-artifacts:/", "artifacts/") for each in [*found][:2])
    (gone / "trajectory.parquet").unlink()
    line = ["runner.report", run_id, "--tracking-uri", address, "--out", "gone"]
    out = told(folder, *line)
    assert ": 11 runs, 1 problem, 1 method" in out and "beware (left out): 1 run without rows: failed, or running yet" in out
    (broken / "trajectory.parquet").unlink()
    (broken / "trajectory.parquet").mkdir()
    (broken / "trajectory.parquet/file").touch()
    ended = subprocess.run(
        [sys.executable, "-m", *line], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert re.match(r"error: trajectory.parquet of run [0-9a-f]{32} cannot be fetched: ", ended.stderr), ended.stderr
