"""Ways to put metrics into MLflow's store: ours, MLflow's own, and what the database itself can do at best."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import psycopg
import servers
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric

from benchmarks.measure import Contender
from runner.tracking import contract
from runner.tracking.store import imported, writers
from runner.tracking.store.database import Columns

NAMES = "key, value, timestamp, step, is_nan, run_uuid"
TYPES = ("varchar", "float8", "int8", "int8", "bool", "varchar")
# What log_batch takes.
BATCH = 1000
# Steps that the recorder has gathered when it writes, twice a second.
GATHERED = 20_000


class Store(NamedTuple):
    """A tracking store with one run: the database, and a client that goes there directly or by a server."""

    database: str  # SQLAlchemy's URI
    client: MlflowClient
    run_id: str

    def empty(self) -> None:
        """Remove all metrics."""
        engine = sqlalchemy.create_engine(self.database)
        verb = "DELETE FROM" if engine.dialect.name == "sqlite" else "TRUNCATE"
        with engine.begin() as connection:
            for table in ("metrics", "latest_metrics"):
                connection.exec_driver_sql(f"{verb} {table}")
        engine.dispose()

    def left(self) -> list[tuple]:
        """Return what is in the table of metrics, without its timestamps."""
        engine = sqlalchemy.create_engine(self.database)
        with engine.begin() as connection:
            rows = connection.exec_driver_sql("SELECT key, step, value, is_nan, run_uuid FROM metrics").all()
        engine.dispose()
        return sorted((key, step, value, bool(is_nan), run_id) for key, step, value, is_nan, run_id in rows)


@contextmanager
def sqlite() -> Iterator[Store]:
    """Give a new SQLite store."""
    with tempfile.TemporaryDirectory() as folder:
        yield opened(f"sqlite:///{folder}/mlflow.db")


@contextmanager
def postgresql() -> Iterator[Store]:
    """Give a new store on a real PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder, servers.postgresql(Path(folder) / "server") as uri:
        yield opened(uri)


@contextmanager
def http(behind: Callable[[], AbstractContextManager[Store]]) -> Iterator[Store]:
    """Give a new store by way of an MLflow server with as many workers as it has by default."""
    with (
        tempfile.TemporaryDirectory() as folder,
        behind() as store,
        servers.mlflow(store.database, Path(folder), workers=None) as uri,
    ):
        yield store._replace(client=MlflowClient(tracking_uri=uri))


def opened(uri: str) -> Store:
    """Return the store at a URI, with one run."""
    client = imported().MlflowClient(tracking_uri=uri)
    return Store(uri, client, client.create_run("0").info.run_id)


def columns(steps: int) -> Columns:
    """Return three metrics a step, as a run of a scalar x has them."""
    k = np.arange(steps)
    x = np.float32(4) * (1 - np.exp(-k / steps, dtype=np.float32))
    return {"loss": (k, np.square(x - 4)), "x": (k, x), "gradient": (k, 2 * (x - 4))}


def parts(of: Columns, size: int) -> Iterator[Columns]:
    """Yield columns of so many steps each."""
    for i in range(0, max(len(steps) for steps, _ in of.values()), size):
        yield {key: (steps[i : i + size], values[i : i + size]) for key, (steps, values) in of.items()}


def rows(of: Columns, run_id: str) -> Iterator[tuple]:
    """Yield the rows of the table, metric after metric, which is the order of its longest index."""
    now = time.time_ns() // 1_000_000
    for key, (steps, values) in of.items():
        yield from zip(repeat(key), values.tolist(), repeat(now), steps.tolist(), repeat(False), repeat(run_id), strict=False)


def contender(store: Store, steps: int, record: Callable[[Store, Columns], None]) -> Contender:
    """Return the recording of so many steps, into a store emptied before each run."""
    of = columns(steps)
    return Contender(lambda: record(store, of), 3 * steps, store.empty)


def by_runner(store: Store, of: Columns) -> None:
    """Write as our recorder does, straight into a database or by requests to a server."""
    with writers.writer(store.client, store.run_id) as write:
        for part in parts(of, GATHERED):
            write(part, contract.clock())


def by_executemany(store: Store, of: Columns) -> None:
    """Write by Python's own SQLite module in one transaction."""
    database = sqlite3.connect(store.database.removeprefix("sqlite:///"))
    with database:
        database.executemany(f"INSERT INTO metrics ({NAMES}) VALUES (?, ?, ?, ?, ?, ?)", rows(of, store.run_id))
    database.close()


def by_copy(store: Store, of: Columns) -> None:
    """Write by PostgreSQL's COPY, in its binary form."""
    command = f"COPY metrics ({NAMES}) FROM STDIN (FORMAT BINARY)"
    with (
        psycopg.connect(store.database.replace("+psycopg", "")) as database,
        database.cursor() as cursor,
        cursor.copy(command) as copy,
    ):
        copy.set_types(TYPES)
        for row in rows(of, store.run_id):
            copy.write_row(row)


def by_log_batch(store: Store, of: Columns) -> None:
    """Write by MLflow's client, as many metrics a call as it takes."""
    names = ("key", "value", "timestamp", "step")
    metrics = [Metric(**dict(zip(names, row, strict=False))) for row in rows(of, store.run_id)]
    for i in range(0, len(metrics), BATCH):
        store.client.log_batch(store.run_id, metrics=metrics[i : i + BATCH])


def by_log_metric(store: Store, of: Columns) -> None:
    """Write by a call of MLflow's for each number."""
    mlflow.set_tracking_uri(store.client.tracking_uri)
    try:
        for key, value, timestamp, step, *_ in rows(of, store.run_id):
            mlflow.log_metric(key, value, step=step, timestamp=timestamp, run_id=store.run_id)
    finally:
        # It stands in the environment, too, for all that comes after.
        mlflow.set_tracking_uri(None)
