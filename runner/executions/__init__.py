"""How n steps run: an execution is `(step, row) -> Execution`, which takes steps and returns their rows as NumPy arrays."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from runner.errors import UserError, first_line, place
from runner.strategies import Row, Step
from runner.trace import Execution, Trace

# What one chunk's rows may take: with x of 10,000 numbers, whose steps take 10 µs, 100 of them. Less, and the 50 µs of a call
# tell; more, and the rows leave the processor's cache.
CHUNK_BYTES = 8 * 2**20
# A loop that touches fewer bytes than this in one iteration XLA compiles as one kernel for the processor; any other runs as a
# graph of small ones, of which each costs some 50 ns. By default that is 1 KiB, a dozen numbers. Up to 64, Adam with 10
# numbers is 17 times as fast, with 100 nine times; beyond it, its own products of matrices lose against Eigen's.
KERNEL_OPTION, KERNEL_BYTES = "xla_cpu_small_while_loop_byte_threshold", 64 * 2**10
# What a compiled loop begins again with where it has gone too far is no older than this.
KEPT_SECONDS = 0.1


class Kept(NamedTuple):
    """The values of a program's variables before a step, and when that was, by the monotonic clock."""

    step: int
    at: float
    values: list[tf.Tensor]


def eager(step: Step, *, chunk: int) -> Execution:
    """Run each step by itself, in plain Python: `print` and a debugger work inside the loss.

    Each row calls the loss once. A run calls it once more, at its first point, before it is created: what is wrong with the
    loss is told then, and a strategy can take a step only as a whole.
    """
    taken = 0

    def advance(n: int) -> Trace:
        nonlocal taken
        rows = [step.take()]
        while len(rows) < n and step.ended() is None:
            rows.append(step.take())
        # Not by tf.nest, which would take as long as a tenth of a small step.
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


# The loss is the user's Python in each step, not only where it is traced.
setattr(eager, "in_python", True)


def graph(step: Step, *, chunk: int) -> Execution:
    """Run n steps as one loop in a `tf.function`."""
    return looped(step, chunk, jit_compile=False)


def xla(step: Step, *, chunk: int) -> Execution:
    """Run n steps as one loop compiled by XLA."""
    return looped(step, chunk, jit_compile=True)


def looped(step: Step, chunk: int, *, jit_compile: bool) -> Execution:
    """Run n steps as one program; a strategy that Python drives has its evaluations compiled instead."""
    if step.compiled is not None:
        with compiling(jit_compile):
            return eager(step.compiled(partial(tf.function, jit_compile=jit_compile, autograph=False)), chunk=chunk)
    program, capacity = programmed(step, chunk, jit_compile)
    taken, reached, kept, variables = 0, None, Kept(0, -math.inf, []), captured(program)

    def advance(n: int) -> Trace:
        nonlocal kept, reached, taken
        # Seldom: to read a variable takes as long as a hundred small steps.
        if time.monotonic() - kept.at > KEPT_SECONDS:
            values = [tf.raw_ops.ReadVariableOp(resource=each, dtype=dtype) for each, dtype in variables]
            kept = Kept(taken, time.monotonic(), values)
        rows, reached = program(tf.constant(n))
        start, taken = taken, taken + n
        # A view: what the program has returned is on the host already, and nobody else writes there.
        return traced(start, tf.nest.map_structure(lambda part: np.asarray(memoryview(part))[:n], rows))

    def last() -> Trace:
        nonlocal reached
        if reached is None:
            with compiling(jit_compile):
                _, reached = program(tf.constant(0))
        return traced(taken, tf.nest.map_structure(lambda part: part.numpy()[None], reached))

    def rewind(at: int) -> None:
        nonlocal reached, taken
        if at == taken:
            return
        for (each, _), value in zip(variables, kept.values, strict=True):
            tf.raw_ops.AssignVariableOp(resource=each, value=value)
        taken = kept.step
        while taken < at:
            _, reached = program(tf.constant(n := min(at - taken, capacity)))
            taken += n

    def restart(at: int = 0) -> None:
        nonlocal kept, reached, taken
        taken, reached, kept = at, None, Kept(at, -math.inf, [])
        step.restart()

    return Execution(advance, last, restart, capacity, variables=step.variables, rewind=rewind, stalled=step.stalled)


