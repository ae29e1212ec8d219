"""Recorded runs as tables: what the store says of them, and what their trajectories show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from runner import artifacts
from runner.errors import UserError
from runner.reports.describing import described, number
from runner.reports.facts import UNKNOWN, Fact
from runner.reports.losses import THREADS, of_loss
from runner.reports.selection import Record, Selection
from runner.trace import norm

TARGETS = 10.0 ** -np.arange(1, 9)
# Steps at which the gaps are kept, about.
POINTS = 60
# Coordinates that tell one start from another, and that are searched for a minimiser.
COORDINATES = 16
# How near to a minimiser a run has reached it, relative to 1 + its norm.
NEAR = 1e-2


@dataclass(frozen=True)
class Runs:
    """Runs that have ended, row by row, and what they came to at each target and step."""

    frame: pd.DataFrame  # a row a run, index = run_id
    targets: np.ndarray  # [t], of the gap
    to_target: dict[str, np.ndarray]  # steps, evaluations, seconds: [runs, t], NaN where not reached
    grid: np.ndarray  # [g] steps: 0, then even in the logarithm, up to the longest run
    gap: np.ndarray  # [runs, g]: the lowest so far above the minimum, or where that is unknown above the best seen
    pace: dict[str, np.ndarray]  # evaluations, seconds: [runs], of one step
    title: str
    # The evaluations until the gap is at most this part (targets) of what it was at the start, [runs, t].
    relative: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    words: str = ""  # overrides that the runs come from
    minimisers: Mapping[str, np.ndarray] = field(default_factory=dict)  # of each problem in a plane that has them, [m, 2]
    compared: str = "optimizer"  # what one of those is that are compared
    left_out: int = 0  # runs without a trajectory: failed, killed, or running yet


class Followed(NamedTuple):
    """What a trajectory shows."""

    steps: np.ndarray  # [t], NaN where a target is not reached
    relative: np.ndarray  # [t], of targets that are parts of the first gap
    gap: np.ndarray  # [g]
    x0: np.ndarray  # the first COORDINATES
    start: str
    dimension: int
    minimiser: int
    last_loss: float
    best_loss: float
    rows: int


def read(client: Any, found: Sequence[Record], facts: Mapping[str, Fact], selection: Selection) -> Runs:
    """Return runs as tables; `facts` are known of their losses, by `of_loss`. Raises UserError where no run has rows."""
    ended = [each for each in found if {"loss", "optimizer", "ending"} <= each.tags.keys()]
    if not ended:
        raise UserError(f"{selection.title} has no runs with rows yet")
    known = [facts.get(of_loss(each), UNKNOWN) for each in ended]
    frame = described(ended)
    frame["minimum"] = minimum(frame, ended, facts)
    frame["limit"] = [2 / fact.curvature if fact.curvature else np.nan for fact in known]
    grid = steps_shown(int(frame["iterations"].max()))
    every = followed(client, ended, frame, known, grid)
    there = [each is not None for each in every]
    rows = [each for each in every if each is not None]
    if not rows:
        raise UserError(f"{selection.title} has no runs with rows yet")
    frame = frame[there].assign(**seen(rows))
    pace = {
        # Row 0 is evaluated as well.
        "evaluations": (frame["evaluations"] / (frame["iterations"] + 1)).to_numpy(np.float64),
        "seconds": (frame["seconds"] / frame["iterations"].clip(lower=1)).to_numpy(np.float64),
    }
    steps, relative = (np.array([getattr(each, name) for each in rows]) for name in ("steps", "relative"))
    per_row = pace["evaluations"][:, None]
    return Runs(
        frame,
        TARGETS,
        {"steps": steps, "evaluations": (steps + 1) * per_row, "seconds": steps * pace["seconds"][:, None]},
        grid,
        np.array([each.gap for each in rows], np.float32),
        pace,
        selection.title,
        (relative + 1) * per_row,
        selection.words,
        minimisers(frame["problem"], compress(known, there)),
        left_out=len(selection.ids) - len(rows),
    )


def followed(
    client: Any, found: Sequence[Record], frame: pd.DataFrame, known: Sequence[Fact], grid: np.ndarray
) -> list[Followed | None]:
    """Return what each run's trajectory shows, None where it has none; of a server only a few are here at a time."""
    best = frame.groupby("problem")["best_loss"].transform("min")

    def row(record: Record, minimum: float, fact: Fact) -> Followed | None:
        with artifacts.opened(client, record.run_id, record.artifact_uri, "trajectory.parquet") as path:
            return None if path is None else follow(path, minimum, fact, grid)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(row, found, frame["minimum"].fillna(best), known))


