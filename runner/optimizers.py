"""The interface of an optimizer: `build([x])`, `apply_gradients([(gradient, x)])` and `iterations`.

The optimizers of Keras 3 and of `tf_keras` have all three. For TensorFlow 1's optimizers, this module adds the missing ones.
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

# Properties of a whole tensor that Keras's classes use besides its single numbers: its norm, or its rows and columns as a
# matrix. A user's own optimizer declares them by an attribute `uses`.
USES = {"Adafactor": ("norm", "matrix"), "Lamb": ("norm",), "LAMB": ("norm",), "Muon": ("matrix",)}
KERAS = ("keras.", "tf_keras.")
# NumPy's numbers leave arithmetic with a Keras variable to the variable, as they do with TensorFlow's variables: while a
# program is traced, the variable has no value that NumPy could compute with.
keras.Variable.__array_priority__ = 100


class NoOptimizer:
    """Counts the steps of a strategy that works without an optimizer.

    It accepts a `learning_rate` only to refuse it in one line: a sweep over learning rates may include such strategies.
    """

    def __init__(self, *, learning_rate: Any = None) -> None:
        self.learning_rate = learning_rate
        self.iterations = tf.Variable(tf.zeros((), tf.int64), trainable=False)
        self.variables = [self.iterations]

    def build(self, _: list[tf.Variable]) -> None:
        """Raise Incompatible if a learning rate is set."""
        if self.learning_rate is not None:
            raise Incompatible("optimizer.learning_rate means nothing to a strategy that takes its own steps; leave it out")

    def apply_gradients(self, _: Any) -> None:
        """Raise Incompatible, because this optimizer takes no steps."""
        raise Incompatible("optimizer=none takes no steps; set optimizer=sgd")


def set_floatx(dtype: str) -> None:
    """Make tf_keras, if it is imported, create its variables with this dtype, including the one of a constant learning rate."""
    if tf_keras := sys.modules.get("tf_keras"):
        tf_keras.backend.set_floatx(dtype)


def ready(optimizer: Any, x: tf.Variable) -> Any:
    """Return the optimizer built for x, the only variable that it will ever step.

    Raises UserError if it is no optimizer.
    """
    if not callable(getattr(optimizer, "apply_gradients", None)):
        raise UserError(f"optimizer._target_ must be an optimizer with apply_gradients, got {type(optimizer).__name__}")
    if x.dtype == tf.float64:
        exact(optimizer)
        exact(getattr(optimizer, "_learning_rate", None))
        # tf_keras stores the last value of a schedule in this variable.
        if (kept := getattr(optimizer, "_current_learning_rate", None)) is not None:
            optimizer._current_learning_rate = tf.Variable(tf.cast(kept, x.dtype), trainable=False)
    if isinstance(optimizer, tf.compat.v1.train.Optimizer):
        counted(optimizer)
    else:
        optimizer.build([x])
    return optimizer


def exact(of: Any) -> None:
    """Convert the Python floats among the attributes of an optimizer, or of a schedule, to NumPy's float64.

    Keras casts them to x's dtype by `tf.cast`, which first rounds a Python float to single precision: 0.999 becomes 0.99900001.
    """
    for name, value in list(getattr(of, "__dict__", {}).items()):
        if type(value) is float:
            setattr(of, name, np.float64(value))
    if isinstance(of, keras.optimizers.schedules.CosineDecayRestarts):
        # This schedule counts restarts by a quotient of logarithms. At a restart, the quotient may be rounded to below a whole
        # number; the rate would then be 0, the value at the end of the cycle. Slightly shorter cycles avoid this.
        of.first_decay_steps = np.float64(of.first_decay_steps) * (1 - 2**-45)


def uses(optimizer: Any) -> frozenset[str]:
    """Return the properties of a whole tensor that an optimizer's class uses: `norm`, `matrix`."""
    of_keras = (each for each in type(optimizer).__mro__ if each.__module__.startswith(KERAS))
    found = [USES.get(each.__name__, ()) for each in of_keras]
    return frozenset([*(name for each in found for name in each), *getattr(optimizer, "uses", ())])


def fit(optimizer: Any, parts: Sequence[tuple[int, ...]]) -> None:
    """Raise Incompatible for an optimizer whose steps on x as one vector differ from its steps on separate tensors.

    `parts` are the shapes of these tensors, as a loss declares them.
    """
    reasons = list(unlike(optimizer, parts))
    if reasons:
        shapes = ", ".join("×".join(map(str, each)) for each in parts)
        of = f"which are {len(parts)} tensors ({shapes if len(shapes) <= 60 else f'{shapes[:59]}…'})"
        raise Incompatible(
            f"{'; '.join(reasons)}; all weights of this loss, {of}, are one vector here, so its steps would be others"
        )


def unlike(optimizer: Any, parts: Sequence[tuple[int, ...]]) -> Iterator[str]:
    """Yield the reasons why an optimizer's steps depend on the boundaries of tensors, each with the setting to use instead."""
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
    """Return the variable that counts the optimizer's steps: the number of gradients that it has received.

    If Keras accumulates several gradients before it moves x, its `iterations` counts only the moves; its schedules count the
    gradients.
    """
    return optimizer._iterations if getattr(optimizer, "gradient_accumulation_steps", None) else optimizer.iterations


def counted(optimizer: Any) -> None:
    """Make a `tf.compat.v1.train` optimizer count its iterations, in the global step that its own methods increment."""
    optimizer.iterations = tf.Variable(tf.zeros((), tf.int64), trainable=False)
    for name in ("apply_gradients", "minimize"):
        setattr(optimizer, name, partial(getattr(optimizer, name), global_step=optimizer.iterations))


def usable(*numbers: Any) -> bool:
    """Return whether all these numbers are finite, so that an update may use them; always True while a compiled loop is traced.

    A compiled loop is rewound instead.
    """
    if not tf.executing_eagerly():
        return True
    arrays = (each.numpy() for each in numbers)
    # For one number, `math.isfinite` takes a tenth of NumPy's time.
    return all(np.isfinite(each).all() if each.ndim else math.isfinite(each) for each in arrays)
