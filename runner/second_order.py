"""Steps by the Hessian, and the derivatives that they and SciPy ask for: a tape within a tape, in eager as in a compiled loop.

x may have any shape; where linear algebra takes over, it is flat: n numbers, whose Hessian is [n, n].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from runner import optimizers
from runner.errors import UserError
from runner.loop import EVALUATIONS
from runner.losses import Loss
from runner.strategies import Row, Step, checked, no_gradient, own_steps

Function = Callable[[tf.Tensor], tf.Tensor]
# A shift that is doubled so often has become larger than any eigenvalue: from 1e-3 of the norm on, 10 would do.
SHIFTS = 40
# By how many roundings of the loss a step may miss its decrease: near a minimum there is nothing else left to see.
ROUNDINGS = 4
# Rows of a Hessian that are computed at once: all 2,400 of a small network's took six gigabytes.
ROWS = 128


def value_and_gradient(function: Function, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the loss and its gradient at x; raises UserError where there is none."""
    with tf.GradientTape() as t:
        t.watch(x)
        y = checked(function(x), x)
    gradient = t.gradient(y, x)
    if gradient is None:
        raise UserError(no_gradient(True))
    return y, tf.convert_to_tensor(gradient)


def hessian(function: Function, x: tf.Tensor) -> tf.Tensor:
    """Return the Hessian, [n, n], made symmetric."""
    n = x.shape.num_elements()
    if n > ROWS and not tf.executing_eagerly():
        rows = in_blocks(function, x, n)
    else:
        with tf.GradientTape(persistent=tf.executing_eagerly()) as outer:
            outer.watch(x)
            _, gradient = value_and_gradient(function, x)
        rows = tf.reshape(jacobian(outer, gradient, x), (n, n))
    return (rows + tf.transpose(rows)) / 2


def in_blocks(function: Function, x: tf.Tensor, n: int) -> tf.Tensor:
    """Return the Hessian's rows, so many at once.

    By products with unit vectors: the Jacobian's own `parallel_iterations` returned wrong rows in TensorFlow 2.21.
    """

    def block(first: tf.Tensor) -> tf.Tensor:
        units = tf.reshape(tf.one_hot(first + tf.range(ROWS), n, dtype=x.dtype), (ROWS, *x.shape))
        return tf.reshape(tf.vectorized_map(lambda unit: product(function, x, unit), units), (ROWS, n))

    rows = tf.map_fn(block, tf.range(0, n, ROWS), fn_output_signature=tf.TensorSpec((ROWS, n), x.dtype), parallel_iterations=1)
    return tf.reshape(rows, (-1, n))[:n]


