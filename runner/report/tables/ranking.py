"""The ranking of methods with confidence: the steps to targets of each method's best configuration, and their comparison."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from runner.report.tables.reading import Runs
from runner.report.text import number, some

CONFIDENCE, RESAMPLES, SEED = 0.95, 1000, 0
# Numbers in one batch of resampling.
BATCH = 2_000_000
# The significance level, and the least number of pairs with which Wilcoxon's test can reach it.
LEVEL, PAIRS = 0.05, 6
KEYS = ["problem", "optimizer", "configuration"]


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Return the tables `ranking`, `targets` and `overall`."""
    chosen = best(runs)
    return {"ranking": ranking(runs, chosen), "targets": targets(runs, chosen), "overall": overall(runs)}


def decisive(runs: Runs) -> dict[str, int | None]:
    """Return for each problem the index of the target at which its optimizers are compared, or None.

    It is the lowest target that at least half of the runs of some configuration reach.
    """
    reached = pd.DataFrame(np.isfinite(runs.to_target["steps"]), index=runs.frame.index)
    share = reached.groupby([runs.frame[key] for key in KEYS], sort=False).mean()
    most = share.groupby("problem", sort=False).max().to_numpy() >= 0.5
    problems = share.index.get_level_values("problem").unique()
    return {str(name): int(np.flatnonzero(row)[-1]) if row.any() else None for name, row in zip(problems, most, strict=True)}


def best(runs: Runs) -> pd.DataFrame:
    """Return the best configuration of each optimizer on each problem, the best optimizer first.

    Columns: problem, optimizer, configuration, aim (index of the target, -1: none), rows (positions of the runs), and the
    criteria of the choice: the median steps to the problem's target, then the share of runs that reach it, then the median of
    the gaps left.
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
    """Return a row for each problem and method: the confidence interval of its median, and its comparison with the best.

    The more comparisons a report makes, the more of them differ by chance. So the p-values are adjusted for the number of
    comparisons (Benjamini, Hochberg 1995).
    """
    rows, compared = [], []
    for _, own in chosen.groupby("problem", sort=False):
        first, *_ = every = list(own.itertuples())
        compared += [None if row is first else against(runs, row, first) for row in every]
    words = iter(told(compared))
    for _, own in chosen.groupby("problem", sort=False):
        for row in own.itertuples():
            steps = runs.to_target["steps"][row.rows, row.aim] if row.aim >= 0 else np.full(len(row.rows), np.nan)
            low, high = interval(censored(steps)[:, None])
            rate = float(np.isfinite(steps).mean())
            target = runs.targets[row.aim] if row.aim >= 0 else np.nan
            word = next(words)
            if row.aim < 0:
                word = "reaches no target"
            spent = (finite(row.steps), low[0], high[0], expected(runs, row.rows, steps), word)
            rows.append((row.problem, row.optimizer, row.configuration, len(row.rows), target, rate, *spent))
    columns = [*KEYS, "runs", "target", "success_rate", "steps", "low", "high", "ert", "words"]
    return pd.DataFrame(rows, columns=columns)


def targets(runs: Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return the median steps, evaluations and seconds of the ranked configurations to every target."""
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
    """Return the best configuration of each method on all problems together, the best method first.

    The best configuration reaches the largest share of the targets: the mean over problems of the means over runs. Among
    equals, it has fewer evaluations in the mean of their logarithms. The confidence interval belongs to this mean of means. A
    configuration that has not run on every problem is left out.
    """
    reached = np.isfinite(runs.to_target["evaluations"])
    spent = np.log(np.where(reached, runs.to_target["evaluations"], 1)).sum(axis=1)
    each = runs.frame[KEYS].assign(share=reached.mean(axis=1), spent=spent)
    means = each.groupby(KEYS, sort=False)[["share", "spent"]].mean().reset_index()
    groups = means.groupby(KEYS[1:], sort=False)
    whole = groups.agg({"share": "mean", "spent": "sum", "problem": "nunique"}).reset_index()
    whole = whole[whole["problem"] == each["problem"].nunique()]
    made = whole.sort_values(["share", "spent"], ascending=[False, True], kind="stable").drop_duplicates("optimizer")
    rows = []
    for row in made.itertuples():
        own = each[(each["configuration"] == row.configuration) & (each["optimizer"] == row.optimizer)]
        samples = [part.to_numpy() for _, part in own.groupby("problem")["share"]]
        rows.append((row.optimizer, row.configuration, len(own), row.share, *of_means(samples, float(row.share))))
    return pd.DataFrame(rows, columns=["optimizer", "configuration", "runs", "share", "low", "high"])


