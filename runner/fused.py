"""Many jobs as one program: `groups(cfgs)` finds which jobs that may be, `run(group)` gives what each of them came to.

Each job ends at its own row, by its own rules, with the rows and the result that it has when it runs alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from runner import separable
from runner.groups import Group, Job, groups
from runner.lanes import move
from runner.loop import Result, Stop
from runner.programs import Program
from runner.trace import Trace

__all__ = ["Group", "groups", "run"]

# What it costs, measured, to compile for fewer lanes: done where what is left would cost more than that in ended ones.
COMPILE_SECONDS = 0.3


class Rows:
    """The rows of all jobs of a group, [jobs, rows, …], which each job's Trace is a view of."""

    def __init__(self, jobs: int, rows: int, x0: np.ndarray) -> None:
        self.x, self.gradient = (np.empty((jobs, rows, *x0.shape), x0.dtype) for _ in range(2))
        self.loss = np.empty((jobs, rows), x0.dtype)

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


class Running:
    """The jobs of a group that have not ended, and the program whose lanes they are in.

    A lane without a job does what the first job's does: groups of nearly as many jobs share one program.
    """

    def __init__(self, group: Group) -> None:
        began = time.perf_counter()
        self.group, self.live = group, np.arange(len(group.jobs))
        self.program, self.lane = self.start(group.lanes), self.live
        self.lanes, self.taken = group.lanes, 0
        self.seconds = {"compile": group.seconds + time.perf_counter() - began, "loop": 0.0}

    def start(self, lanes: int) -> Program:
        """Return the compiled program in which each job that has not ended has a lane, before step 0."""
        program = self.group.program([self.group.jobs[job] for job in filled(self.live, lanes)])
        program.execution.last()
        return program

    def further(self, n: int) -> Trace:
        """Take n steps at the most and return their rows; for n = 0, the row of the point reached."""
        began, execution = time.perf_counter(), self.program.execution
        new = execution.advance(min(n, execution.chunk)) if n else execution.last()
        # What counts is the steps of the jobs; a program of fewer lanes counts its own.
        new = replace(new, start=self.taken)
        self.taken += len(new) if n else 0
        self.seconds["loop"] += time.perf_counter() - began
        return new

    def keep(self, jobs: np.ndarray, remaining: int) -> None:
        """Go on with these jobs, and with fewer lanes where at least half have none to do and that pays for compiling."""
        self.lane, self.live = self.lane[np.isin(self.live, jobs)], jobs
        lanes = self.lanes
        while (half := -(-lanes // 2)) >= max(len(jobs), separable.LEAST_LANES):
            lanes = half
        saved = remaining * self.seconds["loop"] / max(self.taken, 1) * (1 - lanes / self.lanes)
        if not len(jobs) or lanes == self.lanes or saved <= COMPILE_SECONDS:
            return
        began, program = time.perf_counter(), self.start(lanes)
        move(self.program, program, filled(self.lane, lanes))
        self.program, self.lane, self.lanes = program, np.arange(len(jobs)), lanes
        self.seconds["compile"] += time.perf_counter() - began


def filled(first: np.ndarray, lanes: int) -> np.ndarray:
    """Return these numbers, and the first of them for the other lanes."""
    return np.concatenate([first, np.full(lanes - len(first), first[0])])


def run(group: Group, signal: Callable[[], str | None] = lambda: None) -> list[tuple[Trace, Result]]:
    """Return the rows of each job, from row 0 to the one that it ended at, and its result, in the order of the group's jobs.

    What compiling and stepping took is shared out evenly. A signal ends, at the row reached, all that have not ended.
    """
    jobs, limits = group.jobs, group.jobs[0].rules
    running, stops = Running(group), {}
    rows = Rows(len(jobs), limits.max_iterations + 1, jobs[0].x0)
    while len(running.live):
        over = limits.over(running.taken, 0.0, signal())
        new = running.further(0 if over else limits.max_iterations - running.taken)
        rows.write(running.live, running.lane, new)
        suspect = running.live[nonfinite(new)[running.lane]]
        stops |= ends(jobs, running.live, suspect, rows, new.start, new.start + len(new))
        if over:
            stops = {job: Stop(running.taken, *over) for job in running.live.tolist()} | stops
        going_on = [job for job in running.live.tolist() if job not in stops]
        running.keep(np.array(going_on, int), limits.max_iterations - running.taken)
    seconds = {name: value / len(jobs) for name, value in running.seconds.items()}
    return results(rows, [stops[job] for job in range(len(jobs))], seconds)


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
