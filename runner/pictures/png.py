"""Pictures by Matplotlib, readable in print and without colours: a run's rows and path, and where two runs part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from runner.pictures.data import Drawing, logarithmic
from runner.records import Recorded
from runner.records.compare import Comparison

# What a report consists of.
FILES = ("report.png", "report.html")
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


def get_ready(wanted: Callable[[], bool]) -> None:
    """Import what draws, and draw something, which makes it ready for more; ends early where the process is wanted."""
    if not any(wanted() for _ in imported()):
        figure(1, 1).subplots().figure.savefig(BytesIO())


def imported() -> Iterator[None]:
    """Import what takes long, one module after another."""
    yield
    import matplotlib.figure  # noqa: F401

    yield
    import bokeh.plotting

    yield
    import bokeh.embed

    yield
    import bokeh.resources  # noqa: F401

    yield


def report(folder: Path, drawing: Drawing) -> Iterator[Path]:
    """Draw a run's report as a picture, then as a page, and yield their files."""
    from runner.pictures import html

    folder.mkdir(parents=True, exist_ok=True)
    picture, page = (folder / name for name in FILES)
    for each in (picture, page):
        # One that was logged before stays whole where it is linked.
        each.unlink(missing_ok=True)
    made = figure(13, 6)
    made.suptitle(f"{drawing.title}\n{drawing.ending}", fontsize="medium", parse_math=False)
    clocks = drawing.clocks
    cells = [[f"{i} {clock}" for clock in clocks] + [".", "path"] for i in range(2)]
    # Matplotlib's own arrangement of these would take as long as drawing them.
    edges = {"left": 0.06, "right": 0.94, "bottom": 0.16, "top": 0.89, "wspace": 0.1, "hspace": 0.35}
    places = made.subplot_mosaic(cells, width_ratios=[1] * len(clocks) + [0.16, 1.7], gridspec_kw=edges)
    for i, (label, values) in enumerate(drawing.curves.items()):
        for clock, across in clocks.items():
            curve(places[f"{i} {clock}"], clock, across, label, values, LINES[i])
    if "1 seconds in the loop" in places:
        # Between these times rows are spread evenly.
        for axes in (places["0 seconds in the loop"], places["1 seconds in the loop"]):
            at = drawing["measured"]
            axes.plot(at, np.zeros(len(at)), "|", color=BLACK, transform=axes.get_xaxis_transform())
    path(made, places["path"], drawing)
    made.savefig(picture)
    yield picture
    page.write_text(html.report(drawing), encoding="utf-8")
    yield page


def curve(axes: Any, clock: str, across: np.ndarray, label: str, values: np.ndarray, line: tuple[str, str]) -> None:
    """Draw one curve."""
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
    """Draw the path on the curve, or on the contours, with its ends and the minimisers in sight."""
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
    """Fill the contours of the loss, in colours whose lightness alone tells them apart."""
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


def parting(file: Path, found: Comparison, runs: tuple[Recorded, Recorded]) -> None:
    """Draw the losses of two runs, and below them how far apart each quantity is, with the step at which they part."""
    made = figure(9, 6.5, layout="constrained")
    losses, apart = made.subplots(nrows=2, sharex=True)
    for letter, run, (colour, dash) in zip("AB", runs, LINES, strict=False):
        rows = run.rows
        losses.plot(rows.steps, rows.loss, dash, color=colour, label=f"{letter} {run.run_id[:8]}\n{run.name}")
    losses.set(ylabel="loss", yscale="log" if logarithmic(np.concatenate([run.rows.loss for run in runs])) else "linear")
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
    file.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(file)


def headline(found: Comparison) -> str:
    """Return in a few words what came of two runs."""
    if found.parting is None:
        return f"the same, within {found.tolerance:.3g}" if found.tolerance else "the same, bit for bit"
    return f"they part at step {found.parting[0]}, first by {found.parting[1]}"
