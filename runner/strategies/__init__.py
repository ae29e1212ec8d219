"""How one step is taken: a strategy is `(loss, optimizer, x) -> Step`, closures over these three.

Both strategies here do the same: a tape computes the gradient of the loss at x, then `apply_gradients` updates x. `tape` spells
the two steps out and offers the tape's own switches. `minimize` calls the optimizer's `minimize`, if it has one. The strategies
in `second_order`, `least_squares` and `scipy_driver` work without an optimizer: `NoOptimizer` only counts their steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from runner import optimizers, stopping
from runner.errors import Incompatible, UserError, first_line
from runner.loop import Ending
from runner.losses import Loss
from runner.losses import intermediates as named_intermediates
from runner.losses import terms as named_terms
from runner.losses.sums import norm
from runner.optimizers import NoOptimizer
from runner.strategies import averages
from runner.trace import Trace


class Row(NamedTuple):
    """x, loss and gradient at one point, and further quantities of the strategy there, by metric name."""

    x: tf.Tensor
    loss: tf.Tensor
    gradient: Any
    named: dict[str, tf.Tensor]


class Step(NamedTuple):
    """`take()` returns the row at x and then updates x with its gradient; `evaluate()` returns the row and changes nothing.

    `restart()` is called after x was changed from outside: it resets the strategy's state to the state before step 0.
    `variables` hold this state. None means that no variables hold it: a run can be continued only by taking its steps again.

    A strategy that Python drives has three more. `compiled(decorator)` returns the same Step with decorated evaluations.
    `ended()` returns the reason why no further step can be taken, with a sentence for it, or None. `close()` ends the strategy.

    `stalled` is a rule, as in `stopping`, that holds at the first row from which the strategy could take no further step. It
    looks back one row.
    """

    take: Callable[[], Row]
    evaluate: Callable[[], Row]
    restart: Callable[[], None] = lambda: None
    compiled: Callable[[Callable[[Any], Any]], Step] | None = None
    ended: Callable[[], tuple[Ending, str, str] | None] = lambda: None
    close: Callable[[], None] = lambda: None
    variables: Sequence[Any] | None = ()
    stalled: Callable[[Trace, int], int | None] | None = None


def stands_still(trace: Trace, start: int, where: Any = True) -> int | None:
    """Return the first row from `start` on whose x equals the x of the row before, or None; `where`, [n], may exclude rows."""
    x = trace.x.reshape(len(trace), -1)
    same = np.concatenate([[False], (x[1:] == x[:-1]).all(axis=1)])
    return stopping.first((same & where)[start:], start)


def without_optimizer(strategy: Any) -> Any:
    """Declare that a strategy takes its own steps, without an optimizer; a decorator."""
    setattr(strategy, "without_optimizer", True)
    return strategy


def fit(strategy: Any, loss: Loss, optimizer: Any) -> None:
    """Raise Incompatible if a strategy cannot be combined with this optimizer or this loss."""
    own, none, name = takes_own_steps(strategy), isinstance(optimizer, NoOptimizer), strategy.__name__
    if own and not none:
        kind = type(optimizer).__name__
        raise Incompatible(
            f"strategy={name} takes its own steps and no optimizer, got {kind}; leave optimizer out or set optimizer=none"
        )
    if none and not own:
        raise Incompatible(
            f"strategy={name} leaves the step to an optimizer, got none; leave optimizer out or set optimizer=sgd"
        )
    if own and loss.seed is not None:
        raise Incompatible(
            f"strategy={name} needs a loss that is the same in each step, and this one draws anew; set strategy=tape"
        )
    optimizers.fit(optimizer, loss.parts)


def takes_own_steps(strategy: Any) -> bool:
    """Return whether a strategy takes its own steps."""
    # Users' strategies may still have the earlier name of the attribute, `own_steps`.
    return getattr(strategy, "without_optimizer", False) or getattr(strategy, "own_steps", False)


def tape(
    loss: Loss,
    optimizer: Any,
    x: tf.Variable,
    *,
    persistent: bool,
    watch_accessed_variables: bool,
    watch: bool,
    intermediates: bool,
    terms: bool,
    average: bool,
) -> Step:
    """Compute the gradient by `tf.GradientTape`, then apply it.

    `watch` calls `t.watch(x)` if the tape does not watch by itself. `intermediates` records the tensors that the loss names,
    and the gradient of each (of its sum, if it is no scalar) with respect to x. `terms` records the summands of the loss, the
    Euclidean norm of each summand's gradient, and the angle between each two gradients. Both need a `persistent` tape.
    `average` records the optimizer's own average of x and the loss there.

    Raises UserError if there is no gradient, or if a second gradient is asked of a tape that is not persistent. Raises
    Incompatible if `terms` is set and the loss names none, or if `average` is set and the optimizer keeps none.
    """

    def evaluate() -> Row:
        with (
            tf.GradientTape(persistent=persistent, watch_accessed_variables=watch_accessed_variables) as t,
            named_intermediates() as on_the_way,
            named_terms() as summands,
        ):
            if watch and not watch_accessed_variables:
                t.watch(x)
            point = tf.convert_to_tensor(x)
            y = checked(loss.at(optimizers.steps(optimizer))(point), point)
        gradient = t.gradient(y, x)
        if gradient is None:
            raise UserError(no_gradient(watch or watch_accessed_variables))
        found = intermediates_of(on_the_way, t, x) if intermediates else {}
        found |= terms_of(summands, t, x) if terms else {}
        found |= averages.recorded(loss, optimizer, x) if average else {}
        # A persistent tape holds every tensor of the pass until it is deleted.
        del t
        return Row(point, y, gradient, found)

    def take() -> Row:
        row = evaluate()
        if optimizers.usable(*row[:3]):
            optimizer.apply_gradients(zip([row.gradient], [x], strict=True))
        return row

    return Step(take, evaluate)


def minimize(loss: Loss, optimizer: Any, x: tf.Variable) -> Step:
    """Call the optimizer's `minimize(loss, var_list=[x])`; Keras 3 has none: take the two steps that define it in Keras 2.

    The recorded gradient is the one that `apply_gradients` received, never a second evaluation.
    """
    plain = {
        "persistent": False,
        "watch_accessed_variables": True,
        "watch": False,
        "intermediates": False,
        "terms": False,
        "average": False,
    }
    evaluate = tape(loss, optimizer, x, **plain).evaluate
    own = getattr(optimizer, "minimize", None)

    def take() -> Row:
        seen: list[tf.Tensor] = []

        def loss_without_arguments() -> tf.Tensor:
            point = tf.convert_to_tensor(x)
            seen[:] = point, checked(loss.at(optimizers.steps(optimizer))(point), point)
            return seen[1]

        if own is None:
            gradients = two_steps(optimizer, loss_without_arguments, [x])
        else:
            with applied(optimizer, seen) as gradients:
                own(loss_without_arguments, var_list=[x])
        return Row(seen[0], seen[1], tf.convert_to_tensor(gradients[0]), {})

    return Step(take, evaluate)


def two_steps(optimizer: Any, loss: Callable[[], tf.Tensor], var_list: list[tf.Variable]) -> list[Any]:
    """Take the two steps of Keras 2's `Optimizer.minimize`, as documented, and return the applied gradients."""
    with tf.GradientTape() as t:
        y = loss()
    gradients = t.gradient(y, var_list)
    if optimizers.usable(*var_list, y, *gradients):
        optimizer.apply_gradients(zip(gradients, var_list, strict=True))
    return gradients