def programmed(step: Step, chunk: int, jit_compile: bool) -> tuple[Any, int]:
    """Return a program, a loop that writes its rows into buffers and the evaluation of the point it ends at, and its capacity.

    The number of steps is an input, the buffers' length is not: one program serves every n ≤ capacity, and n = 0 compiles it.
    """
    with compiling(jit_compile):
        pattern = tf.function(step.evaluate, autograph=False).get_concrete_function().structured_outputs
    row_bytes = sum(part.dtype.size * (part.shape.num_elements() or 0) for part in tf.nest.flatten(pattern))
    capacity = max(1, min(chunk, CHUNK_BYTES // row_bytes))

    def loop(n: tf.Tensor) -> tuple[Row, Row]:
        def body(i: tf.Tensor, buffers: Row) -> tuple[tf.Tensor, Row]:
            return i + 1, tf.nest.map_structure(lambda buffer, part: buffer.write(i, part), buffers, step.take())

        buffers = tf.nest.map_structure(
            lambda part: tf.TensorArray(part.dtype, capacity, element_shape=part.shape, clear_after_read=False), pattern
        )
        # One iteration at a time: a step reads the variables that the one before has written.
        _, buffers = tf.while_loop(lambda i, _: i < n, body, (tf.constant(0), buffers), parallel_iterations=1)
        return tf.nest.map_structure(lambda buffer: buffer.stack(), buffers), step.evaluate()

    with compiling(jit_compile):
        # A call of the tf.function itself, which looks for the trace that fits, takes twice as long.
        function = tf.function(loop, jit_compile=jit_compile, autograph=False)
        return function.get_concrete_function(tf.TensorSpec((), tf.int32)), capacity


def captured(program: Any) -> list[tuple[tf.Tensor, tf.DType]]:
    """Return the handles of the variables that a program reads and writes, with their types.

    `program.variables` lacks those that TensorFlow 1's optimizers write by their handles alone.
    """
    handles = [each for each in program.captured_inputs if each.dtype == tf.resource]
    kinds = [(each, each._handle_data.shape_and_type) for each in handles if each._handle_data is not None]
    return [(each, tf.as_dtype(kind[0].dtype)) for each, kind in kinds if kind]


def traced(start: int, rows: Any) -> Trace:
    """Return rows of NumPy arrays as a Trace."""
    return Trace(start, np.asarray(rows.x), np.asarray(rows.loss), np.asarray(rows.gradient), rows.named)


@contextmanager
def compiling(jit_compile: bool) -> Iterator[None]:
    """Tell a loss or an optimizer that TensorFlow cannot trace or compile in one line that names the way out."""
    try:
        with larger_kernels():
            yield
    except UserError:
        raise
    except Exception as error:
        # What the user's code raises by itself it raises in any execution.
        if place(error) and "symbolic" not in str(error).lower():
            raise
        word = "compiled by XLA" if jit_compile else "traced"
        raise UserError(
            f"execution: the loss or the optimizer's step cannot be {word}; set execution=eager, which runs it as plain Python "
            f"({first_line(error)[:300]})"
        ) from error


@contextmanager
def larger_kernels() -> Iterator[None]:
    """Let XLA compile larger loops as one kernel, unless the user has set options of this kind.

    XLA reads the variable when a process first compiles; after that it stays as XLA found it.
    """
    before = os.environ.get("XLA_FLAGS")
    if "xla_backend_extra_options" not in (before or ""):
        os.environ["XLA_FLAGS"] = f"{before or ''} --xla_backend_extra_options={KERNEL_OPTION}={KERNEL_BYTES}"
    try:
        yield
    finally:
        os.environ.pop("XLA_FLAGS") if before is None else os.environ.update(XLA_FLAGS=before)
