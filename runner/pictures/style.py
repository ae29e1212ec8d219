"""Colours and line styles that can be distinguished without colours, and the figure that they are drawn on."""

from __future__ import annotations

from typing import Any

# The colours of Okabe and Ito (2008), which colour-blind people can distinguish; with dashes, they differ in grey as well.
BLUE, ORANGE, GREEN, PURPLE, YELLOW, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#000000"
LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))
DPI = 150


def figure(width: float, height: float, **layout: Any) -> Any:
    """Return a figure without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI, **layout)
    FigureCanvasAgg(made)
    return made
