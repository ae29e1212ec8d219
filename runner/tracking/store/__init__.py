"""Open a tracking store: a client of it, and the id of an experiment in it. Both are created if they are missing."""

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

# The key of the lock that a process holds while it opens a PostgreSQL store: "runner" in ASCII.
LOCK = 0x72756E6E6572
# The tag by which a run is found if the answer to its creation was lost.
RUN_KEY = "run_key"
# Errors of stores that `prepare` could not use; `opened` raises them without another attempt.
REFUSED: dict[str, UserError] = {}
# No usage data, no code from loaded files (pickle), no job server, and no redirect that takes a password to another host.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",
}
# Connections of a PostgreSQL store: one that stays open, one that is closed after use. MLflow opens a session within another.
CONNECTIONS = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "1", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "1"}
# Held while the environment has CONNECTIONS and one thread opens such a store.
OPENING = threading.Lock()
# MLflow's stores that make sessions for one thread at a time.
ALONE: WeakSet[Any] = WeakSet()
# Prepared, empty SQLite stores: the file of each, by its final place.
PREPARED: dict[Path, Path] = {}


def opened(uri: str, experiment: str) -> tuple[Any, str]:
    """Return a client of the tracking store and the id of the experiment in it.

    Raises UserError if the store or the experiment's name cannot be used.
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
    """Return a client of a tracking store that exists."""
    mlflow = imported()
    if sqlite_file(uri) is not None:
        from mlflow.store.db import utils

        # MLflow's function takes the quoted URI for a path, and would make folders with quoted names.
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
    """Limit a store that MLflow opens in this block to two connections, unless the user's environment sets the limits.

    Other stores of this process, and servers that it starts, are not limited.
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
    """Return a factory of sessions for one thread at a time: two threads with one session each would wait for a second one."""
    lock = threading.RLock()

    @contextmanager
    def session(*words: Any, **keys: Any) -> Iterator[Any]:
        with lock, made(*words, **keys) as opened:
            yield opened

    return session


def prepare(uri: str) -> None:
    """Open the store. An SQLite store that does not exist yet is created beside its place, where `opened` puts it.

    Raises UserError if the store cannot be used; the next `opened` then raises it at once.
    """
    try:
        get_ready(uri)
    except UserError as error:
        REFUSED[uri] = error
        raise


def get_ready(uri: str) -> None:
    """Check and open the store; raises UserError."""
    preflight.check(uri)
    mlflow = imported()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        open_or_make(uri)
    except (mlflow.exceptions.MlflowException, SQLAlchemyError, OSError) as error:
        raise preflight.refusal(absolute(uri), f"{first_line(error)}; set it with tracking.uri=sqlite:///…") from error


def open_or_make(uri: str) -> None:
    """Open a store, or create an SQLite store beside its place."""
    file = sqlite_file(uri)
    if uri.startswith("postgresql"):
        with alone(uri):
            room(partial(client_of, uri))
    elif file is None or file.exists():
        client_of(uri)
    elif file not in PREPARED:
        file.parent.mkdir(parents=True, exist_ok=True)
        PREPARED[file] = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        # MLflow migrates in steps. Several processes at once, or one that is killed, would leave the file unusable.
        try:
            client_of(uri_of(PREPARED[file]))._tracking_client.store.engine.dispose()
        except BaseException:
            remove(PREPARED.pop(file))
            raise


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Hold the lock of a PostgreSQL database in this block, against processes of all machines: MLflow migrates in it.

    Raises UserError if the database cannot be reached, or has another MLflow's schema.
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
    """Limit the wait for a PostgreSQL server that falls silent within a statement."""
    # The driver is an optional dependency.
    if engine.dialect.driver == "psycopg":
        from runner.tracking.store import silent

        silent.heed(engine)


def locked(engine: Any) -> Any:
    """Return a connection that holds the lock until it is closed, or None. A waiting process holds no connection."""
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
    """Return whether a store exists; a server is assumed to exist, and is not asked."""
    file = sqlite_file(uri)
    return file is None or file.exists()


def discard() -> None:
    """Remove the stores that were prepared and never opened."""
    while PREPARED:
        remove(PREPARED.popitem()[1])


def remove(file: Path) -> None:
    """Remove an SQLite store, and the files that SQLite leaves beside it if a process ends within a transaction."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        file.with_name(f"{file.name}{suffix}").unlink(missing_ok=True)


def imported() -> Any:
    """Return MLflow, imported without usage data and without log lines of its migrations."""
    # MLflow reads some of these variables at import.
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It logs a traceback before it raises the same exception.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


def quieten() -> None:
    """Silence the libraries' log lines about a store that fails, and keep them from retrying for minutes."""
    for noisy in ("mlflow", "sqlalchemy", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def place(made: Path, file: Path) -> None:
    """Put a prepared store in its place, unless another process was first."""
    # On a file system without hard links, MLflow creates the store.
    with suppress(OSError):
        os.link(made, file)
    made.unlink()
