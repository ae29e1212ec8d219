"""Recorded runs as rows of a table, read from the store: problem, method, configuration and single numbers.

Two runs have the same problem if everything that defines the loss agrees: function, arguments, data, instance, noise. They
have the same method if strategy, optimizer class and the optimizer's non-numeric arguments agree. The name of a problem or of a
method shows the values in which it differs from the others.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from runner.report.tables.selection import Record
from runner.security.names import present

# Config groups whose choices are columns.
CHOICES = ("loss", "instance", "noise", "guess", "optimizer", "strategy", "execution")
DATA, SCHEDULE = "loss/data", "optimizer/learning_rate"
# Prefixes of the parameters that define the problem, the method or the start, or that do not change a run's rows.
OF_PROBLEM, OF_METHOD, OF_START = ("loss.", "instance.", "noise."), ("optimizer.", "strategy."), ("guess.", "seed")
OF_NONE = ("tracking.", "report.", "sweep.", "checkpoint.", "resume")
RATE = "optimizer.learning_rate"
TARGET = "_target_"
# Optimizers whose step is the learning rate times the gradient, if they have no momentum.
DESCENT = ("SGD", "GradientDescentOptimizer")


def described(found: Sequence[Record]) -> pd.DataFrame:
    """Return a table with a row for each run, made of the run's record in the store."""
    index = pd.Index([each.run_id for each in found], name="run_id")
    params = pd.DataFrame([parameters(each) for each in found], index=index, dtype=object)
    frame = pd.DataFrame({group: [each.tags.get(group, "none") for each in found] for group in CHOICES}, index=index)
    frame["learning_rate"] = number(params, RATE)
    for name in ("seed", "max_iterations"):
        frame[name] = number(params, name).fillna(0).astype(int)
    frame["dtype"] = params.get("dtype", "")
    for name in ("ending", "stopped_by"):
        frame[name] = [each.tags.get(name, "") for each in found]
    frame["status"] = [each.status for each in found]
    frame = frame.join(numbers(pd.DataFrame([each.metrics for each in found], index=index)))
    schedules = pd.Series([each.tags.get(SCHEDULE, "none") for each in found], index)
    data = pd.Series([each.tags.get(DATA, "none") for each in found], index)
    if data.nunique() > 1:
        frame[DATA] = data
    varied = params.loc[:, params.fillna("").nunique() > 1] if len(params) else params
    varied = varied.loc[:, [not key.startswith(OF_NONE) for key in varied]]
    frame["descent"] = descent(frame, params)
    frame["problem"] = problems(frame, data, varied, params.get(f"loss.{TARGET}"))
    frame["choice"] = [chosen(each, "optimizer") for each in found]
    frame["configuration"] = configurations(frame, varied, params.get(RATE), schedules)
    frame["words"] = [each.tags.get("overrides", "") for each in found]
    frame["options"] = [each.tags.get("options", "") for each in found]
    frame["optimizer"] = methods(frame, schedules, varied, params.get(f"optimizer.{TARGET}"))
    own = {f"p.{key}": values(varied[key]) for key in varied if not key.endswith(TARGET)}
    return pd.concat([frame, pd.DataFrame(own, index=index)], axis=1)


def parameters(record: Record) -> dict[str, str]:
    """Return a run's parameters, including the parameters that are stored as tags."""
    groups = tuple(f"{group}." for group in CHOICES)
    return {key: value for key, value in record.tags.items() if key.startswith(groups)} | present(record.params)


def chosen(record: Record, group: str) -> str:
    """Return the file that a run picked for a group: as the user typed it, else as the run's tag names it."""
    typed = [word for word in words(record.tags.get("overrides", "")) if word.startswith(f"{group}=")]
    return typed[-1].partition("=")[2] if typed else record.tags.get(group, "none")


def words(overrides: str) -> list[str]:
    """Return the overrides in a tag, which joins them by spaces; an override may hold spaces within quotes."""
    try:
        return shlex.split(overrides)
    except ValueError:
        return overrides.split()


