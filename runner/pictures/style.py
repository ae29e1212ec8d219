"""Colours and lines that are told apart without colours, and the figure that they are drawn on."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's (2008), which are told apart by the colour-blind; with dashes they are in grey, too.
BLUE, ORANGE, GREEN, PURPLE, YELLOW, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#000000"
LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))
DPI = 150


def figure(width: float, height: float, **layout: Any) -> Any:
    """Return a figure, which no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI, **layout)
    FigureCanvasAgg(made)
    return made
