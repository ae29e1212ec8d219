"""Steps for a loss that is a sum of squares, by the Jacobian of the residuals, without second derivatives.

J is [m, n], of m residuals r with respect to the n numbers of x; the gradient of Σ r² is 2 Jᵀr. A trust region, which scales
with the columns of J, limits a step to where r is nearly linear.

"M" is Moré (1978), The Levenberg-Marquardt algorithm: implementation and theory, doi:10.1007/BFb0067700; "MINPACK" is its
program LMDER (Moré, Garbow, Hillstrom 1980, ANL-80-74), whose constants are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from runner import optimizers
from runner.errors import Incompatible, UserError
from runner.loop import EVALUATIONS
from runner.losses import Loss
from runner.losses.sums import norm as norm_of
from runner.losses.sums import total
from runner.strategies import Row, Step, stands_still, without_optimizer
from runner.strategies.second_order import jacobian
from runner.trace import Trace

Function = Callable[[tf.Tensor], tf.Tensor]
# MINPACK's constants: the least part of the predicted decrease with which a step is accepted; the parts that make a step bad
# and good; the tolerance of a step's length, relative to the radius; the largest number of Hebden's iterations.
ACCEPTED, BAD, GOOD = 1e-4, 0.25, 0.75
NEAR, HEBDEN = 0.1, 10


class Region(NamedTuple):
    """The trust region, the state between steps: Δ and Marquardt's λ, both 0 before step 0, and D, [n]."""

    radius: tf.Tensor
    parameter: tf.Tensor
    scale: tf.Tensor


class Trial(NamedTuple):
    """The point that a step has reached, [n], whether the search for a step is over, and the number of trials."""

    x: tf.Tensor
    over: tf.Tensor
    rounds: tf.Tensor


class Search(NamedTuple):
    """The state of Hebden's iteration: a step, its λ, the next λ, the bounds of λ, and by how much the step exceeds Δ."""

    p: tf.Tensor
    parameter: tf.Tensor
    guess: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor
    beyond: tf.Tensor
    over: tf.Tensor
    rounds: tf.Tensor


@without_optimizer
def gauss_newton(loss: Loss, optimizer: Any, x: tf.Variable, *, factor: float, max_trials: int) -> Step:
    """Step by x ← x + p, where p minimises ‖r + J p‖² among ‖D p‖ ≤ Δ: the Gauss-Newton step if it is short enough.

    Otherwise (JᵀJ + λD²) p = -Jᵀr, with λ such that ‖D p‖ is Δ up to a tenth (M, section 5). D holds the largest norm so far of
    each column of J (M, section 6). Δ begins at `factor` · ‖D x‖, and is adapted to how well r + J p predicts r(x + p) (M,
    section 4). A step that lowers the sum of squares by too little is tried again within a smaller Δ. After `max_trials` trials
    without success, x stays where it is. A run ends if x stays after fewer trials. The rows are the points at which MINPACK
    computes J.

    Raises Incompatible if the loss names no residuals, and UserError if the loss is not their sum of squares.
    """
    r = residuals_of(loss, x)
    n = x.shape.num_elements()
    state = Region(*(tf.Variable(tf.zeros(shape, x.dtype), trainable=False) for shape in ((), (), (n,))))
    tried = tf.Variable(tf.ones((), tf.int64), trainable=False)

    def evaluate() -> Row:
        return linearised()[0]

    def linearised() -> tuple[Row, tf.Tensor, tf.Tensor]:
        point = tf.convert_to_tensor(x)
        with tf.GradientTape(persistent=tf.executing_eagerly()) as t:
            t.watch(point)
            at = r(point)
        j = tf.reshape(jacobian(t, at, point), (-1, n))
        gradient = tf.reshape(2 * tf.linalg.matvec(j, at, transpose_a=True), point.shape)
        evaluations = optimizer.iterations + 1
        counts = {"loss": tf.convert_to_tensor(tried), "gradient": evaluations, "jacobian": evaluations}
        named = {EVALUATIONS + what: count for what, count in counts.items()}
        return Row(point, total(tf.square(at)), gradient, named), at, j

    def take() -> Row:
        row, at, j = linearised()
        if not optimizers.usable(*row[:3]):
            return row
        region = first(Region(*map(tf.convert_to_tensor, state)), tf.reshape(row.x, (-1,)), j, factor)
        trial, region = step(r, row.x, at, j, region, optimizer.iterations == 0, max_trials)
        x.assign(tf.reshape(trial.x, row.x.shape))
        for mine, new in zip(state, region, strict=True):
            mine.assign(new)
        tried.assign_add(trial.rounds)
        optimizer.iterations.assign_add(1)
        return row

    def restart() -> None:
        for each in state:
            each.assign(tf.zeros_like(each))
        tried.assign(tf.ones_like(tried))

    def stalled(trace: Trace, start: int) -> int | None:
        # If all trials were used, the last one may also have ended the search; the next step shows it.
        fewer = np.diff(trace.named[EVALUATIONS + "loss"], prepend=0) < max_trials
        return stands_still(trace, start, fewer)

    return Step(take, evaluate, restart, variables=[*state, tried], stalled=stalled)


