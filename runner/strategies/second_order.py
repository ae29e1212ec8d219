"""Newton's method, and the derivatives for it and for SciPy: a tape within a tape, in eager and in a compiled loop.

x may have any shape. For linear algebra it is flattened to n numbers, with the Hessian [n, n].
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import linalg

from runner import optimizers
from runner.errors import UserError
from runner.loop import EVALUATIONS
from runner.losses import Loss
from runner.strategies import Row, Step, checked, no_gradient, stands_still, without_optimizer

Function = Callable[[tf.Tensor], tf.Tensor]
# Absolute eigenvalues of a scaled Hessian below this part of the largest are raised to it by `newton`.
LEAST = 1e-12
# A step may miss its required decrease by this number of roundings of the loss: near a minimum, only rounding is left.
ROUNDINGS = 4
# Rows of a Hessian that are computed at once: all 2,400 rows of a small network took six gigabytes.
ROWS = 128


def value_and_gradient(function: Function, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the loss and its gradient at x; raise UserError if there is no gradient."""
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
    """Return the Hessian's rows, computed in blocks of ROWS, by products with unit vectors.

    The Jacobian's own `parallel_iterations` returned wrong rows in TensorFlow 2.21.
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
    """Return dy/dx, [*y, *x]; in eager, row by row by a persistent tape: all rows at once would be traced anew each time."""
    at_once = not tf.executing_eagerly()
    return t.jacobian(y, x, unconnected_gradients=tf.UnconnectedGradients.ZERO, experimental_use_pfor=at_once)


@without_optimizer
def newton(
    loss: Loss, optimizer: Any, x: tf.Variable, *, sufficient_decrease: float, max_halvings: int, shift: float | None = None
) -> Step:
    """Step by x ← x + t p with p = -D |D H D|⁻¹ D gradient: Newton's step wherever the Hessian H is positive definite.

    D is diagonal, 1 / √(the largest absolute value in each row of H), so that p hardly depends on the units of x. |A| has A's
    eigenvectors and the absolute values of its eigenvalues, at least LEAST of the largest, so that p leads away from saddles
    and maxima: Dauphin et al. (2014), Identifying and attacking the saddle point problem, arXiv:1406.2572.

    t is the first of 1, 1/2, 1/4 … with loss(x + t p) ≤ loss(x) + sufficient_decrease · t · gradientᵀp (Armijo 1966), up to
    rounding. x stays, and the run ends, after `max_halvings` halvings, and at the second step in a row whose expected decrease
    is within the rounding of the loss. If H is not finite, p is -gradient.

    Python drives the steps: in graph and xla the evaluations are compiled, and p is computed in double precision.
    """
    if shift is not None:
        logging.getLogger(__name__).warning("strategy.shift has no effect any more; leave it out")
    of = loss.function
    evaluate_at = {"gradient": partial(value_and_gradient, of), "hessian": partial(hessian, of), "loss": of}
    tried = tf.Variable(tf.ones((), tf.int64), trainable=False)
    blind = tf.Variable(tf.constant(False), trainable=False)
    eps = float(np.finfo(x.dtype.name).eps)

    def evaluate() -> Row:
        point = tf.convert_to_tensor(x)
        y, gradient = evaluate_at["gradient"](point)
        k = tf.convert_to_tensor(optimizer.iterations)
        counts = {"loss": tf.convert_to_tensor(tried), "gradient": k + 1, "hessian": k}
        return Row(point, y, gradient, {EVALUATIONS + what: count for what, count in counts.items()})

    def take() -> Row:
        row = evaluate()
        if not optimizers.usable(*row[:3]):
            return row
        y, gradient = float(row.loss), row.gradient.numpy().astype(np.float64).ravel()
        p = direction(evaluate_at["hessian"](row.x).numpy().astype(np.float64), gradient)
        slope = float(gradient @ p)
        unseen = -slope / 2 <= eps * abs(y)
        if not (unseen and bool(blind)):
            along = tf.reshape(tf.constant(p, row.x.dtype), row.x.shape)
            moved, trials = line_search(evaluate_at["loss"], row, along, slope * sufficient_decrease, max_halvings)
            x.assign(moved)
            tried.assign_add(trials)
        blind.assign(unseen)
        optimizer.iterations.assign_add(1)
        return row

    def restart() -> None:
        tried.assign(tf.ones_like(tried))
        blind.assign(False)

    def compiled(decorator: Callable[[Any], Any]) -> Step:
        point = tf.convert_to_tensor(x)
        for what, function in evaluate_at.items():
            evaluate_at[what] = decorator(function)
            evaluate_at[what](point)
        return step

    step = Step(take, evaluate, restart, compiled, stalled=stands_still, variables=[tried, blind])
    return step


def line_search(function: Function, row: Row, p: tf.Tensor, decrease: float, halvings: int) -> tuple[tf.Tensor, int]:
    """Return x + t p for the first t = 1, 1/2, … with loss ≤ loss(x) + t · decrease (or x), and the number of trials."""
    y, eps = float(row.loss), float(np.finfo(row.loss.dtype.name).eps)
    for trial in range(halvings + 1):
        t = 0.5**trial
        there = row.x + t * p
        if float(function(there)) <= y + t * decrease + ROUNDINGS * eps * abs(y):
            return there, trial + 1
    return row.x, halvings + 1


def direction(h: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Return newton's p, [n], for a Hessian, [n, n], and a gradient, [n]; -gradient if p would not be finite."""
    with np.errstate(all="ignore"):
        p = scaled_direction(h, gradient) if np.isfinite(h).all() else -gradient
        return p if np.isfinite(p).all() else -gradient


def scaled_direction(h: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Return -D |D H D|⁻¹ D gradient, [n]."""
    largest = np.abs(h).max(axis=1)
    d = 1 / np.sqrt(np.where(largest > 0, largest, 1))
    scaled = d[:, None] * h * d
    try:
        # If H is positive definite, Cholesky gives the same p in a tenth of the time.
        return -d * linalg.cho_solve(linalg.cho_factor(scaled), d * gradient)
    except linalg.LinAlgError:
        values, vectors = np.linalg.eigh(scaled)
        sizes = np.abs(values)
        sizes = np.maximum(sizes, LEAST * sizes.max() or 1)
        return -d * (vectors @ ((vectors.T @ (d * gradient)) / sizes))
