"""Convergence: of each group of runs the median gap and the quarters around it, against steps, evaluations and seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runner.report.page.widgets import SLOTS, Chosen, legend, line, plot

if TYPE_CHECKING:
    from runner.report.tables.reading import Runs

QUANTILES = {"low": 0.25, "median": 0.5, "high": 0.75}
# What gaps are drawn at where they are less, which the least target is above.
FLOOR = 1e-10
AXES = {
    "steps": "steps",
    "evaluations": "evaluations of the loss's gradient",
    "seconds": "seconds in the loop, evenly over its steps",
}
# A parameter of more values is one of each run, such as a start.
VALUES = 60
# Rows that the page holds of all curves, at 25 bytes.
ROWS = 120_000


def against(runs: Runs, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return budgets [b] of steps, evaluations or seconds, and of each run the lowest gap within them, [runs, b].

    A run has NaN within a budget that does not buy its first row, and where what it has spent is not known.
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
        # A budget would otherwise miss its own step by a rounding.
        at = np.searchsorted(spent[row], budgets * (1 + 1e-6), side="right") - 1
        gaps[row] = np.where(at >= 0, runs.gap[row][at], np.nan)
    return budgets, gaps


def bands(gap: np.ndarray, group: np.ndarray) -> dict[Any, np.ndarray]:
    """Return the quartiles of the gaps [runs, b] of each group of runs, [3, b]: values that are among them.

    A gap that is NaN is beyond all others, but a run of nothing else is left out.
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
    """Return what runs can be grouped by, column by name: no two that group alike."""
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
    """Return of each run its optimizer where its configuration is the best of it on its problem, else None.

    The best is that of the ranking; where there is none the one whose gaps' logarithms have the least mean.
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
    """Return all bands: problem, by, axis, slot, label, x, low, median, high; of many groups the SLOTS that come lowest."""
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
    # The last row of each stays.
    return pd.concat([part.iloc[::-1].iloc[::every].iloc[::-1] for part in parts], ignore_index=True)


def counted(name: str, groups: int) -> str:
    """Return what runs are grouped by, with how many of the groups are drawn where not all are."""
    return name if groups <= SLOTS else f"{name} ({SLOTS} of {groups:,})"


def lowest(found: dict[Any, np.ndarray]) -> dict[Any, int]:
    """Return the slot of each group, in their order; of more than SLOTS those that end lowest."""
    names = list(found)
    kept = sorted(names, key=lambda name: found[name][1, -1])[:SLOTS]
    return {name: i for i, name in enumerate(name for name in names if name in kept)}


def draw(runs: Runs, ranking: pd.DataFrame) -> tuple[list[Any], Any] | None:
    """Return the widgets and the plot; None where no run has a gap."""
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
