"""A loss: a pure function of x, and the facts known of it.

A loss maps `x[..., d]` to `[...]` (or `x[...]` to `[...]` if x is a scalar), is differentiable by TensorFlow and keeps x's
dtype. Any such function serves as a loss. `known` declares the facts from the literature, `intermediate` names an intermediate
tensor, and `term` names a summand.

A loss that draws random numbers in each step, as mini-batches do, has an argument `seed`. It receives a pair of numbers, the
run's seed and the step, as TensorFlow's stateless random operations take them. So every execution, every repetition and a
resumed run draw the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

Function = TypeVar("Function", bound=Callable[..., tf.Tensor])
Heard = ContextVar[dict[str, tf.Tensor] | None]
_intermediates: Heard = ContextVar("intermediates", default=None)
_terms: Heard = ContextVar("terms", default=None)


@dataclass(frozen=True)
class Known:
    """The facts of a loss from the literature; `start`, `minimisers` and `minimum` may be functions of the dimension d."""

    dimension: int | None  # the d of x[..., d]; 0: x is a scalar; None: any d
    domain: Any  # (low, high) of every coordinate, or [d, 2]
    start: Any  # the conventional first x, [d], or one number for every coordinate
    minimisers: Any  # [m, d]: all global minimisers; or one number, every coordinate of the only one; None: not known
    minimum: Any  # the loss at the minimisers; None: not known
    least: int = 1  # the smallest d, if `dimension` is None
    smooth: bool = True  # whether the loss is differentiable at its minimisers
    random: bool = False  # whether the loss draws random numbers in each step, by its argument `seed`
    measures: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = field(default_factory=dict)  # as in `Loss`
    # x[..., d] -> [..., m]; the loss is the sum of their squares. The function gets those of the loss's other arguments that it
    # accepts.
    residuals: Callable[..., tf.Tensor] | None = None
    parts: tuple[tuple[int, ...], ...] = ()  # as in `Loss`


def known(facts: Callable[..., Known] | None = None, **fixed: Any) -> Callable[[Function], Function]:
    """Declare the `Known` of a loss, by its fields or by a function of the arguments that the loss is bound to; a decorator."""

    def declare(function: Function) -> Function:
        setattr(function, "known", Known(**fixed) if facts is None else facts)
        return function

    return declare


@dataclass(frozen=True)
class Loss:
    """A loss for one shape of x, ready to be called; a fact that is not known is None."""

    function: Callable[..., tf.Tensor]
    shape: tuple[int, ...] | None
    domain: np.ndarray | None = None  # [2, *shape]
    start: np.ndarray | None = None  # [*shape]
    minimisers: np.ndarray | None = None  # [m, *shape]
    minimum: float | None = None
    # The run's seed, if the loss is random: the random numbers of a step depend on the seed and the step alone.
    seed: int | None = None
    # Further quantities by name, functions of one x that return a number, too expensive for every step. `full_loss` is a random
    # loss without its randomness; `minimum` is the minimum of `full_loss` then.
    measures: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = field(default_factory=dict)
    # The residuals, if the loss is a sum of squares: x[..., d] -> [..., m], or x[...] -> [..., m].
    residuals: Callable[[tf.Tensor], tf.Tensor] | None = None
    # Shapes of the tensors (weights and biases of layers, factors) that are concatenated in x; empty: x is one vector.
    parts: tuple[tuple[int, ...], ...] = ()

    def __call__(self, x: Any, **seed: Any) -> tf.Tensor:
        """Return loss(x)."""
        return self.function(x, **seed)

    def at(self, step: Any) -> Callable[[Any], tf.Tensor]:
        """Return the loss at one step, as a function of x alone."""
        if self.seed is None:
            return self.function
        return partial(self.function, seed=tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64)]))

    @classmethod
    def of(cls, function: Callable[..., tf.Tensor], dimension: int | None = None) -> Loss:
        """Return the Loss of a function and its `Known` at one dimension.

        The dimension 0 means that x is a scalar; None means the function's own dimension, or that it is not known. Raises
        ValueError if the function has another fixed dimension, if its least dimension is larger, or if it needs a dimension.
        """
        facts: Any = getattr(getattr(function, "func", function), "known", None)
        bound = getattr(function, "keywords", {})
        facts = facts(**bound) if callable(facts) else facts
        random = facts.random if facts else "seed" in inspect.signature(function).parameters
        seed = bound.get("seed", 0) if random else None
        if facts is None:
            return cls(function, None if dimension is None else (dimension,) if dimension else (), seed=seed)
        d = facts.dimension if dimension is None else dimension
        if d is None or facts.dimension not in (None, d) or (facts.dimension is None and d < facts.least):
            free = facts.dimension is None
            allowed = f"{facts.least} or more" if free else facts.dimension
            remedy = f"set it with loss.dimension={max(facts.least, 2)}" if free else "leave it out"
            raise ValueError(f"loss.dimension must be {allowed}, got {dimension}; {remedy}")
        shape = (d,) if d else ()

        def at(value: Any, *target: int) -> np.ndarray:
            return np.broadcast_to(np.asarray(value(d) if callable(value) else value, np.float64), target)

        domain = np.moveaxis(at(facts.domain, *shape, 2), -1, 0)
        minimisers = facts.minimisers(d) if callable(facts.minimisers) else facts.minimisers
        if minimisers is not None:
            count = len(minimisers) if np.ndim(minimisers) == len(shape) + 1 else 1
            minimisers = at(minimisers, count, *shape)
        minimum: Any = facts.minimum(d) if callable(facts.minimum) else facts.minimum
        minimum = None if minimum is None else float(minimum)
        start, measures, residuals = at(facts.start, *shape), facts.measures, facts.residuals
        if residuals is not None:
            asked = inspect.signature(residuals).parameters
            residuals = partial(residuals, **{name: value for name, value in bound.items() if name in asked})
        return cls(function, shape, domain, start, minimisers, minimum, seed, measures, residuals, facts.parts)


def intermediate(name: str, value: tf.Tensor) -> tf.Tensor:
    """Name an intermediate tensor between x and the loss, so that `strategy.intermediates=true` can record it; return it."""
    return named(_intermediates, name, value)


def term(name: str, value: tf.Tensor) -> tf.Tensor:
    """Name a summand of the loss (`data`, `penalty`, …), so that `strategy.terms=true` can record it; return it."""
    return named(_terms, name, value)


def named(heard: Heard, name: str, value: tf.Tensor) -> tf.Tensor:
    """Store a value by name in the current listener, if there is one; return the value."""
    listener = heard.get()
    if listener is not None:
        listener[name] = value
    return value


@contextmanager
def listening(heard: Heard) -> Iterator[dict[str, tf.Tensor]]:
    """Yield a dictionary that collects the tensors named while a loss is computed in this block."""
    listener: dict[str, tf.Tensor] = {}
    token = heard.set(listener)
    try:
        yield listener
    finally:
        heard.reset(token)


def intermediates() -> AbstractContextManager[dict[str, tf.Tensor]]:
    """Yield a dictionary that collects the intermediate tensors that a loss names while it is computed in this block."""
    return listening(_intermediates)


def terms() -> AbstractContextManager[dict[str, tf.Tensor]]:
    """Yield a dictionary that collects the summands that a loss names while it is computed in this block."""
    return listening(_terms)