def residuals_of(loss: Loss, x: tf.Variable) -> Function:
    """Return a loss's residuals, [m] at x.

    Raises Incompatible if the loss names none, and UserError if it is not the sum of their squares.
    """
    r = loss.residuals
    if r is None:
        raise Incompatible(
            "strategy=gauss_newton needs a loss that names its residuals, which this one does not; set strategy=newton"
        )
    point = tf.convert_to_tensor(x)
    value, squares, shape = loss(point), total(tf.square(r(point))), r(point).shape
    tolerance = 1e3 * np.finfo(x.dtype.name).eps
    if shape.rank != 1 or bool(tf.abs(value - squares) > tolerance * tf.maximum(tf.abs(value), 1)):
        raise UserError(
            f"loss: its residuals must be [m] for one x, with the loss as the sum of their squares; got shape {tuple(shape)} "
            f"and {float(squares):.7g} for a loss of {float(value):.7g}"
        )
    return r


def first(region: Region, x: tf.Tensor, j: tf.Tensor, factor: float) -> Region:
    """Return the region with its scale raised to the norms of j's columns, and with the first radius if it has none yet."""
    begins = tf.equal(region.radius, 0)
    scale = tf.maximum(region.scale, norm_of(j, 0))
    scale = tf.where(begins & tf.equal(scale, 0), tf.ones_like(scale), scale)
    size = factor * norm_of(scale * x)
    radius = tf.where(begins, tf.where(tf.equal(size, 0), factor * tf.ones_like(size), size), region.radius)
    return Region(radius, region.parameter, scale)


def step(
    r: Function, point: tf.Tensor, at: tf.Tensor, j: tf.Tensor, region: Region, begins: tf.Tensor, max_trials: int
) -> tuple[Trial, Region]:
    """Try steps from a point with the residuals `at` and the Jacobian j; return the last trial and the new region.

    The trials end if a step is accepted, if no step can improve, or after `max_trials`.
    """
    x, norm = tf.reshape(point, (-1,)), norm_of(at)
    eps = float(np.finfo(x.dtype.name).eps)

    def again(trial: Trial, _: Region) -> tf.Tensor:
        return tf.logical_not(trial.over) & (trial.rounds < max_trials)

    def tried(trial: Trial, region: Region) -> tuple[Trial, Region]:
        p, parameter = within(j, at, region)
        length = norm_of(region.scale * p)
        radius = tf.where(begins & tf.equal(trial.rounds, 0), tf.minimum(region.radius, length), region.radius)
        there = x + p
        new = norm_of(r(tf.reshape(there, point.shape)))
        actual = tf.where(NEAR * new < norm, 1 - tf.square(new / norm), -tf.ones_like(norm))
        linear, damped = tf.square(norm_of(tf.linalg.matvec(j, p)) / norm), parameter * tf.square(length / norm)
        promised = linear + 2 * damped
        ratio = tf.math.divide_no_nan(actual, promised)
        accepted = ratio >= ACCEPTED
        region = resized(
            region._replace(radius=radius, parameter=parameter), ratio, actual, -(linear + damped), length, new, norm
        )
        # Within rounding, there is nothing left to gain, or the radius is too small to move x.
        flat = (tf.abs(actual) <= eps) & (promised <= eps)
        over = accepted | flat | (region.radius <= eps * norm_of(region.scale * x)) | tf.equal(norm, 0)
        reached = tf.where(accepted, there, x)
        return Trial(reached, over, trial.rounds + 1), region

    start = Trial(x, tf.constant(False), tf.constant(0, tf.int64))
    return tf.while_loop(again, tried, (start, region), parallel_iterations=1)


