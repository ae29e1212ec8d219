"""Whole runs from the command line, read back from MLflow."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import Command, Ended
from conftest import CONF, environment, history, own_loss, store, strategies
from mlflow.artifacts import download_artifacts

from runner.tracking.store import database

STRATEGIES = sorted(strategies(without_optimizer=False))
EXECUTIONS = sorted(path.stem for path in (CONF / "execution").glob("*.yaml"))
# What takes long, test_data_runs runs.
EXPERIMENTS = [
    pytest.param(path.stem, marks=[pytest.mark.long] if path.stem == "digits_mlp" else [])
    for path in sorted((CONF / "experiment").glob("*.yaml"))
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_example_follows_its_formula(cli, runs, tmp_path, strategy):
    ended = cli(f"strategy={strategy}")
    assert ended.code == 0 and ended.err == ""
    (run,) = runs()
    x, loss, gradient = (history(tmp_path, run.info.run_id, name) for name in ("x", "loss", "gradient"))
    assert list(x) == list(loss) == list(gradient) == list(range(101))
    k = np.arange(101)
    # x = 4 + z: rounding x to float32 moves z by up to half a spacing at 4, which contraction by 0.8 sums up to 2.5 spacings.
    spacing = np.spacing(np.float32(4))
    np.testing.assert_allclose(list(x.values()), 4 + (0 - 4) * (1 - 2 * 0.1) ** k, rtol=0, atol=2.5 * spacing)
    # Loss and gradient belong to the very x of their row.
    z = np.array(list(x.values()), np.float32) - np.float32(4)
    np.testing.assert_array_equal(np.float32(list(loss.values())), z**2)
    np.testing.assert_array_equal(np.float32(list(gradient.values())), 2 * z)


def test_a_run_records_what_it_was(cli, runs, tmp_path):
    ended = cli("loss=rosenbrock", "loss.dimension=20", "optimizer=adam", "max_iterations=30", "tracking.every=7")
    (run,) = runs()
    assert run.info.status == "FINISHED"
    params, tags, metrics = run.data.params, run.data.tags, run.data.metrics
    assert params["optimizer.learning_rate"] == "0.001" and params["loss.dimension"] == "20" and params["dtype"] == "float32"
    assert tags["ending"] == "iteration_limit" and "stopped_by" not in tags
    assert tags["strategy"] == "tape" and tags["stopping"] == "limit" and "loss=rosenbrock" in tags["overrides"]
    assert {"version.tensorflow", "version.keras", "version.runner"} <= tags.keys()
    assert metrics["system/iterations"] == 30 and metrics["system/gradient_evaluations"] == 31
    assert {
        "system/seconds_compile",
        "system/seconds_loop",
        "system/seconds_record",
        "system/distance_to_minimiser",
    } <= metrics.keys()

    # Thinned and cut metrics, and a whole trajectory.
    assert list(history(tmp_path, run.info.run_id, "loss")) == [0, 7, 14, 21, 28]
    assert "x/15" in metrics and "x/16" not in metrics
    path = download_artifacts(
        run_id=run.info.run_id, artifact_path="trajectory.parquet", tracking_uri=store(tmp_path).tracking_uri
    )
    table = pq.read_table(path)
    assert table.column_names == [
        "step",
        "loss",
        "gradient_norm",
        *(f"{of}/{i}" for of in ("x", "gradient") for i in range(20)),
    ]
    assert table["step"].to_pylist() == list(range(31))
    x = np.stack([table[f"x/{i}"].to_numpy() for i in range(20)], axis=1)
    # SciPy's Rosenbrock function at the recorded points is the recorded loss.
    from scipy.optimize import rosen, rosen_der

    np.testing.assert_allclose(table["loss"].to_numpy(), [rosen(row) for row in x.astype(np.float64)], rtol=1e-5)
    norms = [np.linalg.norm(rosen_der(row)) for row in x.astype(np.float64)]
    np.testing.assert_allclose(table["gradient_norm"].to_numpy(), norms, rtol=1e-4)
    config = Path(
        download_artifacts(run_id=run.info.run_id, artifact_path="config.yaml", tracking_uri=store(tmp_path).tracking_uri)
    )
    assert "learning_rate: 0.001" in config.read_text() and "${" not in config.read_text()
    assert run.info.run_id in ended.out and "model-metrics" in ended.out


def test_a_trajectory_lies_on_the_disk_once(drawn, runs, tmp_path):
    assert drawn("max_iterations=3").code == 0
    (own,) = tmp_path.glob("outputs/runs/*/*/trajectory.parquet")
    (artifact,) = tmp_path.glob("outputs/artifacts/*/artifacts/trajectory.parquet")
    assert own.samefile(artifact)
    listed = {each.path for each in store(tmp_path).list_artifacts(runs()[0].info.run_id)}
    assert listed == {"config.yaml", "trajectory.parquet", "report.png", "report.html"}


def test_strategies_and_executions_agree(cli, runs, tmp_path):
    ended = cli(
        "-m",
        f"strategy={','.join(STRATEGIES)}",
        f"execution={','.join(EXECUTIONS)}",
        "optimizer=adam",
        "loss=rosenbrock",
        "max_iterations=300",
    )
    assert ended.code == 0
    paths = {}
    for run in runs():
        key = run.data.tags["strategy"], run.data.tags["execution"]
        paths[key] = np.array([list(history(tmp_path, run.info.run_id, f"x/{i}").values()) for i in (0, 1)])
    assert paths.keys() == set(itertools.product(STRATEGIES, EXECUTIONS))
    for execution in EXECUTIONS:
        # The same operations in the same order: bit for bit.
        np.testing.assert_array_equal(paths["tape", execution], paths["minimize", execution])
    # Another compiler fuses and orders them otherwise: each of 300 steps may add a rounding of float32 (6e-8) to numbers of
    # size 1, and this stretch of the valley does not magnify them.
    for execution in EXECUTIONS:
        np.testing.assert_allclose(paths["tape", execution], paths["tape", "eager"], rtol=0, atol=300 * 6e-8)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_as_its_comment_says(drawn, runs, experiment):
    ended = drawn(f"experiment={experiment}")
    promised = re.search("# Ends with an error: (.*)", (CONF / "experiment" / f"{experiment}.yaml").read_text())
    if promised:
        assert ended.code == 1 and promised[1] in ended.err and ended.err.count("\n") == 1
        assert runs() == []
    else:
        assert ended.code == 0 and ended.err == ""
        assert runs()[0].info.status == "FINISHED"


def test_a_run_that_diverges_says_where_and_sends_only_finite_numbers(cli, runs, tmp_path):
    assert cli("optimizer.learning_rate=1.5", "max_iterations=200").code == 0
    (run,) = runs()
    # z doubles and flips: float32 overflows in z² where 4 · 2^k > sqrt(3.4e38), at step 62.
    assert run.data.tags["ending"] == "diverged" and run.data.tags["first_nonfinite_step"] == "62"
    assert run.data.tags["stopped_by"] == "nonfinite_loss" and run.info.status == "FINISHED"
    loss, x = history(tmp_path, run.info.run_id, "loss"), history(tmp_path, run.info.run_id, "x")
    assert max(loss) == 61 and max(x) == 62 and all(np.isfinite(list(loss.values())))
    path = download_artifacts(
        run_id=run.info.run_id, artifact_path="trajectory.parquet", tracking_uri=store(tmp_path).tracking_uri
    )
    assert np.isinf(pq.read_table(path)["loss"].to_numpy()[-1])


def test_stopping_rules_end_a_run_at_the_same_row_everywhere(cli, runs):
    words = ("stopping=[gradient_norm,plateau]", "stopping.gradient_norm.tolerance=0.01", "max_iterations=1000")
    # |gradient| = 8 · 0.8^k ≤ 0.01 from k = ln(800)/ln(1.25) = 29.96 on.
    for each in ("execution=eager", "execution=graph", "execution=xla", "execution.chunk=7"):
        assert cli(each, *words).code == 0
    found = {(run.data.tags["ending"], run.data.tags["stopped_by"], run.data.metrics["system/iterations"]) for run in runs()}
    assert {run.data.tags["stopping"] for run in runs()} == {"gradient_norm,plateau"}
    assert len(runs()) == 4 and found == {("converged", "gradient_norm", 30)}


def test_a_time_limit_ends_a_run(cli, runs):
    assert cli("stopping=time_limit", "stopping.time_limit=0.05", "execution=eager", "max_iterations=100000").code == 0
    (run,) = runs()
    assert run.data.tags["ending"] == "time_limit" and 0 < run.data.metrics["system/iterations"] < 100000


def test_without_tracking_mlflow_is_not_imported(tmp_path):
    code = (
        "import sys; from runner.cli import entry; sys.argv[1:] = ['tracking=none']; code = entry.main();"
        "print('mlflow' in sys.modules, code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.endswith("False 0\n") and ended.stderr == ""
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_as_killed(prepared, number, code):
    command = Command(prepared, "execution=eager", "max_iterations=1000000", "tracking.every=100", "report=none")
    command.reach(21)
    command.signal(number)
    began = time.monotonic()
    assert command.ended() == Ended(code, "") and "interrupted" in command.out.read_text()
    assert time.monotonic() - began < 5
    client = store(prepared)
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "KILLED" and run.data.tags["ending"] == "interrupted"
    last = int(run.data.metrics["system/iterations"])
    path = download_artifacts(run_id=run.info.run_id, artifact_path="trajectory.parquet", tracking_uri=client.tracking_uri)
    assert pq.read_table(path)["step"].to_pylist() == list(range(last + 1))


def test_an_exception_in_a_loss_fails_the_run(cli, runs, tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text(
        "import tensorflow as tf\ncalls = 0\n\n\ndef loss(x):\n    global calls\n    calls += 1\n"
        "    if calls > 5:\n        raise ZeroDivisionError('at the sixth call')\n    return x * x\n"
    )
    (tmp_path / "conf/loss").mkdir(parents=True)
    (tmp_path / "conf/loss/fails.yaml").write_text("_target_: fails.loss\n")
    monkeypatch.syspath_prepend(tmp_path)
    ended = cli("--config-dir", "conf", "loss=fails", "guess=point", "guess.x=2", "execution=eager")
    assert ended.code == 1 and ended.err == "error: ZeroDivisionError: at the sixth call (fails.py, line 9, in loss)\n"
    (run,) = runs()
    assert run.info.status == "FAILED" and "at the sixth call" in run.data.tags["error"]
    # The rows that were taken are there.
    assert list(history(tmp_path, run.info.run_id, "x")) == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", ["tape", "minimize"])
def test_an_eager_run_calls_the_loss_once_a_row_and_once_before_it_begins(cli, tmp_path, monkeypatch, strategy):
    own_loss(tmp_path, "mine", "calls = []\n\ndef loss(x, *, way):\n    calls.append(float(x))\n    return (x - 4) ** 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["loss=mine", "+loss.dimension=0", "guess=point", "guess.x=1", "max_iterations=5", f"strategy={strategy}"]
    assert cli("--config-dir", "conf", *words, "execution=eager", "tracking=none").code == 0
    calls = sys.modules["mine"].calls
    assert len(calls) == 7 and calls[0] == calls[1] == 1 and len(set(calls)) == 6


@pytest.mark.parametrize(("words", "folders"), [((), "runs"), (("-m", "seed=1,2"), "sweeps")])
def test_two_of_the_same_moment_have_folders_of_their_own(tmp_path, words, folders):
    words = (*words, "tracking=none", "max_iterations=1")
    both = [Command(tmp_path, *words, to=tmp_path / str(i)) for i in range(2)]
    assert [each.ended() for each in both] == [Ended(0, "")] * 2
    assert len(list((tmp_path / "outputs" / folders).glob("*/*"))) == 2


def test_a_store_whose_schema_is_not_covered_gets_the_same_rows_the_slower_way(cli, runs, tmp_path, monkeypatch):
    assert cli("max_iterations=20").code == 0
    # In this process, where the schema can be taken for another.
    monkeypatch.setattr(database, "REVISIONS", ("another",))
    ended = cli("max_iterations=20", "tracking._target_=direct.mlflow", "--allow-target=direct")
    assert ended.code == 0 and ended.err.startswith("WARNING: ") and ended.err.count("\n") == 1 and "log_batch" in ended.err
    fast, slow = runs()
    for metric in ("x", "loss", "gradient"):
        assert history(tmp_path, fast.info.run_id, metric) == history(tmp_path, slow.info.run_id, metric)


OWN_TRACKERS = """
from contextlib import contextmanager
from pathlib import Path
from runner.tracking.contract import Recorder

