"""A report's two pictures by Matplotlib: the ranking with its intervals, and the learning rates that converge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from runner.pictures import BLACK, BLUE, ORANGE, figure

# Problems that a picture has room for, side by side.
PROBLEMS = 6


def ranking(path: Path, table: pd.DataFrame) -> bool:
    """Draw the median steps of each optimizer with their intervals, a panel a problem; tell whether there are any."""
    table = table[table["steps"].notna()]
    if table.empty:
        return False
    made, panels = places(table)
    for place, (problem, own) in panels:
        own = own.iloc[::-1]
        ends = own[["low", "high"]].replace(np.inf, np.nan).to_numpy()
        steps, across = own["steps"].to_numpy(), np.arange(len(own))
        far = np.nan_to_num(np.abs(ends - steps[:, None])).T
        place.errorbar(steps, across, xerr=far, fmt="o", color=BLUE, ecolor=BLACK, capsize=3)
        for at in np.flatnonzero(np.isinf(own["high"])):
            place.plot(steps[at], at, marker=">", color=ORANGE, markersize=9)
        place.set_yticks(
            across, [f"{name} ({rate:.0%})" for name, rate in zip(own["optimizer"], own["success_rate"], strict=True)]
        )
        titled(place, f"{problem}, to {own['target'].iloc[0]:.0e}", "steps: median, 95 %")
    made.savefig(path)
    return True


def stability(path: Path, table: pd.DataFrame) -> bool:
    """Draw the rates that converge, the best and the edge of each optimizer, a panel a problem; tell whether there are any."""
    table = table[table["best"] > 0]
    if table.empty:
        return False
    made, panels = places(table)
    for place, (problem, own) in panels:
        own, across = own.iloc[::-1], np.arange(len(own))
        place.hlines(across, own["low"], own["high"], color=BLUE, linewidth=6, alpha=0.5, label="converges")
        place.plot(own["best"], across, "D", color=BLACK, label="best")
        place.plot(own["edge"], across, "x", color=ORANGE, label="diverges")
        if own["limit"].notna().any():
            place.axvline(own["limit"].iloc[0], color=BLACK, linestyle=":", label="2/L")
        place.set_yticks(across, own["optimizer"])
        titled(place, str(problem), "learning rate")
    panels[0][0].legend(fontsize="x-small")
    made.savefig(path)
    return True


def places(table: pd.DataFrame) -> tuple[Any, list[Any]]:
    """Return a figure, and a panel in it with its rows for each problem."""
    parts = list(table.groupby("problem", sort=False))[:PROBLEMS]
    across = min(len(parts), 3)
    down = -(-len(parts) // across)
    most = max(len(own) for _, own in parts)
    made = figure(1 + 4 * across, 1 + down * (0.7 + 0.28 * most), layout="constrained")
    return made, list(zip(made.subplots(down, across, squeeze=False).flat, parts, strict=False))


def titled(place: Any, title: str, across: str) -> None:
    """Name a panel, with a logarithmic axis."""
    place.set_xscale("symlog" if across.startswith("steps") else "log")
    place.set_title(title, fontsize="small", parse_math=False)
    place.set_xlabel(across)
    place.grid(alpha=0.3)
