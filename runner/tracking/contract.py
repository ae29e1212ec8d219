"""Where rows go: a recorder is a context manager around a run that gives a `record`; `none` does nothing, `mlflow` records."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import UserError, first_line
from runner.loop import Ending
from runner.pictures.data import Drawing
from runner.security import secrets
from runner.security.trust import store as trusted_store
from runner.system import started
from runner.trace import Trace
from runner.tracking import store
from runner.tracking.store import database, rest
from runner.tracking.store.retry import Retry
from runner.tracking.store.retry import once as once_only

# What one of MLflow's parameters holds.
PARAM_LENGTH = 6000
# Tags of a run's end, and, `recording`, of one that is not in the store as a whole.
ENDING = ("ending", "stopped_by", "first_nonfinite_step", "error", "end_reason", "recording")


@dataclass(frozen=True)
class About:
    """What is said of a run once, before its first row."""

    folder: Path  # where its files are written before they are logged
    name: str  # the run's, where the user gives no other
    params: Mapping[str, str]
    tags: Mapping[str, str]
    config: str  # resolved, YAML
    resume: bool = True  # an interrupted run of the same identity is continued


@dataclass(frozen=True)
class Recorder:
    """`record(rows)` takes a run's rows in order; `finish(tags, metrics)` how it ended and what it came to."""

    record: Callable[[Trace], None]
    finish: Callable[[Mapping[str, str], Mapping[str, float]], None]
    run_id: str | None = None
    experiment_id: str | None = None
    uri: str | None = None
    report: Callable[[Drawing], None] = lambda drawing: None  # draws it, and keeps the pictures with the run
    folder: Path | None = None  # where the run's files are: of the interrupted run where that is continued
    recorded: int = 0  # rows of the steps before this one are there already, and are not recorded again
    rows: Callable[[], Iterator[Trace]] = lambda: iter(())  # those that were recorded


def fields_of(about: About) -> dict[str, Any]:
    """Return what is said of a run as a message's fields."""
    return {**vars(about), "folder": str(about.folder)}


def about_of(fields: Mapping[str, Any]) -> About:
    """Return what a message's fields say of a run."""
    values: dict[str, Any] = {**fields, "folder": Path(fields["folder"])}
    return About(**values)


def tags_of(about: About, run_key: str, host: str | None = None) -> dict[str, str]:
    """Return a run's first tags: with its key, by which it is found before it is made again, and where its files are."""
    folder = str(started.absolute(about.folder))
    return {**about.tags, "run_key": run_key, "folder": folder, "host": host or socket.gethostname()}


def named(keys: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tracking group's keys with no secret in a name, which only the process that composed it can tell."""
    return {**keys, **{key: secrets.masked(keys[key]) for key in ("name", "experiment") if isinstance(keys.get(key), str)}}


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
    about: About,
    *,
    uri: str,
    experiment: str,
    name: str | None,
    every: int,
    max_coordinates: int,
    full_loss_every: int,
    offline: bool = False,
    pending: str = "",
    max_unsent: float = 1,
    flush_timeout: float = 0,
    heartbeat: float = 0,
) -> Iterator[Recorder]:
    """Record every row in MLflow: one run, its rows as metrics, and all of them in `trajectory.parquet`.

    What a loss measures comes with the rows, those of every `full_loss_every`-th step, and is not thinned again. The keys
    from `offline` on are those of the recorder that has a spool.

    Raises UserError where the tracking store cannot be used. An exception within ends the run as FAILED.
    """
    from runner.tracking import replay

    check(every, full_loss_every)
    trusted_store("tracking.uri", uri, "MLFLOW_TRACKING_URI")
    client, experiment_id = store.opened(uri, experiment)
    tags = tags_of(about, uuid.uuid4().hex)
    run = replay.Run(
        client, client.create_run(experiment_id, run_name=secrets.masked(name or about.name), tags=tags).info.run_id
    )
    try:
        run.begin(about, replay.Settings(every, max_coordinates))
        yield Recorder(
            lambda rows: run.record(rows, clock()),
            lambda tags, metrics: run.finish(tags, metrics, clock()),
            run.run_id,
            experiment_id,
            uri,
            run.report,
        )
    except BaseException as error:
        if "ending" not in run.tags:
            run.fail(*abandoned(error))
        raise
    finally:
        run.end(clock())


def check(every: int, full_loss_every: int) -> None:
    """Raise UserError where a key is out of its range."""
    for key, value, usual in (("every", every, 1), ("full_loss_every", full_loss_every, 100)):
        if value < 1:
            raise UserError(f"tracking.{key} must be 1 or more, got {value}; set it with tracking.{key}={usual}")


def clock() -> int:
    """Return the time, in ms since 1970."""
    return time.time_ns() // 1_000_000


def abandoned(error: BaseException) -> tuple[str, Mapping[str, str]]:
    """Return the status and the tags of a run that this exception ended."""
    if isinstance(error, Abandoned):
        return error.status, error.tags
    status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
    return status, {"error": secrets.masked(first_line(error))[:5000]}


def status_of(tags: Mapping[str, str]) -> str:
    """Return the status that MLflow shows for a run that ended so."""
    return "KILLED" if tags["ending"] == Ending.INTERRUPTED else "FINISHED"


def once(metrics: Mapping[str, float]) -> database.Columns:
    """Return single numbers as metrics at step 0, those that are finite."""
    return {key: (np.zeros(1, int), np.array([value])) for key, value in metrics.items() if np.isfinite(value)}


def columns_of(rows: Trace, every: int, max_coordinates: int) -> database.Columns:
    """Return steps and values of each metric, every so many-th row, and what was measured in any.

    None is there that is not finite: MLflow's pages break on those.
    """
    found = {}
    for key, values in rows.columns(max_coordinates).items():
        kept = slice(None) if key in rows.measured else slice(-rows.start % every, None, every)
        finite = np.isfinite(values[kept])
        found[key] = rows.steps[kept][finite], values[kept][finite]
    return found


def direct(client: Any) -> database.Insert | None:
    """Return `bulk.inserter`, or None with a warning where the database's schema is not one that the tests cover."""
    try:
        return database.inserter(client)
    except database.UnknownSchema as error:
        logging.getLogger(__name__).warning("%s: recording goes the slower way, by log_batch", error)
        return None


@contextmanager
def writer(client: Any, run_id: str, retry: Retry = once_only) -> Iterator[Callable[[database.Columns, int], None]]:
    """Give the fastest way to add metrics of a time to a run that its store offers; all are there at the end of this block."""
    insert = direct(client)
    if insert is not None:
        into = client._tracking_client.store
        yield lambda columns, at: retry(partial(database.write, into, insert, run_id, columns, at))
    elif hasattr(client._tracking_client.store, "get_host_creds"):
        with rest.at_once(client, run_id, retry) as write:
            yield write
    else:
        yield rest.one_by_one(client, run_id, retry)


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
