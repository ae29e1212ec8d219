"""The short answer: the best method, its learning rate, its steps, their confidence interval, and the objections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from runner.report.tables.reading import Runs
from runner.report.tables.stability import PART
from runner.report.text import number, rounded, some

# The largest numbers of problems and of fairness marks in the answer.
PROBLEMS, MARKS = 6, 3


def text(runs: Runs, tables: Mapping[str, pd.DataFrame]) -> str:
    """Return the answer, with one or two lines for each problem."""
    return "\n".join(lines(runs, tables))


def lines(runs: Runs, tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Yield the answer's lines."""
    ranking, overall = tables["ranking"], tables["overall"]
    count = ranking["problem"].nunique()
    groups = some(ranking["optimizer"].nunique(), runs.compared)
    yield f"{runs.title}: {some(runs.count, 'run')}, {some(count, 'problem')}, {groups}"
    if count > 1 and len(overall) > 1:
        yield f"overall: {whole(overall)}"
    for problem, own in list(ranking.groupby("problem", sort=False))[:PROBLEMS]:
        yield from of_problem(str(problem), own, runs, tables["stability"])
    if count > PROBLEMS:
        yield f"and {some(count - PROBLEMS, 'more problem')}: in the tables"
    marks = tables["fairness"]
    for row in marks.head(MARKS).itertuples():
        what = "" if row.what == runs.title else f"{row.what}: "
        yield f"beware ({row.mark}): {what}{row.words}"
    if len(marks) > MARKS:
        yield f"and {some(len(marks) - MARKS, 'more such mark')} in the table of fairness"


def whole(overall: pd.DataFrame) -> str:
    """Return a sentence that names the method that reaches most targets with one configuration for all problems."""
    first, second = overall.iloc[0], overall.iloc[1]
    within = lambda row: "" if np.isnan(row.low) else f" [{row.low:.0%}, {row.high:.0%}]"  # noqa: E731
    best = f"{rounded(first.configuration)} reaches {first.share:.0%}{within(first)} of the targets, the mean over all problems"
    return f"{best}; next {rounded(second.configuration)}, {second.share:.0%}{within(second)}"


def of_problem(problem: str, own: pd.DataFrame, runs: Runs, stability: pd.DataFrame) -> Iterator[str]:
    """Yield the lines on one problem; `own` holds its ranking, the best method first."""
    first, frame = own.iloc[0], runs.frame[runs.frame["problem"] == problem]
    unknown = frame["minimum"].isna().any()
    above = " above the lowest loss of these runs (the minimum is not known)" if unknown else ""
    if np.isnan(first.target):
        row = frame.loc[frame["best_loss"].fillna(np.inf).idxmin()]
        lowest = f"the lowest loss, {number(row['best_loss'])}, is that of a run of {rounded(row['configuration'])}"
        which = "no run but that of the lowest loss" if unknown else "no configuration"
        yield f"{problem}: {which} reaches a target{above}{'' if unknown else ' in half of its runs'}; {lowest}"
        return
    sure = "" if np.isnan(first.low) else f" [{number(first.low)}, {number(first.high)}]"
    every = frame["every"].max()
    seen = f" (its full loss is known every {number(every)} steps)" if every > 1 else ""
    reached = f"{first.target:.0e}{above} in {some(first.steps, 'step')}{sure}{seen}"
    reached += f", {first.success_rate:.0%} of {some(first.runs, 'run')}"
    rates = stability[(stability["problem"] == problem) & (stability["optimizer"] == first.optimizer)]
    yield f"{problem}: {rounded(first.configuration)} reaches {reached}{''.join(map(falling, rates.itertuples()))}"
    if len(own) > 1:
        second = own.iloc[1]
        steps = some(second.steps, "step") if np.isfinite(second.steps) else "not in half of its runs"
        yield f"  then {rounded(second.configuration)}, {steps}: {second.words}"


def falling(row: Any) -> str:
    """Return a clause that names the learning rates at which a method brings the gap down."""
    limit = "" if np.isnan(row.limit) else f", 2/L = {row.limit:.3g}"
    if np.isnan(row.low):
        return f"; at no learning rate of the grid do half of the runs end at {PART:g} of their first gap{limit}"
    rates = f"{number(row.low)} … {number(row.high)}"
    return f"; at rates {rates} at least half of the runs end at {PART:g} of their first gap, or lower{limit}"
