"""Extensions of Hydra's sweep syntax: grids of numbers, and keys whose values are paired."""

# No postponed annotations: Hydra reads them to check a function's arguments.
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from hydra._internal.grammar.functions import Functions
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from runner.errors import UserError, nearest

# Maximum number of jobs in one sweep: each job has a folder and a run.
JOBS = 100_000


def logspace(start: int | float, stop: int | float, count: int) -> ChoiceSweep:
    """Sweep over `count` numbers from 10^start to 10^stop, evenly spaced in their logarithm."""
    return ChoiceSweep(list=[10.0**exponent for exponent in spaced(start, stop, count)])


def linspace(start: int | float, stop: int | float, count: int) -> ChoiceSweep:
    """Sweep over `count` numbers from start to stop, evenly spaced, both included."""
    return ChoiceSweep(list=list(spaced(start, stop, count)))


def spaced(start: float, stop: float, count: int) -> list[float]:
    """Return evenly spaced numbers, both ends included; raises ValueError for fewer than one."""
    if not 1 <= count <= JOBS:
        raise ValueError(f"the number of values must be 1 to {JOBS}, got {count}")
    return [start + (stop - start) * i / max(count - 1, 1) for i in range(count)]


def extend() -> None:
    """Add `key=logspace(-4,0,41)` and `key=linspace(0,1,11)` to Hydra's grammar, which has no public hook for functions."""
    original = overrides_parser.create_functions
    if "logspace" in original().definitions:
        return

    def create_functions() -> Functions:
        functions = original()
        functions.register("logspace", logspace)
        functions.register("linspace", linspace)
        return functions

    overrides_parser.create_functions = create_functions


def expand(overrides: Sequence[Override], together: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return each job's overrides: all combinations of the values, but the keys of one list in `together` are paired.

    Raises UserError if a paired key is not swept over, paired keys have different numbers of values, a range has no end, or
    there are fewer than 1 or more than JOBS jobs.
    """
    given = {override.get_key_element(): override for override in overrides}
    sizes = {key: size(override) for key, override in given.items()}
    axes: dict[str, int] = {}
    for key in given:
        keys = next((keys for keys in together if key in keys), [key])
        if unknown := [other for other in keys if other not in given]:
            raise UserError(f"sweep.zip names {unknown[0]}, which is not swept over; {nearest(unknown[0], given)}")
        if len({sizes[other] for other in keys}) > 1:
            counts = ", ".join(f"{other} has {sizes[other]}" for other in keys)
            raise UserError(f"sweep.zip needs keys with equally many values: {counts}")
        axes |= {} if any(other in axes for other in keys) else {key: sizes[key]}
    if not 1 <= (count := math.prod(axes.values())) <= JOBS:
        raise UserError(f"a sweep must have 1 to {JOBS} jobs, got {count} jobs; give fewer values, or search with optuna")
    values = {key: [f"{key}={each}" for each in strings(override)] for key, override in given.items()}
    paired = {key: next((keys for keys in together if key in keys), [key]) for key in axes}
    columns = [zip(*(values[other] for other in keys), strict=True) for keys in paired.values()]
    return [list(itertools.chain.from_iterable(parts)) for parts in itertools.product(*columns)]


def size(override: Override) -> int:
    """Return an override's number of values, without making the values; raises UserError for a range without an end."""
    sweep: Any = override.value()
    if isinstance(sweep, RangeSweep):
        ends: list[Any] = [sweep.start, sweep.stop, sweep.step]
        start, stop, step = ends
        if not step or not all(isinstance(each, int) or math.isfinite(each) for each in ends):
            raise UserError(f"{override.input_line}: a range needs a finite start and stop, and a step that is not 0")
        count = max(0, math.ceil((Fraction(stop) - Fraction(start)) / Fraction(step)))
        # Hydra adds floats with 28 digits, which may yield one value more or less: a small range is counted value by value.
        return count if count > 2 * JOBS else sum(1 for _ in sweep.range())
    return len(strings(override))


def strings(override: Override) -> list[str]:
    """Return an override's values as typed: one value, or all values of its sweep."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: a grid needs countable values; for an interval set hydra/sweeper=optuna")
    return list(override.sweep_string_iterator())
