"""Plots over learning rates: the results at each rate, and the rates at which a method brings the gap down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runner.pictures.style import BLACK, ORANGE
from runner.report.page.curves import FLOOR, bands
from runner.report.page.widgets import COLOURS, MARKERS, SLOTS, Chosen, arrays, drawn, legend, line, plot
from runner.report.tables.stability import PART

if TYPE_CHECKING:
    from runner.report.tables.reading import Runs

REACHED = "lowest loss, above the minimum"


def table(runs: Runs) -> pd.DataFrame:
    """Return the results: problem, measure, optimizer, rate, low, median, high (quartiles), runs, diverged, ringed.

    The median steps to a target that most runs do not reach are NaN. `ringed` is the median if at least one run diverged, else
    NaN.
    """
    frame = runs.frame.assign(row=range(len(runs.frame)))
    frame = frame[frame["learning_rate"].notna()]
    measures = {REACHED: np.maximum(runs.gap[:, -1:], FLOOR)}
    for i, target in enumerate(runs.targets):
        measures[f"steps to {target:.0e}"] = np.nan_to_num(runs.to_target["steps"][:, i : i + 1], nan=np.inf)
    found = []
    for problem, own in frame.groupby("problem", sort=False):
        groups = own.groupby(["optimizer", "learning_rate"])
        counts = pd.DataFrame(
            {"runs": groups.size(), "diverged": groups["ending"].agg(lambda each: (each == "diverged").sum())}
        )
        for measure, values in measures.items():
            quantiles = bands(values[own["row"]], groups.ngroup().to_numpy())
            part = counts.reset_index().iloc[list(quantiles)].assign(problem=problem, measure=measure)
            part[["low", "median", "high"]] = [each[:, 0] for each in quantiles.values()] or np.empty((0, 3))
            found.append(part)
    if not found:
        return pd.DataFrame()
    joined = pd.concat(found, ignore_index=True).rename(columns={"learning_rate": "rate"})
    joined = joined.replace([np.inf], np.nan)
    joined["ringed"] = joined["median"].where(joined["diverged"] > 0)
    return joined


def draw(runs: Runs, stability: pd.DataFrame, overall: pd.DataFrame) -> tuple[list[Any], list[Any]] | None:
    """Return the widgets and the plots; None if the runs have fewer than two rates."""
    from bokeh.models import CustomJS

    held = table(runs)
    if held.empty or len(held["rate"].unique()) < 2:
        return None
    optimizers = drawn(held["optimizer"], overall)
    held = held[held["optimizer"].isin(optimizers)].assign(slot=lambda rows: rows["optimizer"].map(optimizers.index))
    held["label"] = held["optimizer"]
    columns = ["label", "rate", "low", "median", "high", "runs", "diverged", "ringed"]
    chosen = Chosen(held, {"problem": "Problem", "measure": "Shown"}, columns, range(SLOTS), words=["label"])
    tips = [
        ("", "@label"),
        ("learning rate", "@rate{0.0000}"),
        ("median", "@median{0.00e+0}"),
        ("25–75 %", "@low{0.00e+0} – @high{0.00e+0}"),
        ("diverged", "@diverged of @runs"),
    ]
    made = plot("learning rate", f"{REACHED}, median", tips, x_axis_type="log", y_axis_type="log")
    lines = []
    for slot, source in enumerate(chosen.sources):
        look, colour = line(slot), COLOURS[slot % len(COLOURS)]
        curve = made.line("rate", "median", source=source, line_width=1.5, **look)
        quarters = made.segment("rate", "low", "rate", "high", source=source, line_color=colour, line_alpha=0.4)
        marker = MARKERS[(slot + slot // len(COLOURS)) % len(MARKERS)]
        dots = made.scatter("rate", "median", source=source, marker=marker, size=7, color=colour)
        # A ring marks divergence visibly without colours.
        bad = made.scatter("rate", "ringed", source=source, marker="circle_x", size=15, line_color=BLACK, fill_alpha=0)
        dots.js_link("visible", bad, "visible")
        lines.append([curve, quarters, dots])
    legend(made, lines)
    made.hover.renderers = [dots for *_, dots in lines]
    label = CustomJS(args={"axis": made.yaxis[0]}, code="axis.axis_label = `${cb_obj.value}, median`")
    chosen.selects[1].js_on_change("value", label)
    known = stability[stability["optimizer"].isin(optimizers)] if len(stability) else stability
    return chosen.widgets, [made, *([intervals(known, chosen.selects[0], made)] if len(known) else [])]


def intervals(stability: pd.DataFrame, problem: Any, above: Any) -> Any:
    """Return a plot of each method's good rates, best rate, edge and 2/L, with the x axis of the plot `above`."""
    from bokeh.models import ColumnDataSource, CustomJS

    kept = stability[["problem", "optimizer", "low", "high", "best", "edge", "limit"]].copy()
    kept["problem"] = kept["problem"].astype(str)
    names = sorted(stability["optimizer"].unique(), reverse=True)
    table, source = (ColumnDataSource(arrays(each)) for each in (kept, kept[kept["problem"] == problem.value]))
    tips = [
        ("", "@optimizer"),
        (f"gap falls to {PART:g}", "@low{0.0000} – @high{0.0000}"),
        ("best", "@best{0.0000}"),
        ("ends no lower from", "@edge{0.0000}"),
        ("2/L", "@limit{0.0000}"),
    ]
    sizes = {"height": 90 + 22 * len(names)}
    made = plot("learning rate", "", tips, x_axis_type="log", x_range=above.x_range, y_range=names, **sizes)
    # Round ends make an interval of a single rate visible.
    bars = made.segment(
        "low", "optimizer", "high", "optimizer", source=source, line_width=9, line_cap="round", color=COLOURS[6]
    )
    made.scatter("best", "optimizer", source=source, marker="diamond", size=11, color=BLACK, legend_label="best rate")
    made.scatter(
        "edge",
        "optimizer",
        source=source,
        marker="x",
        size=9,
        color=ORANGE,
        line_width=2,
        legend_label="ends no lower than it began",
    )
    bound = made.scatter(
        "limit", "optimizer", source=source, marker="dash", angle=np.pi / 2, size=20, line_width=3, color=BLACK
    )
    made.legend[0].items.insert(0, item(f"gap falls to {PART:g}, or lower", bars))
    if np.isfinite(stability["limit"].to_numpy(np.float64)).any():
        made.legend[0].items.append(item("2/L, the edge of gradient descent", bound))
    made.add_layout(made.legend[0], "right")
    made.hover.renderers = [bars]
    code = """
    const at = table.data.problem.map((each, i) => i).filter(i => table.data.problem[i] == cb_obj.value)
    source.data = Object.fromEntries(Object.entries(table.data).map(([name, all]) => [name, at.map(i => all[i])]))
    """
    problem.js_on_change("value", CustomJS(args={"table": table, "source": source}, code=code))
    return made


def item(label: str, renderer: Any) -> Any:
    """Return an entry of a legend."""
    from bokeh.models import LegendItem

    return LegendItem(label=label, renderers=[renderer])
