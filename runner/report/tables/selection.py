"""The runs that a report is asked for, and their records in the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from runner import records as recorded
from runner.errors import UserError, first_line

# Ids in one query, and runs in one page of a search: so few that a server can answer in time.
IDS, PAGE = 500, 1000
PARENT = "mlflow.parentRunId"


class Record(NamedTuple):
    """The data of a run in the store."""

    run_id: str
    status: str
    artifact_uri: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]  # those named system/…, without this prefix


class Selection(NamedTuple):
    """The runs that are asked for: their ids, their title, and, for a sweep, its parent run and its overrides."""

    ids: list[str]
    title: str
    parent: str | None
    words: str
    found: Mapping[str, Record] = {}  # records that a search has returned already
    options: str = ""  # of the sweep's command line


def select(client: Any, name: str | None, condition: str | None) -> Selection:
    """Return the runs of a sweep (by its id or the beginning of it) or of an experiment (by name) that fulfil a condition.

    Without a name, select from the latest sweep, or, if there is a condition, from all experiments. Raises UserError if no run
    is left.
    """
    experiments = {each.name: each.experiment_id for each in client.search_experiments()}
    every = list(experiments.values())
    fulfilled = None if condition is None else matching(client, every, condition)
    if name in experiments:
        found = matching(client, [experiments[name]], "")
        selected = Selection(list(found), f"experiment {name}", None, "", found)
    elif name is None and fulfilled is not None:
        selected = Selection(list(fulfilled), f"runs with {condition}", None, "", fulfilled)
    else:
        selected = sweep(client, latest(client, every) if name is None else recorded.find(client, name))
    ids = selected.ids if fulfilled is None else [each for each in selected.ids if each in fulfilled]
    if not ids:
        raise UserError(f"{selected.title} has no runs to report{f' with {condition}' if condition else ' yet'}")
    return selected._replace(ids=ids)


def latest(client: Any, experiments: Sequence[str]) -> Any:
    """Return the parent run of the sweep that began last; raise UserError if there is no sweep."""
    order = {"max_results": 1, "order_by": ["attributes.start_time DESC"]}
    found = client.search_runs(list(experiments), "tags.sweep = 'parent'", **order)
    if not found:
        raise UserError(f"there is no sweep in {client.tracking_uri}; name an experiment, or runs by --filter")
    return found[0]


def matching(client: Any, experiments: Sequence[str], condition: str) -> dict[str, Record]:
    """Return by id the runs that fulfil a condition in MLflow's syntax, without the parent runs of sweeps.

    Raises UserError if MLflow does not accept the condition.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode

    try:
        runs = list(searched(client, experiments, condition))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        raise UserError(f"--filter {condition!r} is no condition of MLflow's: {first_line(error)}") from error
    return {each.run_id: each for each in runs if "sweep" not in each.tags}


def searched(client: Any, experiments: Sequence[str], condition: str) -> Iterator[Record]:
    """Yield the records that a search finds, page by page."""
    token = None
    while True:
        page = client.search_runs(list(experiments), condition, max_results=PAGE, page_token=token)
        yield from map(plain, page)
        token = page.token
        if not token:
            return


def sweep(client: Any, run: Any) -> Selection:
    """Return the jobs of a sweep: the runs below its parent run, and the reused runs, which are below another parent run.

    Raises UserError if the run is no sweep.
    """
    run_id = run.info.run_id
    if run.data.tags.get("sweep") != "parent":
        own = run.data.tags.get(PARENT)
        raise UserError(f"run {run_id} is no sweep; name {f'its sweep {own}' if own else 'a sweep'}, or an experiment")
    ids, found = children(client, run)
    if any(each.path == "jobs.json" for each in client.list_artifacts(run_id)):
        table = json.loads(Path(client.download_artifacts(run_id, "jobs.json")).read_text(encoding="utf-8"))
        if table["data"]:
            at = table["columns"].index("run_id")
            ids += [row[at] for row in table["data"] if row[at]]
    overrides, options = (run.data.tags.get(name, "") for name in ("overrides", "options"))
    return Selection(list(dict.fromkeys(ids)), f"sweep {run_id}", run_id, overrides, found, options)


def children(client: Any, run: Any) -> tuple[list[str], Mapping[str, Record]]:
    """Return the ids of the runs below a parent run, and their records if the search on a server returns them anyway."""
    store = client._tracking_client.store
    if not hasattr(store, "engine"):
        found = matching(client, [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'")
        return list(found), found
    from mlflow.store.tracking.dbmodels.models import SqlTag
    from sqlalchemy import select as query

    with store.ManagedSessionMaker() as session:
        of = query(SqlTag.run_uuid).where(SqlTag.key == PARENT, SqlTag.value == run.info.run_id)
        return list(session.scalars(of.order_by(SqlTag.run_uuid))), {}


def records(client: Any, selected: Selection) -> list[Record]:
    """Return the records of runs from the store, in few queries."""
    store = client._tracking_client.store
    missing = [each for each in selected.ids if each not in selected.found]
    parts = [missing[i : i + IDS] for i in range(0, len(missing), IDS)]
    if hasattr(store, "engine"):
        asked = (each for part in parts for each in by_sql(store, part))
    else:
        every = [each.experiment_id for each in client.search_experiments()] if parts else []
        named = (f"attributes.run_id IN ({', '.join(map(repr, part))})" for part in parts)
        asked = (each for condition in named for each in searched(client, every, condition))
    found = {**selected.found, **{each.run_id: each for each in asked}}
    return [found[each] for each in selected.ids if each in found]


def plain(run: Any) -> Record:
    """Return the record of an MLflow run."""
    metrics = {key.removeprefix("system/"): value for key, value in run.data.metrics.items() if key.startswith("system/")}
    info, data = run.info, run.data
    return Record(info.run_id, info.status, info.artifact_uri, dict(data.params), dict(data.tags), metrics)


def by_sql(store: Any, ids: Sequence[str]) -> list[Record]:
    """Return the records of some runs from the database, by one query for each table."""
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import select as query

    with store.ManagedSessionMaker() as session:
        runs = query(SqlRun.run_uuid, SqlRun.status, SqlRun.artifact_uri).where(SqlRun.run_uuid.in_(ids))
        runs = runs.where(SqlRun.lifecycle_stage == "active")
        found = {run_id: Record(run_id, status, uri, {}, {}, {}) for run_id, status, uri in session.execute(runs)}
        for model, name in ((SqlParam, "params"), (SqlTag, "tags")):
            of = query(model.run_uuid, model.key, model.value).where(model.run_uuid.in_(found))
            for run_id, key, value in session.execute(of):
                getattr(found[run_id], name)[intern(key)] = intern(value)
        metric = SqlLatestMetric
        of = query(metric.run_uuid, metric.key, metric.value).where(metric.run_uuid.in_(found), metric.key.like("system/%"))
        for run_id, key, value in session.execute(of):
            found[run_id].metrics[key.removeprefix("system/")] = value
    return [found[each] for each in ids if each in found]
