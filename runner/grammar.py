"""What Hydra's sweep syntax lacks: grids of numbers, and keys whose values go together."""

# No postponed annotations: Hydra checks a function's arguments by them.
import itertools
import math
from collections.abc import Sequence

from hydra._internal.grammar.functions import Functions
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.types import ChoiceSweep, Override

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
    if count < 1:
        raise ValueError(f"the number of values must be 1 or more, got {count}")
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
    values = {override.get_key_element(): strings(override) for override in overrides}
    axes, done = [], set()
    for key, each in values.items():
        keys = next((keys for keys in together if key in keys), [key])
        if unknown := [other for other in keys if other not in values]:
            raise UserError(f"sweep.zip names {unknown[0]}, which is not swept over; {nearest(unknown[0], values)}")
        lengths = {other: len(values[other]) for other in keys}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{other} has {count}" for other, count in lengths.items())
            raise UserError(f"sweep.zip needs keys with equally many values: {counts}")
        if key not in done:
            axes.append([[f"{other}={values[other][i]}" for other in keys] for i in range(len(each))])
            done |= set(keys)
    if not 1 <= (count := math.prod(map(len, axes))) <= JOBS:
        raise UserError(f"a sweep must have 1 to {JOBS} jobs, got {count} jobs; give fewer values, or search with optuna")
    return [list(itertools.chain.from_iterable(parts)) for parts in itertools.product(*axes)]


def strings(override: Override) -> list[str]:
    """Return an override's values as they are typed: one, or those that it sweeps over."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: a grid needs countable values; for an interval set hydra/sweeper=optuna")
    return list(override.sweep_string_iterator())
