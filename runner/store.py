"""A tracking store: a client of it, and the id of an experiment in it, both made where they are not yet there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runner.errors import UserError, first_line

SQLITE = "sqlite:///"
# Of the lock that a process holds while it opens a PostgreSQL store: "runner" in ASCII.
LOCK = 0x72756E6E6572
# Empty stores that wait for a run, by the file that they will be.
PREPARED: dict[Path, Path] = {}


def opened(uri: str, experiment: str) -> tuple[Any, str]:
    """Return a client of the tracking store and the id of the experiment in it.

    Raises UserError where the store cannot be used.
    """
    mlflow = imported()
    try:
        prepare(uri)
        file = sqlite_file(uri)
        if file in PREPARED:
            place(PREPARED.pop(file), file)
        location = None if file is None else (file.parent / "artifacts").as_uri()
        client = client_of(uri)
        return client, experiment_id(client, experiment, location)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = f"{first_line(error)}; set it with tracking.uri=sqlite:///…"
        raise UserError(f"tracking.uri {absolute(uri)!r} cannot be used: {reason}") from error


def client_of(uri: str) -> Any:
    """Return a client of a tracking store that is there."""
    return imported().MlflowClient(tracking_uri=absolute(uri))


def prepare(uri: str) -> None:
    """Open the store; an SQLite store that does not exist yet is made beside its place, where `opened` will put it."""
    mlflow = imported()
    file = sqlite_file(uri)
    if uri.startswith("postgresql"):
        with alone(uri):
            client_of(uri)
    elif file is None or file.exists():
        client_of(uri)
    elif file not in PREPARED:
        file.parent.mkdir(parents=True, exist_ok=True)
        PREPARED[file] = file.with_name(f"{file.name}.{os.getpid()}")
        PREPARED[file].unlink(missing_ok=True)
        # MLflow migrates in steps which several processes at once, or one that is killed, leave unusable.
        try:
            mlflow.MlflowClient(tracking_uri=f"{SQLITE}{PREPARED[file]}")._tracking_client.store.engine.dispose()
        except BaseException:
            PREPARED.pop(file).unlink(missing_ok=True)
            raise


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Keep other processes, on whichever machine, out of this block for the same PostgreSQL database: MLflow migrates in it."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    with create_engine(uri, poolclass=NullPool).connect() as connection:
        # The lock goes with the connection.
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        yield


def discard() -> None:
    """Remove what was prepared and never opened."""
    while PREPARED:
        PREPARED.popitem()[1].unlink(missing_ok=True)


def imported() -> Any:
    """Return MLflow, without usage data sent and without an account of its migrations."""
    # MLflow reads it at import.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return mlflow


def quieten() -> None:
    """Keep quiet what libraries say of a store that fails, and do not let them ask it again for minutes."""
    for noisy in ("mlflow", "sqlalchemy", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for another store."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def absolute(uri: str) -> str:
    """Return a URI that means the same from every folder: MLflow keeps one store for each URI of a process."""
    file = sqlite_file(uri)
    return uri if file is None else f"{SQLITE}{file}"


def place(made: Path, file: Path) -> None:
    """Put a store in its place, unless another process was first."""
    # A file system without links leaves it to MLflow.
    with suppress(OSError):
        os.link(made, file)
    made.unlink()


def experiment_id(client: Any, name: str, location: str | None) -> str:
    """Return the id of an experiment, which another process may be making at the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise UserError(f"tracking.experiment {name!r} was deleted; restore it or set tracking.experiment=another")
    return found.experiment_id
