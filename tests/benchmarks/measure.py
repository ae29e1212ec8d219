"""Ways of doing one thing, run in turns: what each took, their ratio turn by turn, and whether that reaches the target."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# "×": of the peer. Any other unit is that of a difference to it.
RATIO = "×"


class Contender(NamedTuple):
    """One way to do it: `run` does this amount and is timed; `prepare` makes it ready to run again and is not."""

    run: Callable[[], Any]
    amount: float = 1.0
    prepare: Callable[[], Any] = lambda: None


class Target(NamedTuple):
    """What the comparison with the peer is to reach: at least (≥) or at most (≤) so much."""

    sign: str
    limit: float
    unit: str = RATIO


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, repeat by repeat, by name; ours is the first, the target's peer the second."""

    part: str
    cell: str
    unit: str
    values: Mapping[str, np.ndarray]  # [repeats] each
    target: Target

    @property
    def compared(self) -> np.ndarray:
        """Ours against the peer's, of one turn each: the ratio, or the difference where the target has a unit."""
        ours, peer, *_ = self.values.values()
        return ours / peer if self.target.unit == RATIO else ours - peer

    @property
    def reached(self) -> bool:
        """Whether the median of the comparison is what it is to be."""
        middle = float(np.median(self.compared))
        return middle >= self.target.limit if self.target.sign == "≥" else middle <= self.target.limit


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Return the median between the quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(low), float(middle), float(high)


def seconds(contenders: Mapping[str, Contender], repeats: int) -> dict[str, np.ndarray]:
    """Return what each run took, by name; all run once before, and then in turns, so that a slow minute is everybody's."""
    taken = {name: np.zeros(repeats) for name in contenders}
    for repeat in range(-1, repeats):
        for name, contender in contenders.items():
            contender.prepare()
            began = time.perf_counter()
            left = contender.run()
            ended = time.perf_counter()
            # What was returned goes before the next one begins.
            del left
            if repeat >= 0:
                taken[name][repeat] = ended - began
    return taken


def rates(contenders: Mapping[str, Contender], repeats: int) -> dict[str, np.ndarray]:
    """Return the amount that each did in a second, by name."""
    return {name: contenders[name].amount / each for name, each in seconds(contenders, repeats).items()}
