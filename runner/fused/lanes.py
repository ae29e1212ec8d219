"""Many jobs as one program: a lane is a job's part of x, of every hyperparameter that differs and of the optimizer's state.

x is [lanes, *shape], and a hyperparameter that differs a column, [lanes, 1 …]. The gradient of the sum of the lanes' losses
holds each lane's own gradient, and an optimizer that works on each number by itself steps each lane as if it were alone.
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

# The column of the seeds of a random loss, which is no hyperparameter.
SEED = "seed"


def program(kept: Programs, key: Hashable, cfg: Any, loss: Loss, x0: np.ndarray, columns: Mapping[str, np.ndarray]) -> Program:
    """Return the program of these first x, [lanes, *shape], and columns, [lanes] each, before step 0.

    All else is as `cfg` says. One that was kept under an equal key, of as many lanes and with columns of these names, gets
    these values and compiles nothing.

    Raises UserError, or what Keras or the loss raise, where they cannot do with lanes.
    """
    x = tf.Variable(tf.constant(x0), name="x")
    node = cfg.optimizer.copy()
    for name in columns.keys() - {SEED}:
        # Whatever the constructor makes of it, instead of looking at the attribute in each step, shows in the rows.
        node[name] = math.nan
    optimizer = build.optimizer(node, x, lambda made: spread(made, columns, x0.ndim - 1))

    def make() -> Execution:
        return build.execution(cfg.execution, by_lane(cfg, loss, optimizer, x))

    return kept.get((key, x0.shape, tuple(columns)), x, optimizer, make)


def spread(optimizer: Any, columns: Mapping[str, np.ndarray], rank: int) -> None:
    """Give an optimizer that is not built yet a column for each of these hyperparameters.

    Keras counts variables among the attributes as the optimizer's own, so they are in `variables`, with its state. The rate has
    x's dtype, as Keras gives it; seeds are whole numbers; the others are double, as the Python numbers are whose place they
    take: 1 - 0.999 in single precision is 5e-5 off.
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
    """Return the strategy's Step of the sum of the losses, whose rows hold each lane's loss, [lanes].

    Raises UserError, when it is traced, where the loss does not broadcast, or the strategy records more than x, loss and
    gradient.
    """
    losses: list[tf.Tensor] = []
    seeds: Any = getattr(optimizer, "seed_column", None)

    def each_by_itself(point: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Return the loss of each lane, with what its own seed draws at this step."""

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
    """Give a program of another number of lanes the state of these lanes of an old one, in this order."""
    before, after = ([each.x, *each.optimizer.variables] for each in (old, new))
    for mine, its in zip(before, after, strict=True):
        values = mine.numpy()
        its.assign(values if mine.shape == its.shape else values[lanes])
    new.execution.restart()
