"""Build one program for many jobs, with a lane for each job.

A lane is one job's part of x, of each differing hyperparameter and of the optimizer's state. x is [lanes, *shape], and a
differing hyperparameter is a column, [lanes, 1 …]. The gradient of the sum of the lanes' losses consists of the lanes'
gradients, and an elementwise optimizer steps each lane as if it were alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from runner.config import build
from runner.errors import UserError
from runner.executions.cache import Program, Programs
from runner.losses import Loss
from runner.strategies import Row, Step
from runner.trace import Execution

# Name of the column with the seeds of a random loss; it is not a hyperparameter.
SEED = "seed"


def program(kept: Programs, key: Hashable, cfg: Any, loss: Loss, x0: np.ndarray, columns: Mapping[str, np.ndarray]) -> Program:
    """Return the program of these first x, [lanes, *shape], and columns, [lanes] each, before step 0.

    Everything else is as in `cfg`. A cached program with an equal key, shape of x and column names gets these values, and
    nothing is compiled.

    Raises UserError, or an error of Keras or of the loss, if lanes are not supported.
    """
    x = tf.Variable(tf.constant(x0), name="x")
    node = cfg.optimizer.copy()
    for name in columns.keys() - {SEED}:
        # An optimizer that computes with the constructor's value, instead of reading the attribute in each step, has NaN rows.
        node[name] = math.nan
    optimizer = build.optimizer(node, x, lambda made: spread(made, columns, x0.ndim - 1))

    def make() -> Execution:
        return build.execution(cfg.execution, by_lane(cfg, loss, optimizer, x))

    return kept.get((key, x0.shape, tuple(columns)), x, optimizer, make)


def spread(optimizer: Any, columns: Mapping[str, np.ndarray], rank: int) -> None:
    """Give an optimizer, before it is built, a column for each of these hyperparameters.

    Keras tracks variables that are attributes, so the columns are in the optimizer's `variables` with its state. The learning
    rate has x's dtype, as in Keras; seeds are integers. The other columns are double like the Python numbers that they
    replace: 1 - 0.999 in single precision has an error of 5e-5.

    Raises UserError for an optimizer that is not Keras 3's, or that has no attribute of this name.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise UserError(f"optimizer._target_ must be an optimizer of Keras 3, got {type(optimizer).__name__}")
    for name, values in columns.items():
        if name == SEED:
            optimizer.seed_column = keras.Variable(values.astype(np.int64), trainable=False, dtype="int64", name=name)
            continue
        if not hasattr(optimizer, name):
            raise UserError(f"optimizer.{name} is no attribute of {type(optimizer).__name__}")
        dtype = keras.config.floatx() if name == "learning_rate" else "float64"
        column = keras.Variable(values.reshape(-1, *[1] * rank), trainable=False, dtype=dtype, name=name)
        if name == "learning_rate":
            optimizer.learning_rate_column = column
            optimizer.learning_rate = lambda column=column: column
        else:
            setattr(optimizer, name, column)


def by_lane(cfg: Any, loss: Loss, optimizer: Any, x: tf.Variable) -> Step:
    """Return the strategy's Step on the sum of the lanes' losses; its rows hold the loss of each lane, [lanes].

    Tracing the Step raises UserError if the loss does not broadcast over lanes, or if the strategy records more than x, loss
    and gradient.
    """
    losses: list[tf.Tensor] = []
    seeds: Any = getattr(optimizer, "seed_column", None)

    def each_by_itself(point: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Return the loss of each lane, with the draw of the lane's own seed at this step."""

        def of_lane(lane: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            return loss(lane[0], seed=tf.stack([lane[1], seed[1]]))

        return tf.map_fn(of_lane, (point, seeds.value), fn_output_signature=tf.TensorSpec([], point.dtype))

    def total(point: tf.Tensor, **seed: tf.Tensor) -> tf.Tensor:
        losses[:] = [loss(point, **seed) if seeds is None else each_by_itself(point, **seed)]
        if losses[0].shape != point.shape[:1]:
            raise UserError(
                f"loss must be {tuple(point.shape[:1])} for x of {tuple(point.shape)}, got {tuple(losses[0].shape)}"
            )
        return tf.reduce_sum(losses[0])

    def of_lanes(row: Row) -> Row:
        if row.named:
            raise UserError(f"strategy records {', '.join(row.named)}, which is not done for several jobs at once")
        return row._replace(loss=losses[0])

    step = build.strategy(cfg.strategy, replace(loss, function=total), optimizer, x)
    return Step(lambda: of_lanes(step.take()), lambda: of_lanes(step.evaluate()))


def move(old: Program, new: Program, lanes: np.ndarray) -> None:
    """Copy the state of these lanes of `old`, in this order, into `new`, a program with another number of lanes."""
    before, after = ([each.x, *each.optimizer.variables] for each in (old, new))
    for mine, its in zip(before, after, strict=True):
        values = mine.numpy()
        its.assign(values if mine.shape == its.shape else values[lanes])
    new.execution.restart()
