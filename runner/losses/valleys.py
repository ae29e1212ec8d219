"""Curved valleys: the way to the minimum, which is 0, leads along a bent floor between steep walls.

An optimizer falls to the floor within a few steps, and then moves slowly along it: a learning rate that suits the walls is far
too small for the floor. None is convex. Every function takes x[..., d] and returns [...] in x's dtype; coordinates count from 1
in the formulas. "MGH" is Moré, Garbow and Hillstrom (1981), doi:10.1145/355934.355936, whose standard starts are used; Jamil
and Yang (2013) is arXiv:1308.4008; "VLSE" is Surjanovic and Bingham's Virtual Library of Simulation Experiments,
https://www.sfu.ca/~ssurjano/optimization.html.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from runner.losses.base import known
from runner.losses.sums import total


def rosenbrock_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return 10 (xᵢ₊₁ - xᵢ²), then 1 - xᵢ, over i < d."""
    here, following = x[..., :-1], x[..., 1:]
    return tf.concat([10 * (following - tf.square(here)), 1 - here], axis=-1)


@known(
    dimension=None,
    least=2,
    domain=(-5.0, 10.0),
    start=lambda d: np.where(np.arange(d) % 2, 1.0, -1.2),
    minimisers=1.0,
    minimum=0.0,
    residuals=rosenbrock_residuals,
)
def rosenbrock(x: tf.Tensor) -> tf.Tensor:
    """Return Σ 100 (xᵢ₊₁ - xᵢ²)² + (1 - xᵢ)² over i < d: the chained sum; d = 2 is Rosenbrock's original function.

    d of 2 or more; domain [-5, 10]ᵈ after VLSE; start (-1.2, 1, -1.2, …), where the loss is 24.2 for d = 2. From d = 4 on there
    is another minimum near (-1, 1, …, 1) (Shang, Qiu 2006, doi:10.1162/evco.2006.14.1.119).
    Source: Rosenbrock (1960), doi:10.1093/comjnl/3.3.175; MGH problem 1. MGH problem 21 is another sum, of separate pairs.
    """
    here, following = x[..., :-1], x[..., 1:]
    return total(100 * tf.square(following - tf.square(here)) + tf.square(1 - here))


def beale_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return yᵢ - x₁ (1 - x₂ⁱ) for i = 1, 2, 3, with y = (1.5, 2.25, 2.625)."""
    x1, x2 = x[..., 0], x[..., 1]
    square = tf.square(x2)
    return tf.stack([1.5 - x1 * (1 - x2), 2.25 - x1 * (1 - square), 2.625 - x1 * (1 - square * x2)], axis=-1)


@known(dimension=2, domain=(-4.5, 4.5), start=1.0, minimisers=[[3.0, 0.5]], minimum=0.0, residuals=beale_residuals)
def beale(x: tf.Tensor) -> tf.Tensor:
    """Return (1.5 - x₁ (1 - x₂))² + (2.25 - x₁ (1 - x₂²))² + (2.625 - x₁ (1 - x₂³))².

    d = 2; start (1, 1), where the loss is 14.203125; domain [-4.5, 4.5]² after Jamil and Yang (2013), no. 10.
    Source: Beale (1958), On an Iterative Method for Finding a Local Minimum of a Function of More than One Variable;
    MGH problem 5.
    """
    x1, x2 = x[..., 0], x[..., 1]
    square = tf.square(x2)
    first, second = 1.5 - x1 * (1 - x2), 2.25 - x1 * (1 - square)
    return tf.square(first) + tf.square(second) + tf.square(2.625 - x1 * (1 - square * x2))


def wood_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return MGH's six residuals: two for each valley, and √10 (x₂ + x₄ - 2) and (x₂ - x₄) / √10."""
    x1, x2, x3, x4 = x[..., 0], x[..., 1], x[..., 2], x[..., 3]
    first = [10 * (x2 - tf.square(x1)), 1 - x1]
    second = [math.sqrt(90) * (x4 - tf.square(x3)), 1 - x3]
    return tf.stack([*first, *second, math.sqrt(10) * (x2 + x4 - 2), (x2 - x4) / math.sqrt(10)], axis=-1)


