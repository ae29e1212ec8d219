"""Metrics straight into the tables of a tracking store that is a database, many rows in one statement.

MLflow reads back the same as after its own `log_batch`, which makes and validates an object for every number and costs a
hundred times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

Columns = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by metric: steps [n] and values [n], all finite
Insert = Callable[[Any, tuple[str, int, str], list[int], list[float]], None]
# The revisions of MLflow's schema for which the tests compare the rows with those of log_batch: that of 3.17.
REVISIONS = ("dc11669786a5",)
# Rows a statement: SQLite inserts so many twice as fast as one by one, and more no faster.
ROWS = 1000
# A row that exists already is not changed, as by log_batch.
INSERT = "INSERT INTO metrics (key, timestamp, run_uuid, is_nan, step, value)"


class UnknownSchema(Exception):
    """Raised for a database with a revision of MLflow's schema that the tests do not cover."""


def inserter(client: Any) -> Insert | None:
    """Return the function that inserts a metric into this store's database; None if it is no known database.

    Raises UnknownSchema.
    """
    store = client._tracking_client.store
    insert = INSERTS.get(store.engine.dialect.name) if hasattr(store, "engine") else None
    if insert is None:
        return None
    from mlflow.store.db.utils import _get_schema_version

    revision = _get_schema_version(store.engine)
    if revision not in REVISIONS:
        raise UnknownSchema(f"MLflow's schema {revision} is not one of {', '.join(REVISIONS)}")
    return insert


def write(store: Any, insert: Insert, run_id: str, columns: Columns, at: int) -> None:
    """Add metrics of this time (ms since 1970) to a run in one transaction, and update the latest values.

    Raises MlflowException if the run was deleted meanwhile, as log_batch does.
    """
    from mlflow.store.tracking.dbmodels.models import SqlMetric

    full = {key: column for key, column in columns.items() if len(column[0])}
    with store.ManagedSessionMaker(read_only=False) as session:
        store._check_run_is_active(store._get_run(run_uuid=run_id, session=session))
        if full:
            connection = session.connection()
            for key, (steps, values) in full.items():
                insert(connection, (key, at, run_id), steps.tolist(), values.tolist())
            latest = [SqlMetric(**newest(key, *column, at, run_id)) for key, column in full.items()]
            store._update_latest_metrics_if_necessary(latest, session)


def forget(store: Any, run_id: str, prefix: str) -> None:
    """Delete the metrics of a run whose names begin with `prefix`."""
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric
    from sqlalchemy import delete

    with store.ManagedSessionMaker(read_only=False) as session:
        for table in (SqlMetric, SqlLatestMetric):
            session.execute(delete(table).where(table.run_uuid == run_id, table.key.startswith(prefix, autoescape=True)))


def into_sqlite(connection: Any, row: tuple[str, int, str], steps: list[int], values: list[float]) -> None:
    """Insert a metric, ROWS rows a statement."""
    for i in range(0, len(steps), ROWS):
        pairs = [part for pair in zip(steps[i : i + ROWS], values[i : i + ROWS], strict=True) for part in pair]
        connection.exec_driver_sql(sqlite_statement(len(pairs) // 2), (*row, *pairs))


@cache
def sqlite_statement(rows: int) -> str:
    """Return the statement that inserts `rows` rows of one metric."""
    pairs = ", ".join(["(?, ?)"] * rows)
    return f"{INSERT} SELECT ?, ?, ?, 0, column1, column2 FROM (VALUES {pairs}) WHERE true ON CONFLICT DO NOTHING"


def into_postgresql(connection: Any, row: tuple[str, int, str], steps: list[int], values: list[float]) -> None:
    """Insert a metric in one statement with arrays, which is one message; psycopg would send row after row."""
    columns = "unnest(%s::bigint[]), unnest(%s::float8[])"
    statement = f"{INSERT} SELECT %s, %s, %s, false, {columns} ON CONFLICT DO NOTHING"
    connection.exec_driver_sql(statement, (*row, steps, values))


INSERTS = {"sqlite": into_sqlite, "postgresql": into_postgresql}


def newest(key: str, steps: np.ndarray, values: np.ndarray, at: int, run_id: str) -> dict[str, Any]:
    """Return the row that is the latest for MLflow: the highest step and, at that step, the highest value."""
    last = np.lexsort((values, steps))[-1]
    step, value = int(steps[last]), float(values[last])
    return {"key": key, "value": value, "timestamp": at, "step": step, "is_nan": False, "run_uuid": run_id}
