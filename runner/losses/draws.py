"""Random numbers that are the same in every execution: made of integers, by formulas of ours.

`tf.random.stateless_uniform` gives other real numbers under XLA than without it, but the same integers. A draw depends on the
`seed` alone that a random loss is called with, two int64, and on its stream: what one loss draws for several purposes is told
apart by streams, small whole numbers from 1 on; 0 is the seed as it came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

# Of each real type, the integers that are drawn and the bits of them that count: one less than its own precision, so that half
# of the last one can be added exactly.
BITS = {tf.float32: (tf.uint32, 32, 23), tf.float64: (tf.uint64, 64, 52)}


def bits(seed: tf.Tensor, stream: int, shape: Sequence[int], dtype: tf.DType) -> tf.Tensor:
    """Return integers, each of its type's values equally likely."""
    apart = seed + tf.constant([stream << 32, 0], tf.int64)
    return tf.random.stateless_uniform(shape, apart, minval=None, maxval=None, dtype=dtype, alg="philox")


def uniform(seed: tf.Tensor, stream: int, shape: Sequence[int], dtype: tf.DType) -> tf.Tensor:
    """Return numbers of float32 or float64 from the middles of 2²³ or 2⁵² even parts of (0, 1); never 0 or 1."""
    integers, width, kept = BITS[dtype]
    drawn = bits(seed, stream, shape, integers)
    part = tf.bitwise.right_shift(drawn, tf.constant(width - kept, integers))
    # By way of the signed type, which processors convert from in one instruction.
    whole = tf.cast(tf.cast(part, tf.int32 if width == 32 else tf.int64), dtype)
    return (whole + 0.5) * tf.constant(2.0**-kept, dtype)


def normal(seed: tf.Tensor, stream: int, shape: Sequence[int], dtype: tf.DType) -> tf.Tensor:
    """Return √(-2 ln u) cos 2πv, standard normal, of two uniform numbers each; at most 5.8 in float32, 8.6 in float64.

    Source: Box and Muller (1958), doi:10.1214/aoms/1177706645.
    """
    u, v = tf.unstack(uniform(seed, stream, [2, *shape], dtype))
    return tf.sqrt(-2 * tf.math.log(u)) * turn(v)


def student_t(seed: tf.Tensor, stream: int, shape: Sequence[int], dtype: tf.DType, *, degrees_of_freedom: float) -> tf.Tensor:
    """Return √(n (u^(-2/n) - 1)) cos 2πv, Student's t of n degrees of freedom; its limit for n → ∞ is `normal`.

    Cut off where fewer than one in 2²⁴ (float32) or 2⁵³ would lie beyond.
    Source: Bailey (1994), doi:10.1090/S0025-5718-1994-1219702-8, by an angle in place of his rejection.
    """
    u, v = tf.unstack(uniform(seed, stream, [2, *shape], dtype))
    n = float(degrees_of_freedom)
    return tf.sqrt(n * tf.math.expm1(-2 / n * tf.math.log(u))) * turn(v)


def turn(v: tf.Tensor) -> tf.Tensor:
    """Return cos 2πv."""
    return tf.cos(2 * math.pi * v)
