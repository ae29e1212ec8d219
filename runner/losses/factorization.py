"""Factorization of a matrix into two narrow ones: the loss is not convex, but every minimum is global."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from runner.errors import UserError
from runner.losses import minibatch, optima
from runner.losses.base import term
from runner.losses.data import Data
from runner.losses.optima import Optimum
from runner.losses.sums import mean, total
from runner.losses.supervised import fitted, nonnegative

# Standard deviation of the start: it lies near the saddle at 0, from which every minimum can be reached.
SMALL = 0.1


def dimension(data: Data, rank: Any, **_: Any) -> int:
    """Return the total number of entries of both factors; raise UserError if the factors cannot have this rank."""
    most = min(data.features.shape)
    if type(rank) is not int or not 1 <= rank <= most:
        shape = " × ".join(map(str, data.features.shape))
        raise UserError(
            f"loss.rank must be a whole number in 1 … {most}, for {data.name} is {shape}, got {rank!r}; set loss.rank=2"
        )
    return rank * sum(data.features.shape)


def optimum(data: Data, rank: int, l2: float, **_: Any) -> Optimum:
    """Return the optimum of matrix_factorization; raise UserError if `l2` is invalid."""
    nonnegative("l2", l2)
    return optima.factors(data, rank, float(l2))


def start(seed: int, **keys: Any) -> np.ndarray:
    """Return small normally distributed numbers, drawn by the run's seed."""
    return SMALL * np.random.default_rng(seed).normal(size=dimension(**keys))


def shapes(data: Data, rank: int, **_: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of U and V."""
    n, d = data.features.shape
    return (n, rank), (d, rank)


@fitted(dimension=dimension, optimum=optimum, start=start, parts=shapes)
def matrix_factorization(x: tf.Tensor, *, data: Data, rank: int, l2: float, batch_size: int | None, seed: Any) -> tf.Tensor:
    """Return (‖M - U Vᵀ‖² + l2 (‖U‖² + ‖V‖²)) / 2n, with M the n × d features of the data; the targets are not used.

    x[..., (n + d) rank] holds U, row by row, then V. A mini-batch estimates the first term from some rows of M; the norms are
    always those of both whole factors. Start: normal numbers of standard deviation 0.1, by the run's seed. Rotating both
    factors alike does not change the loss.
    Source: Srebro, Rennie, Jaakkola (2004), Maximum-Margin Matrix Factorization, NIPS 17.
    """
    n, d = data.features.shape
    u, v = (tf.reshape(part, [*x.shape[:-1], -1, rank]) for part in tf.split(x, [n * rank, d * rank], axis=-1))
    rows = data.features_as(x.dtype)
    own = u
    if batch_size is not None:
        chosen = minibatch.rows(seed, n, batch_size)
        rows, own = tf.gather(rows, chosen), tf.gather(u, chosen, axis=-2)
    short = rows - tf.matmul(own, v, transpose_b=True)
    squares = mean(total(tf.square(short))) / 2
    norms = total(tf.square(u), [-2, -1]) + total(tf.square(v), [-2, -1])
    return term("data", squares) + term("penalty", l2 / (2 * n) * norms)