@contextmanager
def applied(optimizer: Any, seen: Sequence[tf.Tensor]) -> Iterator[list[tf.Tensor]]:
    """Yield a list that collects the gradients passed to `optimizer.apply_gradients` in this block.

    The gradients are applied only if they and `seen` (x and the loss) are usable.
    """
    gradients: list[tf.Tensor] = []
    original = optimizer.apply_gradients

    def apply_gradients(grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        gradients.extend(gradient for gradient, _ in pairs)
        return original(pairs, *args, **kwargs) if optimizers.usable(*seen, *gradients) else None

    optimizer.apply_gradients = apply_gradients
    try:
        yield gradients
    finally:
        optimizer.apply_gradients = original


def checked(y: Any, x: tf.Tensor) -> tf.Tensor:
    """Return a loss that is one number of x's dtype; raise UserError for any other."""
    if not tf.is_tensor(y):
        raise UserError(f"loss must return a tf.Tensor, got {type(y).__name__}; compute it with TensorFlow operations on x")
    if y.shape.rank != 0:
        raise UserError(f"loss must be one number, got shape {tuple(y.shape)} for x of shape {tuple(x.shape)}; reduce it")
    if y.dtype != x.dtype:
        raise UserError(f"loss must keep x's dtype {x.dtype.name}, got {y.dtype.name}; set dtype=… or cast inside the loss")
    return y


def intermediates_of(named: dict[str, tf.Tensor], t: tf.GradientTape, x: tf.Variable) -> dict[str, tf.Tensor]:
    """Return the value of each intermediate and its gradient with respect to x, by metric name."""
    found = {f"intermediate/{name}": value for name, value in named.items()}
    gradients = gradients_of(named, t, x, "strategy.intermediates")
    return found | {f"intermediate_gradient/{name}": gradient for name, gradient in gradients.items()}


def terms_of(named: dict[str, tf.Tensor], t: tf.GradientTape, x: tf.Variable) -> dict[str, tf.Tensor]:
    """Return each term, the norm of its gradient and the angles between each two gradients, in degrees, by metric name.

    Raises Incompatible if there are no terms.
    """
    if not named:
        raise Incompatible("strategy.terms=true records the terms that a loss names, and this one names none; leave it out")
    found = {f"term/{name}": tf.convert_to_tensor(value) for name, value in named.items()}
    gradients = gradients_of(named, t, x, "strategy.terms")
    norms = {name: norm(tf.reshape(gradient, [-1])) for name, gradient in gradients.items()}
    found |= {f"term_gradient_norm/{name}": norm for name, norm in norms.items()}
    units = {name: gradients[name] / norms[name] for name in named}
    for one, other in itertools.combinations(named, 2):
        # Kahan's formula is exact near 0 and 180 degrees, where the arc cosine is not. NaN if one gradient is 0.
        half = tf.atan2(*(norm(tf.reshape(each, [-1])) for each in (units[one] - units[other], units[one] + units[other])))
        found[f"term_angle/{one}-{other}"] = half * (360 / math.pi)
    return found


def gradients_of(named: dict[str, tf.Tensor], t: tf.GradientTape, x: tf.Variable, key: str) -> dict[str, Any]:
    """Return the gradient of each tensor with respect to x; raise UserError about `key` if the tape is not persistent."""
    try:
        return {name: t.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO) for name, value in named.items()}
    except RuntimeError as error:
        reason = first_line(error).removeprefix("RuntimeError: ").rstrip(".")
        raise UserError(f"{key}: {reason}; set strategy.persistent=true") from error


def no_gradient(watched: bool) -> str:
    """Return a sentence on why `t.gradient` returned None."""
    if watched:
        return "the loss has no gradient for x: it does not depend on x through differentiable TensorFlow operations"
    return (
        "the loss has no gradient for x: the tape watches nothing with strategy.watch_accessed_variables=false and "
        "strategy.watch=false; set strategy.watch=true"
    )
