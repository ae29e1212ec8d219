"""What a loss measures beside itself, now and then: the loss of all data where a step has a batch of it, or a held-out error.

Rows are measured after the steps that made them, so that the loop neither waits for it nor depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import tensorflow as tf

from runner.losses import Loss
from runner.trace import Trace


def measuring(loss: Loss, every: int | None) -> Callable[[Trace, bool], Trace]:
    """Return a function of rows, and of whether a run ends with them, that returns them measured.

    Measured are the rows of every so many-th step (None: of no step) and the last one of a run; NaN stands at the others.
    """

    def measured(rows: Trace, ended: bool) -> Trace:
        if not loss.measures:
            return rows
        found = {name: np.full(len(rows), np.nan) for name in loss.measures}
        due = set(range(-rows.start % every, len(rows), every)) if every else set[int]()
        for row in sorted(due | ({len(rows) - 1} if ended else set())):
            x = tf.constant(rows.x[row])
            for name, measure in loss.measures.items():
                found[name][row] = float(measure(x))
        return replace(rows, measured=found)

    return measured
