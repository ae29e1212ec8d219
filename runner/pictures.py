"""Pictures by Matplotlib, readable in print and without colours: where two runs part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runner.compare import Comparison
from runner.recorded import Recorded

# Okabe and Ito's (2008), which are told apart by the colour-blind; with dashes they are in grey, too.
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))
DPI = 150


def figure(width: float, height: float, **rows: Any) -> tuple[Any, Any]:
    """Return a figure, which no window shows, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(made)
    return made, made.subplots(**rows)


def parting(path: Path, found: Comparison, runs: tuple[Recorded, Recorded]) -> None:
    """Draw the losses of two runs, and below them how far apart each quantity is, with the step at which they part."""
    made, (losses, apart) = figure(9, 6.5, nrows=2, sharex=True)
    for letter, run, (colour, dash) in zip("AB", runs, LINES, strict=False):
        rows = run.rows
        losses.plot(rows.steps, rows.loss, dash, color=colour, label=f"{letter} {run.run_id[:8]}\n{run.name}")
    losses.set(ylabel="loss", yscale=scale(np.concatenate([run.rows.loss for run in runs])))
    for (name, each), (colour, dash) in zip(found.quantities.items(), LINES, strict=True):
        shown = each.excess if found.tolerance else each.relative
        shown = np.where((shown > 0) & np.isfinite(shown), shown, np.nan)
        apart.plot(np.arange(len(shown)), shown, dash, color=colour, label=name, marker="." if len(shown) <= 200 else None)
    what = "difference / what is allowed" if found.tolerance else "difference / size so far"
    apart.set(xlabel="step", ylabel=what, yscale="log")
    if found.tolerance:
        apart.axhline(1, color=BLACK, linewidth=1, label="tolerance")
    if found.parting:
        for axes in (losses, apart):
            axes.axvline(found.parting[0], color=BLACK, linestyle=(0, (1, 3)), linewidth=1, label="they part")
    losses.set_title(headline(found), loc="left")
    for axes in (losses, apart):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)


def headline(found: Comparison) -> str:
    """Return in a few words what came of two runs."""
    if found.parting is None:
        return f"the same, within {found.tolerance:.3g}" if found.tolerance else "the same, bit for bit"
    return f"they part at step {found.parting[0]}, first by {found.parting[1]}"


def scale(values: np.ndarray) -> str:
    """Return the scale on which numbers are best seen: logarithmic where all are positive and of many sizes."""
    finite = values[np.isfinite(values)]
    return "log" if len(finite) and finite.min() > 0 and finite.max() > 100 * finite.min() else "linear"
