"""The checks of a configuration: its loss keeps the contract, its optimizer takes a step, and its jobs can be fused.

A random loss is checked at step 0, and without the configuration's noise: the noise's gradient is not a derivative.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from runner.check import differences
from runner.check.findings import Check, Failed, Skipped, Subject
from runner.config import nodes
from runner.config.parts import parts
from runner.errors import UserError, first_line
from runner.executions import eager, graph
from runner.fused import groups
from runner.fused.probe import RATE, UNTOLD
from runner.trace import norm

DTYPES = ("float32", "float64")
# Tolerance between executions or batches, which sum in another order, relative to the largest number.
NEAR = {"float32": 1e-3, "float64": 1e-9}
# Tolerance of the gradient at a minimiser, relative to the gradients at the points: minimisers are given to a few digits.
STATIONARY = 1e-5


def one_number(subject: Subject) -> str:
    """Check that the loss is one real number, a tensor."""
    x = subject.x(subject.dtype)[0]
    y: Any = subject.function(subject.dtype)(x)
    if not tf.is_tensor(y):
        raise Failed(f"the loss is a {type(y).__name__}; compute it by TensorFlow's operations on x")
    if y.shape.rank != 0:
        raise Failed(f"x is {list(x.shape)} and the loss {list(y.shape)}; reduce its last axis: tf.reduce_sum(…, axis=-1)")
    return f"the loss is {float(y):.7g} at the guess"


def finite(subject: Subject) -> str:
    """Check that the loss and the gradient are finite at the guess."""
    y, gradient = differences.of(subject.function(subject.dtype), subject.x(subject.dtype)[0])
    if not np.isfinite(y):
        raise Failed(f"the loss is {float(y)} at the guess; begin elsewhere, with guess=point guess.x=…, or mend its formula")
    if not np.isfinite(gradient).all():
        raise Failed(
            "the gradient is not finite at the guess: √ or log at 0, or a tf.where over what is not; shift the argument"
        )
    return f"so is the gradient, of norm {norm(gradient.ravel()):.7g}"


def keeps_dtype(subject: Subject) -> str:
    """Check that the loss has x's dtype, for each of DTYPES."""
    for dtype in DTYPES:
        try:
            got = subject.function(dtype)(subject.x(dtype)[0]).dtype.name
        except Exception as error:
            raise Failed(
                f"x of {dtype} is refused ({first_line(error)[:200]}); make constants of x's type: tf.constant(…, x.dtype)"
            ) from error
        if got != dtype:
            raise Failed(f"x is {dtype} and the loss {got}; make constants of x's type: tf.constant(…, x.dtype)")
    return f"{' and '.join(DTYPES)} are kept"


def repeats(subject: Subject) -> str:
    """Check that the loss is the same each time."""
    function, x = subject.function(subject.dtype), subject.x(subject.dtype)[0]
    values = [float(function(x)) for _ in range(3)]
    if len(set(values)) > 1:
        raise Failed(f"it is {values[0]:.7g} and {values[1]:.7g} at one x; draw by an argument `seed`: tf.random.stateless_…")
    return "it is the same each time" if subject.loss(subject.dtype).seed is None else "it is the same each time in one step"


def gradient(subject: Subject) -> str:
    """Check the gradient against finite differences of the loss in double precision."""
    function = subject.function("float64")
    told, passed_over = 0, 0
    for x in subject.points:
        fault = differences.fault(function, x)
        if isinstance(fault, str):
            raise Failed(f"{fault}; mend its tf.custom_gradient, or what rounds, stops or casts it on the way")
        told, passed_over = told + (fault is None), passed_over + (fault is not None)
    if not told:
        raise Skipped("there is no point where the loss and its neighbours are finite")
    rest = f"; at {passed_over} points it is not finite" if passed_over else ""
    return f"it agrees with differences at {told} points to {differences.TOLERANCE:g} of itself{rest}"


def broadcasts(subject: Subject) -> str:
    """Check that a batch of several x gives the loss and the gradient of each x."""
    function, x = subject.function(subject.dtype), subject.x(subject.dtype)
    alone = [differences.of(function, each) for each in tf.unstack(x)]
    batch, count = x[None], len(alone)
    remedy = "use x[..., i] and axis=-1; without it jobs of a sweep cannot be fused"
    try:
        y, slopes = differences.of(function, batch)
    except UserError as error:
        # The loss itself reports that it accepts only one x.
        raise Skipped(str(error)) from error
    except Exception as error:
        raise Failed(f"x of {list(batch.shape)} is refused ({first_line(error)[:200]}); {remedy}") from error
    if y.shape != (1, count):
        raise Failed(f"x of {list(batch.shape)} gives a loss of {list(y.shape)}, not [1, {count}]; {remedy}")
    for name, many, each in (("loss", y, [one[0] for one in alone]), ("gradient", slopes, [one[1] for one in alone])):
        if not near(many[0], np.array(each), subject.dtype):
            raise Failed(f"the {name} of several x is not that of each; {remedy}")
    return f"x of {list(batch.shape)} gives the loss and the gradient of each"


