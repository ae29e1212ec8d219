"""What a report shows, as numbers and words: made where the loss is, drawn where there is time for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Contours of a surface.
LEVELS = 16
# So many times as large as the least is better seen on a logarithmic scale.
WIDE = 100


@dataclass(frozen=True)
class Drawing:
    """The m rows that a report shows, the path of their x, and the loss around it.

    `path` has [m] numbers where x is one, else the [m, 2] of the plane that is shown, and `shown` its rows, of finite x.
    `across`, `up` are the axes of the grid and `values` the loss on it, [len(up), len(across)], or [len(across)] of a scalar x;
    these three are absent where `note` says why.
    """

    title: str
    ending: str
    labels: tuple[str, ...]  # of the path's axes
    note: str
    minimum: float | None  # where it is known
    arrays: Mapping[
        str, np.ndarray
    ]  # step, seconds, loss, gradient_norm, measured, shown, path, minimisers; across, up, values

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def fields(self) -> dict[str, Any]:
        """All but the arrays, to be sent."""
        return {key: value for key, value in vars(self).items() if key != "arrays"}

    @property
    def loss_label(self) -> str:
        """What the curve of the loss shows."""
        return f"loss above the known minimum {self.minimum:.6g}" if self.minimum else "loss"

    def above(self, losses: np.ndarray) -> np.ndarray:
        """Return how far losses are above the known minimum, at least 0 up to rounding; the losses where none is known."""
        if self.minimum is None:
            return losses.astype(np.float64)
        above = losses.astype(np.float64) - self.minimum
        return np.where((above < 0) & (above > -1e-6 * max(1.0, abs(self.minimum))), 0.0, above)

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """What is drawn against step and seconds, by its label."""
        return {self.loss_label: self.above(self["loss"]), "gradient norm": self["gradient_norm"]}

    @property
    def known_label(self) -> str:
        """What is where the known minimisers are."""
        return "known minimum" if self["path"].ndim == 1 or self.labels == ("x/0", "x/1") else "known minimum, projected"

    @property
    def clocks(self) -> dict[str, np.ndarray]:
        """What curves are drawn against, by its label."""
        found = {"step": self["step"], "seconds in the loop": self["seconds"]}
        return {label: each for label, each in found.items() if np.isfinite(each).all()}

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the points of the path are: of a scalar x, at its loss."""
        path = self["path"]
        return (path, self["loss"][self["shown"]]) if path.ndim == 1 else (path[:, 0], path[:, 1])

    @property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the known minimisers in sight are."""
        places = self["minimisers"]
        if places.ndim == 1:
            return places, np.full(len(places), self.minimum if self.minimum is not None else np.nan)
        return places[:, 0], places[:, 1]

    @property
    def surface(self) -> np.ma.MaskedArray:
        """The loss on the grid above the minimum, what is not finite masked."""
        return np.ma.masked_invalid(self.above(self["values"]))

    @property
    def levels(self) -> tuple[np.ndarray, bool]:
        """The contours of the surface, and whether these are even in the logarithm."""
        shown = self.surface.compressed()
        if not logarithmic(shown):
            low, high = shown.min(), shown.max()
            return np.linspace(low, high if high > low else low + 1, LEVELS), False
        low = max(float(np.percentile(shown[shown > 0], 1)), float(shown.max()) * 1e-8)
        return np.geomspace(low, float(shown.max()), LEVELS), True


def logarithmic(values: np.ndarray) -> bool:
    """Tell whether numbers are best seen on a logarithmic scale, where a few that are 0 are left out."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    return bool(len(positive) and finite.min() >= 0 and positive.max() > WIDE * positive.min())
