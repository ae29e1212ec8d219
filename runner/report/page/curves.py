"""Convergence plots: the median gap and the quartiles of each group of runs, against steps, evaluations and seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runner.report.page.widgets import SLOTS, Chosen, legend, line, plot

if TYPE_CHECKING:
    from runner.report.tables.reading import Runs

QUANTILES = {"low": 0.25, "median": 0.5, "high": 0.75}
# Smaller gaps are drawn at this value; the least target is above it.
FLOOR = 1e-10
AXES = {
    "steps": "steps",
    "evaluations": "evaluations of the loss's gradient",
    "seconds": "seconds in the loop, evenly over its steps",
}
# A parameter with more values differs for each run, as a start does; runs are not grouped by it.
VALUES = 60
# The largest number of rows of all curves on the page, of 25 bytes each.
ROWS = 120_000


def against(runs: Runs, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return budgets [b] of steps, evaluations or seconds, and the lowest gap of each run within each budget, [runs, b].

    The gap is NaN if the budget is too small for the run's first row, or if the run's costs are not known.
    """
    if axis == "steps":
        return runs.grid[1:].astype(np.float64), runs.gap[:, 1:]
    spent = runs.spent[axis].astype(np.float64)
    known = np.isfinite(spent).all(axis=1) & (spent[:, -1] > 0)
    if not known.any():
        return np.empty(0), np.empty((len(spent), 0))
    positive = spent[known]
    budgets = np.geomspace(positive[positive > 0].min(), positive.max(), len(runs.grid) - 1)
    gaps = np.full((len(spent), len(budgets)), np.nan)
    for row in np.flatnonzero(known):
        # Without this factor, rounding would make a budget miss the step that it equals.
        at = np.searchsorted(spent[row], budgets * (1 + 1e-6), side="right") - 1
        gaps[row] = np.where(at >= 0, runs.gap[row][at], np.nan)
    return budgets, gaps


def bands(gap: np.ndarray, group: np.ndarray) -> dict[Any, np.ndarray]:
    """Return the quartiles of the gaps [runs, b] of each group of runs, [3, b]; the quartiles are among the gaps.

    A NaN counts as larger than all other gaps. A run whose gaps are all NaN is left out.
    """
    found = {}
    for name, rows in pd.Series(range(len(group))).groupby(group, sort=True):
        own = gap[rows.to_numpy()]
        own = own[~np.isnan(own).all(axis=1)]
        if own.size:
            far = np.where(np.isnan(own), np.inf, own)
            found[name] = np.quantile(far, list(QUANTILES.values()), axis=0, method="inverted_cdf")
    return found


def choices(frame: pd.DataFrame) -> dict[str, str]:
    """Return the columns by which runs can be grouped, with their labels; of columns that group alike only the first."""
    names = {
        "best": "method at its best",
        "optimizer": "method",
        "configuration": "configuration",
        "learning_rate": "learning rate",
    }
    names |= {column: column.removeprefix("p.") for column in frame if str(column).startswith("p.")}
    kept, seen = {}, set()
    for column, name in names.items():
        codes, values = pd.factorize(frame[column])
        if column == "best" or (1 < len(values) <= (VALUES if column.startswith("p.") else len(frame))):
            if codes.tobytes() not in seen:
                kept[column] = name
            seen.add(codes.tobytes())
    return kept


def at_best(runs: Runs, ranking: pd.DataFrame) -> pd.Series:
    """Return each run's optimizer if the run has the optimizer's best configuration on the problem, else None.

    The best configuration is the ranking's; without a ranking, it has the least mean of the logarithms of its gaps.
    """
    frame: Any = runs.frame
    keys, best = ["problem", "optimizer", "configuration"], ranking
    if ranking.empty:
        means = np.log10(np.maximum(np.nan_to_num(runs.gap, nan=np.inf), FLOOR)).mean(axis=1)
        best = frame[keys].assign(mean=means).groupby(keys)["mean"].mean().reset_index().sort_values("mean")
    first: Any = best.drop_duplicates(keys[:2])[keys]
    chosen = pd.MultiIndex.from_frame(frame[keys]).isin(pd.MultiIndex.from_frame(first))
    return frame["optimizer"].where(chosen, None)


