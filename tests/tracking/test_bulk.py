"""What the bulk recorder leaves in a database is what MLflow's own log_batch would have left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import servers
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from runner.tracking import contract
from runner.tracking.store import database

STEPS = np.arange(2500)
COLUMNS = {
    "loss": (STEPS, np.float32(1) / (1 + STEPS)),
    "x/0": (STEPS[::7], np.cos(STEPS[::7])),
    "empty": (STEPS[:0], np.zeros(0)),
    "extreme": (np.array([0, 5]), np.array([1.7e308, -5e-324])),
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def client(request, tmp_path_factory) -> Iterator[MlflowClient]:
    folder = tmp_path_factory.mktemp("bulk")
    if request.param == "sqlite":
        yield MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    else:
        with servers.postgresql(folder / "server") as uri:
            client = MlflowClient(tracking_uri=uri)
            yield client
            client._tracking_client.store.engine.dispose()


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """Stop the clock, so that both ways write the same timestamps."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000 * 1_000_000)


def run(client: MlflowClient) -> str:
    return client.create_run("0").info.run_id


def writer(client: MlflowClient, run_id: str):
    return partial(database.write, client._tracking_client.store, database.inserter(client), run_id, at=contract.clock())


def log_batch(client: MlflowClient, run_id: str, columns: database.Columns) -> None:
    metrics = [
        Metric(key, float(value), 1_700_000_000_000, int(step))
        for key, (steps, values) in columns.items()
        for step, value in zip(steps, values, strict=True)
    ]
    for i in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[i : i + 1000])


def left(client: MlflowClient, run_id: str, columns: database.Columns = COLUMNS):
    """Return all that MLflow reads back of a run's metrics."""
    histories = {
        key: sorted((each.step, each.timestamp, each.value) for each in client.get_metric_history(run_id, key))
        for key in columns
    }
    latest = client.get_run(run_id)
    return histories, latest.data.metrics, sorted((m.key, m.value, m.timestamp, m.step) for m in latest.data._metric_objs)


def test_it_leaves_what_log_batch_leaves(client):
    one, other = run(client), run(client)
    writer(client, one)(COLUMNS)
    log_batch(client, other, COLUMNS)
    assert left(client, one) == left(client, other)
    assert len(client.get_metric_history(one, "loss")) == 2500


def test_batches_that_come_later_earlier_or_twice(client):
    first = {"loss": (STEPS[:10], np.arange(10.0))}
    batches = [
        first,
        {"loss": (STEPS[20:30], np.arange(10.0) + 0.5)},
        # Earlier steps do not become the latest value; the same rows again leave one each.
        {"loss": (STEPS[10:20], np.arange(10.0))},
        first,
        # The same step with another value is another row, and the higher of the two the latest.
        {"loss": (STEPS[29:30], np.array([100.0]))},
        {"loss": (STEPS[29:30], np.array([-100.0]))},
    ]
    one, other = run(client), run(client)
    for batch in batches:
        writer(client, one)(batch)
        log_batch(client, other, batch)
    assert left(client, one, first) == left(client, other, first)
    assert client.get_run(one).data.metrics["loss"] == 100 and len(client.get_metric_history(one, "loss")) == 32


def test_a_run_deleted_meanwhile_is_refused_and_left_alone(client):
    one = run(client)
    write = writer(client, one)
    client.delete_run(one)
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        write(COLUMNS)
    client.restore_run(one)
    assert client.get_run(one).data.metrics == {}


def test_a_batch_that_fails_leaves_nothing(client, monkeypatch):
    one = run(client)
    store = client._tracking_client.store

    def fails(*_):
        raise MlflowException("after the insert")

    monkeypatch.setattr(store, "_update_latest_metrics_if_necessary", fails)
    with pytest.raises(MlflowException, match="after the insert"):
        writer(client, one)(COLUMNS)
    monkeypatch.undo()
    assert client.get_metric_history(one, "loss") == []


def test_a_schema_that_is_not_covered_is_refused(client, monkeypatch):
    monkeypatch.setattr(database, "REVISIONS", ("another",))
    with pytest.raises(database.UnknownSchema, match="another"):
        writer(client, run(client))


def test_a_server_is_no_database():
    assert database.inserter(MlflowClient(tracking_uri="http://127.0.0.1:9")) is None
