"""A tracking store: a client of it, and the id of an experiment in it, both made where they are not yet there."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

from runner.errors import UserError, first_line
from runner.security.uris import absolute, uri_of
from runner.security.uris import file_of as sqlite_file
from runner.tracking.store import naming, preflight
from runner.tracking.store.retry import room

# Of the lock that a process holds while it opens a PostgreSQL store: "runner" in ASCII.
LOCK = 0x72756E6E6572
# The tag by which a run is found again whose creation was not answered.
RUN_KEY = "run_key"
# Seconds in which a run must come to be created, between two attempts, and that a server has to answer one.
CREATION, PAUSE, ANSWER = 30.0, 0.5, 10
# Stores that were found to be of no use, and why: `opened` need not try them again.
REFUSED: dict[str, UserError] = {}
# No usage data sent, no code out of what is loaded, no job server, and no other host told what one is trusted with.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",
}
# Of a PostgreSQL store: the connection that is kept, and those that are let go at once. MLflow opens a session within another.
CONNECTIONS = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "1", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "1"}
# The environment has them while one thread opens such a store.
OPENING = threading.Lock()
# MLflow's stores whose sessions are made for one thread at a time.
ALONE: WeakSet[Any] = WeakSet()
# Empty stores that wait for a run, by the file that they will be.
PREPARED: dict[Path, Path] = {}


def opened(uri: str, experiment: str) -> tuple[Any, str]:
    """Return a client of the tracking store and the id of the experiment in it.

    Raises UserError where the store cannot be used, or the experiment's name.
    """
    if uri in REFUSED:
        raise REFUSED.pop(uri)
    named = naming.experiment_name(experiment)
    get_ready(uri)
    preflight.warn(uri)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        file = sqlite_file(uri)
        if file in PREPARED:
            place(PREPARED.pop(file), file)
        location = None if file is None else (file.parent / "artifacts").as_uri()
        client = room(partial(client_of, uri))
        return client, room(partial(naming.experiment_id, client, named, location))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise preflight.refusal(absolute(uri), f"{first_line(error)}; set it with tracking.uri=sqlite:///…") from error


def client_of(uri: str) -> Any:
    """Return a client of a tracking store that is there."""
    mlflow = imported()
    if sqlite_file(uri) is not None:
        from mlflow.store.db import utils

        # It takes a URI for a path, and makes folders that are called as what is quoted there.
        utils._make_parent_dirs_if_sqlite = lambda uri: None
    if not uri.startswith("postgresql"):
        return mlflow.MlflowClient(tracking_uri=absolute(uri))
    with few_connections():
        client = mlflow.MlflowClient(tracking_uri=uri)
        store = client._tracking_client.store
    if store not in ALONE:
        heed(store.engine)
        store.ManagedSessionMaker = one_thread(store.ManagedSessionMaker)
        ALONE.add(store)
    return client


@contextmanager
def few_connections() -> Iterator[None]:
    """Let a store that MLflow opens in this block hold two connections, unless the user says otherwise.

    Other stores of this process, and servers that it starts, are not meant.
    """
    with OPENING:
        ours = {name: value for name, value in CONNECTIONS.items() if name not in os.environ}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name in ours:
                del os.environ[name]


def one_thread(made: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes sessions for one thread at a time: each of two that held one would wait for another one's second."""
    lock = threading.RLock()

    @contextmanager
    def session(*words: Any, **keys: Any) -> Iterator[Any]:
        with lock, made(*words, **keys) as opened:
            yield opened

    return session


def prepare(uri: str) -> None:
    """Open the store; an SQLite store that does not exist yet is made beside its place, where `opened` will put it.

    Raises UserError where it cannot be used, and the next `opened` does so at once.
    """
    try:
        get_ready(uri)
    except UserError as error:
        REFUSED[uri] = error
        raise


def get_ready(uri: str) -> None:
    """Do what `prepare` does; raises UserError."""
    preflight.check(uri)
    mlflow = imported()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        open_or_make(uri)
    except (mlflow.exceptions.MlflowException, SQLAlchemyError, OSError) as error:
        raise preflight.refusal(absolute(uri), f"{first_line(error)}; set it with tracking.uri=sqlite:///…") from error


def open_or_make(uri: str) -> None:
    """Open a store, or make an SQLite store."""
    file = sqlite_file(uri)
    if uri.startswith("postgresql"):
        with alone(uri):
            room(partial(client_of, uri))
    elif file is None or file.exists():
        client_of(uri)
    elif file not in PREPARED:
        file.parent.mkdir(parents=True, exist_ok=True)
        PREPARED[file] = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        # MLflow migrates in steps which several processes at once, or one that is killed, leave unusable.
        try:
            client_of(uri_of(PREPARED[file]))._tracking_client.store.engine.dispose()
        except BaseException:
            PREPARED.pop(file).unlink(missing_ok=True)
            raise


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Keep other processes, on whichever machine, out of this block for the same PostgreSQL database: MLflow migrates in it.

    Raises UserError where the database cannot be reached, or is not this MLflow's.
    """
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(uri, poolclass=NullPool, connect_args=dict(preflight.connect_args(uri)))
        heed(engine)
        while (connection := room(partial(locked, engine))) is None:
            time.sleep(random.uniform(0.1, 0.5))
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise preflight.postgresql(uri, error) from error
    with connection:
        tables = set(inspect(connection).get_table_names())
        if "alembic_version" in tables:
            revisions = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
            preflight.schema(uri, tables, list(revisions))
        yield


def heed(engine: Any) -> None:
    """Have a PostgreSQL server that falls silent in the midst of a statement be waited for no longer than for a while."""
    # Not everyone has its driver.
    if engine.dialect.driver == "psycopg":
        from runner.tracking.store import silent

        silent.heed(engine)


def locked(engine: Any) -> Any:
    """Return a connection that has the lock, which goes with it, or None: who waits for it holds none that the other needs."""
    from sqlalchemy import text

    connection = engine.connect()
    try:
        if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}).scalar():
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


def exists(uri: str) -> bool:
    """Tell whether a store is there, as far as that can be told without asking a server."""
    file = sqlite_file(uri)
    return file is None or file.exists()


def discard() -> None:
    """Remove what was prepared and never opened."""
    while PREPARED:
        PREPARED.popitem()[1].unlink(missing_ok=True)


def imported() -> Any:
    """Return MLflow, without usage data sent and without an account of its migrations."""
    # MLflow reads some of it at import.
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Its tracebacks come before the exceptions that they tell of.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


def quieten() -> None:
    """Keep quiet what libraries say of a store that fails, and do not let them ask it again for minutes."""
    for noisy in ("mlflow", "sqlalchemy", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def place(made: Path, file: Path) -> None:
    """Put a store in its place, unless another process was first."""
    # A file system without links leaves it to MLflow.
    with suppress(OSError):
        os.link(made, file)
    made.unlink()
