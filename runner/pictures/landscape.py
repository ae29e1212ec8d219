"""The loss around a run's path: the plane that shows the path best, and the loss on a grid in this plane."""

from __future__ import annotations

import pdb
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from typing import Any

import numpy as np
import tensorflow as tf

from runner.errors import UserError, first_line
from runner.losses import Loss

# Points of a curve, and points across and up a plane. The latter two differ, so that a loss that confuses its axes is detected.
CURVE, ACROSS, UP = 401, 101, 81
# The largest time in seconds for the loss on the grid.
BUDGET = 0.5
# Operations that run Python, or print, each time a graph runs.
LOUD = {"EagerPyFunc", "Print", "PrintV2", "PyFunc", "PyFuncStateless"}
# Bytes, in double precision, of the points in one call of the loss.
POINT_BYTES = 2**26
# The margin around the path and the nearest minimiser, as a part of their extent.
MARGIN = 0.15
# The largest number of rows from which the principal directions are computed.
SPREAD = 200


@dataclass(frozen=True)
class Landscape:
    """A path in the coordinates of the picture, and the loss around it, or a note that states why there is none."""

    path: np.ndarray  # [m] or [m, 2]
    minimisers: np.ndarray  # [k] or [k, 2], those within the picture
    labels: tuple[str, ...]
    note: str = ""
    grid: dict[str, np.ndarray] = field(default_factory=dict)  # across, up, values


def none(note: str) -> Landscape:
    """Return an empty landscape with a note that states the reason."""
    return Landscape(np.empty((0, 2)), np.empty((0, 2)), ("", ""), note)


def landscape(loss: Loss, x: np.ndarray, quiet: str = "") -> Landscape:
    """Return the landscape of a path x[m, *shape] of finite points: x itself if it has at most two coordinates, else a plane.

    The plane goes through the last point along the two principal directions of the path (Li et al. 2018, arXiv:1712.09913,
    section 7). If `quiet` states a reason, the loss is not called, and the reason becomes the note.
    """
    if not len(x):
        return none("no point of the path is finite")
    flat = x.reshape(len(x), -1).astype(np.float64)
    known = np.empty((0, flat.shape[1])) if loss.minimisers is None else loss.minimisers.reshape(-1, flat.shape[1])
    if flat.shape[1] > 2:
        origin = flat[-1]
        directions, labels = principal(flat - origin)
    else:
        origin, directions = flat[-1] * 0, np.eye(flat.shape[1])
        labels = ("x", "loss") if flat.shape[1] == 1 else ("x/0", "x/1")
    path, minimisers = (flat - origin) @ directions.T, (known - origin) @ directions.T
    ends = np.concatenate([path, minimisers[np.linalg.norm(minimisers - path[-1], axis=1).argsort()[:1]]])
    low, high = ends.min(axis=0), ends.max(axis=0)
    # Each axis gets at least a tenth of the largest extent, so that a path along one axis, or one that stays, has room.
    room = np.maximum(high - low, 0.1 * max((high - low).max(), 1e-3 * np.abs(ends).max(), 1e-6))
    low, high = (low + high) / 2 - room * (0.5 + MARGIN), (low + high) / 2 + room * (0.5 + MARGIN)
    seen = minimisers[((minimisers >= low) & (minimisers <= high)).all(axis=1)]

    def points(shown: np.ndarray) -> np.ndarray:
        return (origin + shown @ directions).astype(x.dtype).reshape(*shown.shape[:-1], *x.shape[1:])

    if flat.shape[1] == 1:
        across = np.linspace(low[0], high[0], CURVE)
        found = values(loss, [across[:, None]], points, quiet)
        grid = {"across": across} | {name: each[0] for name, each in found[1].items()}
        return Landscape(path[:, 0], seen[:, 0], labels, found[0], grid if found[1] else {})
    across, up = (np.linspace(low[i], high[i], n) for i, n in ((0, ACROSS), (1, UP)))
    plane = np.stack(np.meshgrid(across, up), axis=-1)
    note, found = values(loss, list(plane), points, quiet)
    return Landscape(path, seen, labels, note, {"across": across, "up": up} | found if found else {})


