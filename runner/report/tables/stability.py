"""The learning rates at which the gap falls, the best rate, and the rates by which the grid has to be extended."""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd

from runner.report.tables.describing import CHOICES, OF_METHOD, OF_PROBLEM, RATE, words
from runner.report.tables.ranking import censored, decisive, median
from runner.report.tables.reading import Runs

# A rate is good if at least half of its runs end with at most this part of their first gap.
PART = 0.1
# The number of rates in the next grid.
MORE = 3
# A best rate above this part of the limit 2/L counts as at the limit: the grid is not extended upwards.
NEAR = 0.9
# The largest number of values of one key in a command.
VALUES = 30
COLUMNS = ["problem", "optimizer", "low", "high", "decades", "best", "edge", "limit", "at_edge", "next"]


def table(runs: Runs) -> pd.DataFrame:
    """Return a row for each problem and method with several learning rates.

    `low` to `high` are the rates around the best at which at least half of the runs end with a gap of at most PART of the
    first. `edge` is the lowest rate above the best at which at least half diverge, or end no lower than they began. `limit` is
    2/L: at this rate or above, gradient descent on a quadratic does not converge (Nesterov 2018, theorem 2.1.15). Only gradient
    descent has a limit.
    """
    at, rows = decisive(runs), []
    known = runs.frame.assign(row=range(len(runs.frame)))
    for (problem, optimizer), own in known[known["learning_rate"].notna()].groupby(["problem", "optimizer"], sort=False):
        rates = by_rate(runs, own, at[problem])
        if len(rates) < 2:
            continue
        best, low, high, edge = interval(rates)
        limit = own["limit"].iloc[0]
        end = "low" if best == rates.index[0] else "high" if best == rates.index[-1] and not best > NEAR * limit else ""
        command = following(runs, own, further(rates.index.to_numpy(), end, limit)) if end else ""
        rows.append((problem, optimizer, low, high, np.log10(high / low), best, edge, limit, end, command))
    return pd.DataFrame(rows, columns=COLUMNS)


def by_rate(runs: Runs, own: pd.DataFrame, at: int | None) -> pd.DataFrame:
    """Return for each rate the shares of good and of lost runs, the median steps, and the median gap left.

    A lost run diverges, or ends no lower than it began.
    """
    row = own["row"].to_numpy()
    first, left = runs.gap[row, 0].astype(float), runs.gap[row, -1]
    last = (own["last_loss"] - own["reference"]).to_numpy()
    lost = (own["ending"] == "diverged").to_numpy() | ~(last < np.where(first > 0, first, np.inf))
    steps = np.full(len(own), np.inf) if at is None else censored(runs.to_target["steps"][row, at])
    known = pd.DataFrame({"good": ~lost & (last <= PART * first), "lost": lost, "steps": steps, "left": left})
    groups = known.groupby(own["learning_rate"].to_numpy())
    middle = groups[["steps", "left"]].agg(lambda column: float(median(column.to_numpy())))
    return groups[["good", "lost"]].mean().join(middle)


def interval(rates: pd.DataFrame) -> tuple[float, float, float, float]:
    """Return the best rate, the ends of the interval of good rates, and the edge, NaN if none; `rates` is sorted by rate."""
    best = int(np.lexsort((rates["left"], rates["steps"]))[0])
    values, good = rates.index.to_numpy(), (rates["good"] >= 0.5).to_numpy()
    lost = np.flatnonzero((rates["lost"] >= 0.5).to_numpy()[best + 1 :])
    edge = values[best + 1 + lost[0]] if len(lost) else np.nan
    if not good[best]:
        return values[best], np.nan, np.nan, edge
    low = high = best
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(values) and good[high + 1]:
        high += 1
    return values[best], values[low], values[high], edge


def further(rates: np.ndarray, end: str, limit: float = np.nan) -> np.ndarray:
    """Return MORE rates that extend a grid beyond one of its ends, by the same factor as between the last two rates there.

    All of them are below the limit: if the factor would lead to the limit or above, the rates lie between the grid's last rate
    and the limit, evenly spaced in the logarithm.
    """
    if end == "low":
        return (rates[0] * (rates[0] / rates[1]) ** np.arange(1, MORE + 1))[::-1]
    found = rates[-1] * (rates[-1] / rates[-2]) ** np.arange(1, MORE + 1)
    if not found[-1] >= limit:
        return found
    return rates[-1] * (limit / rates[-1]) ** (np.arange(1, MORE + 1) / (MORE + 1))


def following(runs: Runs, own: pd.DataFrame, rates: np.ndarray) -> str:
    """Return the command that runs a method on a problem at these rates, with all other overrides and options of its runs."""
    typed = runs.words or own["words"].iloc[0]
    said = {word.partition("=")[0]: word for word in words(typed)}
    own_keys = (*OF_PROBLEM, *OF_METHOD, "loss/", "optimizer/")
    run = [{word.partition("=")[0]: word.partition("=")[2] for word in words(each)} for each in own["words"].unique()]
    found = []
    for key in dict.fromkeys([*said, *(key for each in run for key in each)]):
        values = list(dict.fromkeys(each[key] for each in run if key in each))
        # The sweep's overrides name all problems and methods; the jobs' overrides name this problem and this method.
        this = bool(values) and (not runs.words or key in CHOICES or key.lstrip("+~").startswith(own_keys))
        if key.lstrip("+") == RATE or (key not in said and not this):
            continue
        several = len(values) > VALUES
        found.append(said[key] if key in said and (several or not this) else f"{key}={','.join(values[:VALUES])}")
    for group in ("loss", "optimizer"):
        column = "choice" if group == "optimizer" else "loss"
        names = own[column].unique()
        # A name with a dot is a target, not a file: the overrides above name it, or the user's own configuration does.
        if not any("." in name for name in names) and not any(word.startswith((f"{group}=", "experiment=")) for word in found):
            found.append(f"{group}={','.join(names)}")
    found.append(f"{RATE}={','.join(f'{rate:.4g}' for rate in rates)}")
    options = words(runs.options or own["options"].iloc[0])
    return shlex.join(["python", "-m", "runner", "-m", *options, *found])
