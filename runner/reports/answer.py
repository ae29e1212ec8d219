"""The short answer: which optimizer, at which rate, after how many steps, how sure, and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from runner.reports.reading import Runs
from runner.reports.wording import number, rounded, some

# Problems, and marks, that the answer has room for.
PROBLEMS, MARKS = 6, 3


def text(runs: Runs, tables: Mapping[str, pd.DataFrame]) -> str:
    """Return the answer, a line or two a problem."""
    return "\n".join(lines(runs, tables))


def lines(runs: Runs, tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Yield the answer's lines."""
    ranking, overall = tables["ranking"], tables["overall"]
    count = ranking["problem"].nunique()
    yield f"{runs.title}: {some(len(runs.frame), 'run')}, {some(count, 'problem')}, {some(len(overall), runs.compared)}"
    if count > 1 and len(overall) > 1:
        yield f"overall: {whole(overall)}"
    for problem, own in list(ranking.groupby("problem", sort=False))[:PROBLEMS]:
        yield from of_problem(str(problem), own, tables["stability"])
    if count > PROBLEMS:
        yield f"and {some(count - PROBLEMS, 'more problem')}: in the tables"
    marks = tables["fairness"]
    for row in marks.head(MARKS).itertuples():
        what = "" if row.what == runs.title else f"{row.what}: "
        yield f"beware ({row.mark}): {what}{row.words}"
    if len(marks) > MARKS:
        yield f"and {some(len(marks) - MARKS, 'more such mark')} in the table of fairness"


def whole(overall: pd.DataFrame) -> str:
    """Say which optimizer reaches most targets with one configuration for all problems."""
    first, second = overall.iloc[0], overall.iloc[1]
    within = lambda row: "" if np.isnan(row.low) else f" [{row.low:.0%}, {row.high:.0%}]"  # noqa: E731
    best = f"{rounded(first.configuration)} reaches {first.share:.0%}{within(first)} of all targets with one configuration"
    return f"{best}; next {rounded(second.configuration)}, {second.share:.0%}{within(second)}"


def of_problem(problem: str, own: pd.DataFrame, stability: pd.DataFrame) -> Iterator[str]:
    """Yield what came out on one problem, whose optimizers are in order."""
    first = own.iloc[0]
    if np.isnan(first.target):
        lowest = f"the lowest loss is {rounded(first.configuration)}'s"
        yield f"{problem}: no configuration reaches a target in half of its runs; {lowest}"
        return
    sure = "" if np.isnan(first.low) else f" [{number(first.low)}, {number(first.high)}]"
    reached = f"{first.target:.0e} in {some(first.steps, 'step')}{sure}, {first.success_rate:.0%} of {some(first.runs, 'run')}"
    rates = stability[(stability["problem"] == problem) & (stability["optimizer"] == first.optimizer)]
    yield f"{problem}: {rounded(first.configuration)} reaches {reached}{''.join(map(converging, rates.itertuples()))}"
    if len(own) > 1:
        second = own.iloc[1]
        steps = some(second.steps, "step") if np.isfinite(second.steps) else "not in half of its runs"
        yield f"  then {rounded(second.configuration)}, {steps}: {second.words}"


def converging(row: tuple) -> str:
    """Say at which learning rates an optimizer converges."""
    if np.isnan(row.low):
        return "; no learning rate of the grid converges"
    limit = "" if np.isnan(row.limit) else f", 2/L = {row.limit:.3g}"
    return f"; it converges at rates {number(row.low)} … {number(row.high)}{limit}"
