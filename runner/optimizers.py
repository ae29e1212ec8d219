"""What the loop asks of an optimizer: `build([x])`, `apply_gradients([(gradient, x)])` and `iterations`.

Keras 3's optimizers and those of `tf_keras` have all three as they are; TensorFlow 1's get them here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from runner.errors import Incompatible, UserError

# What Keras's classes use of a variable besides its numbers one by one: its norm, or the rows and columns of a matrix. An
# optimizer of the user's declares it by an attribute `uses`.
USES = {"Adafactor": ("norm", "matrix"), "Lamb": ("norm",), "LAMB": ("norm",), "Muon": ("matrix",)}
KERAS = ("keras.", "tf_keras.")
# NumPy's numbers leave arithmetic with a variable of Keras to the variable, as they do with TensorFlow's: where a program is
# traced, the variable has no value that NumPy could compute with.
keras.Variable.__array_priority__ = 100


class NoOptimizer:
    """Counts the steps of a strategy that takes its own.

    `learning_rate` is there to be refused in one line: a sweep over it may have strategies that have no use for one.
    """

    def __init__(self, *, learning_rate: Any = None) -> None:
        self.learning_rate = learning_rate
        self.iterations = tf.Variable(tf.zeros((), tf.int64), trainable=False)
        self.variables = [self.iterations]

    def build(self, _: list[tf.Variable]) -> None:
        """Raise Incompatible where it was given a learning rate."""
        if self.learning_rate is not None:
            raise Incompatible("optimizer.learning_rate means nothing to a strategy that takes its own steps; leave it out")

    def apply_gradients(self, _: Any) -> None:
        """Raise Incompatible: it takes no steps."""
        raise Incompatible("optimizer=none takes no steps; set optimizer=sgd")


def set_floatx(dtype: str) -> None:
    """Let tf_keras, where it is imported, make its variables of this dtype, a constant learning rate's among them."""
    if tf_keras := sys.modules.get("tf_keras"):
        tf_keras.backend.set_floatx(dtype)


def ready(optimizer: Any, x: tf.Variable) -> Any:
    """Return the optimizer built for x, which is the only variable that it will ever step.

    Raises UserError where it is no optimizer.
    """
    if not callable(getattr(optimizer, "apply_gradients", None)):
        raise UserError(f"optimizer._target_ must be an optimizer with apply_gradients, got {type(optimizer).__name__}")
    if x.dtype == tf.float64:
        exact(optimizer)
        exact(getattr(optimizer, "_learning_rate", None))
        # In which tf_keras keeps what a schedule has given last.
        if (kept := getattr(optimizer, "_current_learning_rate", None)) is not None:
            optimizer._current_learning_rate = tf.Variable(tf.cast(kept, x.dtype), trainable=False)
    if isinstance(optimizer, tf.compat.v1.train.Optimizer):
        counted(optimizer)
    else:
        optimizer.build([x])
    return optimizer


def exact(of: Any) -> None:
    """Make the Python floats among the attributes of an optimizer, or a schedule, NumPy's of double precision.

    `tf.cast`, by which Keras gives them x's dtype, first makes a Python float single precision: 0.999 becomes 0.99900001.
    """
    for name, value in list(getattr(of, "__dict__", {}).items()):
        if type(value) is float:
            setattr(of, name, np.float64(value))
    if isinstance(of, keras.optimizers.schedules.CosineDecayRestarts):
        # It counts restarts by a quotient of logarithms, which at a restart may be rounded to below a whole number: the rate
        # would be that of the end of the cycle, 0. Cycles that are shorter by so little are over in time.
        of.first_decay_steps = np.float64(of.first_decay_steps) * (1 - 2**-45)


def uses(optimizer: Any) -> frozenset[str]:
    """Return what an optimizer's class uses of a variable besides its numbers one by one: `norm`, `matrix`."""
    of_keras = (each for each in type(optimizer).__mro__ if each.__module__.startswith(KERAS))
    found = [USES.get(each.__name__, ()) for each in of_keras]
    return frozenset([*(name for each in found for name in each), *getattr(optimizer, "uses", ())])


def fit(optimizer: Any, parts: Sequence[tuple[int, ...]]) -> None:
    """Raise Incompatible for an optimizer whose steps on x as one vector differ from its steps on the parts as tensors.

    `parts` are their shapes, as a loss declares them.
    """
    reasons = list(unlike(optimizer, parts))
    if reasons:
        shapes = ", ".join("×".join(map(str, each)) for each in parts)
        of = f"which are {len(parts)} tensors ({shapes if len(shapes) <= 60 else f'{shapes[:59]}…'})"
        raise Incompatible(
            f"{'; '.join(reasons)}; all weights of this loss, {of}, are one vector here, so its steps would be others"
        )


def unlike(optimizer: Any, parts: Sequence[tuple[int, ...]]) -> Iterator[str]:
    """Yield what of an optimizer depends on where one tensor ends and the next begins, and what to set instead."""
    used, name = uses(optimizer), type(optimizer).__name__
    if "norm" in used and len(parts) > 1:
        yield f"optimizer {name} scales its step by the norm of each tensor; set optimizer=adam"
    elif "matrix" in used and any(len(shape) > 1 for shape in parts):
        yield f"optimizer {name} treats each matrix as a whole; set optimizer=adam"
    if getattr(optimizer, "clipnorm", None) is not None and len(parts) > 1:
        yield (
            f"optimizer.clipnorm={optimizer.clipnorm:g} clips the gradient of each tensor by its own norm; "
            f"set optimizer.clipnorm=null optimizer.global_clipnorm={optimizer.clipnorm:g}"
        )


def steps(optimizer: Any) -> Any:
    """Return the variable that counts the optimizer's steps: how many gradients it has been handed.

    Where Keras gathers several of them before it moves x, its `iterations` counts the moves alone; its schedules count these.
    """
    return optimizer._iterations if getattr(optimizer, "gradient_accumulation_steps", None) else optimizer.iterations


def counted(optimizer: Any) -> None:
    """Let a `tf.compat.v1.train` optimizer count its iterations, in the global step that its own methods increment."""
    optimizer.iterations = tf.Variable(tf.zeros((), tf.int64), trainable=False)
    for name in ("apply_gradients", "minimize"):
        setattr(optimizer, name, partial(getattr(optimizer, name), global_step=optimizer.iterations))


def usable(*numbers: Any) -> bool:
    """Return whether an update may come of these numbers: if all are finite. A compiled loop is rewound instead."""
    if not tf.executing_eagerly():
        return True
    arrays = (each.numpy() for each in numbers)
    # Of one number, in a tenth of NumPy's time.
    return all(np.isfinite(each).all() if each.ndim else math.isfinite(each) for each in arrays)
