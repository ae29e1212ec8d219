"""Recorded runs as tables: which runs are asked for, what the store says of them, and what their trajectories show."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from runner import artifacts, recorded
from runner.errors import UserError, first_line
from runner.reports.facts import UNKNOWN, Fact

TARGETS = 10.0 ** -np.arange(1, 9)
# Steps at which the gaps are kept, about.
POINTS = 60
# Coordinates that tell one start from another, and that are searched for a minimiser.
COORDINATES = 16
# How near to a minimiser a run has reached it, relative to 1 + its norm.
NEAR = 1e-2
# Ids that one query names, and runs that one page of a search brings.
IDS, PAGE = 500, 10_000
PARENT = "mlflow.parentRunId"
# Groups whose choices are columns, and tags without which nothing can be compared.
CHOICES = ("loss", "instance", "noise", "guess", "optimizer", "strategy", "execution")
# Parameters that are of the problem, of the start, or of no run's rows.
OF_PROBLEM, OF_START = ("loss.", "instance.", "noise."), ("guess.", "seed")
OF_NONE = ("tracking.", "report.", "sweep.")


@dataclass(frozen=True)
class Runs:
    """Runs that have ended, row by row, and what they came to at each target and step."""

    frame: pd.DataFrame  # a row a run, index = run_id
    targets: np.ndarray  # [t], of the gap
    to_target: dict[str, np.ndarray]  # steps, evaluations, seconds: [runs, t], NaN where not reached
    grid: np.ndarray  # [g] steps: 0, then even in the logarithm, up to the longest run
    gap: np.ndarray  # [runs, g]: the lowest so far above the minimum, or where that is unknown above the best seen
    pace: dict[str, np.ndarray]  # evaluations, seconds: [runs], of one step
    title: str
    # The evaluations until the gap is at most this part (targets) of what it was at the start, [runs, t].
    relative: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    words: str = ""  # overrides that the runs come from
    left_out: int = 0  # runs without a trajectory: failed, killed, or running yet


class Record(NamedTuple):
    """What a store says of a run."""

    run_id: str
    status: str
    artifact_uri: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]  # system/…, without that


class Selection(NamedTuple):
    """Runs that are asked for: their ids, what they are called, the sweep's own run where they are one, and its overrides."""

    ids: list[str]
    title: str
    parent: str | None
    words: str


class Followed(NamedTuple):
    """What a trajectory shows."""

    steps: np.ndarray  # [t], NaN where a target is not reached
    relative: np.ndarray  # [t], of targets that are parts of the first gap
    gap: np.ndarray  # [g]
    x0: np.ndarray
    start: str
    minimiser: int
    last_loss: float
    best_loss: float
    rows: int


def select(client: Any, name: str | None, condition: str | None) -> Selection:
    """Return the runs of a sweep (by its id or the beginning of it) or of an experiment (by name) that fulfil a condition.

    Without a name: of the latest sweep, or where there is a condition of all experiments. Raises UserError where none do.
    """
    experiments = {each.name: each.experiment_id for each in client.search_experiments()}
    every = list(experiments.values())
    fulfilled = None if condition is None else matching(client, every, condition)
    if name in experiments:
        found = matching(client, [experiments[name]], "")
        selected = Selection(found, f"experiment {name}", None, "")
    elif name is None and fulfilled is not None:
        selected = Selection(fulfilled, f"runs with {condition}", None, "")
    else:
        selected = sweep(client, latest(client, every) if name is None else recorded.find(client, name))
    ids = selected.ids if fulfilled is None else [each for each in selected.ids if each in set(fulfilled)]
    if not ids:
        raise UserError(f"{selected.title} has no runs to report{f' with {condition}' if condition else ' yet'}")
    return selected._replace(ids=ids)


def latest(client: Any, experiments: Sequence[str]) -> Any:
    """Return the run of the sweep that began last."""
    order = {"max_results": 1, "order_by": ["attributes.start_time DESC"]}
    found = client.search_runs(list(experiments), "tags.sweep = 'parent'", **order)
    if not found:
        raise UserError(f"there is no sweep in {client.tracking_uri}; name an experiment, or runs by --filter")
    return found[0]


