"""Mini-batches: every epoch is all rows in an order of its own, and what is drawn depends on seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from runner.losses import minibatch


def rows(seed: int, step: int, count: int, size: int) -> np.ndarray:
    return minibatch.rows(tf.constant([seed, step], tf.int64), count, size).numpy()


def epochs(count: int, size: int, number: int, seed: int = 0) -> np.ndarray:
    """Return the order of the rows in so many epochs, [number, count]."""
    stream = [rows(seed, step, count, size) for step in range(-(-number * count // size))]
    return np.concatenate(stream)[: number * count].reshape(number, count)


@pytest.mark.parametrize("count, size", [(1, 1), (2, 1), (7, 7), (10, 3), (37, 8), (100, 25), (354, 32), (1437, 64)])
def test_an_epoch_visits_each_row_once(count: int, size: int) -> None:
    found = epochs(count, size, 5)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(count), (5, 1)))
    if count >= 37:
        assert len({tuple(each) for each in found}) == 5
        assert not np.array_equal(found, epochs(count, size, 5, seed=1))


def test_all_orders_are_about_as_likely() -> None:
    count, number = 12, 3000
    found = epochs(count, count, number)
    # Of a fair shuffle, both have the distribution of chi squared: which row comes at each place, and which one after which.
    places = np.array([np.bincount(found[:, place], minlength=count) for place in range(count)])
    followers = np.zeros((count, count))
    np.add.at(followers, (found[:, :-1], found[:, 1:]), 1)
    for counts, expected, freedom in (
        (places, number / count, (count - 1) ** 2),
        (followers[~np.eye(count, dtype=bool)], number / count, count * (count - 1) - 1),
    ):
        statistic = float(np.sum((counts - expected) ** 2) / expected)
        assert 1e-4 < stats.chi2.sf(statistic, freedom) < 1 - 1e-4


def test_a_batch_is_spread_over_the_rows() -> None:
    count, size = 1437, 32
    means = [rows(3, step, count, size).mean() for step in range(40)]
    # The mean of 32 of the numbers 0 … 1436 without replacement.
    deviation = np.sqrt((count**2 - 1) / 12 / size * (count - size) / (count - 1))
    assert stats.kstest((np.array(means) - (count - 1) / 2) / deviation, "norm").pvalue > 1e-4


@pytest.mark.parametrize("count, size", [(37, 8), (1437, 32)])
def test_graph_and_xla_draw_the_same(count: int, size: int) -> None:
    expected = [rows(5, step, count, size) for step in range(100)]

    for jit_compile in (False, True):

        @tf.function(jit_compile=jit_compile)
        def stream() -> tf.Tensor:
            step = tf.range(100, dtype=tf.int64)
            return tf.map_fn(lambda k: minibatch.rows(tf.stack([tf.constant(5, tf.int64), k]), count, size), step, tf.int32)

        np.testing.assert_array_equal(stream(), expected)
