"""Stopping rules against a reading of their definitions row by row, and the loop around them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CONF
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import loop, stopping
from runner.errors import UserError
from runner.loop import Ending, Rules
from runner.trace import Trace, join

NUMBERS = st.floats(-4, 4, width=16)


def trace(losses, start=0, x=None, gradient=None) -> Trace:
    losses = np.asarray(losses, np.float64)
    x = losses if x is None else np.asarray(x, np.float64)
    return Trace(start, x, losses, x if gradient is None else np.asarray(gradient, np.float64))


# Each rule once more, in words of plain Python for one row k.
def gradient_norm_holds(rows, k, tolerance):
    return abs(rows.gradient[k]) <= tolerance


def step_size_holds(rows, k, tolerance):
    return k > 0 and abs(rows.x[k] - rows.x[k - 1]) <= tolerance * max(abs(rows.x[k]), 1)


def plateau_holds(rows, k, tolerance, patience):
    if k < patience:
        return False
    before = rows.loss[k - patience]
    return all(before - later <= tolerance * max(abs(before), 1) for later in rows.loss[k - patience + 1 : k + 1])


def target_holds(rows, k, loss, tolerance):
    return rows.loss[k] <= loss


DEFINITIONS = {
    "gradient_norm": (gradient_norm_holds, {"tolerance": 0.25}),
    "step_size": (step_size_holds, {"tolerance": 0.25}),
    "plateau": (plateau_holds, {"tolerance": 0.25, "patience": 3}),
    "target": (target_holds, {"loss": -1.5, "tolerance": None}),
}


def test_every_rule_in_conf_has_a_definition_here():
    rules = {path.stem for path in (CONF / "stopping").glob("*.yaml")} - {"limit", "time_limit"}
    assert rules == DEFINITIONS.keys()


@pytest.mark.parametrize("name", DEFINITIONS)
@settings(deadline=None, max_examples=150)
@given(losses=st.lists(NUMBERS, min_size=1, max_size=30), cut=st.integers(1, 30))
def test_a_rule_stops_at_the_first_row_of_its_definition_whatever_the_chunks(name, losses, cut):
    holds, arguments = DEFINITIONS[name]
    rows = trace(losses)
    expected = next((k for k in range(len(losses)) if holds(rows, k, **arguments)), None)

    rule = getattr(stopping, name)
    extra = {"minimum": None} if name == "target" else {}
    look_back = getattr(rule, "look_back", lambda **_: 0)(**arguments)
    rules = Rules({name: lambda *place: rule(*place, **arguments, **extra)}, look_back, len(losses) - 1, None)
    assert stopped(rules, rows, cut) == expected


def stopped(rules: Rules, rows: Trace, chunk: int) -> int | None:
    """Return the step at which the loop ends by a rule, if it gets these rows so many at a time."""
    played = Played(rows, chunk)
    seen: list[Trace] = []
    result = loop.run(played, lambda: played.taken, rules, [seen.append])
    whole = join(seen)
    assert list(whole.steps) == list(range(result.last.start + 1)), "a row is missing, or there twice"
    np.testing.assert_array_equal(whole.loss, rows.loss[: len(whole)])
    return result.last.start if result.ending is Ending.CONVERGED else None


class Played:
    """An execution that plays given rows."""

    stalled = None

    def __init__(self, rows: Trace, chunk: int) -> None:
        self.rows, self.chunk, self.taken = rows, chunk, 0

    def advance(self, n: int) -> Trace:
        assert 1 <= n <= self.chunk
        self.taken += n
        return self.rows[self.taken - n : self.taken]

    def last(self) -> Trace:
        return self.rows[self.taken : self.taken + 1]

    def ended(self) -> None:
        return None

    def rewind(self, step: int) -> None:
        self.taken = step


def run(rows: Trace, chunk: int = 100, signal=lambda: None, time_limit=None, rules=None):
    played = Played(rows, chunk)
    limits = Rules(rules or {}, 0, len(rows) - 1, time_limit)
    return loop.run(played, lambda: played.taken, limits, [], signal)


def test_the_limit_records_one_row_more_than_updates():
    result = run(trace([3, 2, 1, 2]))
    assert (result.ending, result.iterations, result.evaluations) == (Ending.ITERATION_LIMIT, 3, {"gradient": 4})
    assert (result.best.start, result.last.start, result.stopped_by) == (2, 3, None)


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(("part", "by"), [("loss", "nonfinite_loss"), ("gradient", "nonfinite_gradient"), ("x", "nonfinite_x")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_ends_a_run_at_its_row(chunk, part, by, bad):
    parts = {name: np.arange(5.0) for name in ("loss", "x", "gradient")}
    parts[part][3] = bad
    result = run(trace(parts["loss"], x=parts["x"], gradient=parts["gradient"]), chunk)
    assert (result.ending, result.stopped_by, result.first_nonfinite_step) == (Ending.DIVERGED, by, 3)
    assert result.best.start == 0
    assert result.x == (2 if part == "x" else 3), "not the last finite x"


def test_a_rule_that_holds_in_a_later_row_than_the_bad_one_does_not_count():
    late = lambda rows, start: 2 - rows.start if rows.start + len(rows) > 2 else None  # noqa: E731
    result = run(trace([1, np.nan, 0, 0]), rules={"late": late})
    assert result.ending is Ending.DIVERGED


def test_a_signal_ends_with_the_row_where_x_is():
    result = run(trace(np.arange(10.0)), chunk=4, signal=iter([None, None, "SIGTERM"]).__next__)
    assert (result.ending, result.stopped_by, result.last.start) == (Ending.INTERRUPTED, "SIGTERM", 1 + 4)


def test_a_time_limit_ends_with_the_row_where_x_is():
    result = run(trace(np.arange(10.0)), chunk=4, time_limit=1e-12)
    assert (result.ending, result.stopped_by, result.last.start) == (Ending.TIME_LIMIT, "time_limit", 1)


def test_the_target_of_a_tolerance_is_above_the_known_minimum():
    rows = trace([5, 3.2, 3.05, 3.0])
    assert stopping.target(rows, 0, loss=None, tolerance=0.1, minimum=3.0) == 2
    with pytest.raises(UserError, match="known minimum"):
        stopping.target(rows, 0, loss=None, tolerance=0.1, minimum=None)
