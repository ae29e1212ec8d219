"""Maps of starts: the minimum reached from each start, the steps to it, and the learning rates at which the start diverges."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runner.pictures.style import BLACK, YELLOW
from runner.report.page.widgets import COLOURS, Chosen, plot

if TYPE_CHECKING:
    from runner.report.tables.reading import Runs

# The least number of starts for a map of the plane, of starts for a map of rates, and of rates for a map of rates.
PLANE, STARTS, RATES = 25, 5, 3
# The largest number of rows in a map of rates.
ROWS = 100
# The width of the square of a start that is on no grid, as a part of the picture.
SQUARE = 0.03
NOWHERE, DIVERGED = "no known minimum", "diverged"
GREY = "#D0D0D0"
# Hatches distinguish the minima in a grey print, where colours do not.
HATCHES = (" ", "/", ".", "-", "\\", "+", "|", "x")
# Squares are enlarged by this factor, so that no lines are visible between them.
OVERLAP = 1.03
# JavaScript that fits the range of colours to the data shown.
SCALE = """
const steps = source.data.shown.filter(each => each > 0), low = steps.length ? Math.min(...steps) : 1
mapper.setv({low, high: steps.length ? Math.max(...steps, 1.01 * low) : 10})
"""


def targets(runs: Runs) -> dict[str, int]:
    """Return the indices of the targets that a map can show, by name: every second target."""
    return {f"{target:.0e}": i for i, target in enumerate(runs.targets) if i % 2}


def plane(runs: Runs) -> pd.DataFrame:
    """Return a row for each start in a plane: problem, optimizer, rate, x0, x1, width, height, reached, steps to each target.

    Of several runs from one start (several seeds), the first is shown. Problems with fewer than PLANE starts are left out.
    """
    frame: Any = runs.frame.assign(row=range(len(runs.frame)))
    frame = frame[(frame["dimension"] == 2) & frame["x0"].notna() & frame["x1"].notna()]
    frame = frame.assign(rate=frame["learning_rate"].map(lambda rate: "none" if pd.isna(rate) else f"{rate:.4g}"))
    frame = frame.drop_duplicates(["problem", "optimizer", "rate", "x0", "x1"])
    found = []
    for _, own in frame.groupby("problem", sort=False):
        if own.groupby(["optimizer", "rate"]).size().max() >= PLANE:
            found.append(own.assign(width=spacing(own["x0"]), height=spacing(own["x1"])))
    if not found:
        return pd.DataFrame()
    kept = pd.concat(found)
    steps = runs.to_target["steps"][kept["row"]]
    reached = kept["minimiser"].map(lambda i: f"minimum {i + 1}" if i >= 0 else NOWHERE)
    reached = reached.mask(kept["ending"] == "diverged", DIVERGED)
    made = kept[["problem", "optimizer", "rate", "x0", "x1", "width", "height"]].assign(reached=reached)
    return made.assign(**{name: steps[:, i] for name, i in targets(runs).items()})


def spacing(values: pd.Series) -> float:
    """Return the distance of neighbours on a grid, times OVERLAP; for starts on no grid, the part SQUARE of their range."""
    places = np.unique(values)
    apart = np.diff(places)
    if len(apart) and len(places) ** 2 <= 4 * len(values.index) and np.allclose(apart, apart[0], rtol=1e-3):
        return float(apart[0]) * OVERLAP
    return SQUARE * float(np.ptp(places)) or 1.0


def rates(runs: Runs) -> pd.DataFrame:
    """Return a row for each start and rate: problem, optimizer, rate, start, diverged, and the median steps to each target.

    Starts are numbered by their loss, the lowest first; at most ROWS of them are shown.
    """
    frame: Any = runs.frame.assign(row=range(len(runs.frame)), begins=runs.gap[:, 0])
    frame = frame[frame["learning_rate"].notna()]
    found = []
    for problem, own in frame.groupby("problem", sort=False):
        starts = own.groupby("start")["begins"].median().sort_values().index
        if len(starts) < STARTS or own["learning_rate"].nunique() < RATES:
            continue
        kept = starts[np.unique(np.linspace(0, len(starts) - 1, ROWS).astype(int))]
        numbers = {start: i + 1 for i, start in enumerate(kept)}
        own = own[own["start"].isin(kept)]
        own = own.assign(start=own["start"].map(numbers), diverged=(own["ending"] == "diverged").astype(float))
        steps = pd.DataFrame(runs.to_target["steps"][own["row"]], own.index)
        # A run that does not reach the target counts for more steps than all others.
        columns = {name: steps[i].fillna(np.inf) for name, i in targets(runs).items()}
        keys = ["optimizer", "learning_rate", "start"]
        medians = own.assign(**columns).groupby(keys)[["diverged", *columns]].quantile(0.5, interpolation="higher")
        found.append(medians.replace(np.inf, np.nan).reset_index().assign(problem=problem))
    return pd.concat(found, ignore_index=True).rename(columns={"learning_rate": "rate"}) if found else pd.DataFrame()


def landmarks(runs: Runs, made: Any, problem: Any) -> None:
    """Draw the known minimisers of the chosen problem, with numbers, and the contours if its starts are a full grid."""
    from bokeh.models import CustomJS

    drawn = contours(runs, made)
    for name, places in runs.minimisers.items():
        where = {"x": places[:, 0], "y": places[:, 1]}
        stars = made.scatter(**where, marker="star", size=18, fill_color=YELLOW, line_color=BLACK)
        numbers = [str(i + 1) for i in range(len(places))]
        look = {"text_font_size": "9pt", "background_fill_color": "white", "padding": 2, "border_radius": 3}
        named = made.text(**where, text=numbers, x_offset=10, y_offset=-4, **look)
        drawn.setdefault(name, []).extend([stars, named])
    for name, each in drawn.items():
        for renderer in each:
            renderer.visible = name == problem.value
    code = "for (const [name, each] of Object.entries(drawn)) each.forEach(one => { one.visible = name == cb_obj.value })"
    if drawn:
        problem.js_on_change("value", CustomJS(args={"drawn": drawn}, code=code))


def contours(runs: Runs, made: Any) -> dict[str, list[Any]]:
    """Draw the contours of the losses from their values at the starts, for the problems whose starts are a full grid."""
    drawn = {}
    for name, own in runs.frame.assign(begins=runs.gap[:, 0]).groupby("problem", sort=False):
        if own["dimension"].iloc[0] != 2:
            continue
        grid = own.pivot_table("begins", "x1", "x0", aggfunc="first")
        values = grid.to_numpy(np.float64)
        positive = values[np.isfinite(values) & (values > 0)]
        if min(values.shape) >= 5 and np.isfinite(values).all() and len(positive) and np.ptp(positive):
            levels = np.geomspace(max(np.quantile(positive, 0.02), 1e-12), positive.max(), 10)
            drawn[str(name)] = [made.contour(*grid.axes[::-1], values, levels, line_color=BLACK, line_alpha=0.55)]
    return drawn


def draw_plane(runs: Runs) -> tuple[list[Any], list[Any]] | None:
    """Return the widgets and the two maps of starts; None if too few starts lie in a plane."""
    held = plane(runs)
    if held.empty:
        return None
    held = dressed(held, next(iter(targets(runs))))
    keys = {"problem": "Problem", "way": "Optimizer at a learning rate"}
    columns = ["x0", "x1", "width", "height", "reached", "colour", "hatch"]
    shown = ("Steps to the target", list(targets(runs)))
    chosen = Chosen(held, keys, columns, [0], words=["reached", "colour", "hatch"], ordered=list(keys), shown=shown)
    (source,) = chosen.sources
    tips = [("from", "(@x0{0.000}, @x1{0.000})"), ("reached", "@reached"), ("steps to the target", "@shown{0,0}")]
    sizes = {"frame_width": 430, "frame_height": 430, "height": None, "sizing_mode": None, "max_width": None}
    ends = plot("x/0 of the start", "x/1 of the start", tips, title="Which minimum is reached", **snug(), **sizes)
    squares = {"x": "x0", "y": "x1", "width": "width", "height": "height", "source": source}
    hatched = {"hatch_pattern": "hatch", "hatch_color": BLACK, "hatch_alpha": 0.3, "hatch_scale": 14, "hatch_weight": 1}
    reached = ends.rect(**squares, fill_color="colour", line_color=None, legend_field="reached", **hatched)
    ends.add_layout(ends.legend[0], "below")
    ends.legend.orientation, ends.legend.ncols, ends.legend.location = "horizontal", 3, "center"
    title = "Steps to the target (grey: not reached)"
    steps = plot("x/0 of the start", "x/1 of the start", tips, title=title, x_range=ends.x_range, y_range=ends.y_range, **sizes)
    counts = steps.rect(**squares, line_color=None)
    scale(counts, steps)
    for made, squares_drawn in ((ends, reached), (steps, counts)):
        made.grid.visible = False
        made.hover.renderers = [squares_drawn]
        landmarks(runs, made, chosen.selects[0])
    # The axes span the starts alone; a minimiser far from all of them is not shown.
    ends.x_range.renderers = ends.y_range.renderers = [reached]
    return chosen.widgets, [ends, steps]


def dressed(held: pd.DataFrame, target: str) -> pd.DataFrame:
    """Return the rows of a map with colours and hatches, sorted.

    The first optimizer and rate bring most starts to a minimum; of equals, the one with fewer median steps to the target.
    """
    kinds = sorted(set(held["reached"]) - {NOWHERE, DIVERGED})
    # Black is the colour of divergence.
    looks = dict(zip(kinds, cycle(each for each in COLOURS if each != BLACK), strict=False)) | {NOWHERE: GREY, DIVERGED: BLACK}
    hatches = dict(zip(kinds, cycle(HATCHES), strict=False))
    held = held.assign(
        slot=0,
        way=held["optimizer"] + " at " + held["rate"],
        colour=[looks[kind] for kind in held["reached"]],
        hatch=[hatches.get(kind, " ") for kind in held["reached"]],
    )
    got = held.assign(got=held["reached"].isin(kinds), slow=held[target].fillna(np.inf))
    groups = got.groupby(["problem", "way"], sort=False)
    return held.iloc[np.lexsort([held["reached"], groups["slow"].transform("median"), -groups["got"].transform("mean")])]


def draw_rates(runs: Runs) -> tuple[list[Any], Any] | None:
    """Return the widgets and the map of starts and rates; None if there are too few of either."""
    held = rates(runs)
    if held.empty:
        return None
    names = [f"{rate:.4g}" for rate in sorted(held["rate"].unique())]
    held = held.assign(rate=held["rate"].map("{:.4g}".format), slot=0)
    held["mark"] = held["start"].where(held["diverged"] > 0)
    keys = {"problem": "Problem", "optimizer": "Optimizer"}
    shown = ("Steps to the target", list(targets(runs)))
    chosen = Chosen(held, keys, ["rate", "start", "mark"], [0], words=["rate"], shown=shown)
    tips = [("learning rate", "@rate"), ("start", "@start"), ("steps to the target", "@shown{0,0}")]
    title = "Median steps to the target (grey: not reached; ×: diverged)"
    made = plot(
        "learning rate",
        "start, by its loss: the lowest is 1",
        tips,
        title=title,
        x_range=names,
        height=480,
        y_range=snug()["y_range"],
    )
    (source,) = chosen.sources
    squares = made.rect("rate", "start", 1, 1, source=source, line_color=None)
    scale(squares, made)
    made.scatter("rate", "mark", source=source, marker="x", size=7, color=BLACK)
    made.grid.visible = False
    made.yaxis.minor_tick_line_color = None
    made.hover.renderers = [squares]
    return chosen.widgets, made


def snug() -> dict[str, Any]:
    """Return the ranges of axes without a margin around the data."""
    from bokeh.models import DataRange1d

    return {name: DataRange1d(range_padding=0) for name in ("x_range", "y_range")}


def scale(squares: Any, made: Any) -> None:
    """Colour squares by the logarithm of their steps, light for few steps, and add a colour bar beside the plot."""
    from bokeh.models import ColorBar, CustomJS, LogColorMapper
    from bokeh.palettes import Cividis256

    source = squares.data_source
    steps = np.array(source.data["shown"], np.float64)
    steps = steps[steps > 0]
    low, high = (float(steps.min()), float(steps.max())) if len(steps) else (1.0, 10.0)
    mapper = LogColorMapper(palette=Cividis256[::-1], nan_color=GREY, low=low, high=max(high, 1.01 * low))
    source.js_on_change("data", CustomJS(args={"mapper": mapper, "source": source}, code=SCALE))
    squares.glyph.fill_color = {"field": "shown", "transform": mapper}
    made.add_layout(ColorBar(color_mapper=mapper, title="steps"), "right")
