"""Random numbers that are the same in every execution: computed from random integers by this module's formulas.

`tf.random.stateless_uniform` returns different real numbers with XLA and without it, but the same integers. A draw depends only
on the `seed` of a random loss, two int64, and on a stream. Streams are small whole numbers from 1 on, which separate a loss's
draws for different purposes; stream 0 uses the seed unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

# For each real type: the type of the drawn integers, its width in bits, and the bits that are used. These are one less than the
# real type's precision, so that half of the last bit can be added exactly.
BITS = {tf.float32: (tf.uint32, 32, 23), tf.float64: (tf.uint64, 64, 52)}


def bits(seed: tf.Tensor, stream: int, shape: Sequence[int], dtype: tf.DType) -> tf.Tensor:
    """Return random integers; all values of the type are equally likely."""
    apart = seed + tf.constant([stream << 32, 0], tf.int64)
    return tf.random.stateless_uniform(shape, apart, minval=None, maxval=None, dtype=dtype, alg="philox")


def uniform(seed: tf.Tensor, stream: int, shape: Sequence[int], dtype: tf.DType) -> tf.Tensor:
    """Return float32 or float64 numbers, drawn from the middles of 2²³ or 2⁵² equal parts of (0, 1); never 0 or 1."""
    integers, width, kept = BITS[dtype]
    drawn = bits(seed, stream, shape, integers)
    part = tf.bitwise.right_shift(drawn, tf.constant(width - kept, integers))
    # The cast goes through the signed type, which processors convert to a real type in one instruction.
    whole = tf.cast(tf.cast(part, tf.int32 if width == 32 else tf.int64), dtype)
    return (whole + 0.5) * tf.constant(2.0**-kept, dtype)


def normal(seed: tf.Tensor, stream: int, shape: Sequence[int], dtype: tf.DType) -> tf.Tensor:
    """Return √(-2 ln u) cos 2πv, standard normal, from two uniform numbers each; at most 5.8 in float32, 8.6 in float64.

    Source: Box and Muller (1958), doi:10.1214/aoms/1177706645.
    """
    u, v = tf.unstack(uniform(seed, stream, [2, *shape], dtype))
    return tf.sqrt(-2 * tf.math.log(u)) * turn(v)


def student_t(seed: tf.Tensor, stream: int, shape: Sequence[int], dtype: tf.DType, *, degrees_of_freedom: float) -> tf.Tensor:
    """Return √(n (u^(-2/n) - 1)) cos 2πv, Student's t with n degrees of freedom; its limit for n → ∞ is `normal`.

    The tails are cut off where fewer than one number in 2²⁴ (float32) or 2⁵³ (float64) would lie beyond.
    Source: Bailey (1994), doi:10.1090/S0025-5718-1994-1219702-8, with an angle in place of his rejection.
    """
    u, v = tf.unstack(uniform(seed, stream, [2, *shape], dtype))
    n = float(degrees_of_freedom)
    return tf.sqrt(n * tf.math.expm1(-2 / n * tf.math.log(u))) * turn(v)


def turn(v: tf.Tensor) -> tf.Tensor:
    """Return cos 2πv."""
    return tf.cos(2 * math.pi * v)
