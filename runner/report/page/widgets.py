"""Shared parts of all plots of a sweep's report: tables in the page, and widgets that choose rows of them without a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from runner.pictures.style import BLACK, BLUE, GREEN, ORANGE, PURPLE

# The colours of Okabe and Ito (2008) that are visible as lines on white; neighbours differ in their dashes as well.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BLACK, "#E69F00", "#56B4E9")
DASHES = ("solid", "dashed", "dotdash", "dotted", "dashdot")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "asterisk")
# The largest number of lines in a plot.
SLOTS = 14
# Longer names are cut to this number of letters.
LETTERS = 48
# The largest width of a plot in pixels; a run's page in MLflow has less room.
WIDTH = 1000
TOOLS = "pan,wheel_zoom,box_zoom,reset,save"
# JavaScript that fills each slot's source with the rows whose codes match the widgets. It replaces the codes of words by the
# words, and `shown` by the chosen column.
CHOOSE = """
const wanted = selects.map(select => select.options.indexOf(select.value))
const codes = keys.map(key => table.data[key]), rows = slots.map(() => [])
for (let i = 0; i < table.data.slot.length; i++)
  if (codes.every((code, j) => code[i] == wanted[j])) rows[table.data.slot[i]].push(i)
slots.forEach((source, k) => {
  const data = {}
  for (const name of columns) {
    const from = table.data[name == "shown" ? shown.value : name], named = words[name]
    data[name] = rows[k].map(i => named ? named[from[i]] : from[i])
  }
  source.data = data
})
"""


class Chosen:
    """The rows of `table` that the widgets choose, as one source for each slot.

    Each column in `keys` has a widget with this title; a widget begins at the value of the first row. The values of `ordered`
    keys are sorted. The column `slot` assigns a row to a slot. The columns in `words` hold few different texts, and the page
    stores each text once. With `shown` (title, columns), a widget chooses which column becomes the sources' `shown`.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        keys: Mapping[str, str],
        columns: Sequence[str],
        slots: Sequence[Any],
        *,
        words: Sequence[str] = (),
        ordered: Sequence[str] = (),
        shown: tuple[str, Sequence[str]] | None = None,
    ) -> None:
        from bokeh.models import ColumnDataSource, CustomJS, Select

        coded, named, start = {"slot": codes(table["slot"], list(slots))}, {}, {}
        self.selects = []
        for key, title in keys.items():
            values = list(table[key].unique())
            begin, values = values[0], sorted(values) if key in ordered else values
            coded[key], start[key] = codes(table[key], values), values.index(begin)
            self.selects.append(Select(title=title, options=[str(value) for value in values], value=str(begin), width=260))
        for name in words:
            values = list(table[name].unique())
            coded[name], named[name] = codes(table[name], values), [short(value) for value in values]
        drawn = [*columns, *(shown[1] if shown else ())]
        held = pd.DataFrame(coded | {name: table[name].to_numpy() for name in drawn if name not in coded})
        asked = [*columns, *(["shown"] if shown else ())]
        self.shown = Select(title=shown[0], options=list(shown[1]), value=shown[1][0], width=260) if shown else None
        first = held[(held[list(keys)] == pd.Series(start)).all(axis=1)]
        first = first.assign(**{name: [values[i] for i in first[name]] for name, values in named.items()})
        if shown:
            first = first.assign(shown=first[shown[1][0]])
        self.sources = [ColumnDataSource(arrays(first.loc[first["slot"] == k, asked])) for k in range(len(slots))]
        given = {"table": ColumnDataSource(arrays(held)), "selects": self.selects, "keys": list(keys), "slots": self.sources}
        given |= {"columns": asked, "words": named, "shown": self.shown}
        self.widgets = [*self.selects, *([self.shown] if self.shown else [])]
        for widget in self.widgets:
            widget.js_on_change("value", CustomJS(args=given, code=CHOOSE))


def drawn(names: Iterable[str], overall: pd.DataFrame) -> list[str]:
    """Return the optimizers that get a line, sorted: if there are more than SLOTS, those that reach most targets."""
    order = {name: i for i, name in enumerate(overall["optimizer"])} if len(overall) else {}
    return sorted(sorted(set(names), key=lambda name: (order.get(name, SLOTS), name))[:SLOTS])


def codes(values: Any, order: list[Any]) -> np.ndarray:
    """Return the index of each value in `order`, in the smallest sufficient integer type."""
    found = pd.Categorical(values, categories=order).codes
    return found.astype(np.min_scalar_type(max(len(order), 1)))


def arrays(frame: Any) -> dict[str, Any]:
    """Return a table's columns as arrays, with float64 converted to float32."""
    return {str(name): column.to_numpy(np.float32 if column.dtype == np.float64 else None) for name, column in frame.items()}


def short(value: Any) -> str:
    """Return a value as text, cut to LETTERS."""
    name = f"{value:.4g}" if isinstance(value, float) else str(value)
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"


def line(slot: int) -> dict[str, Any]:
    """Return the colour and the dashes of a slot's line."""
    return {"color": COLOURS[slot % len(COLOURS)], "line_dash": DASHES[(slot + slot // len(COLOURS)) % len(DASHES)]}


def plot(x: str, y: str, tips: list[tuple[str, str]], **options: Any) -> Any:
    """Return an empty plot with these axis labels and tooltips."""
    from bokeh.models import HoverTool
    from bokeh.plotting import figure

    sizes: dict[str, Any] = {"sizing_mode": "stretch_width", "max_width": WIDTH, "height": 440}
    made = figure(**sizes | options, tools=TOOLS)
    made.xaxis.axis_label, made.yaxis.axis_label = x, y
    made.add_tools(HoverTool(tooltips=tips))
    made.toolbar.logo = None
    for axis in (made.xaxis, made.yaxis):
        axis.axis_label_text_font_style = "normal"
    return made


def legend(made: Any, renderers: Sequence[Sequence[Any]]) -> None:
    """Add a legend beside the plot with each slot's `label`; a click on an entry hides its curve."""
    from bokeh.models import Legend, LegendItem

    items = [LegendItem(label={"field": "label"}, renderers=list(each)) for each in renderers]
    made.add_layout(Legend(items=items, click_policy="hide", label_text_font_size="9pt", spacing=1, glyph_width=34), "right")
