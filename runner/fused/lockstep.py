"""Many jobs as one program: `groups(cfgs)` finds which jobs that may be, `run(group)` gives what each of them came to.

Each job ends at its own row, by its own rules, with the rows and the result that it has when it runs alone. A group that was
interrupted goes on from a State and the variables that were saved with it.
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

# What it costs, measured, to compile for fewer lanes: done where what is left would cost more than that in ended ones.
COMPILE_SECONDS = 0.3


class Rows:
    """The rows of all jobs of a group, [jobs, rows, …], which each job's Trace is a view of."""

    def __init__(self, jobs: int, rows: int, x0: np.ndarray) -> None:
        self.x, self.gradient = (np.zeros((jobs, rows, *x0.shape), x0.dtype) for _ in range(2))
        self.loss = np.zeros((jobs, rows), x0.dtype)

    def write(self, jobs: np.ndarray, lane: np.ndarray, new: Trace) -> None:
        """Take the rows of these jobs, which are in these lanes."""
        start, stop = new.start, new.start + len(new)
        for mine, its in ((self.x, new.x), (self.loss, new.loss), (self.gradient, new.gradient)):
            mine[jobs, start:stop] = its[:, lane].swapaxes(0, 1)

    def of(self, job: int, start: int, stop: int) -> Trace:
        """Return rows of one job."""
        return Trace(start, self.x[job, start:stop], self.loss[job, start:stop], self.gradient[job, start:stop])

    def best(self, stops: np.ndarray) -> np.ndarray:
        """Return for each job the first row of the lowest finite loss up to its stop, or 0 where none is finite, [jobs]."""
        loss = self.loss[:, : stops.max() + 1]
        counts = np.isfinite(loss) & (np.arange(loss.shape[1]) <= stops[:, None])
        return np.argmin(np.where(counts, loss, np.inf), axis=1)


@dataclass
class State:
    """Where a group is between two chunks, besides what its variables hold; jobs are numbered as the group has them."""

    rows: Rows
    live: np.ndarray  # the jobs that have not ended
    lane: np.ndarray  # where each of these is
    lanes: int
    taken: int = 0
    stops: dict[int, Stop] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "loop": 0.0})

    @classmethod
    def of(cls, group: Group) -> State:
        """Return where a group begins."""
        jobs = np.arange(len(group.jobs))
        rows = Rows(len(jobs), group.jobs[0].rules.max_iterations + 1, group.jobs[0].x0)
        return cls(rows, jobs, jobs, group.lanes, seconds={"compile": group.seconds, "loop": 0.0})


class Running:
    """A group, where it is, and the program whose lanes its jobs are in until they end.

    A lane without a job does what the first job's does: groups of nearly as many jobs share one program.
    """

    def __init__(self, group: Group, at: State, fill: Callable[[Program], None]) -> None:
        began = time.perf_counter()
        self.group, self.at, self.steps = group, at, group.jobs[0].rules.max_iterations
        # Of a group that was interrupted when all had ended, there is nothing left to be run.
        if len(at.live):
            self.program = self.start(at.lanes)
            fill(self.program)
        at.seconds["compile"] += time.perf_counter() - began

    def start(self, lanes: int) -> Program:
        """Return the compiled program in which each job that has not ended has a lane, before step 0."""
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
        """Return the row of the point reached, from which no further step is taken."""
        execution = self.program.execution
        return self.numbered(execution.last() if self.at.taken == self.steps else loop.interrupted(execution))

    def numbered(self, new: Trace) -> Trace:
        """Return rows with the steps of the jobs; a program of fewer lanes counts its own."""
        return replace(new, start=self.at.taken)

    def keep(self, jobs: np.ndarray) -> None:
        """Go on with these jobs, and with fewer lanes where at least half have none to do and that pays for compiling."""
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
    """Return these numbers, and the first of them for the other lanes."""
    return np.concatenate([first, np.full(lanes - len(first), first[0])])


def run(
    group: Group,
    signal: Callable[[], str | None] = lambda: None,
    save: Callable[[State, Program, bool], None] = lambda state, program, now: None,
    start: State | None = None,
    fill: Callable[[Program], None] = lambda program: None,
) -> list[tuple[Trace, Result]]:
    """Return the rows of each job, from row 0 to the one that it ended at, and its result, in the order of the group's jobs.

    What compiling and stepping took is shared out evenly. A signal ends, at the row reached, all that have not ended. `save` is
    offered the state and the program before each chunk, and told whether a signal makes it the last one, and once more when all
    have ended. `start` is where a group goes on, with what `fill` gives its program.
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
    """Return whether a lane has a number that is not finite in one of these rows, [lanes]."""
    parts = (part.reshape(*new.loss.shape, -1) for part in (new.x, new.loss, new.gradient))
    return ~np.logical_and.reduce([np.isfinite(part).all(axis=(0, 2)) for part in parts])


def ends(jobs: Sequence[Job], live: np.ndarray, suspect: np.ndarray, rows: Rows, start: int, stop: int) -> dict[int, Stop]:
    """Return where those of the live jobs end that do in the rows from `start` to `stop`."""
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
