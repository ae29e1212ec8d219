"""Occasional measures of a loss: the loss of all data if a step uses a mini-batch, or a held-out error.

Rows are measured after their steps were taken, so the loop neither waits for the measures nor depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import tensorflow as tf

from runner.loop import FULL, LOSS
from runner.losses import Loss
from runner.trace import Trace

# Steps between two measured rows of a run that is not recorded and therefore has no tracking.full_loss_every.
EVERY = 100


def best_of(loss: Loss) -> str | None:
    """Return the quantity by which rows are compared: the loss, or the full loss of a random loss, or None if it has none.

    The lowest value of a random loss itself is a lucky draw.
    """
    if loss.seed is None:
        return LOSS
    return FULL if FULL in loss.measures else None


def measuring(loss: Loss, every: int | None) -> Callable[[Trace, bool], Trace]:
    """Return a function of rows and of a flag (the run ends with them) that returns the rows with measures.

    It measures the rows of steps that are multiples of `every` (None: of EVERY) and the last row of a run; others have NaN.
    """
    every = EVERY if every is None else every

    def measured(rows: Trace, ended: bool) -> Trace:
        if not loss.measures:
            return rows
        found = {name: np.full(len(rows), np.nan) for name in loss.measures}
        due = set(range(-rows.start % every, len(rows), every))
        for row in sorted(due | ({len(rows) - 1} if ended else set())):
            x = tf.constant(rows.x[row])
            for name, measure in loss.measures.items():
                found[name][row] = float(measure(x))
        return replace(rows, measured=found)

    return measured
