"""Which jobs run as one program: those that differ only in what can be an array, where a probe finds that they may."""

from __future__ import annotations

import inspect
import json
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from runner import executions, strategies
from runner.config import build, nodes
from runner.errors import UserError, first_line
from runner.executions.cache import Program, Programs
from runner.fused import lanes, probe
from runner.loop import Rules
from runner.losses import Loss
from runner.security import targets
from runner.trace import Trace

# What the rows of a group may take: those of a thousand jobs of x[2] in single precision and 6,000 steps.
GROUP_BYTES = 128 * 2**20
# How many jobs must find room in that: fewer at a time would gain too little over one after another.
FEWEST = 8

# Those of this process, for one batch after another: its programs, and what its probes found.
PROGRAMS = Programs()
FAULTS: dict[Hashable, str | None] = {}


@dataclass(frozen=True)
class Job:
    """A job that may be a lane of a program."""

    index: int  # where it stands in the list
    cfg: Any
    loss: Loss
    x0: np.ndarray
    rules: Rules
    numbers: Mapping[str, float]  # the optimizer's hyperparameters that are real numbers, and the seed of a random loss
    constants: Hashable  # all else that its program depends on

    @property
    def row_bytes(self) -> int:
        """What x, loss and gradient of one step take."""
        return self.x0.itemsize * (2 * self.x0.size + 1)

    def depends_on(self, columns: Sequence[str]) -> Hashable:
        """Return what a program depends on in which these hyperparameters are columns."""
        return self.constants, tuple(pair for pair in sorted(self.numbers.items()) if pair[0] not in columns)


@dataclass(frozen=True)
class Group:
    """Jobs that run as one program; or, where `alone` says why, one by one."""

    indices: tuple[int, ...]  # of its jobs in the list that it was found in
    alone: str | None = None
    jobs: tuple[Job, ...] = ()
    columns: tuple[str, ...] = ()  # the hyperparameters of which each lane has a value of its own
    lanes: int = 0  # as many as there are jobs, or more
    seconds: float = 0.0  # that it took to find this out, most of it to compile the program

    def program(self, jobs: Sequence[Job]) -> Program:
        """Return the program that has a lane for each of these jobs, before step 0."""
        columns = {name: np.array([job.numbers[name] for job in jobs]) for name in self.columns}
        return fuse(self.jobs[0], np.stack([job.x0 for job in jobs]), columns)


def groups(cfgs: Sequence[Any]) -> list[Group]:
    """Return these jobs as groups, in the order of the first job of each; every index is in exactly one.

    Jobs of one group agree in loss, strategy, execution, max_iterations, dtype, and in the optimizer but for its real numbers;
    guess, seed and stopping are each job's own. A random loss draws once for all lanes where jobs of one seed fill a program,
    and else in each lane by itself. A job that cannot be built is left to run alone, and to tell its fault then.
    """
    memory: dict[Hashable, Any] = {}
    families, alone = defaultdict(list), defaultdict(list)
    for index, cfg in enumerate(cfgs):
        try:
            job = prepared(index, cfg, memory)
        except Exception as error:
            alone[first_line(error)].append(index)
        else:
            families[job.constants, job.rules.max_iterations].append(job)
    found = [Group(tuple(indices), why) for why, indices in alone.items()]
    for jobs in families.values():
        for those in by_seed(jobs):
            found += settled(those)
    return sorted(found, key=lambda group: group.indices[0])


def by_seed(jobs: list[Job]) -> list[list[Job]]:
    """Return jobs apart by the seed of their loss, where those of each are many: they draw once a step together."""
    parts = defaultdict(list)
    for job in jobs:
        parts[job.numbers.get(lanes.SEED)].append(job)
    return [*parts.values()] if min(map(len, parts.values())) >= probe.LEAST_LANES else [jobs]


def again(cfgs: Sequence[Any], columns: Sequence[str]) -> Group:
    """Return jobs that have been lanes of one program, with these columns, as a group; raises where they cannot be built."""
    memory: dict[Hashable, Any] = {}
    jobs = tuple(prepared(index, cfg, memory) for index, cfg in enumerate(cfgs))
    return Group(tuple(range(len(jobs))), None, jobs, tuple(columns), max(probe.LEAST_LANES, len(jobs)))


