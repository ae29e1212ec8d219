"""Rows: x, loss and gradient of each step, all at the same point, as NumPy arrays; and the execution that returns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Trace:
    """The n rows that begin at step `start`; row k holds x_k, loss(x_k) and gradient(x_k), before update k."""

    start: int
    x: np.ndarray  # [n, *shape]
    loss: np.ndarray  # [n]
    gradient: np.ndarray  # [n, *shape]
    named: Mapping[str, np.ndarray] = field(default_factory=dict)  # [n, ...] each: further quantities of a strategy
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)  # [n] each: measured by the loss; NaN: not there

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, rows: slice) -> Trace:
        start, stop, _ = rows.indices(len(self))
        named, measured = ({name: each[start:stop] for name, each in of.items()} for of in (self.named, self.measured))
        return Trace(self.start + start, self.x[start:stop], self.loss[start:stop], self.gradient[start:stop], named, measured)

    @property
    def steps(self) -> np.ndarray:
        """Each row's step, [n]."""
        return np.arange(self.start, self.start + len(self))

    @cached_property
    def gradient_norm(self) -> np.ndarray:
        """Euclidean norm of each row's gradient, [n], in double precision."""
        return norm(self.gradient.reshape(len(self), -1))

    @cached_property
    def finite(self) -> np.ndarray:
        """Whether x, loss and gradient of a row are all finite, [n]."""
        flat = (each.reshape(len(self), -1) for each in (self.x, self.loss, self.gradient))
        return np.logical_and.reduce([np.isfinite(each).all(axis=1) for each in flat])

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the rows by name; `from_arrays` makes the same rows of them, wherever they were written or sent."""
        parts = {f"{of}/{name}": values for of in ("named", "measured") for name, values in getattr(self, of).items()}
        return {"x": self.x, "loss": self.loss, "gradient": self.gradient, **parts}

    @classmethod
    def from_arrays(cls, start: int, arrays: Mapping[str, np.ndarray]) -> Trace:
        """Return the rows that begin at step `start` from their `arrays`."""
        parts: dict[str, dict[str, np.ndarray]] = {"named": {}, "measured": {}}
        for key, values in arrays.items():
            of, slash, name = key.partition("/")
            if slash:
                parts[of][name] = values
        return cls(start, arrays["x"], arrays["loss"], arrays["gradient"], **parts)

    def columns(self, coordinates: int | None = None) -> dict[str, np.ndarray]:
        """Return one [n] array a metric, named as in MLflow, with at most so many coordinates of each vector (None: all).

        A scalar x gives `x, loss, gradient`; a vector gives `x/0 …, loss, gradient/0 …, gradient_norm`.
        """
        vector = {"gradient_norm": self.gradient_norm} if self.x.ndim > 1 else {}
        parts = {"loss": self.loss, **vector, "x": self.x, "gradient": self.gradient, **self.named, **self.measured}
        return {name: column for key, values in parts.items() for name, column in split(key, values, coordinates).items()}


class Execution(NamedTuple):
    """Steps of one strategy, from the present x.

    `advance(n)` takes n ≤ `chunk` steps and returns their n rows. `last()` returns the row of the present x, and takes no step;
    the first call compiles. `restart(step)` follows a change of x and of the optimizer's state from outside: the next row is
    that of this step (default 0), the strategy's own state is as before step 0, and nothing is compiled again. `variables` hold
    the strategy's own state; None: no variables hold it. `rewind(step)` undoes the updates from this step on, bit for bit,
    where a row of the last chunk is not finite. `stalled` is the strategy's rule for rows from which it could take no further
    step, if it has one; it looks back one row.

    A strategy may end a run: `ended()` returns the ending, its finer word and its sentence, and `advance` then returns fewer
    rows. `close()` follows the last row.
    """

    advance: Callable[[int], Trace]
    last: Callable[[], Trace]
    restart: Callable[..., None]
    chunk: int
    ended: Callable[[], tuple[Any, str, str] | None] = lambda: None
    close: Callable[[], None] = lambda: None
    variables: Sequence[Any] | None = ()
    rewind: Callable[[int], None] = lambda step: None
    stalled: Callable[[Trace, int], int | None] | None = None


def norm(vectors: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm of each vector, [..., d] -> [...], in double precision.

    It overflows only where the norm itself does, and not where a square would.
    """
    vectors = vectors.astype(np.float64, copy=False)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = np.asarray(np.linalg.norm(vectors, axis=-1))
        extreme = ~((found > 1e-140) & (found < 1e140))
        if extreme.any():
            # The squares of all others are far from both ends of double precision's range.
            largest = np.abs(vectors[extreme]).max(axis=-1, keepdims=True)
            scale = np.where(np.isfinite(largest) & (largest > 0), largest, 1)
            found[extreme] = scale[:, 0] * np.linalg.norm(vectors[extreme] / scale, axis=-1)
    return found[()]


def split(name: str, values: np.ndarray, coordinates: int | None = None) -> dict[str, np.ndarray]:
    """Return `{name: values}` for scalars [n], or `{name/0: …, name/1: …}` for [n, …]."""
    if values.ndim == 1:
        return {name: values}
    flat = values.reshape(len(values), -1)[:, :coordinates]
    return {f"{name}/{i}": flat[:, i] for i in range(flat.shape[1])}


def join(traces: Sequence[Trace]) -> Trace:
    """Return consecutive traces as one."""
    first = traces[0]
    if len(traces) == 1:
        return first
    named = {name: np.concatenate([each.named[name] for each in traces]) for name in first.named}
    measured = {name: np.concatenate([each.measured[name] for each in traces]) for name in first.measured}
    x, loss, gradient = (np.concatenate([getattr(each, part) for each in traces]) for part in ("x", "loss", "gradient"))
    return replace(first, x=x, loss=loss, gradient=gradient, named=named, measured=measured)
