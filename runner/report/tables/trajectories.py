"""A few numbers from the trajectory of one run: a report holds them for each run, but the rows of only a few runs at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runner.loop import EVALUATIONS, FULL
from runner.report.tables.facts import Fact
from runner.trace import norm

TARGETS = 10.0 ** -np.arange(1, 9)
# The number of coordinates that distinguish starts, and the largest dimension in which the minimiser is identified.
COORDINATES = 16
# Largest distance at which a run counts as at a minimiser, relative to 1 + the minimiser's norm.
NEAR = 1e-2


class Followed(NamedTuple):
    """The numbers from a trajectory; the loss is the full loss if the trajectory holds one."""

    steps: np.ndarray  # [t], NaN where a target is not reached
    evaluations: np.ndarray  # [t], until the target is reached
    relative: np.ndarray  # [t], evaluations until the gap, divided by the first gap, is at most the target
    gap: np.ndarray  # [g], float32
    spent: np.ndarray  # [g], evaluations, float32
    x0: np.ndarray  # the first COORDINATES numbers of the first x
    start: str
    trajectory: str  # a digest: runs with the same rows have the same one
    dimension: int
    minimiser: int
    last_loss: float
    best_loss: float
    rows: int
    every: int  # steps between the first two rows whose loss is known


def lowest_loss(path: Path) -> float:
    """Return the lowest finite loss of a trajectory; infinity if there is none."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    measure = FULL if FULL in file.schema_arrow.names else "loss"
    loss = file.read(columns=[measure], use_threads=False)[measure].to_numpy().astype(np.float64)
    return float(np.where(np.isfinite(loss), loss, np.inf).min())


def follow(path: Path, minimum: float, known: Fact, grid: np.ndarray) -> Followed:
    """Return the numbers of a trajectory, with gaps above this minimum and at the steps of this grid."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    dimension, across = coordinates(file)
    measure = FULL if FULL in names else "loss"
    counted = [name for name in names if name.startswith(EVALUATIONS)]
    whole = across if dimension <= COORDINATES and "x" not in across else []
    table = file.read(columns=[*dict.fromkeys(["loss", measure]), *counted, *whole], use_threads=False)
    loss, value = (table[name].to_numpy().astype(np.float64) for name in ("loss", measure))
    best, spent = lowest(value, minimum), evaluations({name: table[name].to_numpy() for name in counted}, len(loss))
    first_x = first_row(file, across)
    # If x has more coordinates, the loss at the start helps to distinguish starts.
    begun = np.append(first_x, loss[0]) if dimension > len(first_x) else first_x
    x = np.stack([table[name].to_numpy() for name in whole], axis=1) if whole else np.empty((len(loss), 0))
    least = np.nan_to_num(value, nan=np.inf)
    at, there = int(least.argmin()), np.flatnonzero(~np.isnan(value))
    steps = first(best, TARGETS)
    parts = first(best, TARGETS * best[0]) if np.isfinite(best[0]) else np.full(len(TARGETS), np.nan)
    shown = np.minimum(grid, len(best) - 1)
    return Followed(
        steps,
        at_steps(spent, steps),
        at_steps(spent, parts),
        best[shown].astype(np.float32),
        spent[shown].astype(np.float32),
        first_x.astype(np.float64),
        digest(begun.astype(np.float32)),
        digest(begun, loss, value, x),
        dimension,
        nearest(x[at], known) if whole else -1,
        float(value[there[-1]]) if len(there) else np.nan,
        float(least[at]),
        len(loss),
        int(there[1] - there[0]) if len(there) > 1 else len(loss),
    )


def coordinates(file: Any) -> tuple[int, list[str]]:
    """Return the dimension of a trajectory's x, and the columns of its first coordinates: one list column, or one for each."""
    schema = file.schema_arrow
    if "x" in schema.names and hasattr(schema.field("x").type, "list_size"):
        return schema.field("x").type.list_size, ["x"]
    dimension = sum(name.startswith("x/") for name in schema.names)
    return dimension, [f"x/{i}" for i in range(min(dimension, COORDINATES))]


def first_row(file: Any, columns: Sequence[str]) -> np.ndarray:
    """Return the first COORDINATES numbers of the first x."""
    batch = next(file.iter_batches(batch_size=1, columns=list(columns), use_threads=False))
    parts = [batch.column(name) for name in columns]
    numbers = [part.flatten() if hasattr(part.type, "list_size") else part for part in parts]
    return np.concatenate([part.slice(0, COORDINATES).to_numpy() for part in numbers])


def digest(*arrays: np.ndarray) -> str:
    """Return a short digest of numbers."""
    made = hashlib.sha256()
    for each in arrays:
        made.update(np.ascontiguousarray(each).tobytes())
    return made.hexdigest()[:16]


def evaluations(counts: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """Return the evaluations of a run until each row: loss and gradient at one point count once, others are added.

    A run without recorded counts has one evaluation for each row.
    """
    named = {name.split("/")[1]: each.astype(np.float64) for name, each in counts.items()}
    both = np.maximum(named.pop("loss", np.zeros(rows)), named.pop("gradient", np.arange(1.0, rows + 1)))
    return both + sum(named.values(), np.zeros(rows))


def at_steps(spent: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the evaluations until these steps; NaN where the step is NaN."""
    reached = np.isfinite(steps)
    return np.where(reached, spent[np.where(reached, steps, 0).astype(int)], np.nan)


def lowest(loss: np.ndarray, minimum: float) -> np.ndarray:
    """Return at each row the lowest loss so far above the minimum, at least 0; infinite until a loss is finite."""
    above = np.where(np.isfinite(loss), loss - minimum, np.inf)
    return np.maximum(np.minimum.accumulate(above), 0)


def first(best: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the first row at which each target is reached; NaN if it is not reached."""
    at = np.searchsorted(-best, -targets).astype(float)
    return np.where(at < len(best), at, np.nan)


def nearest(x: np.ndarray, known: Fact) -> int:
    """Return the index of the minimiser that x is at, or -1."""
    if not len(known.minimisers) or known.minimisers.shape[1] != len(x) or not np.isfinite(x).all():
        return -1
    away = norm(known.minimisers - x)
    at = int(away.argmin())
    return at if away[at] <= NEAR * (1 + norm(known.minimisers[at])) else -1
