"""Stopping rules: a rule is `(trace, start) -> index` of the first row from `start` on that satisfies the rule, or None.

The trace holds the new rows from `start` on and, before them, as many earlier rows as the rule's `look_back` asks for. Rules
are pure, so the row at which a run stops depends neither on the execution nor on the length of its chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from runner.errors import UserError
from runner.trace import Trace, norm

Rule = TypeVar("Rule", bound=Callable[..., int | None])


def looks_back(rows: Callable[..., int]) -> Callable[[Rule], Rule]:
    """Declare the number of earlier rows that a rule needs, as a function of the rule's arguments; a decorator."""

    def declare(rule: Rule) -> Rule:
        setattr(rule, "look_back", rows)
        return rule

    return declare


def gradient_norm(trace: Trace, start: int, *, tolerance: float) -> int | None:
    """Hold where ‖gradient‖₂ ≤ tolerance (units of loss over x)."""
    return first(trace.gradient_norm[start:] <= positive("gradient_norm.tolerance", tolerance), start)


@looks_back(lambda **_: 1)
def step_size(trace: Trace, start: int, *, tolerance: float) -> int | None:
    """Hold where ‖x_k − x_{k−1}‖₂ ≤ tolerance · max(‖x_k‖₂, 1); never at step 0."""
    tolerance = positive("step_size.tolerance", tolerance)
    x = trace.x.reshape(len(trace), -1).astype(np.float64)
    small = norm(np.diff(x, axis=0)) <= tolerance * np.maximum(norm(x[1:]), 1)
    return first(np.concatenate([[False], small])[start:], start)


@looks_back(lambda *, patience, **_: patience)
def plateau(trace: Trace, start: int, *, patience: int, tolerance: float) -> int | None:
    """Hold where none of the last `patience` rows is below the row before them by more than tolerance · max(|loss|, 1)."""
    if patience < 1:
        raise UserError(f"stopping.plateau.patience must be 1 or more steps, got {patience}; set stopping.plateau.patience=20")
    tolerance = positive("plateau.tolerance", tolerance)
    loss = trace.loss
    if len(loss) <= patience:
        return None
    best = np.lib.stride_tricks.sliding_window_view(loss, patience)[1:].min(axis=1)
    before = loss[:-patience]
    flat = before - best <= tolerance * np.maximum(np.abs(before), 1)
    return first(np.concatenate([np.zeros(patience, bool), flat])[start:], start)


def target(
    trace: Trace,
    start: int,
    *,
    loss: float | None,
    tolerance: float | None,
    minimum: float | None,
    full_loss: Callable[[Any], float] | None = None,
    every: int = 1,
) -> int | None:
    """Hold where the loss is ≤ `loss`, or within `tolerance` of `minimum`, the loss's known minimum.

    For a random loss, `full_loss`, a function of one x, is compared instead, at steps that are multiples of `every`: the loss
    of one step may be below the target by luck. Raises UserError if neither `loss` nor `tolerance` is given, or if only a
    tolerance is given and the minimum is not known.
    """
    if every < 1:
        raise UserError(f"stopping.target.every must be 1 or more steps, got {every}; set stopping.target.every=100")
    if loss is None and tolerance is None:
        raise UserError("stopping=target needs stopping.target.loss=… or stopping.target.tolerance=…")
    if loss is None and minimum is None:
        raise UserError(
            "stopping.target.tolerance needs a loss of known minimum, which this one is not; set stopping.target.loss=…"
        )
    if loss is None:
        loss = minimum + positive("target.tolerance", tolerance)  # pyright: ignore[reportOptionalOperand]
    if full_loss is None:
        return first(trace.loss[start:] <= loss, start)
    due = range(start + -(trace.start + start) % every, len(trace), every)
    return next((row for row in due if full_loss(trace.x[row]) <= loss), None)


def first(holds: np.ndarray, start: int) -> int | None:
    """Return the index of the first True, counted from the trace's first row, or None; `holds` begins at row `start`."""
    return start + int(np.argmax(holds)) if holds.any() else None


def positive(name: str, value: Any) -> float:
    """Return the value of stopping.<name>; raise UserError unless it is a finite number of 0 or more."""
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"stopping.{name} must be a finite number of 0 or more, got {value!r}; set stopping.{name}=1e-6")
    return value
