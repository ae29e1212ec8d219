"""Compare the rows of two runs: where they part, in which quantity, and how far apart they are. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runner.trace import Trace

# Two orders of the same operations differ by one or two roundings per step, which most runs do not magnify.
ROUNDINGS = 100
# The quantities of a row, in the order of their computation; the update is the one that led to the row.
QUANTITIES: dict[str, Callable[[Trace], np.ndarray]] = {
    "update": lambda rows: np.diff(wide(rows.x), axis=0, prepend=wide(rows.x[:1])),
    "x": lambda rows: wide(rows.x),
    "loss": lambda rows: wide(rows.loss),
    "gradient": lambda rows: wide(rows.gradient),
}


@dataclass(frozen=True)
class Compared:
    """One quantity in the n rows that both runs have; each row shows the coordinate with the largest difference."""

    apart: np.ndarray  # [n], the largest difference of a coordinate
    size: np.ndarray  # [n], the largest coordinate of either run up to this row
    allowed: np.ndarray  # [n], the difference up to which two values count as equal

    @property
    def parts_at(self) -> int | None:
        """The first row whose difference is larger than allowed; None if there is none."""
        rows = np.flatnonzero(self.apart > self.allowed)
        return int(rows[0]) if len(rows) else None

    @property
    def farthest(self) -> int:
        """The row of the largest difference."""
        return int(np.argmax(self.apart))

    @property
    def relative(self) -> np.ndarray:
        """The difference divided by the size, [n]."""
        return self.over(self.size)

    @property
    def excess(self) -> np.ndarray:
        """The difference divided by the allowed difference, [n]."""
        return self.over(self.allowed)

    def over(self, of: np.ndarray) -> np.ndarray:
        """Return the difference divided by `of`, [n]; where `of` is 0, infinity, or 0 if the difference is 0."""
        return np.divide(self.apart, of, out=np.where(self.apart > 0, np.inf, 0.0), where=of > 0)


@dataclass(frozen=True)
class Comparison:
    """The comparison of two runs, by quantity."""

    tolerance: float
    rows: tuple[int, int]  # of each run
    quantities: dict[str, Compared]

    @property
    def parting(self) -> tuple[int, str] | None:
        """The first row in which the runs part, and the first quantity that differs there, in the order of QUANTITIES."""
        found = [(each.parts_at, name) for name, each in self.quantities.items()]
        return min(((row, name) for row, name in found if row is not None), key=lambda each: each[0], default=None)

    @property
    def equal(self) -> bool:
        """Whether the runs agree in all rows and have the same number of rows."""
        return self.parting is None and self.rows[0] == self.rows[1]


def default_tolerance(a: Trace, b: Trace) -> float:
    """Return ROUNDINGS roundings of the coarser of the two dtypes."""
    return ROUNDINGS * rounding(a, b)


def rounding(a: Trace, b: Trace) -> float:
    """Return the relative spacing of the coarser of the two dtypes."""
    return max(float(np.finfo(each.x.dtype).eps) for each in (a, b))


def compare(a: Trace, b: Trace, tolerance: float) -> Comparison:
    """Compare the rows that both runs have, from step 0 on.

    A quantity may differ by `tolerance` times its largest value so far in either run: the last digits of a loss that falls to
    nearly 0 do not count. An update may also differ by a rounding of x, because it is a difference of two x. With a tolerance
    of 0 all numbers must be equal. NaN equals NaN, and an infinity equals one of the same sign.

    Raises ValueError if x has more numbers in one run than in the other.
    """
    if a.x[0].size != b.x[0].size:
        raise ValueError(f"x has {a.x[0].size} numbers in one run and {b.x[0].size} in the other")
    n = min(len(a), len(b))
    found: dict[str, Compared] = {}
    for name, of in QUANTITIES.items():
        apart, size = differences(of(a[:n]), of(b[:n]))
        found[name] = Compared(apart, size, tolerance * size)
    if tolerance > 0:
        update = found["update"]
        found["update"] = Compared(update.apart, update.size, update.allowed + rounding(a, b) * found["x"].size)
    return Comparison(tolerance, (len(a), len(b)), found)


def differences(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the largest difference of a coordinate, and the largest finite coordinate so far; [n] each."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b))
    apart = np.where(np.isnan(apart), np.inf, apart).max(axis=1, initial=0.0)
    sizes = [np.where(np.isfinite(each), np.abs(each), 0.0).max(axis=1, initial=0.0) for each in (a, b)]
    return apart, np.maximum.accumulate(np.maximum(*sizes))


def wide(values: np.ndarray) -> np.ndarray:
    """Return values in double precision, [n, d]."""
    return values.reshape(len(values), -1).astype(np.float64)
