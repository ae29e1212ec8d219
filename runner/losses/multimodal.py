"""Losses with several minima: the end of a run depends on its start, its learning rate and its momentum.

The losses of two dimensions have a few minima, of which up to four are global. The others take any dimension and have very many
minima, on a regular grid (rastrigin, ackley, griewank, levy) or at the corners of a cube (styblinski_tang). Every function
takes x[..., d] and returns [...] in x's dtype; coordinates count from 1 in the formulas. "Jamil, Yang" is arXiv:1308.4008
(2013); "VLSE" is Surjanovic and Bingham's Virtual Library of Simulation Experiments,
https://www.sfu.ca/~ssurjano/optimization.html. The starts are this package's convention: the literature draws them from the
domain instead.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from runner.losses.base import known
from runner.losses.sums import mean, norm, total


def himmelblau_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return x₁² + x₂ - 11 and x₁ + x₂² - 7."""
    x1, x2 = x[..., 0], x[..., 1]
    return tf.stack([tf.square(x1) + x2 - 11, x1 + tf.square(x2) - 7], axis=-1)


@known(
    dimension=2,
    domain=(-5.0, 5.0),
    start=1.0,
    minimisers=[
        [3.0, 2.0],
        [-2.805118086952745, 3.131312518250573],
        [-3.779310253377747, -3.2831859912861696],
        [3.5844283403304917, -1.8481265269644036],
    ],
    minimum=0.0,
    residuals=himmelblau_residuals,
)
def himmelblau(x: tf.Tensor) -> tf.Tensor:
    """Return (x₁² + x₂ - 11)² + (x₁ + x₂² - 7)², with four global minima.

    d = 2; domain [-5, 5]²; start (1, 1).
    Source: Himmelblau (1972), Applied Nonlinear Programming; Jamil, Yang no. 65.
    """
    x1, x2 = x[..., 0], x[..., 1]
    return tf.square(tf.square(x1) + x2 - 11) + tf.square(x1 + tf.square(x2) - 7)


@known(dimension=2, domain=(-2.0, 2.0), start=1.0, minimisers=[[0.0, -1.0]], minimum=3.0)
def goldstein_price(x: tf.Tensor) -> tf.Tensor:
    """Return a product of two quartics, with four minima and values from 3 to over a million.

    (1 + (x₁ + x₂ + 1)² (19 - 14x₁ + 3x₁² - 14x₂ + 6x₁x₂ + 3x₂²))
    · (30 + (2x₁ - 3x₂)² (18 - 32x₁ + 12x₁² + 48x₂ - 36x₁x₂ + 27x₂²)).
    d = 2; domain [-2, 2]²; start (1, 1).
    Source: Goldstein, Price (1971), doi:10.1090/S0025-5718-1971-0312365-X; VLSE.
    """
    x1, x2 = x[..., 0], x[..., 1]
    square1, square2, product = tf.square(x1), tf.square(x2), x1 * x2
    first = 19 - 14 * x1 + 3 * square1 - 14 * x2 + 6 * product + 3 * square2
    second = 18 - 32 * x1 + 12 * square1 + 48 * x2 - 36 * product + 27 * square2
    return (1 + tf.square(x1 + x2 + 1) * first) * (30 + tf.square(2 * x1 - 3 * x2) * second)


@known(
    dimension=2,
    domain=[[-5.0, 10.0], [0.0, 15.0]],
    start=[2.5, 7.5],
    minimisers=[[-math.pi, 12.275], [math.pi, 2.275], [3 * math.pi, 2.475]],
    minimum=5 / (4 * math.pi),
)
def branin(x: tf.Tensor) -> tf.Tensor:
    """Return (x₂ - 5.1 x₁² / 4π² + 5x₁/π - 6)² + 10 (1 - 1/8π) cos x₁ + 10, with three minima, all global.

    d = 2; domain x₁ in [-5, 10], x₂ in [0, 15]; start (2.5, 7.5), the middle of the domain.
    Source: Branin (1972), doi:10.1147/rd.165.0504; Jamil, Yang no. 22 (RCOS).
    """
    x1, x2 = x[..., 0], x[..., 1]
    parabola = x2 - 5.1 / (4 * math.pi**2) * tf.square(x1) + 5 / math.pi * x1 - 6
    return tf.square(parabola) + 10 * (1 - 1 / (8 * math.pi)) * tf.cos(x1) + 10


@known(dimension=2, domain=(-5.0, 5.0), start=2.0, minimisers=0.0, minimum=0.0)
def three_hump_camel(x: tf.Tensor) -> tf.Tensor:
    """Return 2x₁² - 1.05 x₁⁴ + x₁⁶/6 + x₁x₂ + x₂², with three minima, the middle one global.

    d = 2; domain [-5, 5]²; start (2, 2).
    Source: Dixon, Szegö (1978), Towards Global Optimisation 2; Jamil, Yang no. 29.
    """
    x1, x2 = x[..., 0], x[..., 1]
    square = tf.square(x1)
    # Factored, with x₁x₂ within a square: never a difference of infinities if a power overflows.
    return square * (1.75 + square * (square / 6 - 1.05)) + tf.square(x2 + x1 / 2)


