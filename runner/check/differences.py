"""Check a loss's gradient against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from runner.errors import UserError
from runner.strategies import no_gradient

Function = Callable[[tf.Tensor], tf.Tensor]

# Relative tolerance between a derivative and its finite differences.
TOLERANCE = 1e-4
# Maximum number of coordinates that are checked; a larger x is checked along as many random directions.
DIRECTIONS = 32


def tensors(function: Function, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the loss and its gradient; for several x, the loss and the gradient of each.

    Raises UserError if there is no gradient.
    """
    with tf.GradientTape() as t:
        t.watch(x)
        y = function(x)
    gradient = t.gradient(y, x)
    if gradient is None:
        raise UserError(no_gradient(True))
    return y, tf.convert_to_tensor(gradient)


def of(function: Function, x: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and its gradient as arrays."""
    y, gradient = tensors(function, x)
    return y.numpy(), gradient.numpy()


def fault(function: Function, x: np.ndarray) -> str | bool | None:
    """Return where and how the gradient at x departs from differences; None if it agrees, False if nothing is finite.

    x is in double precision. Along a direction v, (f(x + h v) - f(x - h v)) / 2h is computed at h and at 2h. The slope is
    extrapolated from the two. Their difference bounds the effect of the third derivative; a bound for the roundings of f is
    added to it.
    """
    y, gradient = of(function, tf.constant(x))
    if not (np.isfinite(y) and np.isfinite(gradient).all()):
        return False
    eps = np.finfo(np.float64).eps
    h = eps ** (1 / 3) * max(1.0, float(np.abs(x).max()))
    told = False
    for v, name in directions(x):
        values = np.array([float(function(tf.constant(x + k * h * v))) for k in (-2, -1, 1, 2)])
        if not np.isfinite(values).all():
            continue
        told = True
        one, two = (values[2] - values[1]) / (2 * h), (values[3] - values[0]) / (4 * h)
        slope, own = (4 * one - two) / 3, float(np.sum(gradient * v))
        roundings = 8 * eps * float(np.abs(values).max()) / h
        if abs(own - slope) > TOLERANCE * max(abs(own), abs(slope)) + abs(one - two) + roundings:
            at = np.array2string(x, threshold=4, max_line_width=10**6)
            return f"along {name} it is {own:.7g}, and {slope:.7g} by differences, at x = {at}"
    return None if told else False


def directions(x: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Return directions of length 1 and x's shape, with their names."""
    if x.size <= DIRECTIONS:
        axes = np.eye(x.size).reshape(x.size, *x.shape)
        return [(axis, f"x/{i}" if x.shape else "x") for i, axis in enumerate(axes)]
    drawn = np.random.default_rng(0).normal(size=(DIRECTIONS, *x.shape))
    return [(each / np.linalg.norm(each), "a random direction") for each in drawn]