def number(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column as numbers; a value that is no number becomes NaN, and so do all values of a missing column."""
    if name not in table:
        return pd.Series(np.nan, table.index)
    return pd.to_numeric(table[name], errors="coerce").astype(float)


def numbers(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the single numbers of runs that a report reads.

    `fused` is true if a run shared a program with others: each of these runs gets an equal share of the seconds, and none was
    recorded during the loop. `compared` is true if the run's loss can be compared: a random loss without a full loss has no
    best.
    """
    iterations = number(metrics, "iterations").fillna(0).astype(int)
    return pd.DataFrame(
        {
            "iterations": iterations,
            "seconds": number(metrics, "seconds_loop"),
            "fused": number(metrics, "seconds_record") == 0,
            "evaluations": evaluations(metrics, iterations),
            "best_loss": number(metrics, "best_loss"),
            "compared": number(metrics, "best_step").notna() | number(metrics, "last_gradient_norm").isna(),
        }
    )


def values(column: pd.Series) -> pd.Series:
    """Return a parameter's values as numbers if all of them are numbers, else as text."""
    found = pd.to_numeric(column, errors="coerce")
    return found if found.notna().all() else column.fillna("").astype(str)


def evaluations(metrics: pd.DataFrame, iterations: pd.Series) -> pd.Series:
    """Return the number of evaluations of each run: loss and gradient at one point count once; other derivatives are added.

    A run without recorded counts has one evaluation for each row.
    """
    counts = {name: number(metrics, f"{name}_evaluations") for name in ("loss", "gradient")}
    rest = [name for name in metrics if name.endswith("_evaluations") and name.removesuffix("_evaluations") not in counts]
    both = pd.concat(counts, axis=1).max(axis=1) + metrics[rest].fillna(0).sum(axis=1)
    return both.fillna(iterations + 1).astype(int)


def descent(frame: pd.DataFrame, params: pd.DataFrame) -> pd.Series:
    """Return for each run whether it is plain gradient descent: x moves by the learning rate times the gradient."""
    target, momentum = f"optimizer.{TARGET}", number(params, "optimizer.momentum").fillna(0)
    names = params[target].fillna(frame["optimizer"]) if target in params else frame["optimizer"]
    return names.astype(str).str.rpartition(".")[2].isin([*DESCENT, "sgd"]) & (momentum == 0)


def problems(frame: pd.DataFrame, data: pd.Series, varied: pd.DataFrame, target: pd.Series | None) -> list[str]:
    """Return the name of each run's problem: its loss, with the values that differ among the problems of that loss."""
    choices = pd.DataFrame({"instance": frame["instance"], "noise": frame["noise"], DATA: data})
    keys = [key for key in varied if key.startswith(OF_PROBLEM)]
    return named(frame["loss"], choices, varied[keys], target)


def methods(frame: pd.DataFrame, schedules: pd.Series, varied: pd.DataFrame, target: pd.Series | None) -> list[str]:
    """Return the name of each run's method: its optimizer, else its strategy, with the other values that differ.

    An argument is numeric if at least one run has a number for it.
    """
    label = frame["optimizer"].where(frame["optimizer"] != "none", frame["strategy"])
    choices = pd.DataFrame({"strategy": frame["strategy"], SCHEDULE: schedules})
    keys = [key for key in varied if key.startswith(OF_METHOD) and not number(varied, key).notna().any()]
    return named(label, choices, varied[keys], target)


def named(label: pd.Series, choices: pd.DataFrame, params: pd.DataFrame, target: pd.Series | None) -> list[str]:
    """Return a name for each run: its label, with the choices and the parameters that differ from other runs of the label.

    Runs whose choices and parameters agree have the same name. An earlier version may have used another label for the same
    function and parameters; such runs have the same name too, if they recorded their function (`target`).
    """
    params = params.fillna("None")
    columns = [params[key].astype(str) for key in params]
    signature = pd.Series(list(zip(*columns, strict=True)) if columns else [()] * len(label), label.index, dtype=object)
    parts = pd.DataFrame({"label": label, **{name: choices[name] for name in choices}, "signature": signature})
    if target is not None:
        # If a function has several labels, take the label with the fewest distinct signatures.
        borne = parts.groupby("label")["signature"].nunique()
        known = parts.assign(target=target, borne=parts["label"].map(borne)).dropna(subset="target")
        keys = [*choices, "signature", "target"]
        firsts = known.sort_values("borne", kind="stable").groupby(keys, sort=False)["label"].transform("first")
        parts.loc[known.index, "label"] = firsts.loc[known.index]
    unique = parts.drop_duplicates()
    names = spelt(unique, params.loc[unique.index])
    keys = list(parts.columns)
    table = dict(zip(unique[keys].itertuples(index=False, name=None), names, strict=True))
    return [table[row] for row in parts[keys].itertuples(index=False, name=None)]


def spelt(unique: pd.DataFrame, params: pd.DataFrame) -> list[str]:
    """Return a name for each distinct row: its label, then the choices and the parameters that differ within the label."""
    names = pd.Series(unique["label"], dtype=object).copy()
    choices = [name for name in unique if name not in ("label", "signature")]
    for _, rows in unique.groupby("label", sort=False):
        differing = [name for name in choices if rows[name].nunique() > 1]
        for name in differing:
            names[rows.index] += rows[name].map(lambda value, name=name: f" {name}={value}")
        for _, same in rows.groupby(differing, sort=False) if differing else [(None, rows)]:
            own: pd.DataFrame = params.loc[same.index]
            for key in (key for key in own if own[key].nunique() > 1):
                names[same.index] += own[key].map(lambda value, key=key: f" {key}={value}")
    return names.tolist()


def picking(group: str, name: str) -> str:
    """Return the override that picks a name of a group: a file, or a target if the name has a dot."""
    return f"{group}.{TARGET}={name}" if "." in name else f"{group}={name}"


def configurations(frame: pd.DataFrame, varied: pd.DataFrame, rate: pd.Series | None, schedules: pd.Series) -> list[str]:
    """Return the overrides of each run's method: its learning rate, and the keys that differ among its optimizer's runs."""
    rates = {} if rate is None else {RATE: rate}
    varied = pd.DataFrame(rates | {key: varied[key] for key in varied if key != RATE}, index=frame.index)
    groups = [group for group in ("execution", "dtype") if frame[group].nunique() > 1]
    keys = [key for key in varied if not key.startswith((*OF_PROBLEM, *OF_START)) and key != "dtype"]
    # The targets of these groups' files follow from the names of the files.
    keys = [key for key in keys if not (key.endswith(TARGET) and key.startswith(("execution.", "stopping.", "strategy.")))]
    keys = [key for key in keys if not key.startswith(f"{RATE}.") or not key.endswith(TARGET)]
    labels = frame["choice"] + " " + frame["strategy"]
    several = {name: [key for key in keys if key == RATE or own[key].nunique() > 1] for name, own in varied.groupby(labels)}
    strategies = frame["strategy"].nunique() > 1
    found = []
    for i, (name, row) in enumerate(zip(labels, varied.to_dict("records"), strict=True)):
        choice, strategy = frame["choice"].iloc[i], frame["strategy"].iloc[i]
        made = [] if choice == "none" else [picking("optimizer", choice)]
        made += [picking("strategy", strategy)] if strategies or choice == "none" else []
        made += [picking(group, frame[group].iloc[i]) for group in groups]
        made += [f"{SCHEDULE}={schedules.iloc[i]}"] if schedules.iloc[i] != "none" else []
        none: Mapping[str, str] = {RATE: "None"} if choice == "none" else {}
        made += [f"{key}={row[key]}" for key in several[name] if isinstance(row[key], str) and row[key] != none.get(key)]
        found.append(" ".join(made))
    return found
