"""At which learning rates optimizers converge, which is the best, and where the grid has to go on."""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd

from runner.reports.ranking import censored, decisive, median
from runner.reports.reading import Runs

# A run converges where its last gap is at most this part of its first.
PART = 0.1
# Rates of a next grid.
MORE = 3
COLUMNS = ["problem", "optimizer", "low", "high", "decades", "best", "edge", "limit", "at_edge", "next"]


def table(runs: Runs) -> pd.DataFrame:
    """Return a row for each problem and optimizer of several learning rates.

    `low` to `high` are the rates around the best at which at least half of the runs converge: their last gap is at most PART
    of the first. `edge` is the lowest rate above the best at which at least half diverge, or end no lower than they began.
    `limit` is 2/L, from which on gradient descent on a quadratic does not converge (Nesterov 2018, theorem 2.1.15).
    """
    at, rows = decisive(runs), []
    known = runs.frame.assign(row=range(len(runs.frame)))
    for (problem, optimizer), own in known[known["learning_rate"].notna()].groupby(["problem", "optimizer"], sort=False):
        rates = by_rate(runs, own, at[problem])
        if len(rates) < 2:
            continue
        best, low, high, edge = interval(rates)
        end = "low" if best == rates.index[0] else "high" if best == rates.index[-1] else ""
        command = following(runs, own, further(rates.index.to_numpy(), end)) if end else ""
        limit = own["limit"].iloc[0]
        rows.append((problem, optimizer, low, high, np.log10(high / low), best, edge, limit, end, command))
    return pd.DataFrame(rows, columns=COLUMNS)


def by_rate(runs: Runs, own: pd.DataFrame, at: int | None) -> pd.DataFrame:
    """Return for each rate the shares of runs that converge and that come to nothing, median steps, and median gap left."""
    row = own["row"].to_numpy()
    first, left = runs.gap[row, 0].astype(float), runs.gap[row, -1]
    # The last loss on the scale of the gaps; a random loss is only measured now and then.
    below = own["best_loss"].to_numpy() - left if own["minimum"].isna().any() else own["minimum"].to_numpy()
    last = own["last_loss"].to_numpy() - below
    lost = (own["ending"] == "diverged").to_numpy() | ~(last < np.where(first > 0, first, np.inf))
    steps = np.full(len(own), np.inf) if at is None else censored(runs.to_target["steps"][row, at])
    known = pd.DataFrame({"converges": ~lost & (last <= PART * first), "lost": lost, "steps": steps, "left": left})
    groups = known.groupby(own["learning_rate"].to_numpy())
    middle = groups[["steps", "left"]].agg(lambda column: float(median(column.to_numpy())))
    return groups[["converges", "lost"]].mean().join(middle)


def interval(rates: pd.DataFrame) -> tuple[float, float, float, float]:
    """Return of rates (their index, in order) the best, the ends of the interval that converges, and the edge; NaN if none."""
    best = int(np.lexsort((rates["left"], rates["steps"]))[0])
    values, converges = rates.index.to_numpy(), (rates["converges"] >= 0.5).to_numpy()
    lost = np.flatnonzero((rates["lost"] >= 0.5).to_numpy()[best + 1 :])
    edge = values[best + 1 + lost[0]] if len(lost) else np.nan
    if not converges[best]:
        return values[best], np.nan, np.nan, edge
    low = high = best
    while low > 0 and converges[low - 1]:
        low -= 1
    while high + 1 < len(values) and converges[high + 1]:
        high += 1
    return values[best], values[low], values[high], edge


def further(rates: np.ndarray, end: str) -> np.ndarray:
    """Return the rates by which a grid goes on beyond one of its ends, as many times greater or smaller as there."""
    if end == "high":
        return rates[-1] * (rates[-1] / rates[-2]) ** np.arange(1, MORE + 1)
    return (rates[0] * (rates[0] / rates[1]) ** np.arange(1, MORE + 1))[::-1]


def following(runs: Runs, own: pd.DataFrame, rates: np.ndarray) -> str:
    """Return the command that runs an optimizer on a problem at these rates."""
    first = own.iloc[0]
    new = {
        "loss": first["loss"],
        "optimizer": ",".join(own["method" if "method" in own else "optimizer"].unique()),
        "optimizer.learning_rate": ",".join(f"{rate:.4g}" for rate in rates),
    }
    kept = [word for word in shlex.split(runs.words) if word.partition("=")[0] not in new]
    return shlex.join(["python", "-m", "runner", "-m", *kept, *(f"{key}={value}" for key, value in new.items())])
