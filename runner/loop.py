"""The loop: advance, look for an end, cut the rows there, hand them on. It knows rows, and nothing of TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from runner.trace import Execution, Trace, join

Rule = Callable[[Trace, int], int | None]

# Seconds that a chunk should last: so long that a call costs nothing beside it, so short that rows are seen, and a run stopped,
# soon.
SHORT, LONG = 0.1, 1.0
# A strategy that evaluates more, or less, than once a row records how often so far, under the name of the quantity.
EVALUATIONS = "evaluations/"
# The loss of a row; of a random loss also the loss of all data, or without its noise.
LOSS, FULL = "loss", "full_loss"


class Ending(StrEnum):
    """How a run ended; each value is the tag `ending`, each sentence what the user reads."""

    sentence: str

    def __new__(cls, word: str, sentence: str) -> Ending:
        """Make a member of its word and its sentence."""
        member = str.__new__(cls, word)
        member._value_, member.sentence = word, sentence
        return member

    ITERATION_LIMIT = "iteration_limit", "all iterations were taken"
    CONVERGED = "converged", "a stopping rule held"
    TIME_LIMIT = "time_limit", "the time limit was reached"
    DIVERGED = "diverged", "the loss, the gradient or x is no longer finite"
    INTERRUPTED = "interrupted", "a signal asked it to end"


@dataclass(frozen=True)
class Stop:
    """Where and why a run ends: at the row of this step, with this ending, by the rule, quantity or signal so named."""

    step: int
    ending: Ending
    by: str | None = None
    sentence: str | None = None  # where a strategy has its own


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    ending: Ending
    stopped_by: str | None
    last: Trace  # the one row that the run ended at
    best: Trace  # the first row of the lowest finite `best_of`, or the first row where none is finite
    seconds: dict[str, float]  # in compilation, in the loop, in recording
    run_id: str | None = None  # in MLflow, where it is recorded
    says: str | None = None  # the sentence of the strategy that ended it
    pace: tuple[tuple[int, float], ...] = ()  # steps, and the seconds in the loop after which they were taken
    before: Trace | None = None  # the row before the last one, if there is any
    # The quantity by which rows are compared: a row's loss, or what it measures; None where a random loss measures nothing.
    best_of: str | None = LOSS
    summary: Mapping[str, float] = field(default_factory=dict)  # all single numbers that are recorded of the run, by name

    @property
    def best_loss(self) -> float | None:
        """The lowest finite `best_of`; None where there is no such quantity."""
        return None if self.best_of is None else float(values(self.best, self.best_of)[0])

    @property
    def last_loss(self) -> float:
        """`best_of` at the last row; where it is not measured there, the row's own loss."""
        value = float(values(self.last, self.best_of)[0])
        return float(self.last.loss[0]) if np.isnan(value) else value

    @property
    def x(self) -> np.ndarray:
        """The last finite x: where the run ended, or the x before where that one is not finite."""
        x = self.last.x[0]
        return x if self.before is None or np.isfinite(x).all() else self.before.x[0]

    @property
    def sentence(self) -> str:
        """The reason of its end, for the user."""
        return self.says or self.ending.sentence

    @property
    def iterations(self) -> int:
        """Updates that led to the last row."""
        return self.last.start

    @property
    def evaluations(self) -> dict[str, int]:
        """Evaluations of each quantity: of the gradient one a row, unless the rows say otherwise."""
        counts = {key: int(values[0]) for key, values in self.last.named.items() if key.startswith(EVALUATIONS)}
        return {"gradient": self.last.start + 1} | {key.removeprefix(EVALUATIONS): count for key, count in counts.items()}

    @property
    def first_nonfinite_step(self) -> int | None:
        """The step of the row at which it diverged."""
        return self.last.start if self.ending is Ending.DIVERGED else None


@dataclass(frozen=True)
class Rules:
    """The stopping rules that are on, by name, and the limits."""

    rules: Mapping[str, Rule]
    look_back: int  # how many earlier rows the rules need to see
    max_iterations: int
    time_limit: float | None  # seconds in the loop

    def stop(self, trace: Trace, start: int) -> Stop | None:
        """Return the earliest end among the rows from index `start` on; of two in one row, the non-finite number's."""
        stops = [nonfinite(trace, start)]
        # Rows past the first that is not finite come before the rules too, and deserve no warning of NumPy's.
        with np.errstate(over="ignore", invalid="ignore"):
            for name, rule in self.rules.items():
                row = rule(trace, start)
                stops.append(None if row is None else Stop(trace.start + row, Ending.CONVERGED, name))
        return min((each for each in stops if each is not None), key=lambda each: each.step, default=None)

    def over(self, iterations: int, seconds: float, signal: str | None) -> tuple[Ending, str | None] | None:
        """Return why no further step may be taken, or None."""
        if signal is not None:
            return Ending.INTERRUPTED, signal
        if iterations >= self.max_iterations:
            return Ending.ITERATION_LIMIT, None
        if self.time_limit is not None and seconds >= self.time_limit:
            return Ending.TIME_LIMIT, "time_limit"
        return None


@dataclass
class State:
    """Where a run is between two chunks, besides what its variables hold."""

    step: int = 0
    best: Trace | None = None
    before: Trace | None = None  # the row before this step
    earlier: Trace | None = None  # the rows that the rules look back at
    clock: dict[str, float] = field(default_factory=lambda: {"loop": 0.0, "record": 0.0})
    pace: list[tuple[int, float]] = field(default_factory=lambda: [(0, 0.0)])


