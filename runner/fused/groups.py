"""Find groups of jobs that can run as one program.

The jobs of a group differ only in values that can be an array, and a probe has confirmed that they are independent lanes.
"""

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

# Maximum size of a group's rows: those of a thousand jobs of x[2] in single precision and 6,000 steps.
GROUP_BYTES = 128 * 2**20
# A job is fused only if this number of such jobs fit into GROUP_BYTES: fewer jobs at a time would save too little time.
FEWEST = 8

# Caches of this process, shared by all batches: the compiled programs, and the results of the probes.
PROGRAMS = Programs()
FAULTS: dict[Hashable, str | None] = {}


@dataclass(frozen=True)
class Job:
    """A job that may be a lane of a program, with its loss, first x and rules built."""

    index: int  # in the list of jobs
    cfg: Any
    loss: Loss
    x0: np.ndarray
    rules: Rules
    numbers: Mapping[str, float]  # the optimizer's hyperparameters that are real numbers, and the seed of a random loss
    constants: Hashable  # everything else that the program depends on

    @property
    def row_bytes(self) -> int:
        """The size in bytes of one row: x, loss and gradient."""
        return self.x0.itemsize * (2 * self.x0.size + 1)

    def depends_on(self, columns: Sequence[str]) -> Hashable:
        """Return the cache key of a program in which these hyperparameters are columns."""
        return self.constants, tuple(pair for pair in sorted(self.numbers.items()) if pair[0] not in columns)


@dataclass(frozen=True)
class Group:
    """Jobs that run as one program, or one by one if `alone` gives a reason."""

    indices: tuple[int, ...]  # of the group's jobs in the list of all jobs
    alone: str | None = None
    jobs: tuple[Job, ...] = ()
    columns: tuple[str, ...] = ()  # the hyperparameters with a separate value for each lane
    lanes: int = 0  # at least the number of jobs
    seconds: float = 0.0  # to form the group, mostly to compile the program

    def program(self, jobs: Sequence[Job]) -> Program:
        """Return the program with a lane for each of these jobs, before step 0."""
        columns = {name: np.array([job.numbers[name] for job in jobs]) for name in self.columns}
        return fuse(self.jobs[0], np.stack([job.x0 for job in jobs]), columns)


def groups(cfgs: Sequence[Any]) -> list[Group]:
    """Return these jobs in groups, ordered by the first job of each group; every index is in exactly one group.

    Jobs of one group have equal loss, strategy, execution, max_iterations and dtype, and equal optimizers except for real
    numbers; guess, seed and stopping may differ. A random loss draws once for all lanes if enough jobs share each seed, and
    otherwise in each lane separately. A job that cannot be built runs alone, and its run reports the error.
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
    """Return jobs split by the seed of their loss if there are enough jobs of each seed; these then share one draw per step."""
    parts = defaultdict(list)
    for job in jobs:
        parts[job.numbers.get(lanes.SEED)].append(job)
    return [*parts.values()] if min(map(len, parts.values())) >= probe.LEAST_LANES else [jobs]


def again(cfgs: Sequence[Any], columns: Sequence[str]) -> Group:
    """Return jobs that were lanes of one program, with these columns, as a group; raises an error if they cannot be built."""
    memory: dict[Hashable, Any] = {}
    jobs = tuple(prepared(index, cfg, memory) for index, cfg in enumerate(cfgs))
    return Group(tuple(range(len(jobs))), None, jobs, tuple(columns), max(probe.LEAST_LANES, len(jobs)))


def prepared(index: int, cfg: Any, memory: dict[Hashable, Any]) -> Job:
    """Return a job with its loss, first x and rules built; parts that equal an earlier job's are taken from `memory`.

    Raises UserError if the job has to run alone or cannot run.
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
    # Jobs share one loss, also with a thousand seeds, unless a function of the loss takes the run's seed.
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
    """Return the rules after a trial on one row, which raises an error for a rule with an invalid tolerance, for example."""
    rules.stop(Trace(0, np.ones((1, 1)), np.ones(1), np.ones((1, 1))), 0)
    return rules


def settled(jobs: list[Job]) -> Iterator[Group]:
    """Yield the groups of jobs that differ only in guess, seed, stopping and real numbers of the optimizer."""
    began, first = time.perf_counter(), jobs[0]
    rate = [probe.RATE] if probe.RATE in first.numbers else []
    others = [name for name in first.numbers if name not in rate and len({job.numbers[name] for job in jobs}) > 1]
    # A constructor may refuse a value beyond a bound, but a column accepts any value. So the extreme values are tried here.
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
    """Yield the jobs whose optimizer cannot be made as jobs that run alone, and then the groups of the others."""
    by_reason = defaultdict(list)
    for job in jobs:
        by_reason[refusal(job)].append(job)
    rest = by_reason.pop(None, [])
    yield from (Group(tuple(job.index for job in those), why) for why, those in by_reason.items())
    if rest:
        yield from settled(rest)


def refusal(job: Job) -> str | None:
    """Return the reason why a job's optimizer cannot be made, or None."""
    try:
        build.optimizer(job.cfg.optimizer, tf.Variable(tf.constant(job.x0)))
    except UserError as error:
        return str(error)


def apart(jobs: list[Job], rate: list[str], others: list[str]) -> Iterator[Group]:
    """Yield the groups of jobs that cannot be lanes of one program with all these hyperparameters as columns.

    Each hyperparameter is tried separately as a column, with the other values of the first job. Jobs that differ in a
    hyperparameter that cannot be a column go to different groups.
    """
    first = jobs[0]

    def like_first(*but: str) -> list[Job]:
        return [job for job in jobs if all(job.numbers[name] == first.numbers[name] for name in others if name not in but)]

    why = fault(like_first(), rate)
    if why is not None:
        yield Group(tuple(job.index for job in jobs), why)
        return
    # If each can be a column but all together cannot, which is rare, jobs are split by all of them.
    unable = [name for name in others if fault(like_first(name), [*rate, name]) is not None] or others
    parts = defaultdict(list)
    for job in jobs:
        parts[tuple(job.numbers[name] for name in unable)].append(job)
    for part in parts.values():
        yield from settled(part)


def fault(jobs: Sequence[Job], columns: Sequence[str], count: int = probe.LEAST_LANES) -> str | None:
    """Return the reason why jobs like these cannot be lanes of one program with these columns, or None; results are cached.

    The result is not cached if the jobs do not move far enough for the probe.
    """
    first = jobs[0]
    key = first.depends_on(columns), tuple(columns)
    if FAULTS.get(key, probe.UNTOLD) == probe.UNTOLD:
        chosen = {job.index: job for job in (first, jobs[len(jobs) // 2], jobs[-1])}.values()
        members = [probe.Member(job.cfg, job.loss, job.x0, job.numbers) for job in chosen]
        keras.config.set_floatx(first.x0.dtype.name)
        FAULTS[key] = probe.fault(members, columns, count, partial(fuse, first))
    return FAULTS[key]


def fuse(job: Job, x0: np.ndarray, columns: Mapping[str, np.ndarray]) -> Program:
    """Return the program of these first x, [lanes, *shape], and columns, [lanes] each; everything else is as in this job."""
    keras.config.set_floatx(job.x0.dtype.name)
    return lanes.program(PROGRAMS, job.depends_on(tuple(columns)), job.cfg, job.loss, x0, columns)