def matching(client: Any, experiments: Sequence[str], condition: str) -> list[str]:
    """Return the ids of the runs that fulfil a condition of MLflow's, without those that stand for sweeps."""
    found, token = [], None
    while True:
        try:
            page = client.search_runs(list(experiments), condition, max_results=PAGE, page_token=token)
        except Exception as error:
            raise UserError(f"--filter {condition!r} is no condition of MLflow's: {first_line(error)}") from error
        found += [run.info.run_id for run in page if "sweep" not in run.data.tags]
        token = page.token
        if not token:
            return found


def sweep(client: Any, run: Any) -> Selection:
    """Return the jobs of a sweep: those under its own run, and those that it reused, which are under another's."""
    run_id = run.info.run_id
    if run.data.tags.get("sweep") != "parent":
        own = run.data.tags.get(PARENT)
        raise UserError(f"run {run_id} is no sweep; name {f'its sweep {own}' if own else 'a sweep'}, or an experiment")
    ids = children(client, run)
    if any(each.path == "jobs.json" for each in client.list_artifacts(run_id)):
        table = json.loads(Path(client.download_artifacts(run_id, "jobs.json")).read_text())
        if table["data"]:
            at = table["columns"].index("run_id")
            ids += [row[at] for row in table["data"] if row[at]]
    return Selection(list(dict.fromkeys(ids)), f"sweep {run_id}", run_id, run.data.tags.get("overrides", ""))