def resized(
    region: Region, ratio: tf.Tensor, actual: tf.Tensor, slope: tf.Tensor, length: tf.Tensor, new: tf.Tensor, norm: tf.Tensor
) -> Region:
    """Return the region after a step of this length: smaller after a bad step, larger after a good one, else unchanged."""
    cut = tf.where(actual >= 0, 0.5 * tf.ones_like(actual), 0.5 * slope / (slope + 0.5 * actual))
    cut = tf.where((NEAR * new >= norm) | (cut < NEAR), NEAR * tf.ones_like(cut), cut)
    bad, good = tf.logical_not(ratio > BAD), tf.equal(region.parameter, 0) | (ratio >= GOOD)
    smaller = cut * tf.minimum(region.radius, length / NEAR)
    radius = tf.where(bad, smaller, tf.where(good, 2 * length, region.radius))
    parameter = tf.where(bad, region.parameter / cut, tf.where(good, 0.5 * region.parameter, region.parameter))
    return region._replace(radius=radius, parameter=parameter)


def within(j: tf.Tensor, at: tf.Tensor, region: Region) -> tuple[tf.Tensor, tf.Tensor]:
    """Return p, [n], that minimises ‖at + j p‖ with ‖D p‖ ≤ Δ up to a tenth, and its Marquardt parameter λ (M, section 5)."""
    info = np.finfo(region.radius.dtype.name)
    full, beyond, newton = solved(j, at, region, tf.zeros_like(region.radius))
    # If j is not of full rank, there is no step without λ: the least λ is used instead, and λ has no lower bound. Columns of
    # j D⁻¹ have a norm of at most 1.
    whole = tf.reduce_all(tf.math.is_finite(full))
    least = info.eps * tf.ones_like(region.radius)
    full, beyond, newton = tf.cond(whole, lambda: (full, beyond, newton), lambda: solved(j, at, region, least))
    low, tiny = tf.where(whole, newton, tf.zeros_like(newton)), tf.constant(info.tiny, newton.dtype)
    slope = norm_of(tf.linalg.matvec(j, at, transpose_a=True) / region.scale)
    high = tf.maximum(slope / region.radius, tiny)
    guess = tf.minimum(tf.maximum(region.parameter, low), high)
    guess = tf.where(tf.equal(guess, 0), slope / (beyond + region.radius), guess)
    enough = beyond <= NEAR * region.radius
    start = Search(full, tf.zeros_like(guess), guess, low, high, beyond, enough, tf.constant(0))

    def unfinished(search: Search) -> tf.Tensor:
        return tf.logical_not(search.over) & (search.rounds < HEBDEN)

    def further(search: Search) -> tuple[Search]:
        parameter = tf.where(tf.equal(search.guess, 0), tf.maximum(tiny, 1e-3 * search.high), search.guess)
        p, beyond, newton = solved(j, at, region, parameter)
        over = (tf.abs(beyond) <= NEAR * region.radius) | (
            tf.equal(search.low, 0) & (beyond <= search.beyond) & (search.beyond < 0)
        )
        low = tf.where(beyond > 0, tf.maximum(search.low, parameter), search.low)
        high = tf.where(beyond < 0, tf.minimum(search.high, parameter), search.high)
        guess = tf.maximum(low, parameter + newton)
        return (Search(p, parameter, guess, low, high, beyond, over, search.rounds + 1),)

    (found,) = tf.while_loop(unfinished, further, (start,), parallel_iterations=1)
    return found.p, found.parameter


def solved(j: tf.Tensor, at: tf.Tensor, region: Region, parameter: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the step p of this λ, the excess of its scaled length over the radius, and Hebden's increment of λ."""
    d = region.scale
    stacked = tf.concat([j, tf.linalg.diag(tf.sqrt(parameter) * d)], axis=0)
    q, triangle = tf.linalg.qr(stacked)
    right = tf.linalg.matvec(q, tf.concat([at, tf.zeros_like(d)], axis=0), transpose_a=True)
    p = -tf.linalg.triangular_solve(triangle, right[:, None], lower=False)[:, 0]
    length = norm_of(d * p)
    w = tf.linalg.triangular_solve(triangle, (d * (d * p) / length)[:, None], adjoint=True, lower=False)
    beyond = length - region.radius
    return p, beyond, beyond / region.radius / tf.reduce_sum(tf.square(w))
