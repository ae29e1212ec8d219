"""What a loss is: a pure function of x, and what is known of it.

A loss maps `x[..., d]` to `[...]` (or `x[...]` to `[...]` where x is a scalar), is differentiable by TensorFlow and keeps x's
dtype. Any such function serves. `known` declares what the field knows of it, `intermediate` names a tensor on the way, and
`term` a summand.

A loss that draws random numbers in each step, as mini-batches do, has an argument `seed`: it gets the pair of numbers that
TensorFlow's stateless random operations take, made of the run's seed and the step, so that every execution, every repetition
and a run that is resumed draw the same.
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
    """What the literature says of a loss; `start`, `minimisers` and `minimum` may be functions of the dimension d."""

    dimension: int | None  # the d of x[..., d]; 0 where x is a scalar; None where any d will do
    domain: Any  # (low, high) of every coordinate, or [d, 2]
    start: Any  # the conventional first x, [d], or one number for every coordinate
    minimisers: Any  # [m, d]: all the global ones; or one number for every coordinate of the only one; None: not known
    minimum: Any  # the loss there; None: not known
    least: int = 1  # the smallest d, where any will do
    smooth: bool = True  # whether the loss is differentiable at its minimisers
    random: bool = False  # whether it draws in each step, with the `seed` that it is called with
    measures: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = field(default_factory=dict)  # those of `Loss`
    # x[..., d] -> [..., m], the sum of whose squares the loss is; it gets those of the loss's other arguments that it takes
    residuals: Callable[..., tf.Tensor] | None = None
    parts: tuple[tuple[int, ...], ...] = ()  # those of `Loss`


def known(facts: Callable[..., Known] | None = None, **fixed: Any) -> Callable[[Function], Function]:
    """Declare the `Known` of a loss, as a decorator: by its fields, or by a function of the arguments that it is bound to."""

    def declare(function: Function) -> Function:
        setattr(function, "known", Known(**fixed) if facts is None else facts)
        return function

    return declare


@dataclass(frozen=True)
class Loss:
    """A loss of one shape of x, ready to be called; what is not known is None."""

    function: Callable[..., tf.Tensor]
    shape: tuple[int, ...] | None
    domain: np.ndarray | None = None  # [2, *shape]
    start: np.ndarray | None = None  # [*shape]
    minimisers: np.ndarray | None = None  # [m, *shape]
    minimum: float | None = None
    # Of a loss that is random, the seed of the run: what it draws at a step depends on these two alone.
    seed: int | None = None
    # What is of interest beside the loss itself and too dear for every step, by name: of one x, a number. `full_loss` is that
    # of a random loss without what is random; `minimum` is its.
    measures: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = field(default_factory=dict)
    # Of a loss that is a sum of squares, what is squared: x[..., d] -> [..., m], or x[...] -> [..., m].
    residuals: Callable[[tf.Tensor], tf.Tensor] | None = None
    # Shapes of the tensors (weights and biases of layers, factors) that x is the concatenation of; none: x is one vector.
    parts: tuple[tuple[int, ...], ...] = ()

    def __call__(self, x: Any, **seed: Any) -> tf.Tensor:
        """Return loss(x)."""
        return self.function(x, **seed)

    def at(self, step: Any) -> Callable[[Any], tf.Tensor]:
        """Return the loss of one step, a function of x alone."""
        if self.seed is None:
            return self.function
        return partial(self.function, seed=tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64)]))

    @classmethod
    def of(cls, function: Callable[..., tf.Tensor], dimension: int | None = None) -> Loss:
        """Join a function with its `Known` at one dimension (0: x is a scalar; None: the function's own, or unknown).

        Raises ValueError where the function's dimension is fixed, or its least one larger.
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
    """Name a tensor on the way from x to the loss, so that `strategy.intermediates=true` can record it; returns it as it is."""
    return named(_intermediates, name, value)


def term(name: str, value: tf.Tensor) -> tf.Tensor:
    """Name a summand of the loss (`data`, `penalty`, …), so that `strategy.terms=true` can record it; returns it as it is."""
    return named(_terms, name, value)


def named(heard: Heard, name: str, value: tf.Tensor) -> tf.Tensor:
    """Return a value as it is, once whoever listens has heard its name."""
    listener = heard.get()
    if listener is not None:
        listener[name] = value
    return value


@contextmanager
def listening(heard: Heard) -> Iterator[dict[str, tf.Tensor]]:
    """Collect what is named while a loss is computed in this block, by name."""
    listener: dict[str, tf.Tensor] = {}
    token = heard.set(listener)
    try:
        yield listener
    finally:
        heard.reset(token)


def intermediates() -> AbstractContextManager[dict[str, tf.Tensor]]:
    """Collect the tensors on the way that a loss names while it is computed in this block, by name."""
    return listening(_intermediates)


def terms() -> AbstractContextManager[dict[str, tf.Tensor]]:
    """Collect the summands that a loss names while it is computed in this block, by name."""
    return listening(_terms)
