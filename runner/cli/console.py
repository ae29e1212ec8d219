"""Console output of a run: its settings, its steps, its ending, and the one command that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from runner.loop import LOSS, Result, Rules
from runner.security import secrets
from runner.trace import Trace

# Coordinates of a vector that are printed in a line, and the width of a number.
COORDINATES, WIDTH = 3, 14
Say = Callable[[str], None]


def screen(console: Console) -> Say:
    """Return a function that prints one line of any length, with no colours but those of its markup."""

    def say(text: str) -> None:
        console.print(secrets.lines(text), highlight=False, soft_wrap=True)

    return say


def head(say: Say, chosen: Mapping[str, str], target: str, facts: Mapping[str, object], rules: Rules, x0: np.ndarray) -> None:
    """Print the run's choices, with the optimizer's `_target_`, its limits and its stopping rules."""
    words = ", ".join(f"{key}={value}" for key, value in facts.items())
    of_loss = "".join(f" {name} {chosen[name]}" for name in ("instance", "noise") if chosen.get(name, "none") != "none")
    say(f"[bold]{escape(chosen['loss'])}[/]{escape(of_loss)} from the guess {escape(chosen['guess'])}, x = {number(x0)}")
    say(f"[bold]{escape(chosen['optimizer'])}[/] ({target}) with {escape(words)}")
    say(f"strategy {escape(chosen['strategy'])}, execution {escape(chosen['execution'])}")
    limits = f"{rules.max_iterations} iterations"
    limits += "" if rules.time_limit is None else f" or {rules.time_limit:g} s in the loop"
    on = [
        name + escape(f"[{', '.join(f'{key}={value:g}' for key, value in settings(rule).items())}]")
        for name, rule in rules.rules.items()
    ]
    say(f"at most {limits}; stopping rules: {', '.join(on) or 'none'}\n")


def continues(say: Say, run_id: str, step: int) -> None:
    """Print that an interrupted run is resumed."""
    say(f"continues run {escape(run_id)} from step {step}; resume=false starts anew\n")


def settings(rule: object) -> dict[str, float]:
    """Return the numbers among a rule's arguments."""
    return {key: value for key, value in getattr(rule, "keywords", {}).items() if isinstance(value, int | float)}


@contextmanager
def steps(console: Console, every: bool, limit: int) -> Iterator[Callable[[Trace], None]]:
    """Yield a function that prints rows: all rows, or those of steps 0, 1, 2, 5, 10, 20, 50 …; at the end, the last row.

    On a terminal a progress bar is shown below the rows.
    """
    say = screen(console)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    printed = -1
    latest: Trace | None = None
    widths: list[int] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=limit)

        def show(rows: Trace) -> None:
            nonlocal printed, latest, widths
            cells = rows.columns(COORDINATES)
            if printed < 0:
                widths = [max(WIDTH, len(name) + 2) for name in cells]
                say(f"[bold]{line('step', cells, widths)}[/]")
            for row in range(len(rows)) if every else shown(rows.start, len(rows)):
                printed = rows.start + row
                say(line(printed, written(rows, cells, row), widths))
            latest = rows[len(rows) - 1 :]
            bar.update(task, completed=latest.start)

        yield show
        if latest is not None and latest.start > printed:
            say(line(latest.start, written(latest, latest.columns(COORDINATES), 0), widths))


def written(rows: Trace, columns: Mapping[str, np.ndarray], row: int) -> Iterator[str]:
    """Yield a row's numbers as text; an empty text for a quantity that the loss has not measured in this row."""
    for name, values in columns.items():
        yield "" if name in rows.measured and np.isnan(values[row]) else f"{values[row]:.7g}"


def shown(start: int, count: int) -> list[int]:
    """Return the indices of the steps 0, 1, 2, 5, 10, 20, 50 … among `count` rows from step `start` on."""
    series = [0, *(digit * 10**power for power in range(19) for digit in (1, 2, 5))]
    return [step - start for step in series if start <= step < start + count]


def line(step: object, cells: Iterable[str], widths: Iterable[int]) -> str:
    """Return one line of the table of steps."""
    return f"{step:>9}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def tail(say: Say, result: Result, metrics: Mapping[str, float], where: str) -> None:
    """Print how the run ended, its result, and where it can be seen."""
    by = f" ({result.stopped_by})" if result.stopped_by else ""
    say(f"\n[bold]{result.ending.value}[/]{by} at step {result.last.start}: {escape(result.sentence)}")
    of, best = (result.best_of or LOSS).replace("_", " "), result.best
    say(f"last: step {result.last.start}  {numbers(result.last, 'loss', result.last.loss[0])}")
    if result.best_loss is not None:
        say(f"best: step {best.start}  {numbers(best, of, result.best_loss)}")
    if found := [f"{name} = {values[0]:.7g}" for name, values in result.last.measured.items()]:
        say(f"at the last x: {'  '.join(found)}")
    far = []
    if "system/loss_above_minimum" in metrics:
        far.append(f"the last {of} is {metrics['system/loss_above_minimum']:.3g} above the known minimum")
    if "system/distance_to_minimiser" in metrics:
        far.append(f"the last x is {metrics['system/distance_to_minimiser']:.3g} from the nearest minimiser")
    if far:
        say(", ".join(far))
    spent = ", ".join(f"{value:.3f} s {name}" for name, value in result.seconds.items())
    evaluated = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in result.evaluations.items())
    say(f"{evaluated} evaluations; {spent}")
    say(escape(where))


def numbers(row: Trace, of: str, value: float) -> str:
    """Return the numbers of one row as text; `of` names the loss that is shown, `value` is its value."""
    return f"x = {number(row.x[0])}  {of} = {value:.7g}  gradient norm = {row.gradient_norm[0]:.7g}"


def number(x: np.ndarray) -> str:
    """Return a scalar, or the first coordinates of a vector, as text."""
    flat = np.ravel(x)
    text = ", ".join(f"{each:.7g}" for each in flat[:COORDINATES]) + (", …" if flat.size > COORDINATES else "")
    return escape(f"[{text}]") if x.ndim else text
