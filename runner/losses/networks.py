"""Neural networks fitted to data: x holds all their weights, one layer after another."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from runner.errors import UserError, first_line, nearest
from runner.losses.base import term
from runner.losses.data import Data, Rows
from runner.losses.sums import mean, total
from runner.losses.supervised import accuracy, cross_entropy, deviation, fitted, nonnegative, on_held_out

# A network accepts targets of either kind; if a data set has both, classes are used.
KINDS = ("classes", "numbers")


def sizes(data: Data, kind: str, layers: Any) -> list[int]:
    """Return the width of each layer, from the features to the outputs: one output for each class, or one number.

    Raises UserError if `layers` is invalid.
    """
    if not isinstance(layers, list | tuple) or not all(type(each) is int and each > 0 for each in layers):
        raise UserError(f"loss.layers must be a list of whole numbers above 0, got {layers!r}; set it with loss.layers=[32,16]")
    return [data.features.shape[1], *layers, data.classes if kind == "classes" else 1]


def dimension(data: Data, kind: str, layers: Any, activation: Any, l2: Any, **_: Any) -> int:
    """Return the number of weights and biases; raise UserError if one of the network's keys is invalid."""
    nonnegative("l2", l2)
    activated(activation)
    widths = sizes(data, kind, layers)
    return sum((before + 1) * after for before, after in pairwise(widths))


