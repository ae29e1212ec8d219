"""Steps as one compiled loop: n steps run as one program, and their rows are returned together."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from runner.errors import UserError, first_line, place
from runner.strategies import Row, Step
from runner.trace import Execution, Trace

# Bytes of one chunk's rows: 100 rows where x has 10,000 numbers, whose steps take 10 µs. With fewer rows, the 50 µs of a call
# show; with more, the rows leave the processor's cache.
CHUNK_BYTES = 8 * 2**20
# XLA compiles a loop as one kernel for the processor if one iteration touches fewer bytes than this; any other loop runs as a
# graph of small kernels, of which each costs some 50 ns. The default is 1 KiB, a dozen numbers. Up to 64 KiB, Adam with 10
# numbers is 17 times as fast, with 100 nine times; beyond it, XLA's own products of matrices lose against Eigen's.
KERNEL_OPTION, KERNEL_BYTES = "xla_cpu_small_while_loop_byte_threshold", 64 * 2**10
# Maximum age, in seconds, of the snapshot from which a chunk is run again, if the run ends within the chunk.
SNAPSHOT_SECONDS = 0.1


class Snapshot(NamedTuple):
    """The values of a program's variables before a step, and their time by the monotonic clock."""

    step: int
    time: float
    values: list[tf.Tensor]


class CompiledLoop:
    """The steps of a strategy as one program.

    Between two calls `taken` is the number of steps that led to the present values of the program's variables. `reached` is the
    row of that point, or None where no call has evaluated it. `snapshot` holds the values before step `snapshot.step`, which is
    `taken` or earlier.
    """

    def __init__(self, step: Step, chunk: int, jit_compile: bool) -> None:
        self.step, self.jit_compile = step, jit_compile
        self.program, self.capacity = program_of(step, chunk, jit_compile)
        self.variables = captured(self.program)
        self.begin(0)

    def execution(self) -> Execution:
        """Return the execution that runs this loop."""
        step = self.step
        return Execution(
            self.advance,
            self.last,
            self.restart,
            self.capacity,
            variables=step.variables,
            rewind=self.rewind,
            stalled=step.stalled,
        )

    def begin(self, taken: int) -> None:
        """Declare that the present values of the variables are the values after `taken` steps; discard the snapshot."""
        self.taken, self.reached, self.snapshot = taken, None, Snapshot(taken, -math.inf, [])

    def advance(self, n: int) -> Trace:
        """Take n steps, and return their rows."""
        # Seldom, because reading a variable takes as long as a hundred small steps.
        if time.monotonic() - self.snapshot.time > SNAPSHOT_SECONDS:
            values = [tf.raw_ops.ReadVariableOp(resource=each, dtype=dtype) for each, dtype in self.variables]
            self.snapshot = Snapshot(self.taken, time.monotonic(), values)
        start, rows = self.taken, self.run(n)
        # A view suffices: the program's results are already in the host's memory, and nothing else writes to them.
        return traced(start, tf.nest.map_structure(lambda part: np.asarray(memoryview(part))[:n], rows))

    def run(self, n: int) -> Row:
        """Run the program for n steps, and return its buffers of rows."""
        rows, self.reached = self.program(tf.constant(n))
        self.taken += n
        return rows

    def last(self) -> Trace:
        """Return the row of the present point."""
        if self.reached is None:
            with compiling(self.jit_compile):
                self.run(0)
        return traced(self.taken, tf.nest.map_structure(lambda part: part.numpy()[None], self.reached))

    def rewind(self, step: int) -> None:
        """Return to the point before a step: restore the snapshot, and run the steps from there again."""
        if step == self.taken:
            return
        for (each, _), value in zip(self.variables, self.snapshot.values, strict=True):
            tf.raw_ops.AssignVariableOp(resource=each, value=value)
        self.taken = self.snapshot.step
        while self.taken < step:
            self.run(min(step - self.taken, self.capacity))

    def restart(self, step: int = 0) -> None:
        """Restart at a step, after the variables got new values."""
        self.begin(step)
        self.step.restart()


def program_of(step: Step, chunk: int, jit_compile: bool) -> tuple[Any, int]:
    """Return a program and its capacity: a loop that writes its rows into buffers and then evaluates the point that it reached.

    The number of steps is an input; the length of the buffers, the capacity, is fixed. One program serves every n ≤ capacity,
    and a call with n = 0 compiles it.
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
        # One iteration at a time: a step reads the variables that the step before has written.
        _, buffers = tf.while_loop(lambda i, _: i < n, body, (tf.constant(0), buffers), parallel_iterations=1)
        return tf.nest.map_structure(lambda buffer: buffer.stack(), buffers), step.evaluate()

    with compiling(jit_compile):
        # A call of the tf.function itself searches for the matching trace, and takes twice as long.
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
    """Raise UserError, which names a remedy, if TensorFlow cannot trace or compile a loss or an optimizer in this block."""
    try:
        with larger_kernels():
            yield
    except UserError:
        raise
    except Exception as error:
        # An error of the user's own code would occur in any execution.
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

    XLA reads the environment variable once, at the first compilation of a process; later changes have no effect.
    """
    before = os.environ.get("XLA_FLAGS")
    if "xla_backend_extra_options" not in (before or ""):
        os.environ["XLA_FLAGS"] = f"{before or ''} --xla_backend_extra_options={KERNEL_OPTION}={KERNEL_BYTES}"
    try:
        yield
    finally:
        os.environ.pop("XLA_FLAGS") if before is None else os.environ.update(XLA_FLAGS=before)