def recorder(to):
    def record(rows):
        with Path(to).open("a") as file:
            file.writelines(f"{step} " for step in rows.steps)
    return Recorder(record, lambda tags, metrics: Path(to).open("a").write(tags["ending"]))

@contextmanager
def function(about, *, to):
    yield recorder(to)

class Manager:
    def __init__(self, about, *, to):
        self.to = to
    def __enter__(self):
        return recorder(self.to)
    def __exit__(self, *_):
        return None

class Tracker:
    def __init__(self, *, to):
        self.to = to
    def prepare(self, *, draws):
        Path(self.to).write_text("prepared ")
    def run(self, about):
        return function(about, to=self.to)
    def sweep(self):
        return None
"""


@pytest.mark.parametrize(("name", "first"), [("function", ""), ("Manager", ""), ("Tracker", "prepared ")])
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=7")])
def test_rows_go_where_a_users_own_tracker_sends_them(cli, tmp_path, monkeypatch, name, first, sweep):
    (tmp_path / "mine.py").write_text(OWN_TRACKERS)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("tracking=none", f"tracking._target_=mine.{name}", f"+tracking.to={tmp_path / 'rows'}", "max_iterations=3")
    assert cli(*sweep, *words).code == 0
    assert (tmp_path / "rows").read_text() == f"{first}0 1 2 3 iteration_limit"
