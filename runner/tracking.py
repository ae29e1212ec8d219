"""Where rows go: a recorder is a context manager around a run that gives a `record`; `none` does nothing, `mlflow` records."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner import bulk
from runner.errors import UserError, first_line
from runner.loop import Ending, Result
from runner.trace import Trace, split

# What MLflow's log_batch takes at a time, and what one of its parameters holds.
BATCH, PARAM_LENGTH = 1000, 6000


@dataclass(frozen=True)
class About:
    """What is said of a run once, before its first row."""

    folder: Path  # where its files are written before they are logged
    params: Mapping[str, str]
    tags: Mapping[str, str]
    config: str  # resolved, YAML


@dataclass(frozen=True)
class Recorder:
    """`record(rows)` takes a run's rows in order; `finish(result, metrics)` what it came to."""

    record: Callable[[Trace], None]
    finish: Callable[[Result, Mapping[str, float]], None]
    run_id: str | None = None
    experiment_id: str | None = None
    uri: str | None = None


@contextmanager
def none(about: About) -> Iterator[Recorder]:
    """Record nothing."""
    yield Recorder(lambda rows: None, lambda result, metrics: None)


@contextmanager
def mlflow(about: About, *, uri: str, experiment: str, name: str, every: int, max_coordinates: int) -> Iterator[Recorder]:
    """Record every row in MLflow: one run, its rows as metrics, and all of them in `trajectory.parquet`.

    Raises UserError where the tracking store cannot be used. An exception within ends the run as FAILED.
    """
    if every < 1:
        raise UserError(f"tracking.every must be 1 or more, got {every}; set it with tracking.every=1")
    client, experiment_id = opened(uri, experiment)
    run_id = client.create_run(experiment_id, run_name=name, tags=dict(about.tags)).info.run_id
    status, write = "FAILED", writer(client, run_id)
    try:
        with Trajectory(about.folder / "trajectory.parquet") as trajectory:

            def record(rows: Trace) -> None:
                trajectory.write(rows)
                write(columns_of(rows, every, max_coordinates))

            def finish(result: Result, metrics: Mapping[str, float]) -> None:
                nonlocal status
                write({key: (np.zeros(1, int), np.array([value])) for key, value in metrics.items() if np.isfinite(value)})
                log_tags(client, run_id, endings(result))
                status = "KILLED" if result.ending is Ending.INTERRUPTED else "FINISHED"

            log_params(client, run_id, about.params)
            client.log_text(run_id, about.config, "config.yaml")
            yield Recorder(record, finish, run_id, experiment_id, uri)
        client.log_artifact(run_id, str(about.folder / "trajectory.parquet"))
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        client.set_tag(run_id, "error", first_line(error)[:5000])
        raise
    finally:
        client.set_terminated(run_id, status)


def endings(result: Result) -> dict[str, str]:
    """Return the tags that say how a run ended, one of them the description on its page."""
    tags = {"ending": result.ending.value, "stopped_by": result.stopped_by, "first_nonfinite_step": result.first_nonfinite_step}
    by = f" ({result.stopped_by})" if result.stopped_by else ""
    tags["mlflow.note.content"] = (
        f"**{result.ending.value}**{by} after {result.iterations} iterations: {result.ending.sentence}. "
        f"The last loss is {result.last.loss[0]:.7g}, the best {result.best.loss[0]:.7g} at step {result.best.start}."
    )
    return {key: str(value) for key, value in tags.items() if value is not None}


def opened(uri: str, experiment: str) -> tuple[Any, str]:
    """Return a client of the tracking store and the id of the experiment in it, both made where they are not yet there."""
    # MLflow reads it at import, and would send usage data.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    location = None
    if uri.startswith("sqlite:///"):
        # Absolute, since MLflow keeps one store for each URI of a process, whatever folder that is in by then.
        file = Path(uri.removeprefix("sqlite:///")).absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        uri, location = f"sqlite:///{file}", (file.parent / "artifacts").as_uri()
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise UserError(f"tracking.experiment {experiment!r} was deleted; restore it or set tracking.experiment=another")
        return client, found.experiment_id if found else client.create_experiment(experiment, artifact_location=location)
    except MlflowException as error:
        reason = f"{first_line(error)}; set it with tracking.uri=sqlite:///…"
        raise UserError(f"tracking.uri {uri!r} cannot be used: {reason}") from error


def columns_of(rows: Trace, every: int, max_coordinates: int) -> bulk.Columns:
    """Return steps and values of each metric, every so many-th row; none that is not finite: MLflow's pages break on those."""
    thinned = slice(-rows.start % every, None, every)
    steps, found = rows.steps[thinned], {}
    for key, values in rows.columns(max_coordinates).items():
        finite = np.isfinite(values[thinned])
        found[key] = steps[finite], values[thinned][finite]
    return found


def writer(client: Any, run_id: str) -> Callable[[bulk.Columns], None]:
    """Return the fastest way to add metrics to a run that its store offers."""
    try:
        direct = bulk.writer(client, run_id)
    except bulk.UnknownSchema as error:
        logging.getLogger(__name__).warning("%s: recording goes the slower way, by log_batch", error)
        direct = None
    return direct or (lambda columns: log_metrics(client, run_id, columns))


def log_metrics(client: Any, run_id: str, columns: bulk.Columns) -> None:
    """Log metrics in batches, step after step."""
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    triples = ((key, *pair) for key, column in columns.items() for pair in zip(*column, strict=True))
    entities = [Metric(key, float(value), now, int(step)) for key, step, value in sorted(triples, key=lambda each: each[1])]
    for i in range(0, len(entities), BATCH):
        client.log_batch(run_id, metrics=entities[i : i + BATCH])


def log_params(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters in batches of the 100 that MLflow takes; a longer value than it takes is cut, config.yaml has it whole."""
    from mlflow.entities import Param

    entities = [Param(key, value[:PARAM_LENGTH]) for key, value in params.items()]
    for i in range(0, len(entities), 100):
        client.log_batch(run_id, params=entities[i : i + 100])


def log_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


class Trajectory:
    """All rows in a Parquet file, written as they come: columns step, loss, gradient_norm, x/0 …, gradient/0 …."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: Any = None

    def __enter__(self) -> Trajectory:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: Any) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, rows: Trace) -> None:
        """Append rows as one row group."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"step": rows.steps, "loss": rows.loss, "gradient_norm": rows.gradient_norm}
        for name, values in {"x": rows.x, "gradient": rows.gradient, **rows.named}.items():
            columns |= split(name, values.reshape(len(rows), -1))
        table = pa.table(columns)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)
