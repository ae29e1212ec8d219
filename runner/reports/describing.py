"""Recorded runs as rows of what the store says of them: choices, numbers, and by which overrides they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from runner.reports.selection import Record

# Groups whose choices are columns.
CHOICES = ("loss", "instance", "noise", "guess", "optimizer", "strategy", "execution")
# Parameters that are of the problem, of the start, or of no run's rows.
OF_PROBLEM, OF_START = ("loss.", "instance.", "noise."), ("guess.", "seed")
RATE = "optimizer.learning_rate"
OF_NONE = ("tracking.", "report.", "sweep.", "checkpoint.", "resume")


def described(found: Sequence[Record]) -> pd.DataFrame:
    """Return a row for each run of what the store says of it."""
    index = pd.Index([each.run_id for each in found], name="run_id")
    params = pd.DataFrame([each.params for each in found], index=index, dtype=object)
    frame = pd.DataFrame({group: [each.tags.get(group, "none") for each in found] for group in CHOICES}, index=index)
    frame["learning_rate"] = number(params, RATE)
    for name in ("seed", "max_iterations"):
        frame[name] = number(params, name).fillna(0).astype(int)
    frame["dtype"] = params.get("dtype", "")
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
    frame["configuration"] = configurations(frame, varied, params.get(RATE), schedule)
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


def configurations(
    frame: pd.DataFrame, varied: pd.DataFrame, rate: pd.Series | None, schedule: Sequence[str | None]
) -> list[str]:
    """Return the overrides that make each run's method: its learning rate, and what differs among the runs of its optimizer."""
    rates = {} if rate is None else {RATE: rate}
    varied = pd.DataFrame(rates | {key: varied[key] for key in varied if key != RATE}, index=frame.index)
    groups = [group for group in ("strategy", "execution", "dtype") if frame[group].nunique() > 1]
    keys = [key for key in varied if not key.startswith((*OF_PROBLEM, *OF_START)) and not key.endswith("_target_")]
    keys = [key for key in keys if key != "dtype"]
    words = []
    several = {
        name: [key for key in keys if key == RATE or own[key].nunique() > 1] for name, own in varied.groupby(frame["optimizer"])
    }
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
    for _, own in params.groupby(frame["loss"]):
        differing = [key for key in keys if own[key].fillna("").nunique() > 1]
        for key in differing:
            named[own.index] += own[key].map(lambda value, key=key: f" {key}={value}" if isinstance(value, str) else "")
        for group in groups:
            if frame.loc[own.index, group].nunique() > 1:
                named[own.index] += frame.loc[own.index, group].map(lambda value, group=group: f" {group}={value}")
    return named.tolist()