def children(client: Any, run: Any) -> list[str]:
    """Return the ids of the runs under a run."""
    store = client._tracking_client.store
    if not hasattr(store, "engine"):
        return matching(client, [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'")
    from mlflow.store.tracking.dbmodels.models import SqlTag
    from sqlalchemy import select as query

    with store.ManagedSessionMaker() as session:
        of = query(SqlTag.run_uuid).where(SqlTag.key == PARENT, SqlTag.value == run.info.run_id)
        return list(session.scalars(of.order_by(SqlTag.run_uuid)))


def records(client: Any, ids: Sequence[str]) -> list[Record]:
    """Return what the store says of runs, in few queries where it is a database."""
    store = client._tracking_client.store
    if hasattr(store, "engine"):
        return [each for i in range(0, len(ids), IDS) for each in by_sql(store, ids[i : i + IDS])]
    with ThreadPoolExecutor(8) as pool:
        return [plain(run) for run in pool.map(client.get_run, ids)]


def plain(run: Any) -> Record:
    """Return what a run of MLflow's holds."""
    metrics = {key.removeprefix("system/"): value for key, value in run.data.metrics.items() if key.startswith("system/")}
    info, data = run.info, run.data
    return Record(info.run_id, info.status, info.artifact_uri, dict(data.params), dict(data.tags), metrics)


def by_sql(store: Any, ids: Sequence[str]) -> list[Record]:
    """Return the same of some runs, by a query a table."""
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import select as query

    with store.ManagedSessionMaker() as session:
        runs = query(SqlRun.run_uuid, SqlRun.status, SqlRun.artifact_uri).where(SqlRun.run_uuid.in_(ids))
        runs = runs.where(SqlRun.lifecycle_stage == "active")
        found = {run_id: Record(run_id, status, uri, {}, {}, {}) for run_id, status, uri in session.execute(runs)}
        for model, name in ((SqlParam, "params"), (SqlTag, "tags")):
            of = query(model.run_uuid, model.key, model.value).where(model.run_uuid.in_(found))
            for run_id, key, value in session.execute(of):
                getattr(found[run_id], name)[key] = value
        metric = SqlLatestMetric
        of = query(metric.run_uuid, metric.key, metric.value).where(metric.run_uuid.in_(found), metric.key.like("system/%"))
        for run_id, key, value in session.execute(of):
            found[run_id].metrics[key.removeprefix("system/")] = value
    return [found[each] for each in ids if each in found]


def distinct(found: Iterable[Record]) -> dict[str, Record]:
    """Return one run of each loss, by what names it."""
    return {of_loss(each): each for each in reversed(list(found))}


def of_loss(record: Record) -> str:
    """Return what names a run's loss without its noise; a seed may draw its data."""
    named = {key: value for key, value in record.params.items() if key.startswith(("loss.", "instance.")) or key == "seed"}
    return json.dumps(named, sort_keys=True)


class Files:
    """Artifacts of runs, where they lie or fetched into a folder that goes with this."""

    def __init__(self, client: Any) -> None:
        self.client, self.folder = client, tempfile.TemporaryDirectory()

    def path(self, record: Record, name: str) -> Path | None:
        """Return an artifact's file, or None where there is none."""
        folder = artifacts.local(record.artifact_uri)
        if folder is not None:
            return folder / name if (folder / name).is_file() else None
        place = Path(self.folder.name) / record.run_id
        place.mkdir(exist_ok=True)
        try:
            return Path(self.client.download_artifacts(record.run_id, name, str(place)))
        except Exception:
            # It is asked for; MLflow raises what the store raises.
            return None


def configs(found: Iterable[Record], files: Files) -> dict[str, str]:
    """Return the configuration of one run of each loss."""
    paths = {key: files.path(each, "config.yaml") for key, each in distinct(found).items()}
    return {key: path.read_text() for key, path in paths.items() if path is not None}


def read(found: Sequence[Record], files: Files, facts: Mapping[str, Fact], selection: Selection) -> Runs:
    """Return runs as tables; `facts` are known of their losses, by `of_loss`. Raises UserError where no run has rows."""
    found = [each for each in found if {"loss", "optimizer"} <= each.tags.keys()]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda each: files.path(each, "trajectory.parquet"), found))
        ended = [(each, path) for each, path in zip(found, paths, strict=True) if path is not None and "ending" in each.tags]
        if not ended:
            raise UserError(f"{selection.title} has no runs with rows yet")
        kept = [each for each, _ in ended]
        frame = described(kept)
        minima = minimum(frame, kept, facts)
        grid = steps_shown(int(frame["iterations"].max()))
        known = [facts.get(of_loss(each), UNKNOWN) for each in kept]
        below = np.where(np.isnan(minima), frame.groupby("problem")["best_loss"].transform("min"), minima)
        rows = list(pool.map(lambda each: follow(*each, grid), zip([path for _, path in ended], below, known, strict=True)))
    frame["minimum"] = minima
    frame["limit"] = [2 / fact.curvature if fact.curvature else np.nan for fact in known]
    frame["start"], frame["minimiser"] = [each.start for each in rows], [each.minimiser for each in rows]
    frame["x0"] = [each.x0[0] for each in rows]
    frame["x1"] = [each.x0[1] if len(each.x0) > 1 else np.nan for each in rows]
    frame["last_loss"], frame["best_loss"] = [each.last_loss for each in rows], [each.best_loss for each in rows]
    frame["rows"] = [each.rows for each in rows]
    pace = {
        # Row 0 is evaluated as well.
        "evaluations": (frame["evaluations"] / (frame["iterations"] + 1)).to_numpy(np.float64),
        "seconds": (frame["seconds"] / frame["iterations"].clip(lower=1)).to_numpy(np.float64),
    }
    steps, relative = (np.array([getattr(each, name) for each in rows]) for name in ("steps", "relative"))
    per_row = pace["evaluations"][:, None]
    to_target = {"steps": steps, "evaluations": (steps + 1) * per_row, "seconds": steps * pace["seconds"][:, None]}
    gap = np.array([each.gap for each in rows], np.float32)
    left_out = len(selection.ids) - len(kept)
    return Runs(
        frame, TARGETS, to_target, grid, gap, pace, selection.title, (relative + 1) * per_row, selection.words, left_out
    )


