"""Plots of the methods' profiles, from the tables of a sweep's report: the share that is solved within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from runner.report.page.widgets import SLOTS, Chosen, drawn, legend, line, plot

# Ticks of a logarithmic axis: Bokeh alone labels only the upper end of an axis shorter than two decades.
TICKS = [digit * 10.0**power for power in range(-9, 13) for digit in (1, 2, 5)]
# The column on the x axis, the axis's label, and the title of the plot, for each table.
PROFILES = {
    "ecdf": ("budget", "budget; evaluations are divided by the dimension", "Runtimes to all targets, from all starts"),
    "performance": ("tau", "times the evaluations of the quickest method, τ", "Performance profile (Dolan, Moré 2002)"),
    "data": ("alpha", "budget in simplex gradients, of d + 1 evaluations, α", "Data profile (Moré, Wild 2009)"),
}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[list[Any], list[Any]] | None:
    """Return the widgets and the plots of the profiles that are not empty; None if all are."""
    widgets, plots = [], []
    for name, (x, across, title) in PROFILES.items():
        if not tables.get(name, pd.DataFrame()).empty:
            optimizers = drawn(tables[name]["optimizer"], tables.get("overall", pd.DataFrame()))
            controls, made = profile(tables[name], x, across, title, optimizers)
            widgets += controls
            plots.append(made)
    return (widgets, plots) if plots else None


def profile(table: pd.DataFrame, x: str, across: str, title: str, optimizers: list[str]) -> tuple[list[Any], Any]:
    """Return the widgets of one table (of its measure, if it has one) and the plot, a step function for each optimizer."""
    held: Any = table[table["optimizer"].isin(optimizers)]
    held = across_all(held.rename(columns={x: "x"}), [name for name in ("measure", "optimizer") if name in held])
    held = held.assign(slot=held["optimizer"].map(optimizers.index), label=held["optimizer"])
    keys = {"measure": "Budget of the first profile in"} if "measure" in held else {}
    chosen = Chosen(held, keys, ["label", "x", "fraction"], range(SLOTS), words=["label"])
    tips = [("", "@label"), ("within", "@x{0.[000]a}"), ("share", "@fraction{0.0 %}")]
    from bokeh.models import FixedTicker

    made = plot(across, "share solved", tips, title=title, x_axis_type="log", y_range=(-0.02, 1.02), height=400)
    made.xaxis.ticker = FixedTicker(ticks=TICKS)
    steps = [
        made.step("x", "fraction", source=source, mode="after", line_width=2, **line(slot))
        for slot, source in enumerate(chosen.sources)
    ]
    legend(made, [[each] for each in steps])
    made.hover.renderers = steps
    return chosen.widgets, made


def across_all(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return step functions extended to the least and the greatest x of their measure: 0 before the first x, constant after.

    A function that does not rise anywhere (x is NaN) is 0 throughout.
    """
    parts = []
    outer: Any = table.groupby(keys[:-1]) if keys[1:] else [(None, table)]
    for _, every in outer:
        low, high = every["x"].min(), every["x"].max()
        if low == high:
            # An axis of a single value would show nothing.
            low, high = low / 2, high * 2
        for _, own in every.groupby(keys[-1]):
            own = own.fillna({"x": low}).sort_values("x", kind="stable")
            before = own.head(1).assign(x=low, fraction=0.0) if own["x"].iloc[0] > low else own.head(0)
            parts += [before, own, own.tail(1).assign(x=high)]
    return pd.concat(parts, ignore_index=True)