@known(
    dimension=4,
    domain=(-10.0, 10.0),
    start=[-3.0, -1.0, -3.0, -1.0],
    minimisers=1.0,
    minimum=0.0,
    residuals=wood_residuals,
)
def wood(x: tf.Tensor) -> tf.Tensor:
    """Return two coupled Rosenbrock valleys, also known as Colville's function.

    The sum of 100 (x₂ - x₁²)² + (1 - x₁)², 90 (x₄ - x₃²)² + (1 - x₃)² and 10 (x₂ + x₄ - 2)² + (x₂ - x₄)² / 10.
    d = 4; start (-3, -1, -3, -1), where the loss is 19192; domain [-10, 10]⁴ after Jamil and Yang (2013), no. 36.
    Source: Colville (1968), A Comparative Study of Nonlinear Programming Codes; MGH problem 14.
    """
    x1, x2, x3, x4 = x[..., 0], x[..., 1], x[..., 2], x[..., 3]
    first = 100 * tf.square(x2 - tf.square(x1)) + tf.square(1 - x1)
    second = 90 * tf.square(x4 - tf.square(x3)) + tf.square(1 - x3)
    return first + second + 10 * tf.square(x2 + x4 - 2) + tf.square(x2 - x4) / 10


def helical_valley_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return 10 (x₃ - 10θ), 10 (r - 1) and x₃."""
    x1, x2, x3 = x[..., 0], x[..., 1], x[..., 2]
    angle = tf.atan2(x2, x1)
    turns = tf.where(angle < -math.pi / 2, angle + 2 * math.pi, angle) / (2 * math.pi)
    radius = tf.sqrt(tf.square(x1) + tf.square(x2))
    return tf.stack([10 * (x3 - 10 * turns), 10 * (radius - 1), x3], axis=-1)


@known(
    dimension=3,
    domain=(-10.0, 10.0),
    start=[-1.0, 0.0, 0.0],
    minimisers=[[1.0, 0.0, 0.0]],
    minimum=0.0,
    residuals=helical_valley_residuals,
)
def helical_valley(x: tf.Tensor) -> tf.Tensor:
    """Return 100 ((x₃ - 10θ)² + (r - 1)²) + x₃², with r and 2πθ the polar coordinates of (x₁, x₂).

    θ is MGH's branch, in turns: arctan(x₂/x₁) / 2π, and half a turn more if x₁ < 0. So θ runs from -1/4 to 3/4 and is smooth at
    the start. It jumps by a turn where x₁ = 0 > x₂, and the loss has no gradient at x₁ = x₂ = 0. Codes that compute θ by atan2
    alone jump at the start instead.
    d = 3; start (-1, 0, 0), where the loss is 2500; domain [-10, 10]³ after Jamil and Yang (2013).
    Source: Fletcher, Powell (1963), doi:10.1093/comjnl/6.2.163; MGH problem 7.
    """
    x1, x2, x3 = x[..., 0], x[..., 1], x[..., 2]
    angle = tf.atan2(x2, x1)
    turns = tf.where(angle < -math.pi / 2, angle + 2 * math.pi, angle) / (2 * math.pi)
    radius = tf.sqrt(tf.square(x1) + tf.square(x2))
    return 100 * (tf.square(x3 - 10 * turns) + tf.square(radius - 1)) + tf.square(x3)


def dixon_price_minimisers(d: int) -> np.ndarray:
    """Return both minimisers of `dixon_price`, or the only one if d = 1."""
    i = np.arange(1, d + 1)
    positive = 2.0 ** (2.0 ** (1 - i) - 1)
    return np.stack([positive, np.where(i == d, -positive, positive)])[: min(d, 2)]


def dixon_price_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return x₁ - 1, then √i (2xᵢ² - xᵢ₋₁) for i ≥ 2."""
    roots = tf.constant(np.sqrt(np.arange(2, x.shape[-1] + 1)), x.dtype)
    return tf.concat([x[..., :1] - 1, roots * (2 * tf.square(x[..., 1:]) - x[..., :-1])], axis=-1)


@known(
    dimension=None,
    domain=(-10.0, 10.0),
    start=2.0,
    minimisers=dixon_price_minimisers,
    minimum=0.0,
    residuals=dixon_price_residuals,
)
def dixon_price(x: tf.Tensor) -> tf.Tensor:
    """Return (x₁ - 1)² + Σ i (2xᵢ² - xᵢ₋₁)² over i ≥ 2.

    The global minimisers have |xᵢ| = 2^(2^(1-i) - 1), from 1 towards 1/2. Each xᵢ₋₁ = 2xᵢ² is positive, so only the last may
    have either sign: there are two minimisers, and one if d = 1. A saddle at (1/3, 0, …, 0) delays runs; it is flatter for
    larger d.
    Any d; domain [-10, 10]ᵈ; start (2, …, 2), this package's convention.
    Source: Dixon, Price (1989), Journal of Optimization Theory and Applications 60, pp. 261-275; VLSE.
    """
    weights = tf.constant(np.arange(2, x.shape[-1] + 1), x.dtype)
    chain = weights * tf.square(2 * tf.square(x[..., 1:]) - x[..., :-1])
    return tf.square(x[..., 0] - 1) + total(chain)
