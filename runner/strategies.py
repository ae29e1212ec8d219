"""How one step is taken: a strategy is `(loss, optimizer, x) -> Step`, two closures over the same three.

Both strategies are one: a tape for the gradient of the loss at x, then `apply_gradients`. `tape` spells the two steps out and
offers the tape's own switches; `minimize` leaves them to the optimizer where it has a `minimize` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import tensorflow as tf

from runner.errors import UserError, first_line
from runner.losses import Loss
from runner.losses import intermediates as named_intermediates


class Row(NamedTuple):
    """x, loss and gradient at one point, and whatever else a strategy records there, by metric name."""

    x: tf.Tensor
    loss: tf.Tensor
    gradient: Any
    named: dict[str, tf.Tensor]


class Step(NamedTuple):
    """`take()` returns the row at x and then updates x with its gradient; `evaluate()` returns the row and changes nothing."""

    take: Callable[[], Row]
    evaluate: Callable[[], Row]


def tape(
    loss: Loss,
    optimizer: Any,
    x: tf.Variable,
    *,
    persistent: bool,
    watch_accessed_variables: bool,
    watch: bool,
    intermediates: bool,
) -> Step:
    """Compute the gradient by `tf.GradientTape`, then apply it.

    `watch` calls `t.watch(x)` where the tape does not watch by itself; `intermediates` records what the loss names, with its
    gradient (of its sum, where it is no scalar) with respect to x, which takes a `persistent` tape.

    Raises UserError where there is no gradient, or a tape that is not persistent is asked for a second one.
    """

    def evaluate() -> Row:
        with (
            tf.GradientTape(persistent=persistent, watch_accessed_variables=watch_accessed_variables) as t,
            named_intermediates() as named,
        ):
            if watch and not watch_accessed_variables:
                t.watch(x)
            point = tf.convert_to_tensor(x)
            y = checked(loss.at(optimizer.iterations)(point), point)
        gradient = t.gradient(y, x)
        if gradient is None:
            raise UserError(no_gradient(watch or watch_accessed_variables))
        found = gradients_of(named, t, x) if intermediates else {}
        # A persistent tape holds every tensor of the pass until it goes.
        del t
        return Row(point, y, gradient, found)

    def take() -> Row:
        row = evaluate()
        optimizer.apply_gradients(zip([row.gradient], [x], strict=True))
        return row

    return Step(take, evaluate)


def minimize(loss: Loss, optimizer: Any, x: tf.Variable) -> Step:
    """Call the optimizer's `minimize(loss, var_list=[x])`; Keras 3 has none, and gets the two steps that Keras 2 defines it by.

    The recorded gradient is the one that was handed to `apply_gradients`, never a second evaluation.
    """
    evaluate = tape(
        loss, optimizer, x, persistent=False, watch_accessed_variables=True, watch=False, intermediates=False
    ).evaluate
    own = getattr(optimizer, "minimize", None)

    def take() -> Row:
        seen: list[tf.Tensor] = []

        def loss_without_arguments() -> tf.Tensor:
            point = tf.convert_to_tensor(x)
            seen[:] = point, checked(loss.at(optimizer.iterations)(point), point)
            return seen[1]

        if own is None:
            gradients = two_steps(optimizer, loss_without_arguments, [x])
        else:
            with applied(optimizer) as gradients:
                own(loss_without_arguments, var_list=[x])
        return Row(seen[0], seen[1], tf.convert_to_tensor(gradients[0]), {})

    return Step(take, evaluate)


def two_steps(optimizer: Any, loss: Callable[[], tf.Tensor], var_list: list[tf.Variable]) -> list[Any]:
    """Do what Keras 2 documents for `Optimizer.minimize`, and return the gradients that were applied."""
    with tf.GradientTape() as t:
        y = loss()
    gradients = t.gradient(y, var_list)
    optimizer.apply_gradients(zip(gradients, var_list, strict=True))
    return gradients


@contextmanager
def applied(optimizer: Any) -> Iterator[list[tf.Tensor]]:
    """Give the gradients that `optimizer.apply_gradients` is handed in this block."""
    gradients: list[tf.Tensor] = []
    original = optimizer.apply_gradients

    def apply_gradients(grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        gradients.extend(gradient for gradient, _ in pairs)
        return original(pairs, *args, **kwargs)

    optimizer.apply_gradients = apply_gradients
    try:
        yield gradients
    finally:
        optimizer.apply_gradients = original


def checked(y: Any, x: tf.Tensor) -> tf.Tensor:
    """Return a loss that is one real number of x's dtype, or say what it is instead."""
    if not tf.is_tensor(y):
        raise UserError(f"loss must return a tf.Tensor, got {type(y).__name__}; compute it with TensorFlow operations on x")
    if y.shape.rank != 0:
        raise UserError(f"loss must be one number, got shape {tuple(y.shape)} for x of shape {tuple(x.shape)}; reduce it")
    if y.dtype != x.dtype:
        raise UserError(f"loss must keep x's dtype {x.dtype.name}, got {y.dtype.name}; set dtype=… or cast inside the loss")
    return y


def gradients_of(named: dict[str, tf.Tensor], t: tf.GradientTape, x: tf.Variable) -> dict[str, tf.Tensor]:
    """Return the value of each intermediate and its gradient with respect to x, by metric name."""
    found: dict[str, Any] = {f"intermediate/{name}": value for name, value in named.items()}
    try:
        for name, value in named.items():
            found[f"intermediate_gradient/{name}"] = t.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    except RuntimeError as error:
        reason = first_line(error).removeprefix("RuntimeError: ").rstrip(".")
        raise UserError(f"strategy.intermediates: {reason}; set strategy.persistent=true") from error
    return found


def no_gradient(watched: bool) -> str:
    """Say why `t.gradient` returned None."""
    if watched:
        return "the loss has no gradient for x: it does not depend on x through differentiable TensorFlow operations"
    return (
        "the loss has no gradient for x: the tape watches nothing with strategy.watch_accessed_variables=false and "
        "strategy.watch=false; set strategy.watch=true"
    )