def principal(moved: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Return the two directions, [2, d], in which points lie farthest from the origin, and their labels."""
    some = moved[np.unique(np.linspace(0, len(moved) - 1, SPREAD).astype(int))]
    padded = np.concatenate([some, np.zeros((2, moved.shape[1]))])
    _, sizes, directions = np.linalg.svd(padded, full_matrices=False)
    named = zip(("1st", "2nd"), sizes[:2] ** 2 / max((sizes**2).sum(), np.finfo(float).tiny), strict=True)
    first, second = (f"x along the {which} principal direction ({part:.1%} of the path)" for which, part in named)
    return directions[:2], (first, second)


def values(
    loss: Loss, rows: list[np.ndarray], points: Callable[[np.ndarray], np.ndarray], quiet: str
) -> tuple[str, dict[str, np.ndarray]]:
    """Return a note and the `values` of the loss at rows of places in the plane, [n, 2] each; `points` returns their x.

    If the loss cannot be computed, the note states the reason and there are no values.
    """
    if quiet or loss.seed is not None:
        return quiet or "the loss is another in each step, so it is not drawn", {}
    count = len(rows) * len(rows[0])
    slow = f"the loss takes too long to be drawn: {count} points"
    found, began = [], time.perf_counter()
    # If one point takes too long, a row of points may exceed the memory. The first call may compile, so its time has no limit.
    for allowed in (np.inf, 2 * BUDGET / len(rows)):
        before = time.perf_counter()
        if note := fault(loss, points(rows[0][:1]), []):
            return note, {}
        if time.perf_counter() - before > allowed:
            return slow, {}
    for row in rows:
        size = max(1, POINT_BYTES // (8 * points(row[:1]).size))
        for i in range(0, len(row), size):
            if note := fault(loss, points(row[i : i + size]), found):
                return note, {}
            if time.perf_counter() - began > BUDGET:
                return slow, {}
    table = np.concatenate(found).astype(np.float64).reshape(len(rows), -1)
    return ("", {"values": table}) if np.isfinite(table).any() else ("the loss is nowhere finite there", {})


def silent(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Return a user's function as compiled graphs, without side effects of its Python: traced once for each shape, muted.

    A call raises UserError if the function's graph prints or runs Python.
    """
    traced = tf.function(function, autograph=False)

    @cache
    def program(shape: tuple[int, ...], dtype: tf.DType) -> Any:
        with muted():
            made = traced.get_concrete_function(tf.TensorSpec(shape, dtype))
        graph = made.graph.as_graph_def()
        if LOUD & {node.op for nodes in (graph.node, *(each.node_def for each in graph.library.function)) for node in nodes}:
            raise UserError("the loss prints or runs Python in each step, so it is not drawn")
        return made

    return lambda x: program(tuple(x.shape), x.dtype)(x)


@contextmanager
def muted() -> Iterator[None]:
    """Prevent Python from printing and from stopping in a debugger in this block."""
    hook, set_trace = sys.breakpointhook, pdb.set_trace
    nothing = lambda *_, **__: None  # noqa: E731
    sys.breakpointhook = pdb.set_trace = nothing
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        sys.breakpointhook, pdb.set_trace = hook, set_trace


def fault(loss: Loss, x: np.ndarray, found: list[np.ndarray]) -> str:
    """Append the loss at x[n, *shape] to `found`, and return an empty text, or the reason if the loss cannot be computed."""
    try:
        value = np.asarray(loss(tf.constant(x)))
    except UserError as error:
        return first_line(error)
    except Exception as error:
        return f"the loss cannot be had at many points at once ({first_line(error)[:80]})"
    if value.shape != (len(x),):
        return "the loss does not broadcast over many points, so it is not drawn"
    found.append(value)
    return ""