def described(found: Sequence[Record]) -> pd.DataFrame:
    """Return a row for each run of what the store says of it."""
    index = pd.Index([each.run_id for each in found], name="run_id")
    params = pd.DataFrame([each.params for each in found], index=index, dtype=object)
    frame = pd.DataFrame({group: [each.tags.get(group, "none") for each in found] for group in CHOICES}, index=index)
    frame["learning_rate"] = number(params, "optimizer.learning_rate")
    for name in ("seed", "max_iterations"):
        frame[name] = number(params, name).fillna(0).astype(int)
    frame["dtype"] = params["dtype"] if "dtype" in params else ""
    for name in ("ending", "stopped_by"):
        frame[name] = [each.tags.get(name, "") for each in found]
    frame["status"] = [each.status for each in found]
    metrics = pd.DataFrame([each.metrics for each in found], index=index)
    frame["iterations"] = number(metrics, "iterations").fillna(0).astype(int)
    frame["seconds"] = number(metrics, "seconds_loop")
    frame["evaluations"] = evaluations(metrics, frame["iterations"])
    frame["best_loss"] = number(metrics, "best_loss")
    varied = params.loc[:, params.fillna("").nunique() > 1] if len(params) else params
    varied = varied.loc[:, [not key.startswith(OF_NONE) for key in varied]]
    schedule = [each.tags.get("optimizer/learning_rate") for each in found]
    frame["configuration"] = configurations(frame, varied, schedule)
    frame["problem"] = problems(frame, params)
    own = {f"p.{key}": values(varied[key]) for key in varied if not key.endswith("_target_")}
    return pd.concat([frame, pd.DataFrame(own, index=index)], axis=1)


