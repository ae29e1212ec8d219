"""Insert many whole runs at once into a tracking store that is a database, with the same result as one by one."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runner.errors import first_line
from runner.security import secrets
from runner.trace import Trace
from runner.tracking import contract
from runner.tracking.store import artifacts, database, writers

# KiB of an SQLite database that are cached. With its default of 2,000 it writes and rereads pages of the indexes within one
# transaction, which takes a quarter longer.
CACHE = 128 * 2**10


class Job(NamedTuple):
    """A run that has ended: its description, all its rows, and the tags and metrics of its end."""

    about: contract.About
    rows: Trace
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    key: str  # of the run, known before the run is created; in a database, its id


def record(
    client: Any,
    insert: database.Insert,
    experiment_id: str,
    jobs: Sequence[Job],
    now: int,
    *,
    name: str | None,
    every: int,
    max_coordinates: int,
    full_loss_every: int,
) -> dict[str, str]:
    """Create, fill and end a run for each job, with measured rows, at this time in ms since 1970.

    If a run exists, its metrics, parameters and tags are replaced. `insert` is that of `database`.

    Returns by run key why the files of a run could not be stored; such a run is tagged as incomplete.
    """
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag

    store = client._tracking_client.store
    location = store.get_experiment(experiment_id).artifact_location
    runs, params, tags = [], [], []
    for job in jobs:
        title, uri = secrets.masked(name or job.about.name), f"{location}/{job.key}/artifacts"
        runs.append(run_row(job.key, title, experiment_id, uri, job, now))
        params += [{"run_uuid": job.key, "key": key, "value": value} for key, value in writers.cut(job.about.params).items()]
        said = {"mlflow.runName": title, **contract.tags_of(job.about, job.key), **job.tags}
        tags += [{"run_uuid": job.key, "key": key, "value": value} for key, value in said.items()]
    # Files on one core, tables on the other. The transaction ends after the files, so a visible run has its files.
    with ThreadPoolExecutor(1) as pool, store.ManagedSessionMaker(read_only=False) as session:
        filed = pool.map(unkept, [run["artifact_uri"] for run in runs], jobs)
        if store.engine.dialect.name == "sqlite":
            session.connection().exec_driver_sql(f"PRAGMA cache_size=-{CACHE}")
        there = cleared(session, [job.key for job in jobs], {tag["key"] for tag in tags})
        for run in runs:
            if run["run_uuid"] in there:
                session.execute(SqlRun.__table__.update().where(SqlRun.run_uuid == run["run_uuid"]), run)
        new = [run for run in runs if run["run_uuid"] not in there]
        for model, rows in ((SqlRun, new), (SqlParam, params), (SqlTag, tags)):
            if rows:
                session.execute(model.__table__.insert(), rows)
        latest = []
        for job, at in zip(jobs, times(now, len(jobs)), strict=True):
            for key, (steps, values) in columns(job, every, max_coordinates):
                insert(session.connection(), (key, at, job.key), steps.tolist(), values.tolist())
                latest.append(database.newest(key, steps, values, at, job.key))
        session.execute(SqlLatestMetric.__table__.insert(), latest)
        left = {job.key: why for job, why in zip(jobs, filed, strict=True) if why is not None}
        if left:
            rows = [{"run_uuid": key, "key": "recording", "value": "incomplete"} for key in left]
            session.execute(SqlTag.__table__.insert(), rows)
    return left


def times(now: int, count: int) -> range:
    """Return the times of the rows of `count` runs, one time a run.

    An index is ordered by time: rows of one run are then neighbours there, and are inserted twice as fast.
    """
    return range(now - count, now)


def cleared(session: Any, keys: Sequence[str], tags: Collection[str]) -> set[str]:
    """Return which of these runs exist. Their metrics, parameters, and the given tags and those of an end are deleted.

    A run that a signal had ended is recorded again when it has been continued.
    """
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import delete, select

    there = set(session.scalars(select(SqlRun.run_uuid).where(SqlRun.run_uuid.in_(keys))))
    for model in (SqlMetric, SqlLatestMetric, SqlParam, SqlTag) if there else ():
        own = (SqlTag.key.in_({*tags, *contract.ENDING}),) if model is SqlTag else ()
        statement = delete(model).where(model.run_uuid.in_(there), *own)
        session.execute(statement, execution_options={"synchronize_session": False})
    return there


def clear(store: Any, run_id: str) -> None:
    """Delete the metrics, parameters and end tags of one run, whose tags will be set again."""
    with store.ManagedSessionMaker(read_only=False) as session:
        cleared(session, [run_id], ())


def ids(count: int) -> list[str]:
    """Return `count` run ids in ascending order, for the reason given in `times`."""
    return sorted(uuid.uuid4().hex for _ in range(count))


def there(client: Any, jobs: Sequence[Job], now: int) -> bool:
    """Return whether these jobs, which are recorded together, were recorded at this time already."""
    from mlflow.store.tracking.dbmodels.models import SqlRun

    with client._tracking_client.store.ManagedSessionMaker() as session:
        run = session.get(SqlRun, jobs[0].key)
        return run is not None and run.end_time == now


def columns(job: Job, every: int, max_coordinates: int) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yield the metrics of a run that have values: those of its steps, then those of its end."""
    for key, column in writers.columns_of(job.rows, every, max_coordinates).items():
        if len(column[0]):
            yield key, column
    yield from writers.once(job.metrics).items()


def run_row(run_id: str, name: str, experiment_id: str, uri: str, job: Job, now: int) -> dict[str, Any]:
    """Return the row of `runs` that MLflow's create_run and set_terminated leave."""
    return {
        "run_uuid": run_id,
        "name": name,
        "experiment_id": int(experiment_id),
        "artifact_uri": uri,
        "source_type": "UNKNOWN",
        "source_name": "",
        "entry_point_name": "",
        "source_version": "",
        "user_id": job.about.tags.get("mlflow.user", "unknown"),
        "status": contract.status_of(job.tags),
        "start_time": now,
        "end_time": now,
        "deleted_time": None,
        "lifecycle_stage": "active",
    }


def unkept(uri: str, job: Job) -> str | None:
    """Store a run's files as artifacts. Return None, or one line that says why this failed."""
    try:
        write_artifacts(uri, job)
    except Exception as error:
        return f"its files could not be stored: {first_line(error)}"
    return None


def write_artifacts(uri: str, job: Job) -> None:
    """Store a run's files at its artifact URI."""
    folder = artifacts.local(uri)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder, job)
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory() as elsewhere:
        write_files(Path(elsewhere), job)
        get_artifact_repository(uri).log_artifacts(elsewhere)


def write_files(folder: Path, job: Job) -> None:
    """Write a run's configuration and trajectory."""
    (folder / "config.yaml").write_text(job.about.config, encoding="utf-8")
    trajectory = artifacts.Trajectory(folder / "trajectory.parquet")
    trajectory.write(job.rows)
    trajectory.close()
