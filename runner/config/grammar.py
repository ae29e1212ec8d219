"""What Hydra's sweep syntax lacks: grids of numbers, and keys whose values go together."""

# No postponed annotations: Hydra checks a function's arguments by them.
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from hydra._internal.grammar.functions import Functions
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from runner.errors import UserError, nearest

# In one sweep: each keeps its folder and its run.
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
    """Let Hydra read `key=logspace(-4,0,41)` and `key=linspace(0,1,11)`, which it offers no way to add."""
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
    """Return each job's overrides: every combination of the values, but those of keys in one list of `together` go in pairs.

    Raises UserError where such a key is not swept over, two of them differ in how many values they have, or one has no end.
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
    """Return how many values an override gives its key, without making them; raises UserError for a range that has no end."""
    sweep: Any = override.value()
    if isinstance(sweep, RangeSweep):
        ends: list[Any] = [sweep.start, sweep.stop, sweep.step]
        start, stop, step = ends
        if not step or not all(isinstance(each, int) or math.isfinite(each) for each in ends):
            raise UserError(f"{override.input_line}: a range needs a finite start and stop, and a step that is not 0")
        count = max(0, math.ceil((Fraction(stop) - Fraction(start)) / Fraction(step)))
        # Hydra adds up floats in 28 digits, which may give a value more or less: where they are few they are counted.
        return count if count > 2 * JOBS else sum(1 for _ in sweep.range())
    return len(strings(override))


def strings(override: Override) -> list[str]:
    """Return an override's values as they are typed: one, or those that it sweeps over."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: a grid needs countable values; for an interval set hydra/sweeper=optuna")
    return list(override.sweep_string_iterator())
