"""The plan of a sweep: which jobs it would run and for how long. Only a few steps of each program are run, to time it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from runner.config import build
from runner.config.parts import parts
from runner.errors import Incompatible
from runner.fused import lockstep
from runner.trace import Execution

# Maximum number of steps by which a program is timed.
STEPS = 100


def plan(cfgs: Sequence[Any], fuse: bool) -> Iterator[str]:
    """Yield the lines of the plan: which jobs run as one program, the estimated time, and the number of metric rows."""
    groups = lockstep.groups(cfgs) if fuse else []
    together = [group for group in groups if group.alone is None]
    why = {index: group.alone for group in groups if group.alone is not None for index in group.indices}
    alone = why if fuse else range(len(cfgs))
    rest = [cfgs[index] for index in alone]
    for group in together:
        yield f"  {len(group.jobs)} jobs as one program, with {', '.join(group.columns) or 'nothing'} of each job's own"
    yield from (f"  {count} jobs one by one: {reason}" for reason, count in Counter(why.values()).items())
    times = [seconds(group.program(group.jobs).execution, group.jobs[0].rules.max_iterations) for group in together]
    ready: dict[Any, tuple[float, float]] = {}
    skipped: Counter[str] = Counter()
    for cfg in rest:
        try:
            made = parts(cfg)
        except Incompatible as misfit:
            skipped[str(misfit)] += 1
            continue
        key = build.depends_on(cfg, made.loss), made.x0.shape
        if key not in ready:
            compile_time, a_step = seconds(made.program.execution, 1)
            ready[key] = made.seconds + compile_time, a_step
            times.append((ready[key][0], 0.0))
        times.append((0.0, ready[key][1] * cfg.max_iterations))
    yield from (f"  {count} skipped: {reason}" for reason, count in skipped.items())
    compiling, looping = sum(each for each, _ in times), sum(each for _, each in times)
    yield f"  about {compiling:.1f} s to compile and {looping:.1f} s in the loop, besides recording"
    yield f"  {sum(map(metric_rows, cfgs)):,} metric rows at the most"


def seconds(execution: Execution, n: int) -> tuple[float, float]:
    """Return the seconds to compile, and the seconds of n steps, extrapolated from the first steps."""
    began = time.perf_counter()
    execution.last()
    compiled = time.perf_counter()
    with ExitStack() as afterwards:
        afterwards.callback(execution.close)
        steps = len(execution.advance(min(STEPS, execution.chunk)))
    return compiled - began, (time.perf_counter() - compiled) / steps * n


def metric_rows(cfg: Any) -> int:
    """Return the number of metric rows of a job that takes all its steps."""
    every = cfg.tracking.get("every")
    if every is None:
        return 0
    shape = build.guess(cfg.guess, build.loss(cfg), cfg.dtype.name, cfg.seed).shape
    metrics = 3 if not shape else 2 + 2 * min(shape[0], cfg.tracking.max_coordinates)
    return metrics * (cfg.max_iterations // every + 1)
