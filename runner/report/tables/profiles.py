"""Profiles of optimizers over many problems: runtimes as COCO draws them, Dolan and Moré's, and Moré and Wild's.

Each optimizer has one configuration for all problems, its best one in `ranking.overall`.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd

from runner.report.tables.ranking import SEED, decisive
from runner.report.tables.reading import Runs

# The largest number of points of a curve.
POINTS = 200
# The budget that continues after a run's end; the runs with restarts that each problem gets at least, unless another problem
# would exceed the largest number of them.
RESTARTED, SAMPLES, MOST = "evaluations, with simulated restarts", 100, 5000
# In the data profile, a problem is solved when this part τ of the first gap is left, as in Moré and Wild (2009).
TOLERANCE = 1e-3


def tables(runs: Runs, overall: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables `ecdf`, `performance` and `data`; the latter two are empty if there is only one optimizer."""
    keys = ["optimizer", "configuration"]
    chosen = pd.MultiIndex.from_frame(runs.frame[keys]).isin(pd.MultiIndex.from_frame(overall[keys]))
    return {"ecdf": ecdf(runs, chosen), "performance": performance(runs, chosen), "data": data(runs, chosen)}


def ecdf(runs: Runs, chosen: np.ndarray) -> pd.DataFrame:
    """Return the share of all triples of problem, start and target that each optimizer reaches within a budget.

    A budget of evaluations is divided by the dimension: Hansen, Auger, Ros, Mersmann, Tušar, Brockhoff (2021),
    doi:10.1080/10556788.2020.1808977. Their simulated restarts are a separate measure. It exists if some runs of an optimizer
    on a problem reach a target and others do not.
    """
    parts = []
    for measure, spent in runs.to_target.items():
        per = runs.frame["dimension"].to_numpy()[:, None] if measure == "evaluations" else 1
        for name, rows in groups(runs, chosen).items():
            budgets, fractions = cumulative((spent / per)[rows].reshape(-1))
            parts.append(pd.DataFrame({"optimizer": name, "measure": measure, "budget": budgets, "fraction": fractions}))
    for name, spent in restarts(runs, chosen).items():
        budgets, fractions = cumulative(spent)
        parts.append(pd.DataFrame({"optimizer": name, "measure": RESTARTED, "budget": budgets, "fraction": fractions}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def restarts(runs: Runs, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return each optimizer's evaluations over the dimension, with simulated restarts; empty if restarts change nothing."""
    dimension = runs.frame["dimension"].to_numpy()
    spent = (runs.to_target["evaluations"] / dimension[:, None])[chosen]
    whole = (runs.frame["evaluations"].to_numpy() / dimension)[chosen]
    alike = runs.frame[chosen].groupby(["optimizer", "problem"]).indices
    shares = np.array([np.isfinite(spent[own]).mean(axis=0) for own in alike.values()])
    if not ((shares > 0) & (shares < 1)).any():
        return {}
    sizes = [len(own) for own in alike.values()]
    # The same number of repeats for each run: otherwise some problems would count for more than others.
    repeats = max(min(-(-SAMPLES // min(sizes)), MOST // max(sizes)), 1)
    rng, found = np.random.default_rng(SEED), defaultdict(list)
    for (name, _), own in alike.items():
        every = np.tile(whole[own], repeats)
        found[str(name)] += [restarted(np.tile(each, repeats), every, rng) for each in spent[own].T]
    return {name: np.concatenate(each) for name, each in found.items()}


def restarted(spent: np.ndarray, whole: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return each run's evaluations to reach a target, where a run that fails (NaN) is followed by others until one succeeds.

    The other runs are drawn with replacement from all runs. A run that fails costs its `whole` evaluations. These are the
    derandomized simulated run-lengths of Hansen, Auger, Brockhoff, Tušar, Tušar (2016), arXiv:1605.03560. Their mean tends to
    the evaluations of all runs over the number of runs that succeed. All are NaN if no run succeeds.
    """
    reached = np.isfinite(spent)
    failed = np.flatnonzero(~reached)
    if not reached.any() or not len(failed):
        return spent
    more = rng.geometric(reached.mean(), len(failed)) - 1
    of = np.repeat(np.arange(len(failed)), more)
    lost = np.bincount(of, rng.choice(whole[failed], len(of)), len(failed))
    made = spent.copy()
    made[failed] = whole[failed] + lost + rng.choice(spent[reached], len(failed))
    return made


def performance(runs: Runs, chosen: np.ndarray) -> pd.DataFrame:
    """Return the share of pairs of problem and start that each optimizer solves within τ times the evaluations of the best.

    Dolan, Moré (2002), doi:10.1007/s101070100263: ρ(τ) over r = t / min t. A pair is solved at the problem's target in the
    ranking.
    """
    at = runs.frame["problem"].map(decisive(runs))
    rows = np.arange(len(at))
    spent = np.where(at.isna(), np.nan, runs.to_target["evaluations"][rows, at.fillna(0).astype(int)])
    return profile(ratios(costs(runs, chosen, spent)), "tau")


def data(runs: Runs, chosen: np.ndarray) -> pd.DataFrame:
    """Return the share of pairs of problem and start that each optimizer solves within α simplex gradients.

    Moré, Wild (2009), doi:10.1137/080724083: a pair is solved if f ≤ f_L + τ (f(x_0) - f_L), and a simplex gradient takes
    d + 1 evaluations.
    """
    at = int(np.argmin(np.abs(runs.targets - TOLERANCE)))
    simplices = runs.relative[:, at] / (runs.frame["dimension"].to_numpy() + 1)
    return profile(costs(runs, chosen, simplices), "alpha")


def groups(runs: Runs, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return the positions of each optimizer's chosen runs; an optimizer without chosen runs is left out."""
    every = {str(name): rows[chosen[rows]] for name, rows in runs.frame.groupby("optimizer").indices.items()}
    return {name: rows for name, rows in every.items() if len(rows)}


def costs(runs: Runs, chosen: np.ndarray, spent: np.ndarray) -> pd.DataFrame:
    """Return the cost of each optimizer on each problem and start that all optimizers have run; NaN if not solved."""
    keys = ["problem", "start", "draw", "optimizer"]
    known = runs.frame[keys].assign(spent=np.where(np.isnan(spent), np.inf, spent))[chosen]
    # NaN: the optimizer has not run there. Infinity: it has not solved the problem.
    table = known.drop_duplicates(keys).set_index(keys)["spent"].unstack().dropna()
    return table.replace(np.inf, np.nan)


def ratios(costs: pd.DataFrame) -> pd.DataFrame:
    """Return the costs [p, s] divided by the least cost of each problem."""
    return costs.div(costs.min(axis=1), axis=0)


def profile(costs: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the share of problems that each column solves within a cost; empty for one column, or if nothing is solved."""
    if costs.shape[1] < 2 or not costs.notna().any(axis=None):
        return pd.DataFrame(columns=["optimizer", name, "fraction"])
    parts = []
    for optimizer, column in costs.items():
        within, fractions = cumulative(column.to_numpy(np.float64))
        parts.append(pd.DataFrame({"optimizer": optimizer, name: within, "fraction": fractions}))
    return pd.concat(parts, ignore_index=True)


def cumulative(spent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cumulative distribution of `spent`: the values at which the share rises, and the share there.

    NaN in `spent` means that the value is never reached. If all are NaN, the result is the share 0 at NaN.
    """
    values, counts = np.unique(spent[np.isfinite(spent)], return_counts=True)
    if not len(values):
        return np.array([np.nan]), np.zeros(1)
    fractions = counts.cumsum() / max(len(spent), 1)
    if len(values) > POINTS:
        kept = np.unique(
            np.searchsorted(values, np.geomspace(max(values[0], 1e-12), values[-1], POINTS)).clip(0, len(values) - 1)
        )
        kept = np.union1d(kept, [0, len(values) - 1])
        values, fractions = values[kept], fractions[kept]
    return values, fractions
