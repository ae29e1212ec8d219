"""Compiled programs, used again: a job that differs from an earlier one in guess and learning rate alone traces nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from runner.optimizers import NoOptimizer
from runner.trace import Execution

# Programs that a process keeps: a sweep that alternates between more of them than this compiles again.
KEPT = 32


class Program(NamedTuple):
    """What a run executes: x, the optimizer built for it, and the execution of their strategy."""

    x: tf.Variable
    optimizer: Any
    execution: Execution


class Programs:
    """The programs of this process, by what they depend on; the one used last is kept longest."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, Program] = OrderedDict()

    def get(self, key: Hashable, x: tf.Variable, optimizer: Any, make: Callable[[], Execution]) -> Program:
        """Return the program of this key in the state of this x and optimizer, which are new and have taken no step.

        A kept one gets their values: the first x, the learning rate, and slots as they are before step 0. Of optimizers, only
        Keras 3's and none show all their state (`variables`), so a program of another is not kept.
        """
        program = self.kept.pop(key, None)
        if program is None:
            program = Program(x, optimizer, make())
        else:
            program.x.assign(x)
            for mine, new in zip(program.optimizer.variables, optimizer.variables, strict=True):
                mine.assign(new)
            program.execution.restart()
        if isinstance(optimizer, keras.optimizers.Optimizer | NoOptimizer):
            self.kept[key] = program
            if len(self.kept) > KEPT:
                self.kept.popitem(last=False)
        return program
