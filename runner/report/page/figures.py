"""The two pictures of a report, by Matplotlib: the ranking with its intervals, and the learning rates that reduce the gap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from runner.pictures.style import BLACK, BLUE, ORANGE, figure

# The largest number of problems in a picture.
PROBLEMS = 6


def ranking(path: Path, table: pd.DataFrame) -> bool:
    """Draw the median steps of each optimizer with intervals, one panel for each problem; return False if there are none.

    An optimizer that reaches the target in less than half of its runs has only its name and its success rate.
    """
    from matplotlib.markers import CARETRIGHTBASE

    some = table.loc[table["steps"].notna(), "problem"]
    table = table[table["problem"].isin(some)]
    if table.empty:
        return False
    made, panels = places(table)
    for place, (problem, own) in panels:
        own = own.iloc[::-1]
        ends = own[["low", "high"]].replace(np.inf, np.nan).to_numpy()
        steps, across = own["steps"].to_numpy(), np.arange(len(own))
        far = np.nan_to_num(np.abs(ends - steps[:, None])).T
        # Intervals without an upper end.
        open_ended = np.isinf(own["high"].to_numpy())
        place.plot(steps[open_ended], across[open_ended], marker=CARETRIGHTBASE, linestyle="", color=ORANGE, markersize=13)
        place.errorbar(steps, across, xerr=far, fmt="o", color=BLUE, ecolor=BLACK, capsize=3)
        names = zip(own["optimizer"], own["success_rate"], strict=True)
        place.set_yticks(across, [f"{name} ({rate:.0%})" for name, rate in names])
        place.set_ylim(-0.6, len(own) - 0.4)
        titled(place, f"{problem}, to {own['target'].iloc[0]:.0e}", "steps: median, 95 %")
        counted(place, np.nanmin([steps, *ends.T]), np.nanmax([steps, *ends.T]))
    made.savefig(path)
    return True


def counted(place: Any, low: float, high: float) -> None:
    """Give a panel an axis of whole numbers, logarithmic if the numbers span more than a decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

    if high <= 10 * max(low, 1):
        place.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    elif low < 1:
        place.set_xscale("symlog", linthresh=1)
    else:
        place.set_xscale("log")
        place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high <= 1000 * low else (1,)))
        place.xaxis.set_minor_locator(NullLocator())
        place.xaxis.set_major_formatter(ScalarFormatter())
    place.margins(x=0.1)


def stability(path: Path, table: pd.DataFrame) -> bool:
    """Draw the good rates, the best rate and the edge of each method, one panel a problem; return False if there are none."""
    table = table[table["best"] > 0]
    if table.empty:
        return False
    made, panels = places(table)
    for place, (problem, own) in panels:
        own, across = own.iloc[::-1], np.arange(len(own))
        place.hlines(across, own["low"], own["high"], color=BLUE, linewidth=6, alpha=0.5, label="gap to 0.1")
        place.plot(own["best"], across, "D", color=BLACK, label="best")
        place.plot(own["edge"], across, "x", color=ORANGE, label="no lower")
        if own["limit"].notna().any():
            place.axvline(own["limit"].iloc[0], color=BLACK, linestyle=":", label="2/L")
        place.set_yticks(across, own["optimizer"])
        titled(place, str(problem), "learning rate")
        place.set_xscale("log")
    panels[0][0].legend(fontsize="x-small")
    made.savefig(path)
    return True


def places(table: pd.DataFrame) -> tuple[Any, list[Any]]:
    """Return a figure, and for each problem a panel of the figure with the problem's name and rows."""
    parts = list(table.groupby("problem", sort=False))[:PROBLEMS]
    across = min(len(parts), 3)
    down = -(-len(parts) // across)
    most = max(len(own) for _, own in parts)
    made = figure(1 + 4 * across, 1 + down * (0.7 + 0.28 * most), layout="constrained")
    return made, list(zip(made.subplots(down, across, squeeze=False).flat, parts, strict=False))


def titled(place: Any, title: str, across: str) -> None:
    """Set the title of a panel and the label of its x axis."""
    place.set_title(title, fontsize="small", parse_math=False)
    place.set_xlabel(across)
    place.grid(alpha=0.3)
