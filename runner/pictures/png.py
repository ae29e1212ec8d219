"""A run's picture by Matplotlib, of its rows and its path; readable in print and without colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runner.pictures.data import Drawing, logarithmic
from runner.pictures.style import BLACK, BLUE, LINES, ORANGE, YELLOW, figure


def draw(file: Path, drawing: Drawing) -> None:
    """Draw a run: its curves against step and seconds, and its path over the loss."""
    made = figure(13, 6)
    made.suptitle(f"{drawing.title}\n{drawing.ending}", fontsize="medium", parse_math=False)
    clocks = drawing.clocks
    cells = [[f"{i} {clock}" for clock in clocks] + [".", "path"] for i in range(2)]
    # Fixed edges: Matplotlib's own layout would take as long as the drawing.
    edges = {"left": 0.06, "right": 0.94, "bottom": 0.16, "top": 0.89, "wspace": 0.1, "hspace": 0.35}
    places = made.subplot_mosaic(cells, width_ratios=[1] * len(clocks) + [0.16, 1.7], gridspec_kw=edges)
    for i, (label, values) in enumerate(drawing.curves.items()):
        for clock, across in clocks.items():
            curve(places[f"{i} {clock}"], clock, across, label, values, LINES[i])
    if "1 seconds in the loop" in places:
        # Marks at the measured times; the times of rows between them are interpolated.
        for axes in (places["0 seconds in the loop"], places["1 seconds in the loop"]):
            at = drawing["measured"]
            axes.plot(at, np.zeros(len(at)), "|", color=BLACK, transform=axes.get_xaxis_transform())
    path(made, places["path"], drawing)
    made.savefig(file)


def curve(axes: Any, clock: str, across: np.ndarray, label: str, values: np.ndarray, line: tuple[str, str]) -> None:
    """Draw one curve of `values`."""
    from matplotlib.ticker import EngFormatter

    axes.plot(across, np.where(np.isfinite(values), values, np.nan), line[1], color=line[0])
    axes.set(xlabel=clock)
    if logarithmic(values):
        axes.set_yscale("log")
    if clock == "step":
        axes.set(ylabel=label)
    else:
        axes.tick_params(labelleft=False)
        axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
        axes.locator_params(axis="x", nbins=4)
    axes.grid(alpha=0.3)


def path(made: Any, axes: Any, drawing: Drawing) -> None:
    """Draw the path on the loss's curve or contours, with its ends and the minimisers within the picture."""
    from matplotlib.patheffects import Normal, withStroke

    outlined = [withStroke(linewidth=3.5, foreground=BLACK), Normal()]
    x, y = drawing.points
    if drawing["path"].ndim == 1:
        if "values" in drawing:
            axes.plot(drawing["across"], drawing["values"], color=BLUE, label="loss")
        axes.plot(x, y, "o-", color=ORANGE, markersize=4, linewidth=1, label="path")
    else:
        if "values" in drawing:
            contours(made, axes, drawing)
        axes.plot(x, y, "-", color="white", linewidth=1.5, path_effects=outlined, label="path")
    if len(drawing["minimisers"]):
        axes.plot(*drawing.known, "*", color=YELLOW, markeredgecolor=BLACK, markersize=15, label=drawing.known_label)
    axes.plot(x[:1], y[:1], "o", color="white", markeredgecolor=BLACK, markersize=8, label="first x")
    axes.plot(x[-1:], y[-1:], "s", color=ORANGE, markeredgecolor=BLACK, markersize=6, label="last x")
    axes.set(xlabel=drawing.labels[0], ylabel=drawing.labels[1])
    axes.set_title(drawing.note, fontsize="small")
    made.legend(loc="lower right", ncols=5, frameon=False)


def contours(made: Any, axes: Any, drawing: Drawing) -> None:
    """Fill the contours of the loss, in colours that differ in lightness."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogFormatterSciNotation

    levels, even_in_logarithm = drawing.levels
    options: dict[str, Any] = {"norm": LogNorm()} if even_in_logarithm else {}
    shown = drawing.surface
    if even_in_logarithm:
        shown = np.ma.maximum(shown, levels[0] * 1e-3)
    filled = axes.contourf(drawing["across"], drawing["up"], shown, levels, cmap="cividis", extend="min", **options)
    axes.contour(filled, colors="white", linewidths=0.4, alpha=0.6)
    bar = {"ticks": 10.0 ** np.arange(*np.floor(np.log10(levels[[0, -1]])) + 1), "format": LogFormatterSciNotation()}
    made.colorbar(filled, ax=axes, pad=0.02, fraction=0.06, label=drawing.loss_label, **(bar if even_in_logarithm else {}))
