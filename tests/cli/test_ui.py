"""The MLflow UI on real runs, in headless Chromium: the link that a run prints, the list of runs, two runs compared."""

from __future__ import annotations

import re

import browser
import numpy as np
import pytest
import servers
from conftest import with_store
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from runner.tracking.store import rest, retry


@pytest.fixture(scope="module")
def store(tmp_path_factory, migrated):
    """Give the address of a server on two runs, and the links that they printed."""
    folder = with_store(tmp_path_factory.mktemp("ui"), migrated)
    links = [browser.run(folder, "strategy=tape"), browser.run(folder, "loss=rosenbrock", "optimizer=adam")]
    with servers.mlflow(f"sqlite:///{folder}/outputs/mlflow.db", folder) as address:
        yield address, links


@pytest.fixture(scope="module")
def tab():
    with browser.page() as page:
        yield page


@pytest.fixture
def errors(tab):
    """Give what goes wrong in the page meanwhile; MLflow's own request for a user it does not know is no matter."""
    found: list[str] = []

    def note(response) -> None:
        if response.status >= 400 and not response.url.endswith("users/current"):
            found.append(f"{response.status} {response.url}")

    tab.on("response", note)
    tab.on("pageerror", lambda error: found.append(str(error)))
    return found


def test_the_link_of_a_run_shows_its_steps_at_once(store, tab, errors):
    address, (link, _) = store
    tab.goto(address + link)
    # Curves of gradient, loss and x, and nothing above them.
    tab.locator(browser.CHART).nth(2).wait_for()
    text = tab.inner_text("body")
    assert "quadratic sgd tape xla" in text and "Model metrics\n(3)" in text
    for name in ("gradient", "loss", "x"):
        assert re.search(rf"^{name}$", text, re.MULTILINE)
    assert "best_loss" not in text
    assert tab.locator(browser.CHART).first.bounding_box()["y"] < 500, "the first curve is out of sight"
    assert errors == []


def test_a_vector_has_its_coordinates_in_sections(store, tab, errors):
    address, (_, link) = store
    tab.goto(address + link)
    tab.locator(browser.CHART).first.wait_for()
    text = tab.inner_text("body")
    assert "gradient\n(2)" in text and "x\n(2)" in text
    assert errors == []


def test_a_runs_page_says_how_it_ended(store, tab, errors):
    address, (link, _) = store
    tab.goto(address + link.replace("/model-metrics", ""))
    tab.get_by_text("all iterations were taken").wait_for()
    text = tab.inner_text("body")
    assert "Finished" in text and "iteration_limit" in text and "system/best_loss" in text
    assert errors == []


def test_the_list_names_both_runs_and_its_charts_lay_them_over_one_another(store, tab, errors):
    address, _ = store
    tab.goto(f"{address}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART")
    tab.locator(browser.CHART).first.wait_for()
    text = tab.inner_text("body")
    assert "quadratic sgd tape xla" in text and "rosenbrock adam tape xla" in text
    assert errors == []


def test_a_server_takes_the_rows_over_http(store, tmp_path):
    address, _ = store
    out = browser.printed(tmp_path, f"tracking.uri={address}", "tracking.experiment=remote", "max_iterations=700")
    client = MlflowClient(tracking_uri=address)
    (run,) = client.search_runs([client.get_experiment_by_name("remote").experiment_id])
    assert f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/model-metrics" in out
    for metric in ("x", "loss", "gradient"):
        assert [row.step for row in client.get_metric_history(run.info.run_id, metric)] == list(range(701))
    files = {"config.yaml", "trajectory.parquet", "report.png", "report.html"}
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == files
    assert not (tmp_path / "outputs/mlflow.db").exists()


def test_batches_under_way_at_once_leave_what_log_batch_leaves(store):
    client = MlflowClient(tracking_uri=store[0])
    one, other = (client.create_run("0").info.run_id for _ in range(2))
    steps = np.arange(6000)
    columns = {"loss": (steps, 1 / (1.0 + steps)), "x": (steps[::-7], np.cos(steps[::-7])), "empty": (steps[:0], steps[:0] / 1)}
    with rest.at_once(client, one, retry.once) as write:
        write(columns, 1)
        write({"loss": (np.array([6000]), np.array([7.0]))}, 1)
    for key, (at, values) in columns.items():
        rows = [Metric(key, value, 1, step) for step, value in zip(at.tolist(), values.tolist(), strict=True)]
        for i in range(0, len(rows), 1000):
            client.log_batch(other, metrics=rows[i : i + 1000])
    client.log_metric(other, "loss", 7.0, step=6000)
    for key in columns:
        mine, theirs = ([(row.step, row.value) for row in client.get_metric_history(run, key)] for run in (one, other))
        # In the order of the steps.
        assert mine == sorted(theirs)
    latest = [{(m.key, m.step, m.value) for m in client.get_run(run).data._metric_objs} for run in (one, other)]
    assert latest[0] == latest[1]


def test_a_batch_that_a_server_refuses_is_not_lost_sight_of(store):
    client = MlflowClient(tracking_uri=store[0])
    run_id = client.create_run("0").info.run_id
    client.delete_run(run_id)
    with (
        pytest.raises(MlflowException, match="must be in the 'active' state"),
        rest.at_once(client, run_id, retry.once) as write,
    ):
        write({"loss": (np.arange(3), np.arange(3.0))}, 1)


def test_two_runs_compared_stand_side_by_side(store, tab, errors):
    address, links = store
    ids = [re.search("runs/([0-9a-f]{32})", link)[1] for link in links]
    runs = ",".join(f'"{each}"' for each in ids)
    tab.goto(f'{address}/#/compare-runs?runs=[{runs}]&experiments=["1"]&workflowType=machine_learning')
    tab.get_by_text("Comparing 2 Runs from 1 Experiment").first.wait_for()
    tab.get_by_text("keras.optimizers.Adam").first.wait_for()
    text = tab.inner_text("body")
    assert "keras.optimizers.SGD" in text and all(each in text for each in ids)
    assert errors == []
