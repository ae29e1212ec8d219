"""The start of a run: a guess is `(loss, dtype, seed) -> x0`, an array of the loss's shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from runner.errors import UserError


def standard(loss: Any, dtype: str, seed: int) -> np.ndarray:
    """Return the loss's own conventional start.

    Raises UserError if the loss declares none.
    """
    if loss.start is None:
        raise UserError("guess=standard needs a loss that declares its start, and this one does not; set guess=point guess.x=…")
    return np.array(loss.start, dtype)


def point(loss: Any, dtype: str, seed: int, *, x: Any) -> np.ndarray:
    """Return the given x, a number or a flat list of numbers.

    Raises UserError if it is neither, is not finite, or has another dimension than the loss.
    """
    try:
        x0 = np.array(x, dtype)
    except (TypeError, ValueError):
        raise UserError(f"guess.x must be a number or a flat list of numbers, got {x!r}; set it with guess.x=1.5") from None
    if x0.ndim > 1 or x0.size == 0 or not np.isfinite(x0).all():
        raise UserError(f"guess.x must be a finite number or a flat list of them, got {x!r}; set it with guess.x=[1,2]")
    if loss.shape is not None and x0.shape != loss.shape:
        raise UserError(f"guess.x must be {dimension(loss.shape)}, which the loss takes, got {dimension(x0.shape)}")
    return x0


def uniform(loss: Any, dtype: str, seed: int, *, low: Any, high: Any) -> np.ndarray:
    """Return a point drawn uniformly from the box [low, high), by default the loss's domain.

    Raises UserError if the loss has no shape, if a side of the box is missing and the loss has no domain, or if the box is
    empty.
    """
    shape = shape_of(loss, "uniform")
    if loss.domain is None and (low is None or high is None):
        raise UserError("guess=uniform needs guess.low and guess.high, since the loss declares no domain")
    bottom, top = (None, None) if loss.domain is None else loss.domain
    low = bound("low", low, bottom if low is None else low, shape)
    high = bound("high", high, top if high is None else high, shape)
    if not (low < high).all():
        raise UserError(f"guess.low must be below guess.high, got {low.tolist()} and {high.tolist()}")
    return np.asarray(np.random.default_rng(seed).uniform(low, high), dtype)


def normal(loss: Any, dtype: str, seed: int, *, mean: Any, standard_deviation: Any) -> np.ndarray:
    """Return a point drawn from a normal distribution, by default around the loss's start.

    Raises UserError if the loss has no shape, if the loss has no start and no mean is given, or if the deviation is negative.
    """
    shape = shape_of(loss, "normal")
    if mean is None and loss.start is None:
        raise UserError("guess=normal needs guess.mean, since the loss declares no start")
    mean = bound("mean", mean, loss.start if mean is None else mean, shape)
    deviation = bound("standard_deviation", standard_deviation, standard_deviation, shape)
    if (deviation < 0).any():
        raise UserError(f"guess.standard_deviation must be 0 or more, got {standard_deviation}")
    return np.asarray(np.random.default_rng(seed).normal(mean, deviation), dtype)


def shape_of(loss: Any, guess: str) -> tuple[int, ...]:
    """Return the shape of x that the loss declares; raise UserError, with the remedy, if it declares none."""
    if loss.shape is None:
        raise UserError(f"guess={guess} needs the loss's dimension, which is not declared; set +loss.dimension=2 (0: scalar x)")
    return loss.shape


def bound(name: str, given: Any, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return one number, or one for each coordinate, as an array of the loss's shape.

    Raises UserError if the numbers do not fit the shape or are not finite.
    """
    try:
        array = np.broadcast_to(np.asarray(value, np.float64), shape)
    except (TypeError, ValueError):
        raise UserError(f"guess.{name} must be one number or {dimension(shape)}, got {given!r}") from None
    if not np.isfinite(array).all():
        raise UserError(f"guess.{name} must be finite, got {given!r}")
    return array


def dimension(shape: tuple[int, ...]) -> str:
    """Return a description of a shape of x."""
    return f"a list of {shape[0]} numbers (dimension {shape[0]})" if shape else "a number (dimension 0, a scalar)"
