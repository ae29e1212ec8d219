"""Noise on a loss and its gradient: a function `(of: Loss, …) -> Loss` that wraps it, the outermost of all wrappings.

At step k the loss is f(x) + a and its gradient ∇f(x) + b, with a one number and b of x's shape. Both are drawn by the run's
seed and k alone, independently of each other: the same in every execution, and of every x that is computed at once, so that
the jobs of a fused sweep have common random numbers. The measure `full_loss` is the loss without the noise, and so are the
minimum and the minimisers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import tensorflow as tf

from runner.errors import UserError
from runner.losses import draws
from runner.losses.base import Loss

# Another than that of a loss which draws by itself.
STREAM = 1


def none(of: Loss) -> Loss:
    """Return the loss as it is."""
    return of


def gaussian(of: Loss, *, seed: int, loss: float, gradient: float) -> Loss:
    """Return the loss with normal noise of these standard deviations, of the loss and of each number of the gradient.

    Raises UserError where one of them is negative or not finite.
    """
    return noisy(of, draws.normal, seed, loss, gradient)


def student_t(of: Loss, *, seed: int, degrees_of_freedom: float, loss: float, gradient: float) -> Loss:
    """Return the loss with noise of Student's t distribution, times `loss` and, in each number of it, the gradient's factor.

    The fewer the degrees of freedom n, the heavier the tails: for n = 1, Cauchy's distribution, there is no mean, for n ≤ 2 no
    variance, above that it is n / (n - 2) times the factor squared.

    Raises UserError where a factor is negative or not finite, or n is not above 0.
    """
    if not 0 < degrees_of_freedom < float("inf"):
        raise UserError(f"noise.degrees_of_freedom must be above 0, got {degrees_of_freedom!r}; set noise.degrees_of_freedom=3")
    return noisy(of, partial(draws.student_t, degrees_of_freedom=degrees_of_freedom), seed, loss, gradient)


def noisy(of: Loss, draw: Callable[..., tf.Tensor], seed: int, loss: float, gradient: float) -> Loss:
    """Return the loss with what is drawn, times these factors, added to it and to its gradient."""
    faults = [
        f"noise.{name} must be a finite number of 0 or more, got {value!r}; set noise.{name}=0.1"
        for name, value in (("loss", loss), ("gradient", gradient))
        if not 0 <= value < float("inf")
    ]
    if faults:
        raise UserError("; ".join(faults))

    def function(x: tf.Tensor, *, seed: tf.Tensor) -> tf.Tensor:
        y = of.function(x) if of.seed is None else of.function(x, seed=seed)
        # What y lacks of x's axes are those of one x.
        one, rank = x.shape[y.shape.rank :], y.shape.rank
        # At once: one draw compiles twice as fast as two, and with few coordinates runs eight times as fast.
        drawn = draw(seed, STREAM, [1 + one.num_elements()], x.dtype)
        if loss > 0:
            y += loss * drawn[0]
        if gradient > 0:
            # A term that is 0 and whose derivative is the noise.
            along = gradient * tf.reshape(drawn[1:], one) * (x - tf.stop_gradient(x))
            y += tf.reduce_sum(along, axis=list(range(rank, x.shape.rank)))
        return y

    exact: dict[str, Any] = {"full_loss": of.function} if of.seed is None else {}
    own = {"function": function, "seed": seed if of.seed is None else of.seed, "measures": exact | dict(of.measures)}
    # With noise it is no sum of squares.
    return replace(of, **own, residuals=None)
