"""Run many jobs as one program: `groups(cfgs)` finds the groups of jobs, and `run(group)` returns the result of each job.

Each job ends at its own row, by its own rules, with the same rows and result as when it runs alone. An interrupted group
resumes from a State and the variables that were saved with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from runner import loop
from runner.executions.cache import Program
from runner.fused import probe
from runner.fused.groups import Group, Job, groups
from runner.fused.lanes import move
from runner.loop import Result, Stop
from runner.trace import Trace

__all__ = ["Group", "groups", "run"]

# Measured cost of compiling for fewer lanes. It is done if the lanes of ended jobs would cost more in the remaining steps.
COMPILE_SECONDS = 0.3


class Rows:
    """The rows of all jobs of a group, [jobs, rows, …]; the Trace of each job is a view of them."""

    def __init__(self, jobs: int, rows: int, x0: np.ndarray) -> None:
        self.x, self.gradient = (np.zeros((jobs, rows, *x0.shape), x0.dtype) for _ in range(2))
        self.loss = np.zeros((jobs, rows), x0.dtype)

    def write(self, jobs: np.ndarray, lane: np.ndarray, new: Trace) -> None:
        """Store the new rows of these jobs, which are in these lanes."""
        start, stop = new.start, new.start + len(new)
        for mine, its in ((self.x, new.x), (self.loss, new.loss), (self.gradient, new.gradient)):
            mine[jobs, start:stop] = its[:, lane].swapaxes(0, 1)

    def of(self, job: int, start: int, stop: int) -> Trace:
        """Return rows of one job."""
        return Trace(start, self.x[job, start:stop], self.loss[job, start:stop], self.gradient[job, start:stop])

    def best(self, stops: np.ndarray) -> np.ndarray:
        """Return for each job the first row with the lowest finite loss up to its stop, or 0 if no loss is finite, [jobs]."""
        loss = self.loss[:, : stops.max() + 1]
        counts = np.isfinite(loss) & (np.arange(loss.shape[1]) <= stops[:, None])
        return np.argmin(np.where(counts, loss, np.inf), axis=1)


@dataclass
class State:
    """The state of a group between two chunks, without the program's variables; a job's number is its index in the group."""

    rows: Rows
    live: np.ndarray  # the jobs that have not ended
    lane: np.ndarray  # the lane of each live job
    lanes: int
    taken: int = 0
    stops: dict[int, Stop] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "loop": 0.0})

    @classmethod
    def of(cls, group: Group) -> State:
        """Return the initial state of a group."""
        jobs = np.arange(len(group.jobs))
        rows = Rows(len(jobs), group.jobs[0].rules.max_iterations + 1, group.jobs[0].x0)
        return cls(rows, jobs, jobs, group.lanes, seconds={"compile": group.seconds, "loop": 0.0})


class Running:
    """A group, its state, and the program with a lane for each live job.

    A lane without a job repeats the first live job, so groups of nearly equal size share one program.
    """

    def __init__(self, group: Group, at: State, fill: Callable[[Program], None]) -> None:
        began = time.perf_counter()
        self.group, self.at, self.steps = group, at, group.jobs[0].rules.max_iterations
        # If all jobs of an interrupted group have ended, there is nothing left to run.
        if len(at.live):
            self.program = self.start(at.lanes)
            fill(self.program)
        at.seconds["compile"] += time.perf_counter() - began

    def start(self, lanes: int) -> Program:
        """Return the compiled program with a lane for each live job, before step 0."""
        program = self.group.program([self.group.jobs[job] for job in filled(self.at.live, lanes)])
        program.execution.last()
        return program

    def further(self) -> Trace:
        """Take steps and return their rows."""
        began, execution = time.perf_counter(), self.program.execution
        new = self.numbered(execution.advance(min(self.steps - self.at.taken, execution.chunk)))
        self.at.taken += len(new)
        self.at.seconds["loop"] += time.perf_counter() - began
        return new

    def point(self) -> Trace:
        """Return the row of the point reached; it is the last row of the group."""
        execution = self.program.execution
        return self.numbered(execution.last() if self.at.taken == self.steps else loop.interrupted(execution))

    def numbered(self, new: Trace) -> Trace:
        """Return rows numbered by the steps of the jobs; a program that was compiled later counts from 0."""
        return replace(new, start=self.at.taken)

    def keep(self, jobs: np.ndarray) -> None:
        """Continue with these jobs only; use fewer lanes if at least half are free and the saving exceeds the compile time."""
        at = self.at
        at.lane, at.live = at.lane[np.isin(at.live, jobs)], jobs
        lanes = at.lanes
        while (half := -(-lanes // 2)) >= max(len(jobs), probe.LEAST_LANES):
            lanes = half
        saved = (self.steps - at.taken) * at.seconds["loop"] / max(at.taken, 1) * (1 - lanes / at.lanes)
        if not len(jobs) or lanes == at.lanes or saved <= COMPILE_SECONDS:
            return
        began, program = time.perf_counter(), self.start(lanes)
        move(self.program, program, filled(at.lane, lanes))
        self.program, at.lane, at.lanes = program, np.arange(len(jobs)), lanes
        at.seconds["compile"] += time.perf_counter() - began


def filled(first: np.ndarray, lanes: int) -> np.ndarray:
    """Return these numbers, padded with the first of them to one for each lane, [lanes]."""
    return np.concatenate([first, np.full(lanes - len(first), first[0])])


def run(
    group: Group,
    signal: Callable[[], str | None] = lambda: None,
    save: Callable[[State, Program, bool], None] = lambda state, program, now: None,
    start: State | None = None,
    fill: Callable[[Program], None] = lambda program: None,
) -> list[tuple[Trace, Result]]:
    """Return the rows of each job, from row 0 to its last row, and its result, in the order of the group's jobs.

    The time for compiling and stepping is divided evenly among the jobs. A signal ends all live jobs at the row reached.
    `save(state, program, now)` is called before each chunk, with `now` true if a signal ends the group there, and once more
    when all jobs have ended. An interrupted group resumes from the state `start`, and `fill` restores the variables of its
    program.
    """
    jobs, limits = group.jobs, group.jobs[0].rules
    at = start or State.of(group)
    running = Running(group, at, fill)
    while len(at.live):
        came = signal()
        save(at, running.program, came is not None)
        over = limits.over(at.taken, 0.0, came)
        new = running.point() if over else running.further()
        at.rows.write(at.live, at.lane, new)
        suspect = at.live[nonfinite(new)[at.lane]]
        at.stops |= ends(jobs, at.live, suspect, at.rows, new.start, new.start + len(new))
        if over:
            at.stops = {job: Stop(at.taken, *over) for job in at.live.tolist()} | at.stops
        running.keep(np.array([job for job in at.live.tolist() if job not in at.stops], int))
        if not len(at.live):
            save(at, running.program, False)
    seconds = {name: value / len(jobs) for name, value in at.seconds.items()}
    return results(at.rows, [at.stops[job] for job in range(len(jobs))], seconds)


def nonfinite(new: Trace) -> np.ndarray:
    """Return for each lane whether one of these rows has a number that is not finite, [lanes]."""
    parts = (part.reshape(*new.loss.shape, -1) for part in (new.x, new.loss, new.gradient))
    return ~np.logical_and.reduce([np.isfinite(part).all(axis=(0, 2)) for part in parts])


def ends(jobs: Sequence[Job], live: np.ndarray, suspect: np.ndarray, rows: Rows, start: int, stop: int) -> dict[int, Stop]:
    """Return the Stop of each live job that ends in the rows from `start` to `stop`.

    `suspect` are the live jobs with a number that is not finite in these rows.
    """
    found = {}
    for job in sorted({*suspect.tolist(), *(job for job in live.tolist() if jobs[job].rules.rules)}):
        rules = jobs[job].rules
        first = max(0, start - rules.look_back)
        if end := rules.stop(rows.of(job, first, stop), start - first):
            found[job] = end
    return found


def results(rows: Rows, stops: list[Stop], seconds: dict[str, float]) -> list[tuple[Trace, Result]]:
    """Return the rows and the result of each job."""
    best = rows.best(np.array([stop.step for stop in stops])).tolist()
    found = []
    for job, (stop, low) in enumerate(zip(stops, best, strict=True)):
        last, lowest = rows.of(job, stop.step, stop.step + 1), rows.of(job, low, low + 1)
        result = Result(stop.ending, stop.by, last, lowest, dict(seconds))
        found.append((rows.of(job, 0, stop.step + 1), result))
    return found
