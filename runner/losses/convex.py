"""Convex losses: every stationary point is a global minimum, so an optimizer can only be slow, overshoot or diverge.

They differ in their curvature: equal in all directions (sphere), unequal (ellipsoid, matyas), growing away from the minimum
(zakharov) or zero at the minimum (powell_singular). Every function takes x[..., d], or x[...] if x is a scalar, and returns
[...] in x's dtype. Coordinates count from 1 in the formulas. "VLSE" is Surjanovic and Bingham's Virtual Library of Simulation
Experiments,
https://www.sfu.ca/~ssurjano/optimization.html.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from runner.losses.base import intermediate, known
from runner.losses.sums import total


def quadratic_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return x - 4, [..., 1]."""
    return x[..., None] - 4


@known(dimension=0, domain=(-10.0, 10.0), start=0.0, minimisers=4.0, minimum=0.0, residuals=quadratic_residuals)
def quadratic(x: tf.Tensor) -> tf.Tensor:
    """Return (x - 4)², a parabola of a scalar x, with the intermediate z = x - 4.

    d = 0, a scalar; domain [-10, 10]; start 0: this package's convention. Gradient descent with the learning rate a
    multiplies z by 1 - 2a in each step.
    """
    z = intermediate("z", x - 4)
    return tf.square(z)


def sphere_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return x."""
    return x


@known(dimension=None, domain=(-5.12, 5.12), start=4.0, minimisers=0.0, minimum=0.0, residuals=sphere_residuals)
def sphere(x: tf.Tensor) -> tf.Tensor:
    """Return Σ xᵢ².

    Any d; domain [-5.12, 5.12]ᵈ; start (4, …, 4), this package's convention.
    Source: De Jong (1975), An Analysis of the Behavior of a Class of Genetic Adaptive Systems, function F1.
    """
    return total(tf.square(x))


def ellipsoid_residuals(x: tf.Tensor, *, condition_number: float) -> tf.Tensor:
    """Return √cᵢ xᵢ."""
    return tf.constant(float(condition_number) ** np.linspace(0.0, 0.5, x.shape[-1]), x.dtype) * x


@known(dimension=None, domain=(-5.0, 5.0), start=4.0, minimisers=0.0, minimum=0.0, residuals=ellipsoid_residuals)
def ellipsoid(x: tf.Tensor, *, condition_number: float) -> tf.Tensor:
    """Return Σ cᵢ xᵢ² with cᵢ = condition_number^((i-1)/(d-1)), from 1 to the Hessian's condition number; c₁ = 1 if d = 1.

    Any d; domain [-5, 5]ᵈ; start (4, …, 4), this package's convention.
    Source: Hansen, Finck, Ros, Auger (2009), INRIA RR-6829, function 2, without its shift and its oscillation.
    """
    curvatures = float(condition_number) ** np.linspace(0.0, 1.0, x.shape[-1])
    return total(tf.constant(curvatures, x.dtype) * tf.square(x))


def booth_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return x₁ + 2x₂ - 7 and 2x₁ + x₂ - 5."""
    x1, x2 = x[..., 0], x[..., 1]
    return tf.stack([x1 + 2 * x2 - 7, 2 * x1 + x2 - 5], axis=-1)


@known(dimension=2, domain=(-10.0, 10.0), start=-5.0, minimisers=[[1.0, 3.0]], minimum=0.0, residuals=booth_residuals)
def booth(x: tf.Tensor) -> tf.Tensor:
    """Return (x₁ + 2x₂ - 7)² + (2x₁ + x₂ - 5)², whose Hessian's condition number is 9.

    d = 2; domain [-10, 10]²; start (-5, -5), this package's convention.
    Source: Jamil and Yang (2013), arXiv:1308.4008, no. 20.
    """
    x1, x2 = x[..., 0], x[..., 1]
    return tf.square(x1 + 2 * x2 - 7) + tf.square(2 * x1 + x2 - 5)


def matyas_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return (x₁ + x₂) / 10 and (x₁ - x₂) / 2."""
    x1, x2 = x[..., 0], x[..., 1]
    return tf.stack([(x1 + x2) / 10, (x1 - x2) / 2], axis=-1)


@known(dimension=2, domain=(-10.0, 10.0), start=[8.0, -3.0], minimisers=0.0, minimum=0.0, residuals=matyas_residuals)
def matyas(x: tf.Tensor) -> tf.Tensor:
    """Return 0.26 (x₁² + x₂²) - 0.48 x₁x₂, whose Hessian's condition number is 25 along the diagonals.

    d = 2; domain [-10, 10]²; start (8, -3), this package's convention.
    Source: VLSE; Jamil and Yang (2013), arXiv:1308.4008.
    """
    x1, x2 = x[..., 0], x[..., 1]
    # Computed as a sum of squares, which never becomes a difference of infinities if the squares overflow.
    return tf.square(x1 + x2) / 100 + tf.square(x1 - x2) / 4


def zakharov_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return x, then s and s²."""
    s = total(tf.constant(0.5 * np.arange(1, x.shape[-1] + 1), x.dtype) * x)[..., None]
    return tf.concat([x, s, tf.square(s)], axis=-1)


@known(dimension=None, domain=(-5.0, 10.0), start=1.0, minimisers=0.0, minimum=0.0, residuals=zakharov_residuals)
def zakharov(x: tf.Tensor) -> tf.Tensor:
    """Return Σ xᵢ² + s² + s⁴ with s = Σ i xᵢ / 2, steep along only one direction.

    Any d; domain [-5, 10]ᵈ; start (1, …, 1), this package's convention.
    Source: VLSE; Jamil and Yang (2013), arXiv:1308.4008.
    """
    weights = tf.constant(0.5 * np.arange(1, x.shape[-1] + 1), x.dtype)
    square = tf.square(total(weights * x))
    return total(tf.square(x)) + square + tf.square(square)


def powell_singular_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return the four residuals of Moré, Garbow, Hillstrom: x₁ + 10x₂, √5 (x₃ - x₄), (x₂ - 2x₃)² and √10 (x₁ - x₄)²."""
    x1, x2, x3, x4 = x[..., 0], x[..., 1], x[..., 2], x[..., 3]
    linear = [x1 + 10 * x2, math.sqrt(5) * (x3 - x4)]
    return tf.stack([*linear, tf.square(x2 - 2 * x3), math.sqrt(10) * tf.square(x1 - x4)], axis=-1)


@known(
    dimension=4,
    domain=(-4.0, 5.0),
    start=[3.0, -1.0, 0.0, 1.0],
    minimisers=0.0,
    minimum=0.0,
    residuals=powell_singular_residuals,
)
def powell_singular(x: tf.Tensor) -> tf.Tensor:
    """Return (x₁ + 10x₂)² + 5 (x₃ - x₄)² + (x₂ - 2x₃)⁴ + 10 (x₁ - x₄)⁴, whose Hessian is singular at the minimiser.

    d = 4; start (3, -1, 0, 1), where the loss is 215; domain [-4, 5]⁴ after VLSE.
    Source: Powell (1962), doi:10.1093/comjnl/5.2.147; Moré, Garbow, Hillstrom (1981), doi:10.1145/355934.355936, problem 13.
    """
    x1, x2, x3, x4 = x[..., 0], x[..., 1], x[..., 2], x[..., 3]
    linear = tf.square(x1 + 10 * x2) + 5 * tf.square(x3 - x4)
    return linear + tf.square(tf.square(x2 - 2 * x3)) + 10 * tf.square(tf.square(x1 - x4))
