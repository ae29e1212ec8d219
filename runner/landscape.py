"""The loss around a run's path: the plane that shows it best, and the loss on a grid of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from runner.errors import first_line
from runner.losses import Loss

# Points of the grid: of a curve, and across and up a plane; unlike, so that a loss that mixes up its axes is found out.
CURVE, ACROSS, UP = 401, 101, 81
# Seconds that the loss on the grid may take.
BUDGET = 0.5
# Of the room around what is shown, as a part of it.
MARGIN = 0.15
# Rows that the principal directions are found from.
SPREAD = 200


@dataclass(frozen=True)
class Landscape:
    """A path as it is shown, and the loss around it, or a note that says why there is none."""

    path: np.ndarray  # [m] or [m, 2]
    minimisers: np.ndarray  # [k] or [k, 2], those in sight
    labels: tuple[str, ...]
    note: str = ""
    grid: dict[str, np.ndarray] = field(default_factory=dict)  # across, up, values


def landscape(loss: Loss, x: np.ndarray) -> Landscape:
    """Return what shows the path x[m, *shape] of finite points best: x itself up to two coordinates, beyond that the plane
    through the last point along the two principal directions of the path (Li et al. 2018, arXiv:1712.09913, section 7).
    """
    flat = x.reshape(len(x), -1).astype(np.float64)
    known = np.empty((0, flat.shape[1])) if loss.minimisers is None else loss.minimisers.reshape(-1, flat.shape[1])
    origin, directions, labels = flat[-1] * 0, np.eye(flat.shape[1]), tuple(f"x/{i}" for i in range(flat.shape[1]))
    if flat.shape[1] > 2:
        origin = flat[-1]
        directions, labels = principal(flat - origin)
    elif flat.shape[1] == 1:
        labels = ("x", "loss")
    path, minimisers = (flat - origin) @ directions.T, (known - origin) @ directions.T
    ends = np.concatenate([path, minimisers[np.linalg.norm(minimisers - path[-1], axis=1).argsort()[:1]]])
    low, high = ends.min(axis=0), ends.max(axis=0)
    # A path that goes nowhere, or along one axis, gets as much room across as it has at the most.
    room = np.maximum(high - low, 0.1 * max((high - low).max(), 1e-3 * np.abs(ends).max(), 1e-6))
    low, high = (low + high) / 2 - room * (0.5 + MARGIN), (low + high) / 2 + room * (0.5 + MARGIN)
    seen = minimisers[((minimisers >= low) & (minimisers <= high)).all(axis=1)]

    def points(shown: np.ndarray) -> np.ndarray:
        return (origin + shown @ directions).astype(x.dtype).reshape(*shown.shape[:-1], *x.shape[1:])

    if flat.shape[1] == 1:
        across = np.linspace(low[0], high[0], CURVE)
        found = values(loss, [points(across[:, None])])
        grid = {"across": across} | {name: each[0] for name, each in found[1].items()}
        return Landscape(path[:, 0], seen[:, 0], labels, found[0], grid if found[1] else {})
    across, up = (np.linspace(low[i], high[i], n) for i, n in ((0, ACROSS), (1, UP)))
    plane = np.stack(np.meshgrid(across, up), axis=-1)
    note, found = values(loss, [points(row) for row in plane])
    return Landscape(path, seen, labels, note, {"across": across, "up": up} | found if found else {})


def principal(moved: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Return the two directions, [2, d], in which points lie farthest from the origin, and what they are called."""
    some = moved[np.unique(np.linspace(0, len(moved) - 1, SPREAD).astype(int))]
    padded = np.concatenate([some, np.zeros((2, moved.shape[1]))])
    _, sizes, directions = np.linalg.svd(padded, full_matrices=False)
    named = zip(("1st", "2nd"), sizes[:2] ** 2 / max((sizes**2).sum(), np.finfo(float).tiny), strict=True)
    first, second = (f"x along the {which} principal direction ({part:.1%} of the path)" for which, part in named)
    return directions[:2], (first, second)


def values(loss: Loss, rows: list[np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """Return the loss at rows of points, each [n, *shape], or why it cannot be had."""
    if loss.seed is not None:
        return "the loss is another in each step, so it is not drawn", {}
    found, began = [], time.perf_counter()
    for row in rows:
        try:
            found.append(np.asarray(loss(tf.constant(row))))
        except Exception as error:
            return f"the loss cannot be had at many points at once ({first_line(error)[:80]})", {}
        if found[-1].shape != (len(row),):
            return "the loss does not broadcast over many points, so it is not drawn", {}
        if time.perf_counter() - began > BUDGET:
            return f"the loss takes too long to be drawn: {len(rows) * len(rows[0])} points", {}
    table = np.array(found, np.float64)
    return ("", {"values": table}) if np.isfinite(table).any() else ("the loss is nowhere finite there", {})