def number(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column's numbers, NaN for what is none."""
    if name not in table:
        return pd.Series(np.nan, table.index)
    return pd.to_numeric(table[name], errors="coerce").astype(float)


def values(column: pd.Series) -> pd.Series:
    """Return a parameter as numbers where all are."""
    found = pd.to_numeric(column, errors="coerce")
    return found if found.notna().all() else column.fillna("").astype(str)


def evaluations(metrics: pd.DataFrame, iterations: pd.Series) -> pd.Series:
    """Return how often runs evaluated: loss and gradient of one point count once; other derivatives are added.

    A run that does not count them evaluates each of its rows once.
    """
    counts = {name: number(metrics, f"{name}_evaluations") for name in ("loss", "gradient")}
    rest = [name for name in metrics if name.endswith("_evaluations") and name.removesuffix("_evaluations") not in counts]
    both = pd.concat(counts, axis=1).max(axis=1) + metrics[rest].fillna(0).sum(axis=1)
    return both.fillna(iterations + 1).astype(int)


def configurations(frame: pd.DataFrame, varied: pd.DataFrame, schedule: Sequence[str | None]) -> list[str]:
    """Return the overrides that make each run's method: of those that differ among the runs of its optimizer."""
    groups = [group for group in ("strategy", "execution", "dtype") if frame[group].nunique() > 1]
    keys = [key for key in varied if not key.startswith((*OF_PROBLEM, *OF_START)) and not key.endswith("_target_")]
    keys = [key for key in keys if key != "dtype"]
    words = []
    several = {name: [key for key in keys if own[key].nunique() > 1] for name, own in varied.groupby(frame["optimizer"])}
    for i, (name, row) in enumerate(zip(frame["optimizer"], varied.to_dict("records"), strict=True)):
        made = [f"optimizer={name}", *(f"{group}={frame[group].iloc[i]}" for group in groups)]
        made += [f"optimizer/learning_rate={schedule[i]}"] if schedule[i] else []
        made += [f"{key}={row[key]}" for key in several[name] if isinstance(row[key], str)]
        words.append(" ".join(made))
    return words


def problems(frame: pd.DataFrame, params: pd.DataFrame) -> list[str]:
    """Return each run's problem: its loss, with what differs among the runs of that loss."""
    keys = [key for key in params if key.startswith(OF_PROBLEM) and not key.endswith("_target_")]
    groups = [group for group in ("instance", "noise") if frame[group].nunique() > 1]
    named = pd.Series(frame["loss"])
    for name, own in params.groupby(frame["loss"]):
        differing = [key for key in keys if own[key].fillna("").nunique() > 1]
        for key in differing:
            named[own.index] += own[key].map(lambda value, key=key: f" {key}={value}" if isinstance(value, str) else "")
        for group in groups:
            if frame.loc[own.index, group].nunique() > 1:
                named[own.index] += frame.loc[own.index, group].map(lambda value, group=group: f" {group}={value}")
    return named.tolist()


def minimum(frame: pd.DataFrame, found: Sequence[Record], facts: Mapping[str, Fact]) -> np.ndarray:
    """Return the minimum of each run's loss: what is known of it, or what its problem's runs were told; NaN where neither."""
    known = np.array([facts.get(of_loss(each), UNKNOWN).minimum for each in found], float)
    above = pd.DataFrame([each.metrics for each in found], index=frame.index)
    last = number(above, "full_loss").fillna(number(above, "last_loss"))
    # A random loss has its own in each step; of small losses the difference has the least rounding.
    told = pd.DataFrame({"minimum": last - number(above, "loss_above_minimum"), "size": last.abs()}).dropna()
    best = told.assign(problem=frame["problem"]).sort_values("size").groupby("problem")["minimum"].first()
    return np.where(np.isnan(known), frame["problem"].map(best).astype(float), known)


def steps_shown(longest: int) -> np.ndarray:
    """Return 0 and about POINTS steps that are even in the logarithm, the last one among them."""
    return np.unique(np.concatenate([[0], np.geomspace(1, max(longest, 1), POINTS).round()]).astype(int))


def follow(path: Path, minimum: float, known: Fact, grid: np.ndarray) -> Followed:
    """Return what a trajectory shows of a loss above this minimum."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    dimension = sum(name.startswith("x/") for name in names)
    across = [f"x/{i}" for i in range(min(dimension, COORDINATES))]
    measure = "full_loss" if "full_loss" in names else "loss"
    table = file.read(columns=[*dict.fromkeys(["loss", measure]), *across], use_threads=False)
    loss = table["loss"].to_numpy().astype(np.float64)
    best = lowest(table[measure].to_numpy().astype(np.float64), minimum)
    x = np.stack([table[name].to_numpy() for name in across], axis=1)
    # Beyond these coordinates the loss tells starts apart.
    begun = np.append(x[0], loss[0]) if dimension > len(across) else x[0]
    digest = hashlib.sha256(begun.astype(np.float32).tobytes()).hexdigest()[:12]
    least = np.nan_to_num(loss, nan=np.inf)
    at = int(least.argmin())
    return Followed(
        first(best, TARGETS),
        first(best, TARGETS * best[0]) if np.isfinite(best[0]) else np.full(len(TARGETS), np.nan),
        best[np.minimum(grid, len(best) - 1)],
        x[0].astype(np.float64),
        digest,
        nearest(x[at], known) if dimension == len(across) else -1,
        float(loss[-1]),
        float(least[at]),
        len(loss),
    )


def lowest(loss: np.ndarray, minimum: float) -> np.ndarray:
    """Return at each row the lowest loss so far, above the minimum; infinite where none has been finite."""
    above = np.where(np.isfinite(loss), loss - minimum, np.inf)
    return np.maximum(np.minimum.accumulate(above), 0)


def first(best: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the first row at which each target is reached, NaN where it is not."""
    at = np.searchsorted(-best, -targets).astype(float)
    return np.where(at < len(best), at, np.nan)


def nearest(x: np.ndarray, known: Fact) -> int:
    """Return which minimiser x is at, or -1."""
    if not len(known.minimisers) or known.minimisers.shape[1] != len(x) or not np.isfinite(x).all():
        return -1
    away = np.linalg.norm(known.minimisers - x, axis=1)
    at = int(away.argmin())
    return at if away[at] <= NEAR * (1 + np.linalg.norm(known.minimisers[at])) else -1
