"""What was measured as a table in Markdown, with the machine and the versions that it was measured with."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, quartiles

PACKAGES = {
    "TensorFlow": "tensorflow",
    "Keras": "keras",
    "JAX": "jax",
    "optax": "optax",
    "TFP": "tensorflow-probability",
    "MLflow": "mlflow",
}
COLUMNS = ("part", "what", "in", "runner", "its peer", "compared", "to reach", "also")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def setting() -> str:
    """Return one line that names machine, versions and date."""
    cores = os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(package)}" for name, package in PACKAGES.items())]
    versions += [f"SQLite {sqlite3.sqlite_version}", f"PostgreSQL {postgresql()}"]
    return f"{processor()}, {cores} cores, {memory:.0f} GiB; {', '.join(versions)}; {date.today()}."


def processor() -> str:
    """Return the processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def postgresql() -> str:
    """Return the version of the PostgreSQL that is measured."""
    binary = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))[-1]
    return subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]


def text(rows: Sequence[Row]) -> str:
    """Return what stands in README.md: where it was measured, and the table."""
    return "\n".join([setting(), "", HEAD, *(line(row) for row in rows)]) + "\n"


def line(row: Row) -> str:
    """Return one row of the table; a target that is not reached stands out."""
    named = list(row.values.items())
    low, middle, high = (decimal(each) for each in quartiles(row.compared))
    unit = row.target.unit
    compared = f"{middle} {unit} ({low} … {high})"
    also = "; ".join(f"{name} {number(np.median(values))}" for name, values in named[2:])
    cells = (
        f"`{row.part}`",
        row.cell,
        row.unit,
        spread(named[0][1]),
        f"{named[1][0]} {spread(named[1][1])}",
        compared if row.reached else f"**missed: {compared}**",
        f"{row.target.sign} {row.target.limit:g} {unit}",
        also,
    )
    return "| " + " | ".join(cells) + " |"


def spread(values: np.ndarray) -> str:
    """Return the median and the quartiles."""
    low, middle, high = (number(each) for each in quartiles(values))
    return f"{middle} ({low} … {high})"


def number(value: float) -> str:
    """Return three digits, and M or k for the rest."""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def decimal(value: float) -> str:
    """Return two decimals, one more below 1 so that 0.997 is not shown as 1.00, or none of a large number."""
    return f"{value:.{0 if abs(value) >= 100 else 2 if value >= 1 else 3}f}"