def product(function: Function, x: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Return the Hessian's product with v, of x's shape: the gradient of the gradient's inner product with v."""
    with tf.GradientTape() as outer:
        outer.watch(x)
        _, gradient = value_and_gradient(function, x)
        along = tf.reduce_sum(gradient * tf.stop_gradient(v))
    return tf.convert_to_tensor(outer.gradient(along, x, unconnected_gradients=tf.UnconnectedGradients.ZERO))


def jacobian(t: tf.GradientTape, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return dy/dx, [*y, *x], by a tape that is persistent in eager: there all rows at once would be traced anew each time."""
    at_once = not tf.executing_eagerly()
    return t.jacobian(y, x, unconnected_gradients=tf.UnconnectedGradients.ZERO, experimental_use_pfor=at_once)


@own_steps
def newton(loss: Loss, optimizer: Any, x: tf.Variable, *, shift: float, sufficient_decrease: float, max_halvings: int) -> Step:
    """Step by x ← x + t p with (H + τI) p = -gradient, where τ makes H + τI positive definite and t ≤ 1 lowers the loss enough.

    τ is 0 where H is positive definite and else grows from what makes its diagonal positive, by at least `shift` times its
    Frobenius norm, twofold until Cholesky's factorization succeeds: Nocedal, Wright (2006), Numerical Optimization, algorithm
    3.3, doi:10.1007/978-0-387-40065-5. t is the first of 1, 1/2, 1/4 … with loss(x + t p) ≤ loss(x) + sufficient_decrease · t ·
    gradientᵀp (Armijo 1966), but for roundings; after `max_halvings` x stays where it is.
    """
    function, n = loss.function, x.shape.num_elements()
    tried = tf.Variable(tf.ones((), tf.int64), trainable=False)

    def evaluate() -> Row:
        point = tf.convert_to_tensor(x)
        y, gradient = value_and_gradient(function, point)
        k = tf.convert_to_tensor(optimizer.iterations)
        counts = {"loss": tf.convert_to_tensor(tried), "gradient": k + 1, "hessian": k}
        return Row(point, y, gradient, {EVALUATIONS + what: count for what, count in counts.items()})

    def take() -> Row:
        row = evaluate()
        if not optimizers.usable(*row[:3]):
            return row
        slopes = tf.reshape(row.gradient, (n, 1))
        p = tf.reshape(direction(hessian(function, row.x), slopes, shift), row.x.shape)
        slope = tf.reduce_sum(row.gradient * p)
        moved, trials = line_search(function, row, p, slope * sufficient_decrease, max_halvings)
        x.assign(moved)
        tried.assign_add(trials)
        optimizer.iterations.assign_add(1)
        return row

    return Step(take, evaluate, lambda: tried.assign(tf.ones_like(tried)), variables=[tried])


def direction(h: tf.Tensor, gradient: tf.Tensor, shift: float) -> tf.Tensor:
    """Return p, [n, 1], of (h + τI) p = -gradient; where h is not finite, -gradient."""
    diagonal = tf.linalg.diag_part(h)
    least, one = tf.reduce_min(diagonal), tf.linalg.diag(tf.ones_like(diagonal))
    beta = shift * tf.norm(h)

    def failed(_: tf.Tensor, factor: tf.Tensor, shifts: tf.Tensor) -> tf.Tensor:
        return tf.logical_not(tf.reduce_all(tf.math.is_finite(tf.linalg.diag_part(factor)))) & (shifts < SHIFTS)

    def shifted(tau: tf.Tensor, _: tf.Tensor, shifts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        tau = tf.maximum(2 * tau, beta)
        return tau, tf.linalg.cholesky(h + tau * one), shifts + 1

    tau = tf.where(least > 0, tf.zeros_like(least), beta - least)
    start = (tau, tf.linalg.cholesky(h + tau * one), tf.constant(0))
    _, factor, _ = tf.while_loop(failed, shifted, start, parallel_iterations=1)
    p = -tf.linalg.cholesky_solve(factor, gradient)
    return tf.where(tf.reduce_all(tf.math.is_finite(p)), p, -gradient)


def line_search(function: Function, row: Row, p: tf.Tensor, decrease: tf.Tensor, halvings: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return x + t p of the first t that lowers the loss by t · decrease, or x where none does, and how many were tried."""
    slack = ROUNDINGS * epsilon(row.loss) * tf.abs(row.loss)

    def enough(t: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return y <= row.loss + t * decrease + slack

    def further(t: tf.Tensor, y: tf.Tensor, trials: tf.Tensor) -> tf.Tensor:
        return tf.logical_not(enough(t, y)) & (trials <= halvings)

    def halved(t: tf.Tensor, _: tf.Tensor, trials: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return t / 2, function(row.x + t / 2 * p), trials + 1

    start = (tf.ones_like(row.loss), function(row.x + p), tf.constant(1, tf.int64))
    t, y, trials = tf.while_loop(further, halved, start, parallel_iterations=1)
    return tf.where(enough(t, y), row.x + t * p, row.x), trials


def epsilon(of: tf.Tensor) -> float:
    """Return the spacing of a tensor's numbers at 1."""
    return float(np.finfo(of.dtype.name).eps)