def of_means(samples: list[np.ndarray], mean: float) -> tuple[float, float]:
    """Return the bootstrap interval (Efron 1979) of the mean of several samples' means; NaN if no sample varies.

    The bootstrap resamples within each sample, so the interval belongs to the same quantity as the mean.
    """
    from scipy import stats

    if not any(len(each) > 1 and np.ptp(each) for each in samples):
        return np.nan, np.nan
    # A sample of one value shows no variation, and SciPy refuses it.
    samples = [np.repeat(each, 2) if len(each) == 1 else each for each in samples]
    batch = max(BATCH // max(map(len, samples)), 1)
    options = {"n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile", "batch": batch}
    found = stats.bootstrap(samples, mean_of_means, vectorized=True, rng=SEED, **options).confidence_interval
    return float(min(found.low, mean)), float(max(found.high, mean))


def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean of the means of samples."""
    return np.mean([each.mean(axis=axis) for each in samples], axis=0)


def censored(steps: np.ndarray) -> np.ndarray:
    """Return the steps with infinity in place of NaN: a target that is not reached."""
    return np.where(np.isnan(steps), np.inf, steps)


def finite(values: Any) -> Any:
    """Return the values with NaN in place of infinity: a target that is never reached."""
    return np.where(np.isfinite(values), values, np.nan)[()]


def median(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the lower median, which is one of the values: it is finite if at least half of the values are."""
    middle = (values.shape[axis] - 1) // 2
    return np.take(np.partition(values, middle, axis=axis), middle, axis=axis)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact confidence intervals of the medians of columns [n, m]; the ends are among the values, inf: no upper end.

    The ranks of the ends depend on n alone (Conover 1999, section 3.2, as in SciPy). Fewer than six values have no interval of
    95 %: the ends are NaN. They are NaN too if no value of the column is finite.
    """
    n, m = values.shape
    low, high = np.full((2, m), np.nan)
    if (ends := places(n)) is None:
        return low, high
    some = np.isfinite(values).any(axis=0)
    low[some], high[some] = np.sort(values[:, some], axis=0)[list(ends)]
    return low, high


@lru_cache
def places(n: int) -> tuple[int, int] | None:
    """Return the ranks, among n sorted values, of the ends of the median's confidence interval; None if n is too small."""
    from scipy import stats

    found = stats.quantile_test(np.arange(n), p=0.5).confidence_interval(CONFIDENCE)
    return None if np.isnan(found.low) or np.isnan(found.high) else (int(found.low), int(found.high))


def expected(runs: Runs, rows: np.ndarray, steps: np.ndarray) -> float:
    """Return the expected steps to a target (ERT; Auger, Hansen 2005): the steps of all runs over the number that reach it."""
    reached = np.isfinite(steps)
    spent = np.where(reached, steps, runs.frame["iterations"].to_numpy()[rows]).sum()
    return float(spent / reached.sum()) if reached.any() else np.nan


def pairs(runs: Runs, a: Any, b: Any) -> Iterator[tuple[float, float]]:
    """Yield the steps of two configurations for each pair of start and draw (of a random loss) that both have."""
    found = []
    for each in (a, b):
        own = runs.frame.iloc[each.rows]
        steps = censored(runs.to_target["steps"][each.rows, each.aim])
        found.append(dict(zip(zip(own["start"], own["draw"], strict=True), steps, strict=True)))
    yield from ((found[0][key], found[1][key]) for key in found[0].keys() & found[1].keys())


class Compared(NamedTuple):
    """The comparison of a configuration with the best: a text, the number of common starts, and the p-value, or NaN."""

    words: str
    starts: int
    best: str
    p: float = np.nan


def against(runs: Runs, row: Any, best: Any) -> Compared:
    """Compare a configuration's steps with the best's, by Wilcoxon's signed-rank test over pairs."""
    from scipy import stats

    both = np.array(sorted(pairs(runs, row, best))).reshape(-1, 2)
    n, name = len(both), best.optimizer
    more, fewer = int((both[:, 0] > both[:, 1]).sum()), int((both[:, 0] < both[:, 1]).sum())
    word, count = ("more", more) if more >= fewer else ("fewer", fewer)
    if not n:
        return Compared(f"no start in common with {name}", n, name)
    words = (
        f"{word} steps than {name} at {number(count)} of {some(n, 'start')}"
        if count
        else f"as many steps as {name} at {some(n, 'start')}"
    )
    if n < PAIRS:
        return Compared(f"{words}: too few to tell", n, name)
    # A target that is not reached counts for more steps than any that is reached.
    differences = np.subtract(*np.where(np.isfinite(both), both, 2 * both[np.isfinite(both)].max(initial=1) + 1).T)
    return Compared(words, n, name, float(stats.wilcoxon(differences, zero_method="zsplit").pvalue))


def told(compared: list[Compared | None]) -> list[str]:
    """Return for each configuration a text: whether it differs from the best. None in `compared` stands for the best."""
    from scipy import stats

    tested = [i for i, each in enumerate(compared) if each is not None and not np.isnan(each.p)]
    adjusted = stats.false_discovery_control([each.p for each in compared if each and not np.isnan(each.p)]) if tested else []
    p_of = dict(zip(tested, map(float, adjusted), strict=True))
    name = "p" if len(tested) < 2 else f"p of {len(tested)} comparisons"
    words = []
    for i, each in enumerate(compared):
        if each is None or i not in p_of:
            words.append("best" if each is None else each.words)
        elif p_of[i] < LEVEL:
            words.append(f"{each.words} ({name} = {p_of[i]:.2g})")
        else:
            words.append(f"not told apart from {each.best} at {number(each.starts)} starts ({name} = {p_of[i]:.2g})")
    return words
