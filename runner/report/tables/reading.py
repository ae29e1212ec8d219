"""Recorded runs as tables, made of their records in the store and of their trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from runner.errors import UserError
from runner.report.tables.describing import described, number
from runner.report.tables.facts import UNKNOWN, Fact
from runner.report.tables.losses import THREADS, of_loss
from runner.report.tables.selection import Record, Selection
from runner.report.tables.trajectories import TARGETS, Followed, follow, lowest_loss
from runner.tracking.store import artifacts

# The approximate number of steps at which the gaps are held.
POINTS = 60
SECONDS = "seconds"


@dataclass(frozen=True)
class Runs:
    """Runs that have ended, row by row, and their results at each target and step."""

    frame: pd.DataFrame  # a row a run, index = run_id
    targets: np.ndarray  # [t], of the gap
    to_target: dict[str, np.ndarray]  # steps, evaluations, and seconds if comparable: [runs, t], NaN where not reached
    grid: np.ndarray  # [g] steps: 0, then evenly spaced in the logarithm, up to the longest run
    gap: np.ndarray  # [runs, g]: the lowest loss so far above the `reference` of the frame
    spent: dict[str, np.ndarray]  # evaluations, and seconds if comparable, until the steps of the grid: [runs, g]
    title: str
    # The evaluations until the gap, divided by the first gap, is at most each target: [runs, t].
    relative: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    words: str = ""  # the overrides of the sweep
    options: str = ""  # of the command line, such as --config-dir
    minimisers: Mapping[str, np.ndarray] = field(default_factory=dict)  # of each problem with d = 2 and known ones, [m, 2]
    compared: str = "method"  # the noun for the groups that are compared
    left_out: int = 0  # runs without a trajectory: failed, killed, or still running
    repeated: int = 0  # runs that repeat another run row by row; not in the frame
    incomparable: int = 0  # runs of a random loss that measures no full loss; not in the frame

    @property
    def count(self) -> int:
        """The number of runs in the frame and of their repetitions."""
        return len(self.frame) + self.repeated

    def only(self, kept: np.ndarray) -> Runs:
        """Return the runs that a mask keeps."""
        return replace(
            self,
            frame=self.frame[kept],
            to_target={name: each[kept] for name, each in self.to_target.items()},
            gap=self.gap[kept],
            spent={name: each[kept] for name, each in self.spent.items()},
            relative=self.relative[kept],
        )


def read(client: Any, found: Sequence[Record], facts: Mapping[str, Fact], selection: Selection) -> Runs:
    """Return runs as tables; `facts` are the facts of their losses, by `of_loss`. Raises UserError if no run has rows."""
    ended = [each for each in found if {"loss", "optimizer", "ending"} <= each.tags.keys()]
    if not ended:
        raise UserError(f"{selection.title} has no runs with rows yet")
    known = [facts.get(of_loss(each), UNKNOWN) for each in ended]
    frame = described(ended)
    frame["minimum"] = minimum(frame, ended, facts)
    limits = np.array([2 / fact.curvature if fact.curvature else np.nan for fact in known])
    frame["limit"] = np.where(frame["descent"], limits, np.nan)
    frame["reference"] = frame["minimum"].fillna(best_known(client, ended, frame))
    grid = steps_shown(int(frame["iterations"].max()))
    rows = each_trajectory(client, ended, lambda i, path: follow(path, frame["reference"].iloc[i], known[i], grid))
    there = [each is not None for each in rows]
    if not any(there):
        raise UserError(f"{selection.title} has no runs with rows yet")
    frame = frame[there].assign(**seen(rows := [each for each in rows if each is not None]))
    runs = Runs(
        frame,
        TARGETS,
        {name: np.array([getattr(each, name) for each in rows]) for name in ("steps", "evaluations")},
        grid,
        np.array([each.gap for each in rows], np.float32),
        {"evaluations": np.array([each.spent for each in rows], np.float32)},
        selection.title,
        np.array([each.relative for each in rows]),
        selection.words,
        selection.options,
        minimisers(frame["problem"], compress(known, there)),
        left_out=len(selection.ids) - len(rows),
    )
    return contested(with_seconds(distinct(comparable(runs))))


def each_trajectory(client: Any, found: Sequence[Record], look: Callable[[int, Path], Any]) -> list[Any]:
    """Return `look(number, trajectory)` of each run, None if the run has no trajectory; only a few are open at a time."""

    def at(i: int) -> Any:
        record = found[i]
        with artifacts.opened(client, record.run_id, record.artifact_uri, "trajectory.parquet") as path:
            return None if path is None else look(i, path)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(at, range(len(found))))


def best_known(client: Any, found: Sequence[Record], frame: pd.DataFrame) -> pd.Series:
    """Return for each run the lowest loss of its problem's runs, which replaces an unknown minimum.

    Earlier versions recorded a lucky draw as the best of a random loss. For such runs the trajectories are read.
    """
    best = frame["best_loss"].copy()
    full = [each.metrics.get("full_loss") for each in found]
    last = [each.metrics.get("last_loss") for each in found]
    unsure = [i for i, (a, b) in enumerate(zip(full, last, strict=True)) if a is not None and a != b]
    unsure = [i for i in unsure if np.isnan(frame["minimum"].iloc[i])]
    if unsure:
        asked = each_trajectory(client, [found[i] for i in unsure], lambda _, path: lowest_loss(path))
        best.iloc[unsure] = [np.nan if each is None else each for each in asked]
    return best.groupby(frame["problem"]).transform("min")


def comparable(runs: Runs) -> Runs:
    """Return the runs whose losses can be compared; the values of a random loss without a full loss are lucky draws.

    Raises UserError if no run is left.
    """
    kept = runs.frame["compared"].to_numpy(bool)
    if not kept.any():
        raise UserError(f"{runs.title}: the losses of all runs are random and measure no full_loss, so nothing can be compared")
    return replace(runs.only(kept), incomparable=int((~kept).sum()))


def distinct(runs: Runs) -> Runs:
    """Return the runs without the runs that repeat another run of the same configuration row by row.

    Repetitions count as one start, whatever their seeds. The new column `draw` is the seed, or 0 if no run of the problem is
    random.
    """
    keys = ["problem", "optimizer", "configuration", "trajectory"]
    kept = ~runs.frame.duplicated(keys).to_numpy()
    found = replace(runs.only(kept), repeated=int((~kept).sum()))
    frame = found.frame
    # Different runs from one start by one configuration: the loss or the method draws random numbers.
    drawn = frame.duplicated([*keys[:3], "start"], keep=False) | (frame["every"] > 1) | (frame["noise"] != "none")
    random = drawn.groupby(frame["problem"]).transform("any")
    return replace(found, frame=frame.assign(draw=frame["seed"].where(random, 0)))


def with_seconds(runs: Runs) -> Runs:
    """Return the runs with their seconds, unless some jobs were fused: these have equal shares of their group's seconds."""
    if runs.frame["fused"].any():
        return runs
    pace = (runs.frame["seconds"] / runs.frame["iterations"].clip(lower=1)).to_numpy(np.float64)[:, None]
    to_target = runs.to_target | {SECONDS: runs.to_target["steps"] * pace}
    # A run that has ended spends nothing more.
    steps = np.minimum(runs.grid, runs.frame["iterations"].to_numpy()[:, None])
    return replace(runs, to_target=to_target, spent=runs.spent | {SECONDS: (steps * pace).astype(np.float32)})


