"""Many whole runs into a tracking store that is a database, at once: they leave what each alone would have left."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runner import artifacts, bulk, tracking
from runner.trace import Trace

# KiB of an SQLite database that are kept at hand; its own 2,000 make it write the indexes' pages and read them again, over and
# over within one transaction, which takes a quarter longer.
CACHE = 128 * 2**10


class Job(NamedTuple):
    """A run that has ended: what is said of it before its first row, all its rows, and what is said of it at its end."""

    about: tracking.About
    rows: Trace
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def record(
    client: Any,
    insert: bulk.Insert,
    experiment_id: str,
    jobs: Sequence[Job],
    *,
    name: str | None,
    every: int,
    max_coordinates: int,
    full_loss_every: int,
) -> list[str]:
    """Create, fill and end a run for each job, whose rows come measured; returns their ids. `insert` is that of `bulk`."""
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag

    store = client._tracking_client.store
    location = store.get_experiment(experiment_id).artifact_location
    # In order, for the same reason as the timestamps below.
    ids = sorted(uuid.uuid4().hex for _ in jobs)
    now = time.time_ns() // 1_000_000
    runs, params, tags = [], [], []
    for run_id, job in zip(ids, jobs, strict=True):
        runs.append(run_row(run_id, name or job.about.name, experiment_id, f"{location}/{run_id}/artifacts", job, now))
        params += [{"run_uuid": run_id, "key": key, "value": value} for key, value in tracking.cut(job.about.params).items()]
        said = {"mlflow.runName": name or job.about.name, **tracking.tags_of(job.about, run_id), **job.tags}
        tags += [{"run_uuid": run_id, "key": key, "value": value} for key, value in said.items()]
    # Files on one core, tables on the other; whoever sees a run finds its files.
    with ThreadPoolExecutor(1) as pool, store.ManagedSessionMaker(read_only=False) as session:
        places = [f"{location}/{run_id}/artifacts" for run_id in ids]
        filed = pool.map(write_artifacts, places, jobs)
        if store.engine.dialect.name == "sqlite":
            session.connection().exec_driver_sql(f"PRAGMA cache_size=-{CACHE}")
        for model, rows in ((SqlRun, runs), (SqlParam, params), (SqlTag, tags)):
            session.execute(model.__table__.insert(), rows)
        latest = []
        # A timestamp of its own for each run: an index is ordered by them, and rows that lie side by side go in twice as fast.
        for at, (run_id, job) in enumerate(zip(ids, jobs, strict=True), now - len(jobs)):
            for key, (steps, values) in columns(job, every, max_coordinates):
                insert(session.connection(), (key, at, run_id), steps.tolist(), values.tolist())
                latest.append(bulk.newest(key, steps, values, at, run_id))
        session.execute(SqlLatestMetric.__table__.insert(), latest)
        list(filed)
    return ids


def columns(job: Job, every: int, max_coordinates: int) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yield the metrics of a run that have values, those of its steps and those of its end."""
    for key, column in tracking.columns_of(job.rows, every, max_coordinates).items():
        if len(column[0]):
            yield key, column
    yield from tracking.once(job.metrics).items()


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
        "status": tracking.status_of(job.tags),
        "start_time": now,
        "end_time": now,
        "deleted_time": None,
        "lifecycle_stage": "active",
    }


def write_artifacts(uri: str, job: Job) -> None:
    """Put a run's files where its artifacts lie."""
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
    (folder / "config.yaml").write_text(job.about.config)
    trajectory = artifacts.Trajectory(folder / "trajectory.parquet")
    trajectory.write(job.rows)
    trajectory.close()
