"""The rows of a step's mini-batch: drawn without replacement, by the run's seed and the step alone.

The batches of a run are one stream of rows, cut into pieces. Every epoch contains all rows in a new order. If the number of
rows is no multiple of the batch size, a batch may hold the end of one epoch and the beginning of the next.
"""

from __future__ import annotations

import math

import tensorflow as tf

# Rounds of the Feistel network. Eight mix the rows of small data too: the test counts each row's places and its successors.
ROUNDS = 8


# Traced: in eager, its hundred small operations take 5 ms, as a trace 0.2 ms.
@tf.function(autograph=False)
def rows(seed: tf.Tensor, count: int, size: int) -> tf.Tensor:
    """Return the row indices, [size] of int32 in 0 … count - 1, of the batch of `seed`, [2] of int64: the run's seed and step.

    The order of an epoch is a permutation that computes the row at each place without computing the others: a Feistel network
    over pairs of digits in base ⌈√count⌉, applied again if the result is no row (cycle walking). A round turns (left, right)
    into (right, left + table[right]). The tables are drawn by (seed, epoch) as whole numbers, which are the same in eager,
    graph and XLA, unlike TensorFlow's random floats. Sorting random keys is simpler, but took XLA 250 µs for a batch from 1,437
    rows and 30 ms from 100,000; this takes 8 µs and 50 µs.
    Source: Black and Rogaway (2002), Ciphers with Arbitrary Finite Domains, doi:10.1007/3-540-45760-7_9, method 3.
    """
    side = math.isqrt(count - 1) + 1
    place = seed[1] * size + tf.range(size, dtype=tf.int64)
    epoch, within = place // count, tf.cast(place % count, tf.int32)
    first = epoch[0]
    drawn = [
        tf.random.stateless_uniform([ROUNDS, side], [seed[0], each], None, None, tf.int32, alg="philox")
        for each in (first, first + 1)
    ]
    tables = tf.math.floormod(tf.concat(drawn, axis=1), side)
    own = tf.cast(epoch - first, tf.int32) * side

    def mix(k: tf.Tensor, left: tf.Tensor, right: tf.Tensor, walking: tf.Tensor) -> tuple[tf.Tensor, ...]:
        turn = tf.math.floormod(k, ROUNDS)
        mixed = (left + tf.gather(tables[turn], own + right)) % side
        left, right = tf.where(walking, right, left), tf.where(walking, mixed, right)
        return k + 1, left, right, walking & ((turn < ROUNDS - 1) | (left * side + right >= count))

    start = (tf.constant(0), within // side, within % side, tf.ones([size], tf.bool))
    # One loop for rounds and cycle walking: two loops, or unrolled rounds, took XLA seconds to compile.
    _, left, right, _ = tf.while_loop(lambda k, left, right, walking: tf.reduce_any(walking), mix, start, parallel_iterations=1)
    return left * side + right
