"""The picture of two runs: their losses, and where they part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runner.pictures.data import logarithmic
from runner.pictures.style import BLACK, LINES, figure
from runner.records import Recorded
from runner.records.compare import Comparison


def parting(file: Path, found: Comparison, runs: tuple[Recorded, Recorded]) -> None:
    """Draw the losses of two runs, and below them the difference of each quantity, with the step at which the runs part."""
    made = figure(9, 6.5, layout="constrained")
    losses, apart = made.subplots(nrows=2, sharex=True)
    for letter, run, (colour, dash) in zip("AB", runs, LINES, strict=False):
        rows = run.rows
        losses.plot(rows.steps, rows.loss, dash, color=colour, label=f"{letter} {run.run_id[:8]}\n{run.name}")
    losses.set(ylabel="loss", yscale="log" if logarithmic(np.concatenate([run.rows.loss for run in runs])) else "linear")
    for (name, each), (colour, dash) in zip(found.quantities.items(), LINES, strict=True):
        shown = each.excess if found.tolerance else each.relative
        shown = np.where((shown > 0) & np.isfinite(shown), shown, np.nan)
        apart.plot(np.arange(len(shown)), shown, dash, color=colour, label=name, marker="." if len(shown) <= 200 else None)
    what = "difference / what is allowed" if found.tolerance else "difference / size so far"
    apart.set(xlabel="step", ylabel=what, yscale="log")
    if found.tolerance:
        apart.axhline(1, color=BLACK, linewidth=1, label="tolerance")
    if found.parting:
        for axes in (losses, apart):
            axes.axvline(found.parting[0], color=BLACK, linestyle=(0, (1, 3)), linewidth=1, label="they part")
    losses.set_title(headline(found), loc="left")
    for axes in (losses, apart):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(file)


def headline(found: Comparison) -> str:
    """Return a short headline: whether two runs are the same, or where they part."""
    if found.parting is None:
        return f"the same, within {found.tolerance:.3g}" if found.tolerance else "the same, bit for bit"
    return f"they part at step {found.parting[0]}, first by {found.parting[1]}"
