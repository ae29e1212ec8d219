"""Charts of rates that grow or fall: panels side by side, both axes logarithmic, quartiles as a band around the median."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.measure import quartiles

# Okabe and Ito's colours, which colour-blind people tell apart, without the yellow, which is pale on white; a marker each too.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"))


class Panel(NamedTuple):
    """One pair of axes and its lines, by name: x [n], and lower quartile, median, upper quartile [n, 3]."""

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]]


def lines(points: Mapping[int, Mapping[str, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the lines through what was measured at each x, by name; a name may be absent at some of them."""
    names = dict.fromkeys(name for values in points.values() for name in values)
    found = {}
    for name in names:
        there = [(x, quartiles(values[name])) for x, values in points.items() if name in values]
        found[name] = np.array([x for x, _ in there]), np.array([each for _, each in there])
    return found


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels into a PNG file; a name has one colour in all of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    styles = dict(zip(names, STYLES, strict=False))
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, all_axes = plt.subplots(1, len(panels), figsize=(10, 4.4), sharey=True, squeeze=False, layout="constrained")
        for axes, panel in zip(all_axes[0], panels, strict=True):
            for name, (x, values) in panel.lines.items():
                color, marker = styles[name]
                axes.plot(x, values[:, 1], color=color, marker=marker, markersize=6, linewidth=2, label=name)
                axes.fill_between(x, values[:, 0], values[:, 2], color=color, alpha=0.2, linewidth=0)
            axes.set(xscale="log", yscale="log", title=panel.title, xlabel=panel.x)
            axes.grid(which="major", color="#dddddd")
            axes.legend(frameon=False)
        all_axes[0][0].set_ylabel(panels[0].y)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)