@known(
    dimension=2,
    domain=[[-3.0, 3.0], [-2.0, 2.0]],
    start=1.0,
    minimisers=[[0.08984201310031806, -0.7126564030207396], [-0.08984201310031806, 0.7126564030207396]],
    minimum=-1.0316284534898774,
)
def six_hump_camel(x: tf.Tensor) -> tf.Tensor:
    """Return (4 - 2.1x₁² + x₁⁴/3) x₁² + x₁x₂ + (4x₂² - 4) x₂², with six minima, two of them global.

    d = 2; domain x₁ in [-3, 3], x₂ in [-2, 2] after VLSE; start (1, 1).
    Source: Dixon, Szegö (1978), Towards Global Optimisation 2; Jamil, Yang no. 30.
    """
    x1, x2 = x[..., 0], x[..., 1]
    square1, square2 = tf.square(x1), tf.square(x2)
    # Factored as in three_hump_camel.
    return square1 * (3.5 + square1 * (square1 / 3 - 2.1)) + tf.square(x1 + x2) / 2 + (4 * square2 - 4.5) * square2


@known(
    dimension=None,
    domain=(-5.0, 5.0),
    start=0.0,
    minimisers=-2.903534027771177,
    minimum=lambda d: -39.16616570377141 * d,
)
def styblinski_tang(x: tf.Tensor) -> tf.Tensor:
    """Return Σ (xᵢ⁴ - 16xᵢ² + 5xᵢ) / 2, with 2ᵈ minima, one of them global; each coordinate's other minimum is at 2.7468.

    Any d; domain [-5, 5]ᵈ; start (0, …, 0), from which the slope leads to the global minimum.
    Source: Styblinski, Tang (1990), doi:10.1016/0893-6080(90)90029-K; VLSE, with its factor 1/2.
    """
    square = tf.square(x)
    # Factored: never a difference of infinities if x⁴ overflows.
    return total(square * (square - 16) + 5 * x) / 2


def rastrigin_residuals(x: tf.Tensor) -> tf.Tensor:
    """Return x, then √20 sin πx."""
    return tf.concat([x, math.sqrt(20) * tf.sin(math.pi * x)], axis=-1)


@known(dimension=None, domain=(-5.12, 5.12), start=2.6, minimisers=0.0, minimum=0.0, residuals=rastrigin_residuals)
def rastrigin(x: tf.Tensor) -> tf.Tensor:
    """Return 10d + Σ xᵢ² - 10 cos 2πxᵢ, with a minimum near every whole number.

    The sum is computed from xᵢ² + 20 sin² πxᵢ, which is equal but has no cancellation at the minimum.
    Any d; domain [-5.12, 5.12]ᵈ; start (2.6, …, 2.6).
    Source: Rastrigin (1974), Systems of Extremal Control; any d: Mühlenbein, Schomisch, Born (1991),
    doi:10.1016/S0167-8191(05)80052-3; VLSE.
    """
    return total(tf.square(x) + 20 * tf.square(tf.sin(math.pi * x)))


@known(dimension=None, domain=(-32.768, 32.768), start=2.4, minimisers=0.0, minimum=0.0, smooth=False)
def ackley(x: tf.Tensor) -> tf.Tensor:
    """Return 20 + e - 20 exp(-√(Σ xᵢ²/d) / 5) - exp(Σ cos(2πxᵢ) / d): a plain full of minima around a funnel.

    The minimum is the tip of a cone, where the loss is not differentiable; the gradient there is defined as 0. The sum is
    computed from differences to 1, which are exact at the minimum, where the formula's own terms cancel.
    Any d; domain [-32.768, 32.768]ᵈ; start (2.4, …, 2.4).
    Source: Ackley (1987), doi:10.1007/978-1-4613-1997-9; any d: Bäck (1996), Evolutionary Algorithms in Theory and Practice;
    VLSE; Jamil, Yang no. 1.
    """
    root = norm(x) / math.sqrt(x.shape[-1])
    waves = -2 * mean(tf.square(tf.sin(math.pi * x)))
    return -20 * tf.math.expm1(-root / 5) - math.e * tf.math.expm1(waves)


@known(dimension=None, domain=(-600.0, 600.0), start=10.0, minimisers=0.0, minimum=0.0)
def griewank(x: tf.Tensor) -> tf.Tensor:
    """Return 1 + Σ xᵢ²/4000 - Π cos(xᵢ/√i), a wide bowl under ripples that fade as d grows.

    Any d; domain [-600, 600]ᵈ; start (10, …, 10).
    Source: Griewank (1981), doi:10.1007/BF00933356; VLSE.
    """
    roots = tf.constant(np.sqrt(np.arange(1, x.shape[-1] + 1)), x.dtype)
    return 1 + total(tf.square(x)) / 4000 - tf.reduce_prod(tf.cos(x / roots), axis=-1)


@known(dimension=None, domain=(-10.0, 10.0), start=-4.0, minimisers=1.0, minimum=0.0)
def levy(x: tf.Tensor) -> tf.Tensor:
    """Return sin² πw₁ + Σ (wᵢ - 1)² (1 + 10 sin²(πwᵢ + 1)) over i < d + (w_d - 1)² (1 + sin² 2πw_d), with w = 1 + (x - 1)/4.

    Any d; domain [-10, 10]ᵈ; start (-4, …, -4).
    Source: Laguna, Martí (2005), doi:10.1007/s10898-004-1936-z; VLSE.
    """
    z = (x - 1) / 4
    # sin² has period π, so sin² πw₁ = sin² πz₁ and sin² 2πw_d = sin² 2πz_d, which are exact at the minimiser z = 0.
    inner, last = z[..., :-1], z[..., -1]
    middle = total(tf.square(inner) * (1 + 10 * tf.square(tf.sin(math.pi * (inner + 1) + 1))))
    end = tf.square(last) * (1 + tf.square(tf.sin(2 * math.pi * last)))
    return tf.square(tf.sin(math.pi * z[..., 0])) + middle + end