def table(runs: Runs, ranking: pd.DataFrame) -> pd.DataFrame:
    """Return all bands: problem, by, axis, slot, label, x, low, median, high; of many groups, the SLOTS that end lowest."""
    frame, parts = runs.frame.assign(best=at_best(runs, ranking)), []
    names = {
        column: counted(name, frame[column].groupby(frame["problem"]).nunique().max())
        for column, name in choices(frame).items()
    }
    gaps = {axis: against(runs, axis) for axis in AXES if axis == "steps" or axis in runs.spent}
    for problem, rows in frame.reset_index().groupby("problem", sort=False).groups.items():
        for column, name in names.items():
            group = frame[column].to_numpy()[rows]
            best = lowest(bands(gaps["steps"][1][rows][:, -1:], group))
            for axis, (budgets, gap) in gaps.items():
                for label, quantiles in bands(gap[rows], group).items():
                    if label in best:
                        drawn = np.where(np.isfinite(quantiles), np.maximum(quantiles, FLOOR), np.nan)
                        given = {"problem": problem, "by": name, "axis": axis, "slot": best[label], "label": label}
                        parts.append(pd.DataFrame({**given, "x": budgets, **dict(zip(QUANTILES, drawn, strict=True))}))
    if not parts:
        return pd.DataFrame()
    every = -(-sum(map(len, parts)) // ROWS)
    # Thinned from the end, so that the last row of each part stays.
    return pd.concat([part.iloc[::-1].iloc[::every].iloc[::-1] for part in parts], ignore_index=True)


def counted(name: str, groups: int) -> str:
    """Return the label of a grouping, with the number of drawn groups if not all are drawn."""
    return name if groups <= SLOTS else f"{name} ({SLOTS} of {groups:,})"


def lowest(found: dict[Any, np.ndarray]) -> dict[Any, int]:
    """Return the slot of each group, in order; if there are more than SLOTS groups, only those that end lowest have one."""
    names = list(found)
    kept = sorted(names, key=lambda name: found[name][1, -1])[:SLOTS]
    return {name: i for i, name in enumerate(name for name in names if name in kept)}


def draw(runs: Runs, ranking: pd.DataFrame) -> tuple[list[Any], Any] | None:
    """Return the widgets and the plot; None if no run has a gap."""
    from bokeh.models import CheckboxGroup, CustomJS

    held = table(runs, ranking)
    if held.empty:
        return None
    titles = {"problem": "Problem", "by": "One curve for each", "axis": "Against"}
    columns = ["label", "x", *QUANTILES]
    chosen = Chosen(held, titles, columns, range(SLOTS), words=["label"])
    tips = [
        ("", "@label"),
        ("at", "@x{0.[000]a}"),
        ("median", "@median{0.00e+0}"),
        ("25–75 %", "@low{0.00e+0} – @high{0.00e+0}"),
    ]
    made = plot("steps", "lowest loss so far, above the minimum", tips, x_axis_type="log", y_axis_type="log")
    areas, lines = [], []
    few = int(sum(len(source.data["x"]) > 0 for source in chosen.sources) <= 4)
    for slot, source in enumerate(chosen.sources):
        areas.append(made.varea("x", "low", "high", source=source, color=line(slot)["color"], fill_alpha=0.18 * few))
        lines.append(made.line("x", "median", source=source, line_width=2, **line(slot)))
    legend(made, [[each] for each in lines])
    made.hover.renderers = lines
    against = chosen.selects[2]
    label = CustomJS(args={"axis": made.xaxis[0], "names": AXES}, code="axis.axis_label = names[cb_obj.value]")
    against.js_on_change("value", label)
    shown = CheckboxGroup(labels=["bands from 25 to 75 % of the runs"], active=[0] * few, width=260)
    code = "areas.forEach(area => { area.glyph.fill_alpha = cb_obj.active.length ? 0.18 : 0 })"
    shown.js_on_change("active", CustomJS(args={"areas": areas}, code=code))
    return [*chosen.widgets, shown], made
