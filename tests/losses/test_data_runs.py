"""Losses from data from the command line: all of them run, reach their minima, repeat, and are measured now and then."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from conftest import history, store
from mlflow.artifacts import download_artifacts
from test_data_losses import NAMES, composed, made

from runner.config import build

KNOWN = [name for name in NAMES if made(name).minimum is not None]


def trajectory(folder, run):
    """Return a run's trajectory as arrays by column."""
    uri = store(folder).tracking_uri
    path = download_artifacts(run_id=run.info.run_id, artifact_path="trajectory.parquet", tracking_uri=uri)
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def x_of(columns, row):
    return np.array([columns[f"x/{i}"][row] for i in range(sum(name.startswith("x/") for name in columns))])


# With each optimizer in one of the two tests that follow; the other half is for the long tests.
@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.long), "adam"])
@pytest.mark.parametrize("name", NAMES)
def test_each_loss_runs_with_sgd_and_adam_in_eager_and_xla(cli, runs, tmp_path, name, optimizer):
    ended = cli("-m", f"loss={name}", f"optimizer={optimizer}", "execution=eager,xla", "max_iterations=3", "loss.batch_size=8")
    assert ended.code == 0 and ended.err == ""
    found = {run.data.tags["execution"]: trajectory(tmp_path, run) for run in runs()}
    eager, xla = found["eager"], found["xla"]
    # The same batches, or nothing would agree; roundings of float32 and of XLA's functions otherwise.
    np.testing.assert_allclose(xla["loss"], eager["loss"], rtol=1e-4)
    np.testing.assert_allclose(x_of(xla, -1), x_of(eager, -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), pytest.param("adam", 0.003, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", KNOWN)
def test_the_known_minimum_is_reached(cli, runs, name, optimizer, rate):
    # Some curvatures are a five-hundredth of the largest; those of factors are singular values over the number of rows.
    limit, rate = (4000, 20 * rate) if name == "matrix_factorization" else (20_000, rate)
    words = [f"loss={name}", f"optimizer={optimizer}", f"optimizer.learning_rate={rate}", f"max_iterations={limit}"]
    assert cli(*words, "tracking.every=1000000").code == 0
    metrics = runs()[0].data.metrics
    # Roundings of float32, of sums of a few hundred rows.
    size = max(1, abs(metrics["system/last_loss"]))
    assert abs(metrics["system/loss_above_minimum"]) < 1e-5 * size
    if made(name).minimisers is not None:
        assert metrics["system/distance_to_minimiser"] < 1e-2


def test_a_run_of_mini_batches_repeats_bit_by_bit_and_agrees_across_executions(cli, runs, tmp_path):
    words = [
        "loss=softmax_regression",
        "loss.batch_size=16",
        "optimizer=adam",
        "optimizer.learning_rate=0.01",
        "max_iterations=200",
    ]
    for more in ("execution=xla", "execution=xla", "execution.chunk=7", "execution=graph", "execution=eager", "seed=1"):
        assert cli(*words, more).code == 0
    xla, again, chunks, graph, eager, other = (trajectory(tmp_path, run) for run in runs())
    for column, values in xla.items():
        np.testing.assert_array_equal(values, again[column])
        np.testing.assert_array_equal(values, chunks[column])
    for columns in (graph, eager):
        # Each of 200 steps of Adam may add some roundings of numbers below 1.
        np.testing.assert_allclose(columns["loss"], xla["loss"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(x_of(columns, -1), x_of(xla, -1), rtol=0, atol=1e-4)
    assert not np.allclose(other["loss"], xla["loss"], atol=1e-2)


def test_a_row_has_the_loss_of_its_own_batch(cli, runs, tmp_path):
    words = ["loss=ridge", "loss.batch_size=10", "seed=5", "dtype=float64", "max_iterations=40"]
    assert cli(*words).code == 0
    columns, loss = trajectory(tmp_path, runs()[0]), build.loss(composed(*words))
    for step in (0, 17, 40):
        expected = float(loss.at(step)(tf.constant(x_of(columns, step))))
        assert columns["loss"][step] == pytest.approx(expected, rel=1e-12)


def test_measures_are_taken_at_their_steps_and_at_the_last_row(cli, runs, tmp_path):
    words = ["loss=logistic_regression", "loss.batch_size=16", "dtype=float64", "max_iterations=130"]
    ended = cli(*words, "tracking.full_loss_every=50", "tracking.every=7")
    assert ended.code == 0 and "full_loss = " in ended.out and "the last full loss is" in ended.out
    (run,) = runs()
    columns, loss = trajectory(tmp_path, run), build.loss(composed(*words))
    names = {"full_loss", "held_out_accuracy"}
    assert loss.measures.keys() == names
    for name in names:
        # What is measured is thinned already: tracking.every leaves it as it is.
        found = history(tmp_path, run.info.run_id, name)
        assert list(found) == [0, 50, 100, 130] == np.flatnonzero(np.isfinite(columns[name])).tolist()
        for step, value in found.items():
            assert value == pytest.approx(float(loss.measures[name](tf.constant(x_of(columns, step)))), rel=1e-12)
        assert run.data.metrics[f"system/{name}"] == found[130]
    assert run.data.metrics["system/loss_above_minimum"] == pytest.approx(found_above(run, loss), rel=1e-12)
    assert list(history(tmp_path, run.info.run_id, "loss"))[:3] == [0, 7, 14]
    from sklearn.metrics import accuracy_score

    data = loss.function.keywords["data"]
    features, y = data.split("two classes", held_out=True)
    x = x_of(columns, 130)
    expected = accuracy_score(y, features @ x[:-1] + x[-1] > 0)
    assert run.data.metrics["system/held_out_accuracy"] == pytest.approx(expected, rel=1e-12)


def found_above(run, loss):
    return run.data.metrics["system/full_loss"] - loss.minimum


def test_without_tracking_the_last_row_is_measured_all_the_same(cli):
    ended = cli("loss=mlp", "loss/data=diabetes", "max_iterations=5", "tracking=none")
    assert ended.code == 0 and "at the last x: held_out_error = " in ended.out


def test_a_loss_that_measures_nothing_has_no_columns_for_it(cli, runs, tmp_path):
    assert cli("loss=ridge", "loss.data.held_out=0", "max_iterations=3").code == 0
    assert not {"full_loss", "held_out_error"} & trajectory(tmp_path, runs()[0]).keys()


def test_fused_jobs_are_measured_as_each_alone(cli, runs, tmp_path):
    words = ["-m", "loss=ridge", "loss.batch_size=32", "optimizer.learning_rate=0.01,0.05,0.1", "max_iterations=120"]
    for launcher in ("basic", "fused"):
        ended = cli(*words, f"hydra/launcher={launcher}", f"tracking.experiment={launcher}")
        assert ended.code == 0 and ended.err == ""
    assert "3 jobs as one program" in ended.out
    found = {}
    for run in runs():
        name = store(tmp_path).get_experiment(run.info.experiment_id).name
        found[name, run.data.params["optimizer.learning_rate"]] = run
    for rate in ("0.01", "0.05", "0.1"):
        basic, fused = (found[name, rate] for name in ("basic", "fused"))
        for metric in ("full_loss", "held_out_error"):
            expected, actual = (history(tmp_path, run.info.run_id, metric) for run in (basic, fused))
            assert list(actual) == list(expected) == [0, 100, 120]
            np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-5)  # float32
        assert np.isfinite(trajectory(tmp_path, fused)["full_loss"]).sum() == 3
        assert "system/full_loss" in fused.data.metrics


def test_digits_are_learnt(cli, runs, tmp_path):
    assert cli("experiment=digits_mlp").code == 0
    (run,) = runs()
    curve = history(tmp_path, run.info.run_id, "held_out_accuracy")
    assert list(curve) == list(range(0, 2001, 100)) and curve[0] < 0.3
    assert run.data.metrics["system/held_out_accuracy"] == curve[2000] >= 0.95
    assert run.data.metrics["system/full_loss"] < 0.05


def test_data_of_ones_own_serve(cli, runs, tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(
        "import numpy as np\nfrom runner.losses.data import Data\n\n\n"
        "def line(*, slope):\n    a = np.linspace(-1, 1, 20)[:, None]\n"
        "    return Data('line', a[::2], a[1::2], {'numbers': (slope * a[::2, 0], slope * a[1::2, 0])})\n"
    )
    (tmp_path / "conf/loss/data").mkdir(parents=True)
    (tmp_path / "conf/loss/data/line.yaml").write_text("_target_: own_data.line\nslope: 3.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--config-dir", "conf", "loss=linear_regression", "loss/data=line", "dtype=float64"]
    ended = cli(*words, "optimizer.learning_rate=0.5", "max_iterations=500")
    assert ended.code == 0 and ended.err == ""
    columns = trajectory(tmp_path, runs()[0])
    np.testing.assert_allclose(x_of(columns, -1), [3, 0], atol=1e-9)
    assert runs()[0].data.metrics["system/held_out_error"] == pytest.approx(0, abs=1e-9)