def traces(subject: Subject) -> str:
    """Check that a tf.function gives the same loss and gradient."""
    if nodes.function_of("execution", subject.cfg.execution) is eager:
        raise Skipped("execution=eager runs plain Python")
    return compared(subject, False, "execution=eager")


def compiles(subject: Subject) -> str:
    """Check that XLA gives the same loss and gradient."""
    if nodes.function_of("execution", subject.cfg.execution) in (eager, graph):
        raise Skipped("this execution does not compile")
    return compared(subject, True, "execution=graph")


def compared(subject: Subject, jit_compile: bool, other: str) -> str:
    """Check that a traced or compiled loss equals the plain one, with its gradient, at all points."""
    function, word = subject.function(subject.dtype), "XLA" if jit_compile else "tf.function"
    try:
        traced = tf.function(partial(differences.tensors, function), jit_compile=jit_compile, autograph=False)
        for x in subject.x(subject.dtype):
            for name, mine, plain in zip(("loss", "gradient"), traced(x), differences.of(function, x), strict=True):
                if not near(mine.numpy(), plain, subject.dtype):
                    raise Failed(f"the {name} is another in {word}: Python's own state, or an index out of range? set {other}")
    except (Failed, UserError):
        raise
    except Exception as error:
        raise Failed(
            f"{word} cannot do it ({first_line(error)[:300]}); use TensorFlow's operations alone, or set {other}"
        ) from error
    return f"loss and gradient are the same in {word}"


def near(one: np.ndarray, other: np.ndarray, dtype: str) -> bool:
    """Return whether numbers agree up to a rounding of the largest one; numbers that are not finite must be equal."""
    size = np.abs(other[np.isfinite(other)]).max(initial=0)
    return np.allclose(one, other, rtol=NEAR[dtype], atol=NEAR[dtype] * size, equal_nan=True)


def minimum(subject: Subject) -> str:
    """Check that a declared minimum is stationary, has the declared value, and is the lowest value at the points."""
    loss = subject.loss("float64")
    if loss.minimisers is None:
        raise Skipped("the loss declares no minimisers")
    function = loss.measures.get("full_loss", loss.at(0))
    slopes = [norm(differences.of(function, x)[1].ravel()) for x in subject.x("float64")]
    size = max((slope for slope in slopes if np.isfinite(slope)), default=1.0)
    for minimiser in loss.minimisers:
        y, slope = differences.of(function, tf.constant(minimiser))
        size_there = norm(slope.ravel())
        if not size_there <= STATIONARY * size:
            raise Failed(f"the gradient's norm is {size_there:.3g} at the minimiser {minimiser}; correct `minimisers`")
        if loss.minimum is not None and not abs(y - loss.minimum) <= 1e-6 * max(1.0, abs(loss.minimum)):
            raise Failed(f"the loss is {float(y):.7g} at {minimiser} and not the minimum {loss.minimum:.7g}; correct `minimum`")
    below = [
        float(y)
        for y in map(function, tf.unstack(subject.x("float64")))
        if loss.minimum is not None and y < loss.minimum - 1e-6
    ]
    if below:
        raise Failed(f"the loss is {below[0]:.7g} at a random point, below the minimum {loss.minimum:.7g}; correct `minimum`")
    return f"{len(loss.minimisers)} declared, stationary and lowest"


def steps(subject: Subject) -> str:
    """Check that the optimizer takes a step with this strategy and in this execution."""
    ready = parts(subject.cfg)
    execution = ready.program.execution
    try:
        first = execution.advance(1)
        last = execution.last()
    finally:
        execution.close()
    if not last.finite.all():
        raise Failed("the first step leads to what is not finite; lower optimizer.learning_rate")
    return f"the first step is {norm((last.x - first.x).ravel()):.3g} long"


def separable(subject: Subject) -> str:
    """Check that jobs of this configuration can be lanes of one program."""
    try:
        job = groups.prepared(0, subject.cfg, {})
    except UserError as error:
        raise Skipped(str(error)) from error
    x = subject.points[:3].astype(subject.dtype)
    jobs = [replace(job, index=i, x0=each) for i, each in enumerate(x)]
    why = groups.fault(jobs, [RATE] if RATE in job.numbers else [])
    if why == UNTOLD:
        raise Skipped(why)
    if why is not None:
        remedy = "hydra/launcher=fused runs its jobs one by one, unless you leave out what joins numbers of x, as clipnorm does"
        raise Failed(f"{why}; {remedy}")
    return "hydra/launcher=fused runs its jobs as one program"


# The checks in their order, each with the checks that must have passed before.
CHECKS: dict[Check, tuple[Check, ...]] = {
    one_number: (),
    finite: (one_number,),
    keeps_dtype: (one_number,),
    repeats: (one_number,),
    gradient: (finite, keeps_dtype, repeats),
    broadcasts: (finite, repeats),
    traces: (finite, repeats),
    compiles: (finite, repeats),
    minimum: (one_number, keeps_dtype),
    steps: (finite,),
    separable: (broadcasts, steps),
}
