"""Which optimizer is best, and how sure that is: steps to targets at its best configuration, held against the others'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from runner.reports.reading import Runs
from runner.reports.wording import number, some

CONFIDENCE, RESAMPLES, SEED = 0.95, 1000, 0
# The level of a difference, and the pairs without which Wilcoxon's test cannot reach it.
LEVEL, PAIRS = 0.05, 6
KEYS = ["problem", "optimizer", "configuration"]


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Return the tables `ranking`, `targets` and `overall`."""
    chosen = best(runs)
    return {"ranking": ranking(runs, chosen), "targets": targets(runs, chosen), "overall": overall(runs)}


def decisive(runs: Runs) -> dict[str, int | None]:
    """Return for each problem which target its optimizers are compared at, or None.

    It is the lowest that at least half of the runs of some configuration reach.
    """
    reached = pd.DataFrame(np.isfinite(runs.to_target["steps"]), index=runs.frame.index)
    share = reached.groupby([runs.frame[key] for key in KEYS], sort=False).mean()
    most = share.groupby("problem", sort=False).max().to_numpy() >= 0.5
    problems = share.index.get_level_values("problem").unique()
    return {str(name): int(np.flatnonzero(row)[-1]) if row.any() else None for name, row in zip(problems, most, strict=True)}


def best(runs: Runs) -> pd.DataFrame:
    """Return the best configuration of each optimizer on each problem, the best optimizer first.

    Columns: problem, optimizer, configuration, aim (target, -1: none), rows (positions of its runs), and what it is chosen by:
    the median steps to the problem's target, then the share of runs that reach it, then the median of the gaps left.
    """
    chosen_at, rows = decisive(runs), []
    for key, found in runs.frame.groupby(KEYS, sort=False).indices.items():
        at = chosen_at[key[0]]
        steps = runs.to_target["steps"][found, at] if at is not None else np.full(len(found), np.nan)
        order = (median(censored(steps))[()], -np.isfinite(steps).mean(), np.median(runs.gap[found, -1]))
        rows.append((*key, -1 if at is None else at, found, *order))
    made = pd.DataFrame(rows, columns=[*KEYS, "aim", "rows", "steps", "missed", "left"])
    places = {name: i for i, name in enumerate(made["problem"].unique())}
    made = made.assign(place=made["problem"].map(places)).sort_values(["place", "steps", "missed", "left"], kind="stable")
    return made.drop_duplicates(["problem", "optimizer"]).drop(columns="place").reset_index(drop=True)