def prepared(index: int, cfg: Any, memory: dict[Hashable, Any]) -> Job:
    """Return a job with all that is its own built; what equals an earlier job's is taken from memory.

    Raises UserError where it has to run alone, or cannot run.
    """

    def once(key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in memory:
            memory[key] = make()
        return memory[key]

    plain = build.plain(cfg)
    if plain["stopping"].get("time_limit") is not None:
        raise UserError("stopping.time_limit is about a single run")
    if targets.target("execution._target_", plain["execution"]["_target_"]) is executions.eager:
        raise UserError("execution=eager is there to be looked at step by step")
    if strategies.takes_own_steps(targets.target("strategy._target_", plain["strategy"]["_target_"])):
        raise UserError("a strategy that takes its own steps takes them for one x")
    written = {name: json.dumps(plain[name], default=str) for name in plain if name != "optimizer"}
    numbers = build.numbers(plain["optimizer"])
    others = json.dumps({key: None if key in numbers else value for key, value in plain["optimizer"].items()}, default=str)

    functions = tuple(nodes.function_of(name, cfg[name]) for name in build.OF_LOSS)
    asks = [
        "seed" in inspect.signature(each).parameters and plain[name].get("seed") is None
        for name, each in zip(build.OF_LOSS, functions, strict=True)
    ]
    of_loss = tuple(written[name] for name in build.OF_LOSS), functions
    # Of what jobs share, so that a thousand seeds need one loss where it does not ask for them.
    loss = once(("loss", of_loss, plain["seed"] if any(asks) else None), lambda: build.loss(cfg))
    guess = once(("guess", written["guess"]), lambda: nodes.function("guess", cfg.guess, "loss", "dtype", "seed"))
    x0 = guess(loss, plain["dtype"], plain["seed"])
    limit = plain["max_iterations"]
    rules = once(
        ("rules", written["stopping"], loss.minimum, loss.seed is None, limit),
        lambda: tried(build.rules(cfg.stopping, loss, limit)),
    )
    if loss.seed is not None:
        numbers[lanes.SEED] = loss.seed
    constants = (of_loss, written["strategy"], written["execution"], others, tuple(sorted(numbers)))
    job = Job(index, cfg, loss, x0, rules, numbers, (*constants, plain["dtype"], x0.shape))
    if (needs := job.row_bytes * (limit + 1)) > GROUP_BYTES // FEWEST:
        raise UserError(f"its rows take {needs / 2**20:.0f} MB, and {FEWEST} such jobs together would be too large")
    return job


def tried(rules: Rules) -> Rules:
    """Return rules that a row does not make raise anything, as one of a wrong tolerance does."""
    rules.stop(Trace(0, np.ones((1, 1)), np.ones(1), np.ones((1, 1))), 0)
    return rules


def settled(jobs: list[Job]) -> Iterator[Group]:
    """Yield the groups of jobs that differ in guess, seed, stopping and real numbers of the optimizer alone."""
    began, first = time.perf_counter(), jobs[0]
    rate = [probe.RATE] if probe.RATE in first.numbers else []
    others = [name for name in first.numbers if name not in rate and len({job.numbers[name] for job in jobs}) > 1]
    # A column takes what a constructor may refuse, which it does beyond some bound.
    if any(refusal(pick(jobs, key=lambda job: job.numbers[name])) for name in others for pick in (min, max)):
        yield from without_refused(jobs)
        return
    count = -(-len(jobs) * first.row_bytes * (first.rules.max_iterations + 1) // GROUP_BYTES)
    size = max(probe.LEAST_LANES, -(-len(jobs) // count))
    why = "no other job is like it" if len(jobs) == 1 else fault(jobs, [*rate, *others], size)
    if why is None:
        seconds = (time.perf_counter() - began) / count
        for batch in (tuple(jobs[i : i + size]) for i in range(0, len(jobs), size)):
            yield Group(tuple(job.index for job in batch), None, batch, (*rate, *others), size, seconds)
    elif others:
        yield from apart(jobs, rate, others)
    else:
        yield Group(tuple(job.index for job in jobs), why)


def without_refused(jobs: list[Job]) -> Iterator[Group]:
    """Yield those jobs alone whose optimizer cannot be made, and the groups of the others."""
    by_reason = defaultdict(list)
    for job in jobs:
        by_reason[refusal(job)].append(job)
    rest = by_reason.pop(None, [])
    yield from (Group(tuple(job.index for job in those), why) for why, those in by_reason.items())
    if rest:
        yield from settled(rest)


def refusal(job: Job) -> str | None:
    """Return why a job's optimizer cannot be made, or None."""
    try:
        build.optimizer(job.cfg.optimizer, tf.Variable(tf.constant(job.x0)))
    except UserError as error:
        return str(error)


def apart(jobs: list[Job], rate: list[str], others: list[str]) -> Iterator[Group]:
    """Yield the groups of jobs that cannot be lanes of one program with all these hyperparameters as columns.

    Each is tried by itself, the rest as in the first job, and what cannot be a column keeps jobs apart.
    """
    first = jobs[0]

    def like_first(*but: str) -> list[Job]:
        return [job for job in jobs if all(job.numbers[name] == first.numbers[name] for name in others if name not in but)]

    why = fault(like_first(), rate)
    if why is not None:
        yield Group(tuple(job.index for job in jobs), why)
        return
    # Each by itself may be a column and all together not: rare enough to let all of them keep jobs apart.
    unable = [name for name in others if fault(like_first(name), [*rate, name]) is not None] or others
    parts = defaultdict(list)
    for job in jobs:
        parts[tuple(job.numbers[name] for name in unable)].append(job)
    for part in parts.values():
        yield from settled(part)


def fault(jobs: Sequence[Job], columns: Sequence[str], count: int = probe.LEAST_LANES) -> str | None:
    """Return why jobs like these cannot be lanes of one program with these columns; asked again, it does not probe again."""
    first = jobs[0]
    key = first.depends_on(columns), tuple(columns)
    if FAULTS.get(key, probe.UNTOLD) == probe.UNTOLD:
        chosen = {job.index: job for job in (first, jobs[len(jobs) // 2], jobs[-1])}.values()
        members = [probe.Member(job.cfg, job.loss, job.x0, job.numbers) for job in chosen]
        keras.config.set_floatx(first.x0.dtype.name)
        FAULTS[key] = probe.fault(members, columns, count, partial(fuse, first))
    return FAULTS[key]


def fuse(job: Job, x0: np.ndarray, columns: Mapping[str, np.ndarray]) -> Program:
    """Return the program of these first x, [lanes, *shape], and columns, [lanes] each; all else is this job's."""
    keras.config.set_floatx(job.x0.dtype.name)
    return lanes.program(PROGRAMS, job.depends_on(tuple(columns)), job.cfg, job.loss, x0, columns)
