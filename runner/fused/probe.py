"""The probe: test whether jobs that run as lanes of one program have the same rows as when they run alone.

The test runs the jobs and never looks at names. Some jobs run alone for some steps, and then as lanes beside fillers: lanes
(`strangers`) whose x is NaN in one run and far away in another, and which must not affect the others. The test finds a norm
over all of x, a loss that mixes its lanes, a step that treats a matrix specially, and an attribute that cannot be a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from runner import executions, optimizers
from runner.config import build
from runner.errors import UserError, first_line
from runner.executions.cache import Program, Programs
from runner.losses import Loss
from runner.trace import Execution, Trace, join

STEPS = 10
# Three jobs, a perturbed copy (`twin`) of each, and two fillers (`strangers`).
LEAST_LANES = 8
# NUDGE: the perturbed copy starts this number of roundings away from its job. The distance that it reaches bounds the effect of
# rounding on a lane, up to the factor SLACK, because each step and operation rounds. OWN: roundings that each row may add.
NUDGE, SLACK, OWN = 2, 16, 4
# The test is conclusive if a job moves more than TELLING times its tolerance. If no job does, as with Adadelta, whose first
# steps are 3e-4 of its learning rate, the learning rates are multiplied by the factors RAISED.
TELLING = 10
RATE = "learning_rate"
RAISED = (1.0, 1e3, 1e6)
# This result is about the jobs of the probe only, not about all jobs of their program.
UNTOLD = f"no job moves far enough in {STEPS} steps to tell"

Fuse = Callable[[np.ndarray, Mapping[str, np.ndarray]], Program]


class Member(NamedTuple):
    """A job that takes part in the probe."""

    cfg: Any
    loss: Loss
    x0: np.ndarray
    numbers: Mapping[str, float]  # the optimizer's hyperparameters that are real numbers, and the seed of a random loss


def fault(members: Sequence[Member], columns: Sequence[str], lanes: int, fuse: Fuse) -> str | None:
    """Return in one line the reason why jobs like these, at most three, cannot be lanes of one program; None if they can.

    The jobs differ only in x0 and the columns. `lanes` is 8 or more. `fuse(x0, columns)` returns the program before step 0.
    """
    kept = Programs()
    try:
        if any(agree(raised(members, factor), columns, lanes, fuse, kept) for factor in RAISED):
            return None
    except Exception as error:
        # After any error of TensorFlow, Keras or the user's code, the jobs can still run alone, or report their error then.
        return first_line(error)[:300]
    return UNTOLD


def raised(members: Sequence[Member], factor: float) -> list[Member]:
    """Return these jobs with their learning rates, if these are numbers, multiplied by a factor."""
    numbers = [{name: value * factor if name == RATE else value for name, value in each.numbers.items()} for each in members]
    return [each._replace(numbers=its) for each, its in zip(members, numbers, strict=True)]


def agree(members: Sequence[Member], columns: Sequence[str], lanes: int, fuse: Fuse, kept: Programs) -> bool:
    """Return whether the test is conclusive: a job moved far enough, and all jobs agree with their lanes.

    Raises UserError if a job and its lane disagree, and any error of TensorFlow, Keras or the user's code.
    """
    alone = [ten_steps(by_itself(member, kept).execution) for member in members]
    told = [
        tells(reference, of_lane(together, i), of_lane(together, len(members) + i))
        for together in among_strangers(members, columns, lanes, fuse)
        for i, reference in enumerate(alone)
    ]
    return any(told)


def by_itself(member: Member, kept: Programs) -> Program:
    """Return the program that runs a job alone; it is traced instead of compiled, which takes a third of the time."""
    x = tf.Variable(tf.constant(member.x0), name="x")
    node = member.cfg.optimizer.copy()
    if RATE in member.numbers:
        node[RATE] = member.numbers[RATE]
    optimizer = build.optimizer(node, x)

    def make() -> Execution:
        return executions.graph(build.strategy(member.cfg.strategy, member.loss, optimizer, x), chunk=STEPS)

    return kept.get(build.depends_on(member.cfg, member.loss), x, optimizer, make)


def among_strangers(members: Sequence[Member], columns: Sequence[str], lanes: int, fuse: Fuse) -> Iterator[Trace]:
    """Yield the rows of a program for each kind of filler; its lanes are the jobs, their perturbed copies and the fillers.

    Raises UserError if the optimizer does not count each step, because the rows then do not show the steps of a lane.
    """
    inside = np.stack([member.x0 for member in members])
    size = np.abs(inside).reshape(len(inside), -1).max(axis=1)
    roundings = NUDGE * np.finfo(inside.dtype).eps * np.where(size > 0, size, 1)
    twins = inside + roundings.reshape(-1, *[1] * (inside.ndim - 1)).astype(inside.dtype)
    strangers = lanes - 2 * len(members)
    each = [*members, *members, *[members[0]] * strangers]
    values = {name: np.array([member.numbers[name] for member in each]) for name in columns}
    for far in (np.nan, 1e3 * max(1.0, float(size.max()))):
        outside = np.full((strangers, *inside.shape[1:]), far, inside.dtype)
        program = fuse(np.concatenate([inside, twins, outside]), values)
        yield ten_steps(program.execution)
        if (counted := int(optimizers.steps(program.optimizer))) != STEPS:
            raise UserError(f"the optimizer counts {counted} steps in {STEPS} steps")


def ten_steps(execution: Execution) -> Trace:
    """Return the rows of the first STEPS steps and of the x after them."""
    execution.last()
    sizes = [min(execution.chunk, STEPS - k) for k in range(0, STEPS, execution.chunk)]
    return join([*(execution.advance(n) for n in sizes), execution.last()])


def of_lane(trace: Trace, lane: int) -> Trace:
    """Return the rows of one lane."""
    return Trace(trace.start, trace.x[:, lane], trace.loss[:, lane], trace.gradient[:, lane])


@np.errstate(over="ignore", invalid="ignore")
def tells(alone: Trace, lane: Trace, twin: Trace) -> bool:
    """Return whether a job moved far enough for a conclusive comparison with its lane.

    The tolerance at row k is OWN · (k + 1) roundings of the largest number so far, plus SLACK times the largest distance so far
    between the lane and the perturbed copy. Rows from the first non-finite row of the job alone are not compared.

    Raises UserError if the job and its lane disagree.
    """
    finite = alone.finite
    rows = len(finite) if finite.all() else int(np.argmin(finite))
    eps = np.finfo(alone.x.dtype).eps
    telling = False
    for name in ("x", "loss", "gradient"):
        a, b, c = (getattr(each, name)[:rows].reshape(rows, -1).astype(np.float64) for each in (alone, lane, twin))
        largest, apart = (np.maximum.accumulate(np.abs(each).max(axis=1)) for each in (a, c - b))
        tolerance = OWN * eps * largest * np.arange(1, rows + 1) + SLACK * apart
        near = np.abs(a - b).max(axis=1) <= tolerance
        if not near.all():
            raise UserError(f"a job among others is not what it is alone: {name} departs at step {int(np.argmin(near))}")
        telling |= name == "x" and bool((np.abs(a - a[:1]).max(axis=1) > TELLING * tolerance).any())
    return telling