def minimisers(problems: pd.Series, known: Iterable[Fact]) -> dict[str, np.ndarray]:
    """Return the minimisers of each problem in a plane all of whose runs have the same."""
    found: dict[str, dict[bytes, np.ndarray]] = {}
    for problem, fact in zip(problems, known, strict=True):
        found.setdefault(problem, {})[fact.minimisers.tobytes()] = fact.minimisers
    only = {problem: next(iter(each.values())) for problem, each in found.items() if len(each) == 1}
    return {problem: each for problem, each in only.items() if len(each) and each.shape[1] == 2}


def seen(rows: Sequence[Followed]) -> dict[str, list[Any]]:
    """Return a column for each thing that trajectories show once."""
    columns: dict[str, list[Any]] = {
        name: [getattr(each, name) for each in rows]
        for name in ("start", "dimension", "minimiser", "last_loss", "best_loss", "rows")
    }
    columns["x0"] = [each.x0[0] for each in rows]
    return columns | {"x1": [each.x0[1] if len(each.x0) > 1 else np.nan for each in rows]}


def minimum(frame: pd.DataFrame, found: Sequence[Record], facts: Mapping[str, Fact]) -> np.ndarray:
    """Return the minimum of each run's loss: what is known of it, or what its problem's runs were told; NaN where neither."""
    known = np.array([facts.get(of_loss(each), UNKNOWN).minimum for each in found], float)
    above = pd.DataFrame([each.metrics for each in found], index=frame.index)
    last = number(above, "full_loss").fillna(number(above, "last_loss"))
    # A random loss has its own in each step; of small losses the difference has the least rounding.
    told = pd.DataFrame({"minimum": last - number(above, "loss_above_minimum"), "size": last.abs()}).dropna()
    best = told.assign(problem=frame["problem"]).sort_values("size").groupby("problem")["minimum"].first()
    return np.where(np.isnan(known), frame["problem"].map(best).astype(float), known)


def steps_shown(longest: int) -> np.ndarray:
    """Return 0 and about POINTS steps that are even in the logarithm, the last one among them."""
    return np.unique(np.concatenate([[0], np.geomspace(1, max(longest, 1), POINTS).round()]).astype(int))


def follow(path: Path, minimum: float, known: Fact, grid: np.ndarray) -> Followed:
    """Return what a trajectory shows of a loss above this minimum."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    listed = "x" in names
    dimension = file.schema_arrow.field("x").type.list_size if listed else sum(name.startswith("x/") for name in names)
    across = [] if listed else [f"x/{i}" for i in range(min(dimension, COORDINATES))]
    measure = "full_loss" if "full_loss" in names else "loss"
    table = file.read(columns=[*dict.fromkeys(["loss", measure]), *across], use_threads=False)
    loss = table["loss"].to_numpy().astype(np.float64)
    best = lowest(table[measure].to_numpy().astype(np.float64), minimum)
    if listed:
        # All lists may take more memory than there is.
        x = artifacts.coordinates(file.read_row_group(0, columns=["x"], use_threads=False), "x")[:1, :COORDINATES]
    else:
        x = np.stack([table[name].to_numpy() for name in across], axis=1)
    # Beyond these coordinates the loss tells starts apart.
    begun = np.append(x[0], loss[0]) if dimension > x.shape[1] else x[0]
    digest = hashlib.sha256(begun.astype(np.float32).tobytes()).hexdigest()[:12]
    least = np.nan_to_num(loss, nan=np.inf)
    at = int(least.argmin())
    return Followed(
        first(best, TARGETS),
        first(best, TARGETS * best[0]) if np.isfinite(best[0]) else np.full(len(TARGETS), np.nan),
        best[np.minimum(grid, len(best) - 1)],
        x[0].astype(np.float64),
        digest,
        dimension,
        nearest(x[at], known) if dimension == x.shape[1] else -1,
        float(loss[-1]),
        float(least[at]),
        len(loss),
    )


def lowest(loss: np.ndarray, minimum: float) -> np.ndarray:
    """Return at each row the lowest loss so far, above the minimum; infinite where none has been finite."""
    above = np.where(np.isfinite(loss), loss - minimum, np.inf)
    return np.maximum(np.minimum.accumulate(above), 0)


def first(best: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the first row at which each target is reached, NaN where it is not."""
    at = np.searchsorted(-best, -targets).astype(float)
    return np.where(at < len(best), at, np.nan)


def nearest(x: np.ndarray, known: Fact) -> int:
    """Return which minimiser x is at, or -1."""
    if not len(known.minimisers) or known.minimisers.shape[1] != len(x) or not np.isfinite(x).all():
        return -1
    away = norm(known.minimisers - x)
    at = int(away.argmin())
    return at if away[at] <= NEAR * (1 + norm(known.minimisers[at])) else -1
