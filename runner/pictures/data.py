"""The data of a run's report, as numbers and words: made in the process that has the loss, drawn in another that has time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# The number of contours of a surface.
LEVELS = 16
# If the largest number exceeds this multiple of the least, a logarithmic scale is used.
WIDE = 100


@dataclass(frozen=True)
class Drawing:
    """The m rows that a report shows, the path of their x, and the loss around the path.

    `path` holds the k finite x: [k] if x is a scalar, else [k, 2], coordinates in the plane that is shown. `shown`, [k], holds
    the indices of their rows. `across` and `up` are the axes of the grid. `values` is the loss on the grid,
    [len(up), len(across)], or [len(across)] if x is a scalar. If these three are absent, `note` states the reason.
    """

    title: str
    ending: str
    labels: tuple[str, ...]  # of the path's axes
    note: str
    minimum: float | None  # None if not known
    arrays: Mapping[
        str, np.ndarray
    ]  # step, seconds, loss, gradient_norm, measured, shown, path, minimisers; across, up, values

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def fields(self) -> dict[str, Any]:
        """All fields but the arrays, for a message."""
        return {key: value for key, value in vars(self).items() if key != "arrays"}

    @property
    def loss_label(self) -> str:
        """The label of the loss's curve."""
        return f"loss above the known minimum {self.minimum:.6g}" if self.minimum else "loss"

    def above(self, losses: np.ndarray) -> np.ndarray:
        """Return losses minus the known minimum, negative rounding errors set to 0; the losses if no minimum is known."""
        if self.minimum is None:
            return losses.astype(np.float64)
        above = losses.astype(np.float64) - self.minimum
        return np.where((above < 0) & (above > -1e-6 * max(1.0, abs(self.minimum))), 0.0, above)

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """The curves that are drawn against step and seconds, by label."""
        return {self.loss_label: self.above(self["loss"]), "gradient norm": self["gradient_norm"]}

    @property
    def known_label(self) -> str:
        """The label of the known minimisers."""
        return "known minimum" if self["path"].ndim == 1 or self.labels == ("x/0", "x/1") else "known minimum, projected"

    @property
    def clocks(self) -> dict[str, np.ndarray]:
        """The x axes of the curves, by label; an axis that is not finite everywhere is left out."""
        found = {"step": self["step"], "seconds in the loop": self["seconds"]}
        return {label: each for label, each in found.items() if np.isfinite(each).all()}

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates of the path's points; for a scalar x, the second coordinate is the loss."""
        path = self["path"]
        return (path, self["loss"][self["shown"]]) if path.ndim == 1 else (path[:, 0], path[:, 1])

    @property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates of the known minimisers within the picture."""
        places = self["minimisers"]
        if places.ndim == 1:
            return places, np.full(len(places), self.minimum if self.minimum is not None else np.nan)
        return places[:, 0], places[:, 1]

    @property
    def surface(self) -> np.ma.MaskedArray:
        """The loss above the minimum on the grid, with values that are not finite masked."""
        return np.ma.masked_invalid(self.above(self["values"]))

    @property
    def levels(self) -> tuple[np.ndarray, bool]:
        """The levels of the surface's contours, and whether they are evenly spaced in the logarithm."""
        shown = self.surface.compressed()
        if not logarithmic(shown):
            low, high = shown.min(), shown.max()
            return np.linspace(low, high if high > low else low + 1, LEVELS), False
        low = max(float(np.percentile(shown[shown > 0], 1)), float(shown.max()) * 1e-8)
        return np.geomspace(low, float(shown.max()), LEVELS), True


def logarithmic(values: np.ndarray) -> bool:
    """Return whether numbers are best shown on a logarithmic scale, on which zeros are left out."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    return bool(len(positive) and finite.min() >= 0 and positive.max() > WIDE * positive.min())
