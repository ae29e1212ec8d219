"""A sweep in the tracking store: its parent run, and the runs that earlier commands recorded."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.errors import first_line
from runner.security import trust
from runner.tracking import contract, store
from runner.tracking.store import artifacts, heartbeat, writers
from runner.tracking.store.retry import GaveUp, Policy

# The tags and metrics that are read back of a run, so that a sweep need not run it again.
TAGS = ("ending", "stopped_by")
METRICS = ("iterations", "last_loss", "best_loss")
TABLE = "jobs.json"
# The folder in the outbox for the ends of sweeps that could not be sent.
ENDS = "sweeps"
# Runs that one page of a search brings; MLflow takes up to 50,000.
PAGE = 10_000
Marks = Mapping[str, str]
# The tags of a run whose process has died.
GONE = {"ending": "interrupted", "stopped_by": "death", "mlflow.note.content": "**interrupted**: the run's process has died"}
# Parent runs that have not ended yet, by id: store and heartbeat.
OPEN: dict[str, tuple[str, heartbeat.Heart]] = {}


def begin(keys: Mapping[str, Any], name: str, tags: Marks) -> dict[str, Any]:
    """Create a sweep's parent run. Return its ids and, by config digest, the runs of this experiment that may be reused."""
    client, experiment_id = store.opened(keys["uri"], keys["experiment"])
    before = known(client, experiment_id)
    # The parent of the recorder process launched the sweep.
    said = {**tags, **heartbeat.first_tags(keys["heartbeat"], os.getppid())}
    run_id = client.create_run(experiment_id, run_name=name, tags=said).info.run_id
    OPEN[run_id] = keys["uri"], heartbeat.Heart(client, run_id, keys["heartbeat"]).__enter__()
    return {"run_id": run_id, "experiment_id": experiment_id, "known": before}


def found(uri: str, experiment: str) -> dict[str, Any]:
    """Return the runs of an experiment by config digest."""
    client, experiment_id = store.opened(uri, experiment)
    return {"known": known(client, experiment_id)}


def known(client: Any, experiment_id: str) -> dict[str, dict[str, Any]]:
    """Return the latest run of each config digest; a finished run goes before all others."""
    store = client._tracking_client.store
    return latest(by_sql(store, experiment_id) if hasattr(store, "engine") else by_search(client, experiment_id))


