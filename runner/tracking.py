"""Where rows go: a recorder is a context manager around a run that gives a `record`; `none` does nothing, `mlflow` records."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runner import artifacts, batches, bulk, pictures, private, store
from runner.drawing import Drawing
from runner.errors import UserError, first_line
from runner.loop import Ending
from runner.trace import Trace, join

# What one of MLflow's parameters holds.
PARAM_LENGTH = 6000
# Rows wait to be written for so long, or until their x take so much.
SECONDS, BYTES = 0.5, 2**23


@dataclass(frozen=True)
class About:
    """What is said of a run once, before its first row."""

    folder: Path  # where its files are written before they are logged
    name: str  # the run's, where the user gives no other
    params: Mapping[str, str]
    tags: Mapping[str, str]
    config: str  # resolved, YAML


@dataclass(frozen=True)
class Recorder:
    """`record(rows)` takes a run's rows in order; `finish(tags, metrics)` how it ended and what it came to."""

    record: Callable[[Trace], None]
    finish: Callable[[Mapping[str, str], Mapping[str, float]], None]
    run_id: str | None = None
    experiment_id: str | None = None
    uri: str | None = None
    report: Callable[[Drawing], None] = lambda drawing: None  # draws it, and keeps the pictures with the run


class Abandoned(Exception):
    """A run that ended without `finish`: the status that MLflow shows, and tags that say why."""

    def __init__(self, status: str, tags: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status, self.tags = status, tags


@contextmanager
def none(about: About) -> Iterator[Recorder]:
    """Record nothing."""
    yield Recorder(lambda rows: None, lambda tags, metrics: None)


@contextmanager
def mlflow(
    about: About, *, uri: str, experiment: str, name: str | None, every: int, max_coordinates: int, full_loss_every: int
) -> Iterator[Recorder]:
    """Record every row in MLflow: one run, its rows as metrics, and all of them in `trajectory.parquet`.

    What a loss measures comes with the rows, those of every `full_loss_every`-th step, and is not thinned again.

    Raises UserError where the tracking store cannot be used. An exception within ends the run as FAILED.
    """
    for key, value, usual in (("every", every, 1), ("full_loss_every", full_loss_every, 100)):
        if value < 1:
            raise UserError(f"tracking.{key} must be 1 or more, got {value}; set it with tracking.{key}={usual}")
    client, experiment_id = store.opened(uri, experiment)
    run_id = client.create_run(experiment_id, run_name=private.masked(name or about.name), tags=dict(about.tags)).info.run_id
    status, trajectory = "FAILED", artifacts.Trajectory(about.folder / "trajectory.parquet")

    def finish(tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        nonlocal status
        gathered.flush()
        write(once(metrics))
        log_tags(client, run_id, tags)
        status = status_of(tags)

    def report(drawing: Drawing) -> None:
        # A run is not worth less for want of its pictures.
        try:
            for path in pictures.report(about.folder, drawing):
                artifacts.log_file(client, run_id, path)
        except Exception as error:
            logging.getLogger(__name__).warning("the report cannot be drawn: %s", first_line(error))

    def write_rows(rows: Trace) -> None:
        # Both wait for a library most of the time, so each has a core.
        filed = pool.submit(trajectory.write, rows)
        write(columns_of(rows, every, max_coordinates))
        filed.result()

    try:
        log_params(client, run_id, about.params)
        client.log_text(run_id, about.config, "config.yaml")
        with ThreadPoolExecutor(1) as pool, writer(client, run_id) as write, Gathered(write_rows) as gathered:
            yield Recorder(gathered.add, finish, run_id, experiment_id, uri, report)
    except BaseException as error:
        status, tags = abandoned(error)
        log_tags(client, run_id, tags)
        raise
    finally:
        if trajectory.close():
            artifacts.log_file(client, run_id, trajectory.path)
        client.set_terminated(run_id, status)


class Gathered:
    """Rows on their way to be written, many at a time: a store wants few large transactions, a file few large row groups."""

    def __init__(self, write: Callable[[Trace], None]) -> None:
        self.write = write
        self.waiting: list[Trace] = []
        self.written = 0.0

    def __enter__(self) -> Gathered:
        return self

    def __exit__(self, *_: Any) -> None:
        self.flush()

    def add(self, rows: Trace) -> None:
        """Take rows, and write those that are waiting where that is due."""
        self.waiting.append(rows)
        if time.monotonic() - self.written > SECONDS or sum(each.x.nbytes for each in self.waiting) > BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self.waiting:
            rows, self.waiting = join(self.waiting), []
            self.write(rows)
        self.written = time.monotonic()


def abandoned(error: BaseException) -> tuple[str, Mapping[str, str]]:
    """Return the status and the tags of a run that this exception ended."""
    if isinstance(error, Abandoned):
        return error.status, error.tags
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED", {
        "error": private.masked(first_line(error))[:5000]
    }


def status_of(tags: Mapping[str, str]) -> str:
    """Return the status that MLflow shows for a run that ended so."""
    return "KILLED" if tags["ending"] == Ending.INTERRUPTED else "FINISHED"


def once(metrics: Mapping[str, float]) -> bulk.Columns:
    """Return single numbers as metrics at step 0, those that are finite."""
    return {key: (np.zeros(1, int), np.array([value])) for key, value in metrics.items() if np.isfinite(value)}


def columns_of(rows: Trace, every: int, max_coordinates: int) -> bulk.Columns:
    """Return steps and values of each metric, every so many-th row, and what was measured in any.

    None is there that is not finite: MLflow's pages break on those.
    """
    found = {}
    for key, values in rows.columns(max_coordinates).items():
        kept = slice(None) if key in rows.measured else slice(-rows.start % every, None, every)
        finite = np.isfinite(values[kept])
        found[key] = rows.steps[kept][finite], values[kept][finite]
    return found


def direct(client: Any) -> bulk.Insert | None:
    """Return `bulk.inserter`, or None with a warning where the database's schema is not one that the tests cover."""
    try:
        return bulk.inserter(client)
    except bulk.UnknownSchema as error:
        logging.getLogger(__name__).warning("%s: recording goes the slower way, by log_batch", error)
        return None


@contextmanager
def writer(client: Any, run_id: str) -> Iterator[Callable[[bulk.Columns], None]]:
    """Give the fastest way to add metrics to a run that its store offers; all are there at the end of this block."""
    insert = direct(client)
    if insert is not None:
        yield partial(bulk.write, client._tracking_client.store, insert, run_id)
    elif hasattr(client._tracking_client.store, "get_host_creds"):
        with batches.at_once(client, run_id) as write:
            yield write
    else:
        yield batches.one_by_one(client, run_id)


def cut(params: Mapping[str, str]) -> dict[str, str]:
    """Return parameters at the length that MLflow takes; config.yaml has them whole."""
    return {key: value[:PARAM_LENGTH] for key, value in params.items()}


def log_params(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters in batches of the 100 that MLflow takes."""
    from mlflow.entities import Param

    entities = [Param(key, value) for key, value in cut(params).items()]
    for i in range(0, len(entities), 100):
        client.log_batch(run_id, params=entities[i : i + 100])


def log_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
