"""The search space: convert overrides in Hydra's sweep syntax to Optuna's distributions, and values back to overrides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override, Transformer

from runner.config import grammar
from runner.errors import UserError, nearest

TAGS = {"log"}


@dataclass(frozen=True)
class Axis:
    """An axis of the search space: a key, its distribution, its values if they are countable, and the texts of choices."""

    key: str
    distribution: Any
    values: Sequence[Any] | None = None
    texts: Sequence[str] | None = None

    def value(self, given: Any) -> Any:
        """Return the value of the range that is nearest to Optuna's value: Optuna adds steps up, which may be an ulp off."""
        if self.values is None or self.texts is not None or not isinstance(given, float):
            return given
        return min(self.values, key=lambda each: abs(each - given))

    def typed(self, value: Any) -> str:
        """Return the override that gives the key this value; numbers have all their digits."""
        if self.values is not None and self.texts is not None:
            return f"{self.key}={self.texts[self.values.index(value)]}"
        return f"{self.key}={self.value(value)!r}"


def read(overrides: Sequence[Override]) -> tuple[dict[str, Axis], tuple[str, ...]]:
    """Return the axes by key, and the overrides that every job gets; of two overrides of one key, the last one counts.

    Raises UserError that names each override with an invalid search space, or if no key is searched.
    """
    last = {override.get_key_element(): override for override in overrides}
    axes, faults = {}, []
    for key, override in last.items():
        if override.is_sweep_override():
            try:
                axes[key] = axis(override)
            except ValueError as error:
                faults.append(f"{override.input_line}: {error}")
    if not axes and not faults:
        faults.append("nothing is searched; give a key several values, as in optimizer.learning_rate=tag(log,interval(1e-4,1))")
    if faults:
        raise UserError("; ".join(faults))
    return axes, tuple(str(each.input_line) for key, each in last.items() if key not in axes)


def axis(override: Override) -> Axis:
    """Return the axis of a sweep override; raises ValueError if it defines no search space."""
    key = override.get_key_element()
    sweep: Any = override.value()
    tags = getattr(sweep, "tags", set())
    for tag in tags - TAGS:
        raise ValueError(f"the tag {tag!r} has no meaning here; {nearest(tag, TAGS)}")
    log = "log" in tags
    if override.is_interval_sweep():
        return interval(key, sweep.start, sweep.end, log)
    if override.is_range_sweep():
        if (count := grammar.size(override)) > grammar.JOBS:
            raise ValueError(f"a range must have {grammar.JOBS} values or less, got {count}; give an interval")
        return stepped(key, sweep.range(), log)
    if log:
        raise ValueError("the tag 'log' is for an interval or a range; for single values give these, as by logspace(-4,0,41)")
    # Iterate only once, because a shuffled choice has another order each time.
    return choice(key, [(each, Transformer.str(each)) for each in override.sweep_iterator()])


def interval(key: str, low: float, high: float, log: bool) -> Axis:
    """Return the axis of an interval, both ends included; if both ends are integers, the axis has integers only."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("an interval needs two finite ends")
    if isinstance(low, int) and isinstance(high, int):
        return Axis(key, IntDistribution(low, high, log=log), range(low, high + 1))
    return Axis(key, FloatDistribution(low, high, log=log))


def stepped(key: str, span: Any, log: bool) -> Axis:
    """Return the axis of a range; the stop is excluded."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if isinstance(span, range):
        up = span if span.step > 0 else span[::-1]
        if not up:
            raise ValueError("this range is empty")
        return Axis(key, IntDistribution(up[0], up[-1], step=up.step, log=log), up)
    step, values = abs(float(span.step)), sorted(span)
    if not values:
        raise ValueError("this range is empty")
    # Optuna rounds the end down to whole steps, and would drop a last value that is an ulp too small; hence half a step more.
    return Axis(key, FloatDistribution(values[0], values[0] + (len(values) - 0.5) * step, step=step, log=log), values)


def choice(key: str, pairs: Sequence[tuple[Any, str]]) -> Axis:
    """Return the axis of single values, given as pairs of value and text; for Optuna, a value that is not plain is its text."""
    from optuna.distributions import CategoricalDistribution

    texts = list(dict.fromkeys(text for _, text in pairs))
    typed = {text: value for value, text in pairs}
    values = [value if isinstance(value, str | int | float | None) else text for text, value in typed.items()]
    # In Python, 1, 1.0 and True are equal.
    values = values if len(set(values)) == len(values) else texts
    return Axis(key, CategoricalDistribution(values), values, texts)
