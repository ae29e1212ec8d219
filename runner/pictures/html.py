"""A run's report as one self-contained HTML page, by Bokeh, whose script the page includes."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from runner.pictures.data import Drawing, logarithmic
from runner.pictures.style import BLACK, BLUE, LINES, ORANGE, YELLOW

TOOLS = "pan,wheel_zoom,box_zoom,reset,save"
DASHES = {"-": "solid", "--": "dashed"}
# Bokeh puts its own page around this template.
PAGE = "{% block inner_body %}<p style='font-family:sans-serif;margin:1em'>HEAD</p>{{ super() }}{% endblock %}"


def report(drawing: Drawing) -> str:
    """Return the page: curves against step and seconds, and the path over the loss; with zoom, tooltips and a legend."""
    from bokeh.embed import file_html
    from bokeh.layouts import gridplot, row
    from bokeh.resources import INLINE

    # The heading is plain HTML, because Bokeh's widgets would add a third of a megabyte.
    head = "<br>".join(escape(text).replace("{", "&#123;") for text in (drawing.title, drawing.ending, drawing.note) if text)
    plots = row(gridplot(curves(drawing), toolbar_location="left"), path(drawing))
    return file_html(plots, INLINE, title=escape(drawing.title), template=PAGE.replace("HEAD", head))


def curves(drawing: Drawing) -> list[list[Any]]:
    """Return the plots of loss and gradient norm, a row each, against step and against seconds."""
    from bokeh.models import ColumnDataSource, HoverTool, PrintfTickFormatter
    from bokeh.plotting import figure

    shown = {f"y{i}": np.where(np.isfinite(each), each, np.nan) for i, each in enumerate(drawing.curves.values())}
    source = ColumnDataSource({"step": drawing["step"], "seconds": drawing["seconds"], **shown})
    ranges: dict[str, Any] = {}
    made = []
    for i, ((label, values), (colour, dash)) in enumerate(zip(drawing.curves.items(), LINES, strict=False)):
        made.append([])
        scale = "log" if logarithmic(values) else "linear"
        tips = [("step", "@step"), ("seconds", "@seconds{0.000000}"), (label, f"@y{i}{{%.6g}}")]
        for clock in drawing.clocks:
            hover = HoverTool(tooltips=tips, formatters={f"@y{i}": "printf"}, mode="vline")
            # Plots with the same x axis zoom together.
            linked = {"x_range": ranges[clock]} if clock in ranges else {}
            plot = figure(width=320, height=290, y_axis_type=scale, tools=[*TOOLS.split(","), hover], **linked)
            plot.line(clock.split()[0], f"y{i}", source=source, color=colour, line_dash=DASHES[dash], line_width=2)
            plot.xaxis.formatter, plot.xaxis.ticker.desired_num_ticks = PrintfTickFormatter(format="%.4g"), 4
            plot.xaxis.axis_label, plot.yaxis.axis_label = clock, label
            ranges[clock] = plot.x_range
            made[-1].append(plot)
    return made


def path(drawing: Drawing) -> Any:
    """Return the plot of the path on the loss's curve or contours; a click on a legend entry hides its parts."""
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    x, y = drawing.points
    rows = drawing["shown"]
    source = ColumnDataSource({"x": x, "y": y, "step": drawing["step"][rows], "loss": drawing["loss"][rows]})
    plot = figure(width=660, height=600, tools=TOOLS)
    plot.xaxis.axis_label, plot.yaxis.axis_label = drawing.labels
    if "values" in drawing and drawing["path"].ndim == 1:
        plot.line(drawing["across"], drawing["values"], color=BLUE, line_width=2, legend_label="loss")
    elif "values" in drawing:
        contours(plot, drawing)
    plot.line("x", "y", source=source, color=BLACK, line_width=4, legend_label="path")
    plot.line("x", "y", source=source, color="white", line_width=2, legend_label="path")
    # More than 200 dots would hide the line, so they are transparent; tooltips still find them.
    dots = plot.scatter("x", "y", source=source, color=ORANGE, size=3, alpha=float(len(x) <= 200), hover_alpha=1.0)
    tips = [("step", "@step"), ("at", "(@x{%.6g}, @y{%.6g})"), ("loss", "@loss{%.6g}")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tips, formatters={f"@{name}": "printf" for name in ("x", "y", "loss")}))
    marks = [("first x", x[:1], y[:1], "circle", "white", 11), ("last x", x[-1:], y[-1:], "square", ORANGE, 9)]
    if len(drawing["minimisers"]):
        marks.insert(0, (drawing.known_label, *drawing.known, "star", YELLOW, 20))
    for label, across, up, marker, colour, size in marks:
        plot.scatter(across, up, marker=marker, fill_color=colour, line_color=BLACK, size=size, legend_label=label)
    plot.legend.click_policy = "hide"
    plot.add_layout(plot.legend[0], "below")
    plot.legend.orientation = "horizontal"
    return plot


def contours(plot: Any, drawing: Drawing) -> None:
    """Fill the contours of the loss, in colours that differ in lightness."""
    from bokeh.models import FixedTicker, PrintfTickFormatter
    from bokeh.palettes import Cividis256

    levels, even_in_logarithm = drawing.levels
    shown = drawing.surface
    if even_in_logarithm:
        levels, shown = np.log10(levels), np.log10(np.ma.maximum(shown, levels[0]))
    colours = [Cividis256[i] for i in np.linspace(0, 255, len(levels) - 1).astype(int)]
    # Values at the lowest level or below are filled as well.
    edges = np.concatenate([[levels[0] - 1e-3 * (levels[1] - levels[0])], levels[1:]])
    across, up = drawing["across"], drawing["up"]
    filled = plot.contour(across, up, shown.filled(np.nan), edges, fill_color=colours, line_color="white", line_alpha=0.4)
    label = f"log10 of {drawing.loss_label}" if even_in_logarithm else drawing.loss_label
    bar = filled.construct_color_bar(title=label)
    bar.ticker, bar.formatter = FixedTicker(ticks=levels[::3].tolist()), PrintfTickFormatter(format="%.3g")
    plot.add_layout(bar, "right")
    plot.x_range.start, plot.x_range.end, plot.y_range.start, plot.y_range.end = across[0], across[-1], up[0], up[-1]