def latest(found: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the last run of each config digest; a finished run goes before all others, whose `ending` is set to None."""
    runs: dict[str, dict[str, Any]] = {}
    for identity, run in found:
        if run["status"] != "FINISHED":
            run["ending"] = None
        if run["ending"] or not runs.get(identity, {}).get("ending"):
            runs[identity] = run
    return runs


def by_search(client: Any, experiment_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the config digest and the fields of each run of an experiment, the oldest first, by MLflow's own search."""
    token = None
    while True:
        order = {"order_by": ["attributes.start_time ASC"], "page_token": token}
        page = client.search_runs([experiment_id], "tags.identity LIKE '%'", max_results=PAGE, **order)
        for run in page:
            yield run.data.tags["identity"], fields(run.info.run_id, run.info.status, run.data.tags, run.data.metrics)
        token = page.token
        if not token:
            return


def fields(run_id: str | None, status: str, tags: Marks, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return the fields of a run that a sweep reads back."""
    came_to = {key: metrics.get(f"system/{key}") for key in METRICS}
    return {"run_id": run_id, "status": status, **{key: tags.get(key) for key in TAGS}, **came_to}


def by_sql(store: Any, experiment_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the same as `by_search` by one query of a database, without an object for every number of every run."""
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag
    from sqlalchemy import and_, select
    from sqlalchemy.orm import aliased

    mark = aliased(SqlTag)
    query = select(mark.value, SqlRun.run_uuid, SqlRun.status).join(
        mark, and_(mark.run_uuid == SqlRun.run_uuid, mark.key == "identity")
    )
    for key in TAGS:
        tag = aliased(SqlTag)
        query = query.add_columns(tag.value).outerjoin(tag, and_(tag.run_uuid == SqlRun.run_uuid, tag.key == key))
    for key in METRICS:
        metric = aliased(SqlLatestMetric)
        on = and_(metric.run_uuid == SqlRun.run_uuid, metric.key == f"system/{key}")
        query = query.add_columns(metric.value).outerjoin(metric, on)
    query = query.where(SqlRun.experiment_id == int(experiment_id), SqlRun.lifecycle_stage == "active").order_by(
        SqlRun.start_time
    )
    with store.ManagedSessionMaker() as session:
        for identity, *values in session.execute(query):
            yield identity, dict(zip(("run_id", "status", *TAGS, *METRICS), values, strict=True))


def metrics(uri: str, run_ids: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return the scalar results of runs, by run id and name."""
    client = store.client_of(uri)
    found = {run_id: client.get_run(run_id).data.metrics for run_id in run_ids}
    of = {run_id: {key: each[key] for key in each if key.startswith("system/")} for run_id, each in found.items()}
    return {run_id: {key.removeprefix("system/"): value for key, value in each.items()} for run_id, each in of.items()}


def end(
    keys: Mapping[str, Any],
    run_id: str,
    status: str,
    tags: Marks,
    metrics: Mapping[str, float],
    table: Mapping[str, list],
    at: int | None = None,
) -> dict[str, Any]:
    """End a sweep's parent run, with a table of its jobs as an artifact, and end the runs that dead jobs left open.

    A store that fails is asked again, `flush_timeout` seconds long. `left` is one line that says why it was given up, or None.
    The end is then written to a file in the outbox.
    """
    began, at = time.monotonic(), at or contract.clock()
    if run_id in OPEN:
        OPEN.pop(run_id)[1].stop()

    def say() -> None:
        client = store.client_of(keys["uri"])
        close_children(client, run_id)
        # The parent run may have been ended as silent.
        for name in {*contract.ENDING} & {*client.get_run(run_id).data.tags}:
            client.delete_tag(run_id, name)
        writers.log_tags(client, run_id, tags)
        for key, value in metrics.items():
            client.log_metric(run_id, key, value, at)
        client.set_terminated(run_id, status, at)

    def keep() -> None:
        client = store.client_of(keys["uri"])
        # In the form of MLflow's log_table, which would cut each number to ten decimals.
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        artifacts.log_text(client, run_id, json.dumps({"columns": list(table), "data": rows}), TABLE)
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))

    retry = Policy(keys["flush_timeout"], lambda: began)
    try:
        retry(say)
    except GaveUp as error:
        left = first_line(error)
    else:
        left = None
        # The artifact store may fail while the tracking store works.
        try:
            retry(keep)
        except Exception as error:
            left = f"its table could not be stored: {first_line(error.__cause__ or error)}"
    if left is not None:
        where = {**keys, "uri": store.absolute(keys["uri"])}
        said = {"keys": where, "run_id": run_id, "status": status, "tags": tags, "metrics": metrics, "table": table, "at": at}
        file = Path(keys["pending"]) / ENDS / f"{run_id}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said), encoding="utf-8")
    return {"left": left}


def end_pending(pending: Path, timeout: float, stores: Collection[str] = ()) -> Iterator[tuple[str, str | None]]:
    """End the parent runs that could not be ended. Yield their ids, each with one line if the run still cannot be ended."""
    for file in sorted((pending / ENDS).glob("[0-9a-f]" * 32 + ".json")):
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            if said["run_id"] != file.stem:
                raise ValueError(f"{file} is not a sweep's, and is left as it is")
            if (untold := trust.spooled(str(said["keys"]["uri"]), stores, pending)) is not None:
                raise ValueError(untold)
            keys = {**said["keys"], "flush_timeout": timeout, "pending": str(pending)}
            left = end(**{**said, "keys": keys})["left"]
        except Exception as error:
            left = first_line(error)
        if left is None:
            file.unlink()
            for folder in (file.parent, pending):
                with suppress(OSError):
                    folder.rmdir()
        yield file.stem, left


def close_children(client: Any, run_id: str) -> None:
    """End the runs of a sweep that are still RUNNING: joblib and Ray kill a worker's recorder with the worker."""
    still = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([client.get_run(run_id).info.experiment_id], still, max_results=PAGE):
        writers.log_tags(client, run.info.run_id, GONE)
        client.set_terminated(run.info.run_id, "KILLED")


def abandon(tags: Marks) -> None:
    """End the open parent runs as KILLED, for the process that launched them is gone."""
    while OPEN:
        run_id, (uri, heart) = OPEN.popitem()
        heart.stop()
        client = store.client_of(uri)
        close_children(client, run_id)
        writers.log_tags(client, run_id, tags)
        client.set_terminated(run_id, "KILLED")
