"""What a loss measures beside itself, now and then: the loss of all data where a step has a batch of it, or a held-out error.

Rows are measured after the steps that made them, so that the loop neither waits for it nor depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import tensorflow as tf

from runner.loop import FULL, LOSS
from runner.losses import Loss
from runner.trace import Trace

# Steps between two measured rows of a run that is not recorded, which has no tracking.full_loss_every.
EVERY = 100


def best_of(loss: Loss) -> str | None:
    """Return the quantity by which rows of a loss are compared: of a random loss its full loss, or None where it has none.

    The lowest of a random loss's own values is a lucky draw.
    """
    if loss.seed is None:
        return LOSS
    return FULL if FULL in loss.measures else None


def measuring(loss: Loss, every: int | None) -> Callable[[Trace, bool], Trace]:
    """Return a function of rows, and of whether a run ends with them, that returns them measured.

    Measured are the rows of every so many-th step (None: every EVERY-th) and the last one of a run; NaN stands at the others.
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
