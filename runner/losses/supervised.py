"""Shared parts of the losses of data: their facts, which follow from the data, their mini-batches and held-out measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import tensorflow as tf

from runner.errors import UserError
from runner.losses.base import Known, known
from runner.losses.data import Data, Rows
from runner.losses.optima import UNKNOWN, Optimum
from runner.losses.sums import mean

Function = TypeVar("Function", bound=Callable[..., tf.Tensor])
# The dimension of a loss, as a function of its arguments (without batch_size) and of the kind of its targets.
Dimension = Callable[..., int]


def fitted(
    *kinds: str,
    dimension: Dimension,
    optimum: Callable[..., Optimum] = lambda data, kind, **_: UNKNOWN,
    start: Callable[..., Any] = lambda data, kind, **_: 0.0,
    held_out: Callable[..., dict[str, Callable[[tf.Tensor], tf.Tensor]]] = lambda data, kind, **_: {},
    residuals: Callable[..., tf.Tensor] | None = None,
    parts: Callable[..., tuple[tuple[int, ...], ...]] = lambda data, kind, **_: (),
) -> Callable[[Function], Function]:
    """Declare a loss of data with targets of one of these kinds; a decorator. The loss takes x, data, batch_size, seed, ….

    The domain is [-1, 1], this package's convention. With mini-batches, the measure `full_loss` is the loss of all rows, and
    the minimum is that of `full_loss`. If rows are held out, further measures show the quality of the fit on these rows.
    """

    def declare(function: Function) -> Function:
        def facts(*, data: Any, batch_size: int | None, seed: int, **keys: Any) -> Known:
            kind = checked(function.__name__, data, kinds, batch_size)
            of = partial(function, data=data, batch_size=None, seed=seed, **keys)
            own = {"data": data, "kind": kind, "seed": seed, **keys}
            size = dimension(**own)
            found = optimum(**own)
            measures = {} if batch_size is None else {"full_loss": of}
            measures |= held_out(**own) if len(data.held_out_features) else {}
            return Known(
                dimension=size,
                domain=(-1.0, 1.0),
                start=start(**own),
                minimisers=found.minimisers,
                minimum=found.minimum,
                random=batch_size is not None,
                measures=measures,
                # Only without mini-batches: the residuals of a mini-batch would differ in each step.
                residuals=None if residuals is None or batch_size is not None else partial(residuals, data=data, **keys),
                parts=parts(**own),
            )

        return known(facts)(function)

    return declare


def checked(loss: str, data: Any, kinds: Iterable[str], batch_size: Any) -> str:
    """Return the kind of targets that a loss gets; raise UserError if `data` is no data set, or has no such targets."""
    if not isinstance(data, Data):
        raise UserError(f"loss.data must be data, as runner.losses.data has them, got {data!r}; set loss/data=diabetes")
    data.check_batch(batch_size)
    return data.kind_for(loss, *kinds) if kinds else ""


def nonnegative(name: str, value: Any, *, above: bool = False) -> None:
    """Raise UserError unless loss.<name> is a finite number of 0 or more, or above 0 if `above` is true."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not number or (above and value == 0):
        allowed = "above 0" if above else "of 0 or more"
        raise UserError(f"loss.{name} must be a finite number {allowed}, got {value!r}; set it with loss.{name}=0.01")


def cross_entropy(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Return the mean over the rows of -log p, p of the row's class; logits[..., n, k], classes[n] -> [...]."""
    picked = tf.reduce_sum(logits * tf.one_hot(classes, logits.shape[-1], dtype=logits.dtype), axis=-1)
    return mean(tf.reduce_logsumexp(logits, axis=-1) - picked)


def accuracy(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Return the share of rows whose class has the highest logit; logits[..., n, k], classes[n] -> [...]."""
    right = tf.argmax(logits, axis=-1, output_type=tf.int32) == classes
    return mean(tf.cast(right, logits.dtype))


def deviation(scores: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Return the root mean square of scores - targets; scores[..., n], targets[n] -> [...]."""
    return tf.sqrt(mean(tf.square(scores - targets)))


def on_held_out(
    name: str, kind: str, data: Data, worth: Callable[[tf.Tensor, Rows], tf.Tensor]
) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
    """Return the measure `held_out_<name>`: `worth` of x on the held-out rows."""
    return {f"held_out_{name}": lambda x: worth(x, data.rows(kind, x.dtype, held_out=True))}
