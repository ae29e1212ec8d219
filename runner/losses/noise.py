"""Noise on a loss and its gradient: a function `(of: Loss, …) -> Loss` that wraps the loss, outside all other wrappers.

At step k the loss is f(x) + a and its gradient ∇f(x) + b, with a one number and b of x's shape. Both are drawn by the run's
seed and k alone, independently of each other. They are the same in every execution, and the same for all x that are computed at
once, so that the jobs of a fused sweep have common random numbers. The measure `full_loss` is the loss without noise; minimum
and minimisers are those of the loss without noise, too.
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

# The stream of the noise, different from the stream of a loss that draws random numbers itself.
STREAM = 1


def none(of: Loss) -> Loss:
    """Return the loss unchanged."""
    return of


def gaussian(of: Loss, *, seed: int, loss: float, gradient: float) -> Loss:
    """Return the loss with normal noise of standard deviation `loss`, and `gradient` for each number of the gradient.

    Raises UserError if one of them is negative or not finite.
    """
    return noisy(of, draws.normal, seed, loss, gradient)


def student_t(of: Loss, *, seed: int, degrees_of_freedom: float, loss: float, gradient: float) -> Loss:
    """Return the loss with Student's t noise, times the factor `loss`, and `gradient` for each number of the gradient.

    The fewer the degrees of freedom n, the heavier the tails. For n = 1, Cauchy's distribution, there is no mean. For n ≤ 2
    there is no variance; above that, the variance is n / (n - 2) times the factor squared.

    Raises UserError if a factor is negative or not finite, or if n is not above 0.
    """
    if not 0 < degrees_of_freedom < float("inf"):
        raise UserError(f"noise.degrees_of_freedom must be above 0, got {degrees_of_freedom!r}; set noise.degrees_of_freedom=3")
    return noisy(of, partial(draws.student_t, degrees_of_freedom=degrees_of_freedom), seed, loss, gradient)


def noisy(of: Loss, draw: Callable[..., tf.Tensor], seed: int, loss: float, gradient: float) -> Loss:
    """Return the loss with drawn numbers, times these factors, added to it and to its gradient.

    Raises UserError if a factor is negative or not finite.
    """
    faults = [
        f"noise.{name} must be a finite number of 0 or more, got {value!r}; set noise.{name}=0.1"
        for name, value in (("loss", loss), ("gradient", gradient))
        if not 0 <= value < float("inf")
    ]
    if faults:
        raise UserError("; ".join(faults))

    def function(x: tf.Tensor, *, seed: tf.Tensor) -> tf.Tensor:
        y = of.function(x) if of.seed is None else of.function(x, seed=seed)
        # The axes of x that y does not have are the axes of a single x.
        one, rank = x.shape[y.shape.rank :], y.shape.rank
        # One draw for both: it compiles twice as fast as two draws, and with few coordinates it runs eight times as fast.
        drawn = draw(seed, STREAM, [1 + one.num_elements()], x.dtype)
        if loss > 0:
            y += loss * drawn[0]
        if gradient > 0:
            # The term is 0, and its derivative is the noise.
            along = gradient * tf.reshape(drawn[1:], one) * (x - tf.stop_gradient(x))
            y += tf.reduce_sum(along, axis=list(range(rank, x.shape.rank)))
        return y

    exact: dict[str, Any] = {"full_loss": of.function} if of.seed is None else {}
    own = {"function": function, "seed": seed if of.seed is None else of.seed, "measures": exact | dict(of.measures)}
    # With noise, the loss is no sum of squares.
    return replace(of, **own, residuals=None)
