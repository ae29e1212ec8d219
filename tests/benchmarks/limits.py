"""Why a part is no faster: a step's chain of instructions, the pages of its buffers, and how busy the processor is."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import recorders, sides
from benchmarks.measure import Contender, rates
from benchmarks.processes import ROOT
from benchmarks.recording import BY_REQUESTS, SERVER, SERVER_ON_POSTGRESQL
from benchmarks.sides import Cell

CELL = Cell("quadratic", 0, "sgd", 1_000_000)
# Whose rows take 64 MB.
LARGE = Cell("rosenbrock", 10_000, "adam", 800)
SIDES: Mapping[str, Callable[[Cell], Contender]] = {
    "runner": lambda cell: sides.ours(cell, "xla"),
    "optax": sides.by_optax,
    "optax, rate an input": lambda cell: sides.by_optax(cell, rate_as_input=True),
}
# One program's code, as LLVM has it before it becomes machine code.
COMPILE = "import sys; sys.path.insert(0, 'tests'); from benchmarks import limits; limits.SIDES[sys.argv[1]](limits.CELL).run()"
OPERATION = re.compile(r"(%\S+) = f(?:add|sub|mul) float (\S+), (\S+)")


class Busy(NamedTuple):
    """What one way of recording took of the machine."""

    rows: float  # a second
    cores: float  # that worked, of all processes
    seconds: float  # of a core, for a thousand rows


def lines(quick: bool) -> Iterator[str]:
    """Yield what limits the parts that miss their target, or do so now and then, as lines of Markdown."""
    yield from of_instructions(quick)
    yield from of_pages(quick)
    yield from of_cores(quick)


def of_instructions(quick: bool) -> Iterator[str]:
    """Yield how long a step of the smallest loop is."""
    frequency = megahertz()
    yield "| quadratic, SGD | steps/s | floating-point instructions one after another | cycles a step |\n|---|---|---|---|"
    measured = rates({name: side(CELL) for name, side in SIDES.items()}, 1 if quick else 25)
    for name, each in measured.items():
        best = max(each)
        yield f"| {name} | {best / 1e6:.0f} M | {chain(code(name))} | {frequency * 1e6 / best:.1f} |"


def of_pages(quick: bool) -> Iterator[str]:
    """Yield how many new pages the system has to find for the largest rows."""
    yield "\n| rosenbrock d = 10,000, Adam, 800 steps | ms | of these in the system | page faults |\n|---|---|---|---|"
    for name, side in SIDES.items():
        contender, taken = side(LARGE), []
        for _ in range(1 if quick else 15):
            contender.prepare()
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            left = contender.run()
            took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            del left
            taken.append((1e3 * took, 1e3 * (after.ru_stime - before.ru_stime), after.ru_minflt - before.ru_minflt))
        ms, system, faults = np.median(taken, axis=0)
        yield f"| {name} | {ms:.1f} | {system:.1f} | {faults:,.0f} |"


def of_cores(quick: bool) -> Iterator[str]:
    """Yield how busy the machine is while rows go to a server."""
    yield "\n| to a server | rows/s | cores busy, of 2 | seconds of a core for 1,000 rows |\n|---|---|---|---|"
    for place in (SERVER, SERVER_ON_POSTGRESQL):
        with place.open() as store:
            for name, way in BY_REQUESTS.items():
                steps = 10 if quick else 2 * way.steps
                found = busy(recorders.contender(store, steps, way.record))
                yield f"| {name}, {place.name} | {found.rows:,.0f} | {found.cores:.2f} | {found.seconds:.3f} |"


def busy(contender: Contender) -> Busy:
    """Return how busy the machine is while this runs, and nothing else may."""
    contender.prepare()
    began, before = time.perf_counter(), ticks()
    contender.run()
    took, worked = time.perf_counter() - began, (ticks() - before) / os.sysconf("SC_CLK_TCK")
    return Busy(contender.amount / took, worked / took, worked / contender.amount * 1000)


def ticks() -> int:
    """Return the clock ticks that all processors have worked so far."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return user + nice + system + irq + softirq


def megahertz() -> float:
    """Return the processor's frequency."""
    found = re.search(r"cpu MHz\s*: (\S+)", Path("/proc/cpuinfo").read_text())
    assert found, "/proc/cpuinfo tells no frequency"
    return float(found[1])


def code(side: str) -> str:
    """Return the loop of one side's program in LLVM's language."""
    with tempfile.TemporaryDirectory() as folder:
        flags = os.environ | {"XLA_FLAGS": f"--xla_dump_to={folder}"}
        subprocess.run([sys.executable, "-c", COMPILE, side], cwd=ROOT, env=flags, check=True, capture_output=True)
        files = [file.read_text() for file in Path(folder).glob("*call*_computation_kernel_module.ir-with-opt.ll")]
    (loop,) = [re.split(r"^while[^\n]*body[^\n]*:", text, flags=re.MULTILINE)[-1] for text in files]
    return loop


def chain(code: str) -> int:
    """Return how many floating-point operations wait for one another on the way to the new x, which is the last difference."""
    depth: dict[str, int] = {}
    update = 0
    for line in code.splitlines():
        if operation := OPERATION.search(line):
            name, *operands = operation.groups()
            depth[name] = 1 + max(depth.get(each, 0) for each in operands)
            update = depth[name] if "fsub" in line else update
    return update