def ranking(runs: Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each problem and optimizer, with the interval of its median and words on how it compares to the best."""
    rows = []
    for _, own in chosen.groupby("problem", sort=False):
        first, *_ = compared = list(own.itertuples())
        for row in compared:
            steps = runs.to_target["steps"][row.rows, row.aim] if row.aim >= 0 else np.full(len(row.rows), np.nan)
            low, high = interval(censored(steps)[:, None])
            rate = float(np.isfinite(steps).mean())
            target = runs.targets[row.aim] if row.aim >= 0 else np.nan
            told = "best" if row is first else against(runs, row, first)
            if row.aim < 0:
                told = "reaches no target"
            spent = (finite(row.steps), low[0], high[0], expected(runs, row.rows, steps), told)
            rows.append((row.problem, row.optimizer, row.configuration, len(row.rows), target, rate, *spent))
    columns = [*KEYS, "runs", "target", "success_rate", "steps", "low", "high", "ert", "words"]
    return pd.DataFrame(rows, columns=columns)


def targets(runs: Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return the median steps, evaluations and seconds to every target of the configurations that are ranked."""
    measures, count = list(runs.to_target), len(runs.targets)
    parts = []
    for row in chosen.itertuples():
        values = censored(np.concatenate([runs.to_target[name][row.rows] for name in measures], axis=1))
        low, high = interval(values)
        known = {"measure": np.repeat(measures, count), "target": np.tile(runs.targets, len(measures))}
        found = {"median": finite(median(values)), "low": low, "high": high, "success_rate": np.isfinite(values).mean(axis=0)}
        parts.append(pd.DataFrame({**{key: getattr(row, key) for key in KEYS}, **known, **found}))
    made = pd.concat(parts, ignore_index=True)
    return made[made["success_rate"] > 0].reset_index(drop=True)


def overall(runs: Runs) -> pd.DataFrame:
    """Return the best configuration of each optimizer on all problems together, the best optimizer first.

    It is the one that reaches most of the targets of all runs, the mean over problems; of equals the one with fewer
    evaluations in the mean of their logarithms. The interval is that of the mean over runs.
    """
    from scipy import stats

    reached = np.isfinite(runs.to_target["evaluations"])
    spent = np.log(np.where(reached, runs.to_target["evaluations"], 1)).sum(axis=1)
    each = runs.frame[KEYS].assign(share=reached.mean(axis=1), spent=spent)
    means = each.groupby(KEYS, sort=False)[["share", "spent"]].mean()
    means = means.groupby(KEYS[1:], sort=False).agg({"share": "sum", "spent": "sum"}).reset_index()
    means["share"] /= each["problem"].nunique()
    made = means.sort_values(["share", "spent"], ascending=[False, True], kind="stable").drop_duplicates("optimizer")
    rows = []
    for row in made.itertuples():
        own = each["share"][each["configuration"] == row.configuration].to_numpy()
        low = high = np.nan
        if len(own) > 1 and np.ptp(own):
            low, high = stats.bootstrap(
                (own,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=SEED
            ).confidence_interval
        rows.append((row.optimizer, row.configuration, len(own), row.share, low, high))
    return pd.DataFrame(rows, columns=["optimizer", "configuration", "runs", "share", "low", "high"])


def censored(steps: np.ndarray) -> np.ndarray:
    """Return steps in which what is not reached takes for ever."""
    return np.where(np.isnan(steps), np.inf, steps)


def finite(values: Any) -> Any:
    """Return values in which NaN stands for what is never reached."""
    return np.where(np.isfinite(values), values, np.nan)[()]


def median(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the lower median, one of the values: it is finite where at least half of them are."""
    middle = (values.shape[axis] - 1) // 2
    return np.take(np.partition(values, middle, axis=axis), middle, axis=axis)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile bootstrap intervals (Efron 1979) of the medians of columns [n, m]; NaN for one row, inf if open."""
    from scipy import stats

    n, m = values.shape
    low, high = np.full((2, m), np.nan)
    some = np.isfinite(values).any(axis=0)
    if n < 2 or not some.any():
        return low, high
    # SciPy interpolates between resamples, which infinity does not bear.
    most = np.where(np.isfinite(values), values, -np.inf).max(axis=0)[some]
    bounded = np.where(np.isfinite(values[:, some]), values[:, some], 2 * most + 1)
    options = {"n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile", "vectorized": True}
    found = stats.bootstrap((bounded,), median, axis=0, rng=SEED, **options).confidence_interval
    low[some], high[some] = (np.where(end > most, np.inf, end) for end in found)
    return low, high


def expected(runs: Runs, rows: np.ndarray, steps: np.ndarray) -> float:
    """Return the expected steps to a target (ERT; Auger, Hansen 2005): those of all runs, over the runs that reach it."""
    reached = np.isfinite(steps)
    spent = np.where(reached, steps, runs.frame["iterations"].to_numpy()[rows]).sum()
    return float(spent / reached.sum()) if reached.any() else np.nan


def pairs(runs: Runs, a: Any, b: Any) -> Iterator[tuple[float, float]]:
    """Yield the steps of two configurations from each start and seed that both have."""
    found = []
    for each in (a, b):
        own = runs.frame.iloc[each.rows]
        steps = censored(runs.to_target["steps"][each.rows, each.aim])
        found.append(dict(zip(zip(own["start"], own["seed"], strict=True), steps, strict=True)))
    yield from ((found[0][key], found[1][key]) for key in found[0].keys() & found[1].keys())


def against(runs: Runs, row: Any, best: Any) -> str:
    """Say whether a configuration's steps differ from the best's, by Wilcoxon's signed-rank test over pairs."""
    from scipy import stats

    both = np.array(sorted(pairs(runs, row, best))).reshape(-1, 2)
    n, name = len(both), best.optimizer
    more, fewer = int((both[:, 0] > both[:, 1]).sum()), int((both[:, 0] < both[:, 1]).sum())
    word, count = ("more", more) if more >= fewer else ("fewer", fewer)
    if not n:
        return f"no start in common with {name}"
    told = (
        f"{word} steps than {name} at {number(count)} of {some(n, 'start')}"
        if count
        else f"as many steps as {name} at {some(n, 'start')}"
    )
    if n < PAIRS:
        return f"{told}: too few to tell"
    # What is not reached is further than all that is.
    differences = np.subtract(*np.where(np.isfinite(both), both, 2 * both[np.isfinite(both)].max(initial=1) + 1).T)
    p = float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)
    if not p < LEVEL:
        return f"no difference from {name} at {number(n)} starts (p = {p:.2g})"
    return f"{told} (p = {p:.2g})"
