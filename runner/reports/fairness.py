"""What speaks against a comparison: unequal budgets, starts and tuning, hidden clipping, grids that end too early."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from runner.reports.reading import Runs
from runner.reports.wording import number, some

Mark = tuple[str, str, int, str]
CLIPPING = ("optimizer.clipnorm", "optimizer.clipvalue", "optimizer.global_clipnorm")


def table(runs: Runs, stability: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each mark: what it is, on what, of how many runs, and in words."""
    marks = [*absent(runs), *budgets(runs), *clipping(runs), *starts(runs), *tuning(runs), *edges(runs, stability)]
    return pd.DataFrame(marks, columns=["mark", "what", "runs", "words"])


def absent(runs: Runs) -> Iterator[Mark]:
    """Mark runs that were to be compared and are not."""
    if runs.left_out:
        words = f"{some(runs.left_out, 'run')} without rows: failed, or running yet"
        yield "left out", runs.title, runs.left_out, words


def budgets(runs: Runs) -> Iterator[Mark]:
    """Mark problems on which optimizers may take different numbers of steps, or evaluations a step, or are stopped by time."""
    for problem, own in runs.frame.groupby("problem", sort=False):
        if (limits := own["max_iterations"].unique()).size > 1:
            yield "budget", str(problem), len(own), f"max_iterations is {', '.join(map(str, sorted(limits)))}"
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
    """Mark optimizers whose gradients are clipped, where others' are not."""
    for key in CLIPPING:
        column = runs.frame.get(f"p.{key}")
        if column is None:
            continue
        clipped = ~column.astype(str).isin(["None", "", "nan"])
        names = ", ".join(sorted(runs.frame["optimizer"][clipped].unique()))
        if clipped.any() and not clipped.all():
            yield "clipping", names, int(clipped.sum()), f"{key} is set for {names}, and not for all runs"


def starts(runs: Runs) -> Iterator[Mark]:
    """Mark problems on which configurations do not have the same starts and seeds."""
    for problem, own in runs.frame.groupby("problem", sort=False):
        pairs = own["start"] + " " + own["seed"].astype(str)
        sets = pairs.groupby([own["optimizer"], own["configuration"]]).agg(frozenset)
        if sets.nunique() > 1:
            few, many = sets.map(len).min(), sets.map(len).max()
            words = (
                f"configurations have {few} to {some(many, 'start')}" if few != many else "configurations have different starts"
            )
            yield "starts", str(problem), len(own), f"{words}; only those in common are paired"


def tuning(runs: Runs) -> Iterator[Mark]:
    """Mark optimizers that are chosen by the starts that they are compared at, or from more configurations than others."""
    counts = runs.frame.groupby("optimizer")["configuration"].nunique()
    if len(counts) < 2 or counts.max() < 2:
        return
    words = "the best configuration is chosen at the starts that it is compared at; run it again from others (seed=…)"
    yield "tuning", runs.title, len(runs.frame), words
    if counts.nunique() > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield "tuning", runs.title, len(runs.frame), f"unequally many configurations: {told}"


def edges(runs: Runs, stability: pd.DataFrame) -> Iterator[Mark]:
    """Mark optimizers whose best learning rate is the last one of its grid."""
    for row in stability[stability["at_edge"] != ""].itertuples():
        own = runs.frame[(runs.frame["problem"] == row.problem) & (runs.frame["optimizer"] == row.optimizer)]
        side = {"low": "lowest", "high": "highest"}[str(row.at_edge)]
        words = f"the best learning rate, {number(row.best)}, is the {side} tried; go on with: {row.next}"
        yield "edge", f"{row.optimizer} on {row.problem}", len(own), words
