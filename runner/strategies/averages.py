"""The average of x that an optimizer keeps beside x itself: the result of averaging, which x in the rows is not."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from runner import optimizers
from runner.errors import Incompatible
from runner.losses import Loss


def recorded(loss: Loss, optimizer: Any, x: tf.Variable) -> dict[str, tf.Tensor]:
    """Return the average of x and the loss of this step there, by metric name.

    Raises Incompatible if the optimizer keeps no average.
    """
    mean = average(optimizer, x)
    return {"average": mean, "average_loss": loss.at(optimizers.steps(optimizer))(mean)}


def average(optimizer: Any, x: tf.Variable) -> tf.Tensor:
    """Return the optimizer's average of x: with `use_ema`, Keras's exponential moving average, x₀ before the first step.

    ScheduleFreeAdamW steps z and takes its gradients at y = (1 - β₁) z + β₁ a, with a the mean of all z. The variable that it
    trains, x, is y. So the average is a = (y - (1 - β₁) z) / β₁ (Defazio et al. 2024, arXiv:2405.15682, equations 2 to 4). It
    is not quite the mean: on TensorFlow, Keras 3.15.1 has already moved z when it computes the last a from y.

    Raises Incompatible if the optimizer keeps no average.
    """
    if getattr(optimizer, "use_ema", False):
        # Keras has no public name for the average, and begins it with zeros.
        (kept,) = optimizer._model_variables_moving_average
        return tf.where(optimizers.steps(optimizer) == 0, tf.convert_to_tensor(x), tf.convert_to_tensor(kept))
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        (z,) = optimizer._momentums
        return (tf.convert_to_tensor(x) - (1 - optimizer.beta_1) * tf.convert_to_tensor(z)) / optimizer.beta_1
    raise Incompatible(
        f"strategy.average=true records the optimizer's own average of x, and {type(optimizer).__name__} keeps none; set "
        "optimizer.use_ema=true or optimizer=schedule_free_adamw"
    )