def run(
    execution: Execution,
    iterations: Callable[[], int],
    rules: Rules,
    watchers: Sequence[Callable[[Trace], None]],
    signal: Callable[[], str | None] = lambda: None,
    measure: Callable[[Trace, bool], Trace] = lambda rows, ended: rows,
    start: State | None = None,
    save: Callable[[State, bool], None] = lambda state, now: None,
    best_of: str | None = LOSS,
) -> Result:
    """Take steps until a rule, a non-finite row, a limit or a signal ends them.

    Each watcher gets every row once and in order, up to the row at which the run ends. `measure` adds the loss's own
    measurements to rows, and is told whether the run ends with them; rules do not see them. The best row has the lowest
    `best_of`: the loss, or a measured quantity. An interrupted run goes on from the state `start`. `save` is offered the state
    before each chunk, and told whether a signal makes it the last one.
    """
    state, size = start or State(), 1
    while True:
        state.step, signalled, saving = iterations(), signal(), time.perf_counter()
        save(state, signalled is not None)
        began = time.perf_counter()
        limit: tuple[Any, ...] | None = rules.over(state.step, state.clock["loop"], signalled) or execution.ended()
        if not limit:
            new = execution.advance(min(size, execution.chunk, rules.max_iterations - state.step))
        else:
            new = interrupted(execution) if signalled and state.step < rules.max_iterations else execution.last()
        stepped = time.perf_counter()

        reached, trace = new.start + len(new), join([*([state.earlier] if state.earlier else []), new])
        first = len(trace) - len(new)
        stop = rules.stop(trace, first) or (Stop(new.start, *limit) if limit else None)
        stop = sooner(stop, stalled(execution, trace, first))
        if stop is not None and stop.ending is Ending.DIVERGED:
            execution.rewind(stop.step)
        new = new if stop is None else new[: stop.step + 1 - new.start]
        look_back = max(rules.look_back, 1 if execution.stalled else 0)
        state.earlier = trace[max(0, len(trace) - look_back) :] if look_back else None
        new = measure(new, stop is not None and stop.ending is not Ending.INTERRUPTED)
        state.best = lower(state.best, new, best_of)
        for watch in watchers:
            watch(new)
        recorded = time.perf_counter()

        state.clock["loop"] += stepped - began
        # Not after each step where a chunk is one step.
        if reached > 1.01 * state.pace[-1][0]:
            state.pace.append((reached, state.clock["loop"]))
        state.clock["record"] += recorded - stepped + began - saving
        size = resized(size, recorded - began)
        before, state.before = new[-2:-1] if len(new) > 1 else state.before, new[len(new) - 1 :]
        if stop is not None:
            pace = tuple(state.pace)
            return Result(
                stop.ending, stop.by, state.before, state.best, state.clock, None, stop.sentence, pace, before, best_of
            )


def stalled(execution: Execution, trace: Trace, start: int) -> Stop | None:
    """Return the row from which the strategy could take no further step, or None."""
    row = execution.stalled(trace, start) if execution.stalled else None
    says = "no step that the strategy tries from here lowers the loss"
    return None if row is None else Stop(trace.start + row, Ending.ITERATION_LIMIT, "no_decrease", says)


def sooner(one: Stop | None, other: Stop | None) -> Stop | None:
    """Return the earlier of two stops, the first of two at one row."""
    return min((each for each in (one, other) if each is not None), key=lambda each: each.step, default=None)


def interrupted(execution: Execution) -> Trace:
    """Return the row of the point reached, computed as in the run that this one may be continued by: within a step.

    The compiled program evaluates the point it ends at by other instructions, which may round otherwise.
    """
    return execution.advance(1)


def resized(size: int, seconds: float) -> int:
    """Return how many steps to take after so many took so long; the first is alone, for it may take a second."""
    if seconds < SHORT:
        return size * (100 if seconds < SHORT / 100 else 4)
    return max(size // 2, 1) if seconds > LONG else size


def nonfinite(trace: Trace, start: int) -> Stop | None:
    """Return the first row from index `start` on in which a number is not finite, and which of the three it is."""
    bad = ~trace.finite[start:]
    if not bad.any():
        return None
    row = start + int(np.argmax(bad))
    parts = {"nonfinite_loss": trace.loss, "nonfinite_gradient": trace.gradient, "nonfinite_x": trace.x}
    by = next(name for name, each in parts.items() if not np.isfinite(each[row]).all())
    return Stop(trace.start + row, Ending.DIVERGED, by)


def values(rows: Trace, of: str | None) -> np.ndarray:
    """Return a quantity of rows, [n]: their loss, or what is measured; NaN where it is not."""
    return rows.loss if of == LOSS else rows.measured.get(of or "", np.full(len(rows), np.nan))


def lower(best: Trace | None, new: Trace, of: str | None = LOSS) -> Trace:
    """Return the row of the lowest finite value so far of a quantity, the earliest of equals."""
    found = values(new, of)
    found = np.where(np.isfinite(found), found, np.inf)
    row = int(np.argmin(found))
    if best is not None and not found[row] < np.nan_to_num(values(best, of)[0], nan=np.inf):
        return best
    return new[row : row + 1]
