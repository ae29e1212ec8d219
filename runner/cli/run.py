"""One run on the command line: build its parts, record and show its rows, save checkpoints, and draw its report."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console

from runner import experiment, loop
from runner.checkpoints import Checkpoints
from runner.cli import console
from runner.config import build, nodes, parameters
from runner.config.parts import parts
from runner.errors import first_line
from runner.experiment import Parts
from runner.loop import Ending, Result, State
from runner.losses import Loss
from runner.pictures import landscape
from runner.pictures.data import Drawing
from runner.pictures.thinning import Report
from runner.security import secrets
from runner.system import signals
from runner.tracking.contract import About, Recorder, Tracker

LOG = logging.getLogger(__name__)
# Bytes beyond which a run warns before it writes them; bytes of a metric's row in SQLite, with its indexes.
LARGE, METRIC_BYTES = 10**9, 230


def run(cfg: Any, tracker: Tracker, about: About, chosen: Mapping[str, str], terminal: Console) -> Result:
    """Build the configuration's parts, take the steps, record and show every row, and print how the run ended.

    Raises UserError, before any run is created, for parts that do not fit together.
    """
    ready = parts(cfg)
    execution = ready.program.execution
    say, opening = console.screen(terminal), time.perf_counter()
    report = drawn(cfg, about, chosen)
    with tracker.run(about) as recorder, signals.caught() as signal, ExitStack() as afterwards:
        afterwards.callback(execution.close)
        opened = time.perf_counter() - opening
        facts = {"learning_rate": cfg.optimizer.get("learning_rate"), "dtype": cfg.dtype.name, "seed": cfg.seed}
        shown = {key: fact for key, fact in facts.items() if isinstance(fact, str | int | float)}
        console.head(say, chosen, cfg.optimizer._target_, shown, ready.rules, ready.x0)
        if recorder.folder or recorder.run_id:
            for line in large(ready, cfg.tracking):
                LOG.warning(line)
        checkpoints = Checkpoints((recorder.folder or about.folder) / "checkpoint", ready.program, cfg.checkpoint.every_seconds)
        afterwards.push(checkpoints.failed)
        # A run without a journal cannot be found again, so it saves no checkpoints.
        save = checkpoints.save if recorder.folder else keep_nothing
        start = continued(checkpoints, recorder, report, say)
        with console.steps(terminal, execution.chunk == 1, cfg.max_iterations) as show:
            watchers = [recorder.record, show, *([report.watch] if report else [])]
            result = experiment.run(ready, watchers, signal, cfg.tracking.get("full_loss_every"), start, save)
        seconds = {"compile": ready.seconds, "loop": result.seconds["loop"], "record": opened + result.seconds["record"]}
        result = replace(result, seconds=seconds, run_id=recorder.run_id)
        metrics = summed(result, ready.loss)
        result = replace(result, summary=experiment.plain(metrics))
        recorder.finish(tags(result), metrics)
        # From here on the run has its result, even if something fails. An interrupted run has no time to be drawn; it is drawn
        # when it has been resumed and ends.
        if report and result.ending is not Ending.INTERRUPTED:
            draw(recorder, partial(report.drawing, result), cfg, ready.loss)
    if result.ending is not Ending.INTERRUPTED:
        checkpoints.remove()
    console.tail(say, result, metrics, where(recorder))
    return result


def large(ready: Parts, tracking: Any) -> Iterator[str]:
    """Yield a warning for data of a run that may take more than LARGE bytes on the disk, with a remedy."""
    x0, count = ready.x0, ready.rules.max_iterations + 1
    # x, gradient and loss: once in the journal, once in the trajectory.
    own = 2 * count * (2 * x0.nbytes + x0.itemsize)
    bound, spooled = (tracking.get("max_unsent") or 1) * 2**30, own / 2
    if tracking.get("offline") and spooled > bound:
        yield (
            f"the spool of this run takes up to {spooled / 2**30:.3g} GiB, and nothing is sent with tracking.offline=true: "
            f"it is interrupted at {bound / 2**30:.3g} GiB, or set tracking.max_unsent={2 * spooled / 2**30:.3g}"
        )
    elif own > LARGE:
        yield (
            f"the rows of this run take up to {own / 1e9:.1f} GB on the disk ({count:,} of {x0.size:,} numbers); "
            f"set max_iterations={max(int(count * LARGE / own) - 1, 1)}, or tracking=none, which records none"
        )
    every = tracking.get("every") or 1
    names = 2 + 2 * min(x0.size, tracking.get("max_coordinates") or 0) if x0.ndim else 3
    metrics = METRIC_BYTES * count * names // every
    if metrics > LARGE:
        yield (
            f"the metrics of this run take up to {metrics / 1e9:.1f} GB in its store; "
            f"set tracking.every={10 ** math.ceil(math.log10(every * metrics / LARGE))}, which thins them"
        )


def summed(result: Result, loss: Loss) -> dict[str, float]:
    """Return a run's summary; empty, with a warning, if it cannot be made: the run is valid without it."""
    try:
        return experiment.summary(result, loss)
    # A loss may declare anything of itself, so any error may be raised.
    except Exception as error:
        LOG.warning("the summary cannot be made: %s", first_line(error))
        return {}


