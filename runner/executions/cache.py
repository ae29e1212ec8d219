"""The cache of compiled programs: a job that differs from an earlier one only in guess and learning rate traces nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from runner.optimizers import NoOptimizer
from runner.trace import Execution

# The largest number of cached programs: a sweep that alternates between more programs compiles them again.
KEPT = 32


class Program(NamedTuple):
    """The program of a run: x, the optimizer built for x, and the execution of their strategy."""

    x: tf.Variable
    optimizer: Any
    execution: Execution


class Programs:
    """The cached programs of this process, by the values that they depend on; the least recently used is dropped first."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, Program] = OrderedDict()

    def get(self, key: Hashable, x: tf.Variable, optimizer: Any, make: Callable[[], Execution]) -> Program:
        """Return the program of this key in the state of this x and this optimizer, which are new and have taken no step.

        A cached program gets their values: the first x, the learning rate, and the slots as before step 0. Only Keras 3's
        optimizers and NoOptimizer expose all their state (`variables`), so programs of other optimizers are not cached.
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
