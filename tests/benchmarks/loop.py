"""The loop's parts: compiled beside optax and tfp, and eager beside the loop of Keras's guide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from benchmarks import sides
from benchmarks.charts import Panel, lines
from benchmarks.measure import Contender, Row, Target, rates
from benchmarks.sides import Cell

# Steps that take each of them some ten milliseconds.
PROBLEMS = (("quadratic", 0, 1_000_000), ("rosenbrock", 2, 1_000_000), ("rosenbrock", 100, 80_000), ("rosenbrock", 10_000, 800))
CELLS = [Cell(loss, dimension, optimizer, n) for loss, dimension, n in PROBLEMS for optimizer in ("sgd", "adam")]
EAGER = [Cell("quadratic", 0, optimizer, 200) for optimizer in ("sgd", "adam")]


def smaller(cells: list[Cell], quick: bool) -> list[Cell]:
    """Return the cells, with next to no steps where it has to be quick."""
    return [cell._replace(steps=10) for cell in cells] if quick else cells


def compiled(quick: bool) -> Iterator[Row]:
    """Measure the compiled loop, all rows returned as NumPy arrays, each cell in a process of its own.

    What a process has allocated and freed before decides whether buffers of 64 MB are new pages, and so by as much as a half.
    """
    if quick:
        found = {cell: measured(cell, 1) for cell in smaller(CELLS, quick)}
    else:
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            found = {cell: pool.submit(measured, cell, 25).result() for cell in CELLS}
    for cell, values in found.items():
        yield Row("loop", str(cell), "steps/s", values, Target("≥", 1.0))


def measured(cell: Cell, repeats: int) -> Mapping[str, np.ndarray]:
    """Return the steps a second of all sides."""
    all_sides = {
        "runner": sides.ours(cell, "xla"),
        "optax": sides.by_optax(cell),
        "optax, rate an input": sides.by_optax(cell, rate_as_input=True),
        "tfp": sides.by_tfp(cell),
    }
    return rates(all_sides, repeats)


def eager(quick: bool) -> Iterator[Row]:
    """Measure the eager loop, rows included, beside one that keeps nothing."""
    for cell in smaller(EAGER, quick):
        contenders = {"runner": sides.ours(cell, "eager"), "Keras guide": sides.by_guide(cell)}
        yield Row("eager", str(cell), "steps/s", rates(contenders, 1 if quick else 15), Target("≥", 0.95))


def contenders(cell: Cell) -> dict[str, Contender]:
    """Return those that the chart shows."""
    return {"runner": sides.ours(cell, "xla"), "optax": sides.by_optax(cell), "tfp": sides.by_tfp(cell)}


def curves(quick: bool) -> list[Panel]:
    """Measure steps per second against the number of steps, and against the dimension."""
    repeats = 1 if quick else 15
    counts = [10**k for k in range(1, 3 if quick else 8)]
    by_steps = {n: rates(contenders(Cell("quadratic", 0, "adam", n)), repeats) for n in counts}
    # The rows of all dimensions take as many bytes.
    sizes = [2, 10, 100, 1_000, 10_000, 100_000][: 2 if quick else None]
    by_dimension = {
        d: rates(contenders(Cell("rosenbrock", d, "adam", 10 if quick else 4_000_000 // d)), repeats) for d in sizes
    }
    return [
        Panel("quadratic of a scalar, Adam", "steps in one run", "steps per second", lines(by_steps)),
        Panel("rosenbrock, Adam", "dimension d of x", "steps per second", lines(by_dimension)),
    ]
