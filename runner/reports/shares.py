"""The profiles of optimizers, as the tables of a sweep's report have them: the share that is solved within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from runner.reports.choosing import SLOTS, Chosen, legend, line, plot

# Of each table: what is on the x axis, its name, and what the share is of.
PROFILES = {
    "ecdf": ("budget", "budget / dimension", "problems, starts, targets"),
    "performance": ("tau", "times the steps of the quickest optimizer, τ", "problems, starts (Dolan, Moré 2002)"),
    "data": ("alpha", "budget in simplex gradients, of d + 1 evaluations, α", "problems, starts (Moré, Wild 2009)"),
}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[list[Any], list[Any]] | None:
    """Return the widgets and the plots of those profiles that there are; None where there are none."""
    widgets, plots = [], []
    for name, (x, across, share) in PROFILES.items():
        if not tables.get(name, pd.DataFrame()).empty:
            controls, made = profile(tables[name], x, across, f"share of {share}, solved")
            widgets += controls
            plots.append(made)
    return (widgets, plots) if plots else None


def profile(table: pd.DataFrame, x: str, across: str, share: str) -> tuple[list[Any], Any]:
    """Return the plot of one table, a step function for each optimizer, and the widget of its measure."""
    optimizers = sorted(table["optimizer"].unique())[:SLOTS]
    held: Any = table[table["optimizer"].isin(optimizers)]
    held = held.rename(columns={x: "x"}).assign(slot=held["optimizer"].map(optimizers.index), label=held["optimizer"])
    keys = {"measure": "Budget of the first profile in"} if "measure" in held else {}
    chosen = Chosen(held, keys, ["label", "x", "fraction"], range(SLOTS), words=["label"])
    tips = [("", "@label"), ("within", "@x{0.[000]a}"), ("share", "@fraction{0.0 %}")]
    made = plot(across, share, tips, x_axis_type="log", y_range=(-0.02, 1.02), height=400)
    drawn = [
        made.step("x", "fraction", source=source, mode="after", line_width=2, **line(slot))
        for slot, source in enumerate(chosen.sources)
    ]
    legend(made, [[each] for each in drawn])
    made.hover.renderers = drawn
    return chosen.widgets, made