def draw(recorder: Recorder, drawing: Callable[[Loss, str], Drawing], cfg: Any, loss: Loss) -> None:
    """Draw a run's report, or warn that it cannot be drawn: the run is valid without its pictures."""
    try:
        shown, quiet = loss if loss.seed is None else build.noiseless(cfg), ""
        if build.of_the_user(cfg):
            # The prints and the breakpoints in the user's Python belong to the steps, so pictures must not cause them.
            shown = replace(shown, function=landscape.silent(shown.function))
            quiet = "the loss is not called for pictures with execution=eager" if build.in_python(cfg.execution) else ""
        recorder.report(drawing(shown, quiet))
    # The user's loss may raise anything, and memory may be short.
    except Exception as error:
        LOG.warning("the report cannot be drawn: %s", first_line(error))


def continued(checkpoints: Checkpoints, recorder: Recorder, report: Report | None, say: console.Say) -> State | None:
    """Return the state from which an interrupted run is resumed, and print its step; None if all steps are to be taken."""
    if not recorder.recorded:
        return None
    start = checkpoints.restore(recorder.recorded)
    step = start.step if start else 0
    console.continues(say, recorder.run_id or f"in {recorder.folder}", step)
    if report and start:
        for rows in recorder.rows():
            if rows.start < step:
                report.watch(rows[: step - rows.start])
    return start


def keep_nothing(state: State, now: bool) -> None:
    """Save nothing."""


def drawn(cfg: Any, about: About, chosen: Mapping[str, str]) -> Report | None:
    """Return the Report that draws a run's pictures; None if the run gets none."""
    make = nodes.function("report", cfg.report, "title")
    if chosen["tracking"] == "none" or not parameters.draws(cfg, about.tags):
        return None
    rate = cfg.optimizer.get("learning_rate")
    with_rate = f" with learning rate {rate:g}" if isinstance(rate, int | float) else ""
    noise = "" if chosen.get("noise", "none") == "none" else f" with noise {chosen['noise']}"
    way = f"{chosen['execution']}, {cfg.dtype.name}"
    # Without an optimizer the strategy takes the steps, so the title names the strategy.
    if chosen["optimizer"] == "none":
        return make(f"{chosen['loss']}{noise} by {chosen['strategy']} ({way})")
    return make(f"{chosen['loss']}{noise} by {chosen['optimizer']}{with_rate} ({chosen['strategy']}, {way})")


def tags(result: Result) -> dict[str, str]:
    """Return the tags of a run's ending; one of them is the description on its page."""
    found = {
        "ending": result.ending.value,
        "stopped_by": result.stopped_by,
        "first_nonfinite_step": result.first_nonfinite_step,
    }
    by = f" ({result.stopped_by})" if result.stopped_by else ""
    found["mlflow.note.content"] = (
        f"**{result.ending.value}**{by} after {result.iterations} iterations: {result.sentence.rstrip('.')}. "
        f"The last {named(result)} is {result.last_loss:.7g}"
    )
    if result.best_loss is not None:
        found["mlflow.note.content"] += f", the best {result.best_loss:.7g} at step {result.best.start}"
    found["mlflow.note.content"] += "."
    return {key: str(value) for key, value in found.items() if value is not None}


def named(result: Result) -> str:
    """Return the name of the quantity by which a run's rows are compared."""
    return (result.best_of or loop.LOSS).replace("_", " ")


def where(recorder: Recorder) -> str:
    """Return where the run can be seen, and the command that shows it."""
    if recorder.run_id is None and recorder.folder is not None:
        return f"recorded in {recorder.folder}\nsend it with:  python -m runner.sync {recorder.folder}"
    if recorder.run_id is None:
        return "nothing was recorded (tracking=none)"
    remote = str(recorder.uri).startswith("http")
    page = (
        f"{recorder.uri if remote else 'http://127.0.0.1:5000'}/#/experiments/{recorder.experiment_id}/runs/{recorder.run_id}"
    )
    command = "" if remote else f"see it with:  mlflow ui --backend-store-uri {recorder.uri}\n"
    return secrets.masked(f"run {recorder.run_id}\n{command}its charts:   {page}/model-metrics?workflowType=machine_learning")
