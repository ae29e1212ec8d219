"""Objections to a comparison: unequal budgets, starts and tuning, hidden clipping, grids that end too early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from runner.report.tables.reading import Runs
from runner.report.text import number, some

Mark = tuple[str, str, int, str]
CLIPPING = ("optimizer.clipnorm", "optimizer.clipvalue", "optimizer.global_clipnorm")


def table(runs: Runs, stability: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each mark: its name, its subject, the number of runs, and an explanation."""
    marks = [*absent(runs), *repeated(runs), *budgets(runs), *seconds(runs), *clipping(runs), *starts(runs), *tuning(runs)]
    marks += [*partial(runs), *edges(runs, stability)]
    return pd.DataFrame(marks, columns=["mark", "what", "runs", "words"])


def absent(runs: Runs) -> Iterator[Mark]:
    """Yield a mark for selected runs that have no rows and therefore are not compared."""
    if runs.left_out:
        words = f"{some(runs.left_out, 'run')} without rows: failed, or running yet"
        yield "left out", runs.title, runs.left_out, words


def repeated(runs: Runs) -> Iterator[Mark]:
    """Yield a mark for runs that repeat another run row by row, and one for runs whose losses cannot be compared."""
    if runs.repeated:
        words = f"{some(runs.repeated, 'run')} of {number(runs.count)} repeat another row by row, and count once with it"
        yield "repeated", runs.title, runs.repeated, f"{words}: other seeds are other starts where guess=uniform or normal"
    if runs.incomparable:
        words = f"{some(runs.incomparable, 'run')} of a random loss that measures no full_loss: only luck could be compared"
        yield "left out", runs.title, runs.incomparable, words


def seconds(runs: Runs) -> Iterator[Mark]:
    """Yield a mark if only some of the runs shared a program with others: their seconds mean different things."""
    fused = int(runs.frame["fused"].sum())
    if 0 < fused < len(runs.frame):
        words = f"{some(fused, 'run')} of {number(len(runs.frame))} shared a program with others: seconds are not compared"
        yield "seconds", runs.title, fused, words


def partial(runs: Runs) -> Iterator[Mark]:
    """Yield a mark for the methods of which no configuration has run on every problem."""
    count = runs.frame["problem"].nunique()
    ran: Any = runs.frame.groupby(["optimizer", "configuration"])["problem"].nunique().groupby("optimizer").max()
    if (ran < count).any():
        names = ", ".join(map(str, ran.index[ran < count]))
        words = f"no configuration of {names} ran on all {count} problems: not in the overall score, nor in the profiles"
        yield "problems", runs.title, int(runs.frame["optimizer"].isin(ran.index[ran < count]).sum()), words


def budgets(runs: Runs) -> Iterator[Mark]:
    """Yield marks for unequal budgets: step limits, evaluations a step, intervals of the full loss, and runs cut short."""
    for problem, own in runs.frame.groupby("problem", sort=False):
        if (limits := own["max_iterations"].unique()).size > 1:
            yield "budget", str(problem), len(own), f"max_iterations is {', '.join(map(str, sorted(limits)))}"
        if (measured := own["every"].unique()).size > 1:
            words = f"the full loss is known every {', '.join(map(str, sorted(measured)))} steps: compare the coarsest"
            yield "budget", str(problem), len(own), words
        per_step = (own["evaluations"] / own["rows"]).groupby(own["optimizer"]).median().round(2)
        if per_step.nunique() > 1:
            dear = per_step.idxmax()
            words = (
                f"{dear} evaluates {per_step[dear]:g} times a step, others {per_step.min():g}: compare evaluations, not steps"
            )
            yield "budget", str(problem), int((own["optimizer"] == dear).sum()), words
    if timed := int((runs.frame["ending"] == "time_limit").sum()):
        yield "budget", runs.title, timed, f"{some(timed, 'run')} ended by stopping.time_limit, which depends on the machine"
    if cut := int((runs.frame["ending"] == "interrupted").sum()):
        yield "budget", runs.title, cut, f"{some(cut, 'run')} interrupted"


def clipping(runs: Runs) -> Iterator[Mark]:
    """Yield a mark for the methods whose gradients are clipped, if the gradients of others are not."""
    for key in CLIPPING:
        column = runs.frame.get(f"p.{key}")
        if column is None:
            continue
        clipped = ~column.astype(str).isin(["None", "", "nan"])
        names = ", ".join(sorted(runs.frame["optimizer"][clipped].unique()))
        if clipped.any() and not clipped.all():
            yield "clipping", names, int(clipped.sum()), f"{key} is set for {names}, and not for all runs"


def starts(runs: Runs) -> Iterator[Mark]:
    """Yield a mark for each problem on which configurations do not have the same starts and seeds."""
    for problem, own in runs.frame.groupby("problem", sort=False):
        pairs = own["start"] + " " + own["draw"].astype(str)
        sets = pairs.groupby([own["optimizer"], own["configuration"]]).agg(frozenset)
        if sets.nunique() > 1:
            few, many = sets.map(len).min(), sets.map(len).max()
            words = (
                f"configurations have {few} to {some(many, 'start')}" if few != many else "configurations have different starts"
            )
            yield "starts", str(problem), len(own), f"{words}; only those in common are paired"


def tuning(runs: Runs) -> Iterator[Mark]:
    """Yield marks if methods are tuned on the starts of the comparison, or have unequal numbers of configurations."""
    counts = runs.frame.groupby("optimizer")["configuration"].nunique()
    if len(counts) < 2 or counts.max() < 2:
        return
    words = "the best configuration is chosen at the starts that it is compared at; run it again from others (seed=…)"
    yield "tuning", runs.title, len(runs.frame), words
    if counts.nunique() > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield "tuning", runs.title, len(runs.frame), f"unequally many configurations: {told}"


def edges(runs: Runs, stability: pd.DataFrame) -> Iterator[Mark]:
    """Yield a mark for each method whose best learning rate is at an end of its grid."""
    for row in stability[stability["at_edge"] != ""].itertuples():
        own = runs.frame[(runs.frame["problem"] == row.problem) & (runs.frame["optimizer"] == row.optimizer)]
        side = {"low": "lowest", "high": "highest"}[str(row.at_edge)]
        words = f"the best learning rate, {number(row.best)}, is the {side} tried; go on with: {row.next}"
        yield "edge", f"{row.optimizer} on {row.problem}", len(own), words
