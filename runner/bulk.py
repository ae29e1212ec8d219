"""Metrics straight into the tables of a tracking store that is a database, in one statement a batch.

What MLflow reads back is what its own `log_batch` would have left; that one makes an object of every number and validates it,
which costs some forty times as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any

import numpy as np

Columns = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by metric: steps [n] and values [n], all finite
# The revisions of MLflow's schema that the tests compare with log_batch: that of 3.17.
REVISIONS = ("dc11669786a5",)
NAMES = ("key", "value", "timestamp", "step", "is_nan", "run_uuid")
# A row that is there already is left as it is, as by log_batch. psycopg would send row after row; arrays go in one message.
INSERT = {
    "sqlite": f"INSERT INTO metrics ({', '.join(NAMES)}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    "postgresql": f"INSERT INTO metrics ({', '.join(NAMES)}) SELECT * FROM unnest(%s::varchar[], %s::float8[], %s::bigint[], "
    "%s::bigint[], %s::boolean[], %s::varchar[]) ON CONFLICT DO NOTHING",
}


class UnknownSchema(Exception):
    """A database whose revision of MLflow's schema the tests do not cover."""


def writer(client: Any, run_id: str) -> Callable[[Columns], None] | None:
    """Return a function that adds columns to a run in one transaction, or None where the store is no database known here.

    Raises UnknownSchema. The function raises MlflowException where the run was deleted meanwhile, as log_batch does.
    """
    store = client._tracking_client.store
    dialect = store.engine.dialect.name if hasattr(store, "engine") else None
    if dialect not in INSERT:
        return None
    from mlflow.store.db.utils import _get_schema_version

    revision = _get_schema_version(store.engine)
    if revision not in REVISIONS:
        raise UnknownSchema(f"MLflow's schema {revision} is not one of {', '.join(REVISIONS)}")
    return lambda columns: write(store, dialect, run_id, columns)


def write(store: Any, dialect: str, run_id: str, columns: Columns) -> None:
    """Insert the rows and bring the run's latest values up to date, both or neither."""
    from mlflow.store.tracking.dbmodels.models import SqlMetric

    now = time.time_ns() // 1_000_000
    full = {key: column for key, column in columns.items() if len(column[0])}
    with store.ManagedSessionMaker(read_only=False) as session:
        store._check_run_is_active(store._get_run(run_uuid=run_id, session=session))
        rows = [row for key, (steps, values) in full.items() for row in rows_of(key, steps, values, now, run_id)]
        if rows:
            data = rows if dialect == "sqlite" else tuple(list(part) for part in zip(*rows, strict=True))
            session.connection().exec_driver_sql(INSERT[dialect], data)
            newest = (newest_of(key, *column, now, run_id) for key, column in full.items())
            latest = [SqlMetric(**dict(zip(NAMES, row, strict=True))) for row in newest]
            store._update_latest_metrics_if_necessary(latest, session)


def rows_of(key: str, steps: np.ndarray, values: np.ndarray, now: int, run_id: str) -> zip:
    """Return the rows of one metric, as NAMES has them."""
    return zip(repeat(key), values.tolist(), repeat(now), steps.tolist(), repeat(False), repeat(run_id), strict=False)


def newest_of(key: str, steps: np.ndarray, values: np.ndarray, now: int, run_id: str) -> tuple:
    """Return the row that MLflow takes for the latest: the highest step and, there, the highest value."""
    last = np.lexsort((values, steps))[-1]
    return next(iter(rows_of(key, steps[last : last + 1], values[last : last + 1], now, run_id)))
