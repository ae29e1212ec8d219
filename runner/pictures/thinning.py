"""Thinning: a run's rows are thinned as they arrive, and become the Drawing of its report when the run ends."""

from __future__ import annotations

import numpy as np

from runner.loop import Result
from runner.losses import Loss
from runner.pictures import landscape
from runner.pictures.data import Drawing
from runner.security import secrets
from runner.trace import Trace

# The largest number of bytes for the x of a thinned path, and its least number of rows: if x is too large for them, no path.
BYTES, LEAST = 2**26, 16


class Report:
    """Collects a run's rows: `watch(rows)` takes them in order, `drawing(result, loss)` returns the report's data."""

    def __init__(self, title: str, points: int) -> None:
        self.title, self.points = title, points
        self.kept: dict[str, np.ndarray] = {}
        self.every = 1

    def watch(self, rows: Trace) -> None:
        """Retain a thinned selection of rows."""
        room = BYTES // (3 * max(rows.x[0].nbytes, 1))
        if room >= LEAST:
            self.points = min(self.points, room)
        while len(rows) > 3 * self.points * self.every:
            self.every *= 2
        chosen = picked(rows.start, rows.loss, self.every)
        loss, gradient = rows.loss[chosen], rows.gradient[chosen]
        # If there is no room for a path, x has no numbers.
        x = rows.x[chosen] if room >= LEAST else np.empty((len(chosen), 0), rows.x.dtype)
        norm = Trace(0, x, loss, gradient).gradient_norm
        new = {"step": rows.start + chosen, "loss": loss, "gradient_norm": norm, "x": x}
        self.kept = {name: np.concatenate([self.kept[name], each]) for name, each in new.items()} if self.kept else new
        while len(self.kept["step"]) > 3 * self.points:
            self.every *= 2
            self.kept = thinned(self.kept, self.every)

    def drawing(self, result: Result, loss: Loss, quiet: str = "") -> Drawing:
        """Return the data of a run's report; if `quiet` states a reason, the loss is not called for it."""
        kept, size = self.kept, result.last.x.size
        finite = np.isfinite(kept["x"].reshape(len(kept["x"]), -1)).all(axis=1)
        if kept["x"].size:
            around = landscape.landscape(loss, kept["x"][finite], quiet)
        else:
            around = landscape.none(f"x has {size:,} numbers, whose path takes too much room to be drawn")
            finite = np.zeros(len(kept["x"]), bool)
        steps, seconds = zip(*result.pace, strict=True) if result.pace else ((0, 1), (np.nan, np.nan))
        by = f" ({result.stopped_by})" if result.stopped_by else ""
        arrays = {name: kept[name] for name in ("step", "loss", "gradient_norm")} | {
            "seconds": np.interp(kept["step"], steps, seconds),
            "measured": np.array(seconds),
            "shown": np.flatnonzero(finite),
            "path": around.path,
            "minimisers": around.minimisers,
            **around.grid,
        }
        ending = f"{result.ending.value}{by} at step {result.iterations}, loss {result.last.loss[0]:.6g}"
        return Drawing(self.title, ending, around.labels, secrets.masked(around.note), loss.minimum, arrays)


def run(title: str, *, points: int, sweep: bool) -> Report:
    """Return the report of a run; `sweep` is not used here, it only decides whether a sweep's job gets a report."""
    return Report(title, points)


def none(title: str) -> None:
    """Make no report."""


def picked(start: int, loss: np.ndarray, every: int) -> np.ndarray:
    """Return the indices of the consecutive rows that `thinned` retains, in a hundredth of its time."""
    if every == 1:
        return np.arange(len(loss))
    loss = np.nan_to_num(loss, nan=np.inf)
    head = min(-start % every, len(loss))
    tail = head + (len(loss) - head) // every * every
    begins = np.arange(head, tail, every)
    body = loss[head:tail].reshape(len(begins), every)
    kept = [[0, len(loss) - 1], begins, begins + body.argmin(axis=1), begins + body.argmax(axis=1)]
    for first, last in ((0, head), (tail, len(loss))):
        if first < last:
            kept.append([first, first + loss[first:last].argmin(), first + loss[first:last].argmax()])
    return np.unique(np.concatenate(kept)).astype(int)


def thinned(columns: dict[str, np.ndarray], every: int) -> dict[str, np.ndarray]:
    """Return the first and the last row, and of each `every` steps the first row and the rows of least and greatest loss."""
    step, loss = columns["step"], np.nan_to_num(columns["loss"], nan=np.inf)
    if every == 1 or len(step) < 3:
        return columns
    begins = np.flatnonzero(np.diff(step // every, prepend=-1))
    kept = [begins, [len(step) - 1], lowest(loss, begins), lowest(-loss, begins)]
    rows = np.unique(np.concatenate(kept))
    return {name: each[rows] for name, each in columns.items()}


def lowest(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Return the index of the lowest value of each stretch, the first of equals."""
    best = np.repeat(np.minimum.reduceat(values, begins), np.diff(begins, append=len(values)))
    rows = np.flatnonzero(values == best)
    _, first = np.unique(np.searchsorted(begins, rows, side="right"), return_index=True)
    return rows[first]
