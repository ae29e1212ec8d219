"""One run, from its parts to its result: the page that reads like the README. It knows no configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runner import loop, optimizers
from runner.executions.cache import Program, Programs
from runner.loop import Result, Rules, State
from runner.losses import Loss, measures
from runner.trace import Trace, norm

# Compiled programs of this process: one job after another uses them again.
PROGRAMS = Programs()


@dataclass(frozen=True)
class Parts:
    """The parts of a run, ready to take its first step."""

    loss: Loss
    x0: np.ndarray
    rules: Rules
    program: Program
    seconds: float  # that building them took, most of it to compile


def run(
    parts: Parts,
    watchers: Sequence[Callable[[Trace], None]],
    signal: Callable[[], str | None] = lambda: None,
    full_loss_every: int | None = None,
    start: State | None = None,
    save: Callable[[State, bool], None] = lambda state, now: None,
) -> Result:
    """Take the steps of a run, from the program's x; each watcher gets every row.

    `signal` names the signal that is to end the run, if one has come. An interrupted run goes on from `start`, and `save` is
    offered each state.
    """
    program = parts.program
    taken = lambda: int(optimizers.steps(program.optimizer))  # noqa: E731
    measure, best_of = measures.measuring(parts.loss, full_loss_every), measures.best_of(parts.loss)
    result = loop.run(program.execution, taken, parts.rules, watchers, signal, measure, start, save, best_of)
    # The loop may have gone further, past a rule that held, or to an x that is not finite.
    program.x.assign(result.x)
    return result


def summary(result: Result, loss: Loss) -> dict[str, float]:
    """Return a run's single numbers as metrics: its result, the measurements of its last row, and distances to known minima.

    For a random loss, `last_loss` is its `full_loss` at the last row, and `best_loss` the lowest one that was measured; without
    a full loss there is no best. The distance is Euclidean, to the nearest minimiser. MLflow draws a bar for each single number
    above the curves, but gives a tab of their own to names that begin with `system/`.
    """
    metrics: dict[str, float] = {"iterations": result.iterations}
    metrics |= {f"{name}_evaluations": count for name, count in result.evaluations.items()}
    metrics |= {"last_loss": result.last_loss, "last_gradient_norm": float(result.last.gradient_norm[0])}
    if result.best_loss is not None:
        metrics |= {"best_step": result.best.start, "best_loss": result.best_loss}
        metrics["best_gradient_norm"] = float(result.best.gradient_norm[0])
    metrics |= {name: float(values[0]) for name, values in result.last.measured.items()}
    if loss.minimum is not None and result.best_of is not None:
        metrics["loss_above_minimum"] = float(loop.values(result.last, result.best_of)[0]) - loss.minimum
    if loss.minimisers is not None:
        away = (loss.minimisers - result.last.x).reshape(len(loss.minimisers), -1)
        metrics["distance_to_minimiser"] = float(norm(away).min())
    metrics |= {f"seconds_{name}": value for name, value in result.seconds.items()}
    return {f"system/{name}": value for name, value in metrics.items()}


def plain(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return single metrics by the names that a user knows, without the `system/` of their tab."""
    return {name.removeprefix("system/"): value for name, value in metrics.items()}