def shapes(data: Data, kind: str, layers: Any, **_: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the weights and of the biases of each layer."""
    pairs = pairwise(sizes(data, kind, layers))
    return tuple(shape for before, after in pairs for shape in ((before, after), (after,)))


def activated(name: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return Keras's activation of this name; raise UserError if there is none."""
    known = {key for key, each in vars(keras.activations).items() if inspect.isfunction(each)} - {
        "get",
        "serialize",
        "deserialize",
    }
    if name not in known:
        raise UserError(f"loss.activation must be one of Keras's, got {name!r}; {nearest(name, known)}")
    return getattr(keras.activations, name)


def start(data: Data, kind: str, layers: Any, seed: int, **_: Any) -> np.ndarray:
    """Return weights drawn uniformly in ±√(6 / (inputs + outputs)) by the run's seed, and biases of 0."""
    random, widths = np.random.default_rng(seed), sizes(data, kind, layers)
    drawn = []
    for before, after in pairwise(widths):
        limit = math.sqrt(6 / (before + after))
        drawn += [random.uniform(-limit, limit, before * after), np.zeros(after)]
    return np.concatenate(drawn)


def layered(x: tf.Tensor, widths: list[int]) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Yield the weights [..., before, after] and the biases [..., 1, after] of each layer."""
    at = 0
    for before, after in pairwise(widths):
        middle, end = at + before * after, at + (before + 1) * after
        yield tf.reshape(x[..., at:middle], [*x.shape[:-1], before, after]), x[..., None, middle:end]
        at = end


def outputs(x: tf.Tensor, features: tf.Tensor, widths: list[int], activation: str) -> tf.Tensor:
    """Return the outputs of the last layer for each row; x[..., p], features[n, d] -> [..., n, k]."""
    *hidden, (weights, biases) = layered(x, widths)
    for each, added in hidden:
        features = activated(activation)(tf.matmul(features, each) + added)
    return tf.matmul(features, weights) + biases


def worth(data: Data, kind: str, layers: Any, activation: str, **_: Any) -> dict[str, Any]:
    """Return the measure `held_out_accuracy`, or `held_out_error`: the root mean square error, in deviations of the targets."""
    widths = sizes(data, kind, layers)

    def of_rows(x: tf.Tensor, rows: Rows) -> tf.Tensor:
        found = outputs(x, rows.features, widths, activation)
        return accuracy(found, rows.targets) if kind == "classes" else deviation(found[..., 0], rows.targets)

    return on_held_out("accuracy" if kind == "classes" else "error", kind, data, of_rows)


@fitted(*KINDS, dimension=dimension, start=start, held_out=worth, parts=shapes)
def mlp(
    x: tf.Tensor, *, data: Data, layers: list[int], activation: str, l2: float, batch_size: int | None, seed: Any
) -> tf.Tensor:
    """Return the cross entropy of a multilayer perceptron, or half its mean square error, plus l2/2 ‖W‖² without the biases.

    x[..., p] holds, for each layer, its weights, row by row of the inputs, then its biases. Start: Glorot's, by the run's seed.
    Source: Rumelhart, Hinton, Williams (1986), doi:10.1038/323533a0; Glorot and Bengio (2010), PMLR 9:249, equation 16.
    """
    kind = data.kind_for("mlp", *KINDS)
    widths = sizes(data, kind, layers)
    rows = data.batch(kind, x.dtype, batch_size, seed)
    found = outputs(x, rows.features, widths, activation)
    value = cross_entropy(found, rows.targets) if kind == "classes" else mean(tf.square(found[..., 0] - rows.targets)) / 2
    squares = [total(tf.square(weights), [-2, -1]) for weights, _ in layered(x, widths)]
    return term("data", value) + term("penalty", l2 / 2 * tf.add_n(squares))


def built(model: Any, data: Data, loss: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the model with its weights created, and Keras's loss function.

    Raises UserError if either is invalid, or if the model has no weights to train or variables that are not trained.
    """
    if not isinstance(model, keras.Model):
        raise UserError(
            f"loss.model must be a Keras model, got {type(model).__name__}; set loss.model._target_=keras.Sequential"
        )
    try:
        model(tf.constant(data.features[:1], keras.config.floatx()))
        function = keras.losses.get(loss)
    except Exception as error:
        raise UserError(f"loss.model or loss.loss: {first_line(error)[:300]}") from error
    if not callable(function):
        raise UserError(f"loss.loss must be a loss of Keras's, got {loss!r}; set loss.loss=mean_squared_error")
    if others := [each.path for each in model.non_trainable_variables]:
        raise UserError(
            f"loss.model must have no variables but those that are trained, got {', '.join(others)}; leave out layers with "
            "a state of their own, as BatchNormalization and Dropout have it"
        )
    if not model.trainable_variables:
        raise UserError("loss.model must have weights to train, got none; add a layer as keras.layers.Dense")
    return model, function


def weights_of(data: Data, kind: str, model: Any, loss: Any, **_: Any) -> np.ndarray:
    """Return the model's initial weights, one variable after another."""
    trained = built(model, data, loss)[0].trainable_variables
    return np.concatenate([np.ravel(keras.ops.convert_to_numpy(each)) for each in trained]).astype(np.float64)


def predicted(x: tf.Tensor, model: Any, features: tf.Tensor) -> tf.Tensor:
    """Return the model's outputs, with x in place of its weights; raise UserError if x is not one vector."""
    if x.shape.rank != 1:
        raise UserError(f"keras_model takes one x at a time, got {tuple(x.shape)}")
    parts = tf.split(x, [math.prod(each.shape) for each in model.trainable_variables])
    weights = [tf.reshape(part, each.shape) for part, each in zip(parts, model.trainable_variables, strict=True)]
    return model.stateless_call(weights, [], features)[0]


def keras_loss(x: tf.Tensor, rows: Rows, model: Any, loss: Any) -> tf.Tensor:
    """Return the mean of Keras's loss over rows; for a model with one output, the targets get the outputs' shape [n, 1]."""
    found = predicted(x, model, rows.features)
    targets = rows.targets
    if found.shape.rank == 2 and found.shape[-1] == 1:
        targets = tf.cast(targets, found.dtype)[:, None]
    function: Any = keras.losses.get(loss)
    return mean(tf.reshape(function(targets, found), [-1]))


def worth_of_model(data: Data, kind: str, model: Any, loss: Any, **_: Any) -> dict[str, Any]:
    """Return the measure `held_out_accuracy` if the model has an output for each class, else `held_out_error`, the loss."""
    if kind == "classes" and model.output_shape[-1] == data.classes:
        return on_held_out("accuracy", kind, data, lambda x, rows: accuracy(predicted(x, model, rows.features), rows.targets))
    return on_held_out("error", kind, data, lambda x, rows: keras_loss(x, rows, model, loss))


@fitted(
    *KINDS,
    dimension=lambda **keys: len(weights_of(**keys)),
    start=weights_of,
    held_out=worth_of_model,
    parts=lambda data, model, loss, **_: tuple(tuple(each.shape) for each in built(model, data, loss)[0].trainable_variables),
)
def keras_model(x: tf.Tensor, *, data: Data, model: Any, loss: Any, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return the mean of Keras's `loss` (a name, or an object) of a Keras model's outputs and the targets.

    x[p] holds the model's weights, one variable after another. Start: the model's initial weights, drawn by the run's seed. The
    layers' own regularizers are left out: only the loss is minimised.
    """
    kind = data.kind_for("keras_model", *KINDS)
    return term("data", keras_loss(x, data.batch(kind, x.dtype, batch_size, seed), model, loss))
