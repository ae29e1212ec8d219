"""How n steps run: an execution is `(step, chunk) -> Execution`, which takes steps and returns their rows as NumPy arrays."""

from __future__ import annotations

from functools import partial

import numpy as np
import tensorflow as tf

from runner.executions.compiled import CompiledLoop, compiling, traced
from runner.strategies import Step
from runner.trace import Execution, Trace


def eager(step: Step, *, chunk: int) -> Execution:
    """Run each step by itself, in plain Python: `print` and a debugger work inside the loss.

    Each row calls the loss once. Before a run is created, the loss is called once more, at the first point: faults of the loss
    are reported then. This call is separate, because a strategy can take only whole steps.
    """
    taken = 0

    def advance(n: int) -> Trace:
        nonlocal taken
        rows = [step.take()]
        while len(rows) < n and step.ended() is None:
            rows.append(step.take())
        # Not with tf.nest, which would take a tenth of the time of a small step.
        x, loss, gradient = (
            np.array([part.numpy() for part in parts]) for parts in zip(*(row[:3] for row in rows), strict=True)
        )
        named = {name: np.array([row.named[name].numpy() for row in rows]) for name in rows[0].named}
        start, taken = taken, taken + len(rows)
        return Trace(start, x, loss, gradient, named)

    def last() -> Trace:
        return traced(taken, tf.nest.map_structure(lambda part: part.numpy()[None], step.evaluate()))

    def restart(at: int = 0) -> None:
        nonlocal taken
        taken = at
        step.restart()

    return Execution(advance, last, restart, chunk, step.ended, step.close, step.variables, stalled=step.stalled)


# The loss runs as the user's Python in each step, not only while it is traced.
setattr(eager, "in_python", True)


def graph(step: Step, *, chunk: int) -> Execution:
    """Run n steps as one loop in a `tf.function`."""
    return looped(step, chunk, jit_compile=False)


def xla(step: Step, *, chunk: int) -> Execution:
    """Run n steps as one loop compiled by XLA."""
    return looped(step, chunk, jit_compile=True)


def looped(step: Step, chunk: int, *, jit_compile: bool) -> Execution:
    """Run n steps as one program; for a strategy that Python drives, compile its evaluations instead."""
    if step.compiled is None:
        return CompiledLoop(step, chunk, jit_compile).execution()
    with compiling(jit_compile):
        return eager(step.compiled(partial(tf.function, jit_compile=jit_compile, autograph=False)), chunk=chunk)