def contested(runs: Runs) -> Runs:
    """Return the runs without the targets that only the best run reaches, on problems of unknown minimum.

    On such a problem the reference is the lowest loss of all runs, which the best run reaches by definition. A target counts
    if a run of another configuration reaches it, or, if there is only one configuration, another run.
    """
    frame, steps = runs.frame, runs.to_target["steps"]
    barred = np.zeros((len(frame), 2, len(runs.targets)), bool)
    unknown = frame.assign(row=range(len(frame)))[frame["minimum"].isna().to_numpy()]
    for _, own in unknown.groupby("problem", sort=False):
        rows = own["row"].to_numpy()
        best = int(np.argmin(own["best_loss"].fillna(np.inf).to_numpy()))
        ways = (own["optimizer"] + " " + own["configuration"]).to_numpy()
        others = ways != ways[best] if len(set(ways)) > 1 else np.arange(len(own)) != best
        for i, reached in enumerate((steps, runs.relative)):
            barred[rows, i] = ~np.isfinite(reached[rows[others]]).any(axis=0)
    to_target = {name: np.where(barred[:, 0], np.nan, each) for name, each in runs.to_target.items()}
    return replace(runs, to_target=to_target, relative=np.where(barred[:, 1], np.nan, runs.relative))


def minimisers(problems: pd.Series, known: Iterable[Fact]) -> dict[str, np.ndarray]:
    """Return the minimisers of each problem with d = 2 whose runs all have the same minimisers."""
    found: dict[str, dict[bytes, np.ndarray]] = {}
    for problem, fact in zip(problems, known, strict=True):
        found.setdefault(problem, {})[fact.minimisers.tobytes()] = fact.minimisers
    only = {problem: next(iter(each.values())) for problem, each in found.items() if len(each) == 1}
    return {problem: each for problem, each in only.items() if len(each) and each.shape[1] == 2}


def seen(rows: Sequence[Followed]) -> dict[str, list[Any]]:
    """Return the columns that hold one value of each trajectory."""
    names = ("start", "trajectory", "dimension", "minimiser", "last_loss", "best_loss", "rows", "every")
    columns: dict[str, list[Any]] = {name: [getattr(each, name) for each in rows] for name in names}
    columns["x0"] = [each.x0[0] for each in rows]
    return columns | {"x1": [each.x0[1] if len(each.x0) > 1 else np.nan for each in rows]}


def minimum(frame: pd.DataFrame, found: Sequence[Record], facts: Mapping[str, Fact]) -> np.ndarray:
    """Return the minimum of each run's loss: the fact's, else the one that the problem's runs recorded; NaN if neither."""
    known = np.array([facts.get(of_loss(each), UNKNOWN).minimum for each in found], float)
    above = pd.DataFrame([each.metrics for each in found], index=frame.index)
    last = number(above, "full_loss").fillna(number(above, "last_loss"))
    # A random loss has another last loss in each step, so its full loss comes first. The smallest loss has the least rounding.
    told = pd.DataFrame({"minimum": last - number(above, "loss_above_minimum"), "size": last.abs()}).dropna()
    best = told.assign(problem=frame["problem"]).sort_values("size").groupby("problem")["minimum"].first()
    return np.where(np.isnan(known), frame["problem"].map(best).astype(float), known)


def steps_shown(longest: int) -> np.ndarray:
    """Return 0 and about POINTS steps that are evenly spaced in the logarithm, up to the longest run's last step."""
    return np.unique(np.concatenate([[0], np.geomspace(1, max(longest, 1), POINTS).round()]).astype(int))
