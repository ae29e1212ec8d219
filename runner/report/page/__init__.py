"""A sweep's report as one self-contained HTML page: the results in words, in tables and in Bokeh's plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runner.report.page.curves import FLOOR
from runner.report.page.widgets import SLOTS
from runner.report.tables.stability import PART
from runner.report.text import number, some

if TYPE_CHECKING:
    from runner.report.tables.reading import Runs

# The largest number of rows of a table on the page; the table's file has all rows.
ROWS = 200
# The largest number of problems that a sentence names.
NAMES = 6
# Parts of the page whose plots have a line for each optimizer.
BY_OPTIMIZER = ("Learning rates", "Profiles")
# Columns that are shown as percentages.
SHARES = ("success_rate",)
CHOICE = "<code>python -m runner.report --filter</code> chooses runs, and <code>--by KEY</code> their groups"
# The text of a part of the page that has nothing to show.
ABSENT = {
    "Ranking": "No run has reached a target, so nothing is ranked.",
    "Convergence": "No run has a finite loss.",
    "Learning rates": "The runs have one learning rate, or schedules.",
    "Profiles": "No target is reached, so there is nothing to draw.",
    "Starts": "Too few starts lie in a plane for a map: it takes 25.",
    "Starts and learning rates": "Too few starts or learning rates for a map: it takes 5 and 3.",
    "Fairness": "Nothing speaks against the comparison.",
    "Targets": "No target is reached.",
}
NOTES = {
    "Ranking": "Two runs are of one problem where all that defines the loss agrees, and of one method where strategy, "
    "optimizer class and its arguments that are no numbers agree. Of each method the best configuration: the median steps to "
    "the lowest target that at least half of the runs of some configuration reach, and the exact 95 % interval of the median, "
    "which takes six runs (∞: beyond all that was reached; –: never, or too few runs). Runs that repeat another row by row "
    "count once. The expected steps (ert) are those of all runs over the number of runs that arrive. A click on a head sorts.",
    "Convergence": "The median of the runs' lowest loss so far, above the minimum (where that is not known, above the lowest "
    "of all runs). A method at its best is the configuration of the ranking; all other groups pool what else differs. "
    f"Gaps below {FLOOR:.0e} are drawn there, and of more than {SLOTS} groups those that end lowest; {CHOICE}. "
    "A click on a name takes its curve away.",
    "Learning rates": "Medians and quartiles over starts and seeds. Ringed: at least one of these runs diverged. Low to high "
    f"are the rates around the best at which at least half of the runs end at {PART:g} of their first gap, or lower, within "
    "the steps that they were given; edge is the lowest rate above the best at which at least half end no lower than they "
    "began.",
    "Profiles": "Higher is better; further to the left is quicker. With simulated restarts a run that does not reach a target "
    "is followed by others, drawn from those of its method on its problem, until one does (Hansen et al. 2016).",
    "Starts": "Each square is one run, where it began. Stars are the known minimisers, lines the contours of the loss where "
    "the starts are a full grid.",
    "Starts and learning rates": "Each square is the median over the runs from one start at one rate.",
    "Targets": "The medians over runs to each target, with their exact 95 % intervals, which take six runs.",
}
# Style of a row of plots or widgets: it wraps if there is no room side by side.
WRAP = ":host { flex-wrap: wrap; row-gap: 6px; max-width: 100% }"
# Bokeh puts its own page around this template.
PAGE = """
{% block postamble %}<style>
body { font-family: sans-serif; margin: 1.5em auto; max-width: 1180px; line-height: 1.4; color: #111; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin: 1.8em 0 .4em; border-bottom: 1px solid #999 }
p { margin: .4em 0 .8em } pre { white-space: pre-wrap; background: #f4f4f4; padding: .8em; font-size: 1em }
.rows { overflow: auto; max-height: 28em; margin-top: .8em } table { border-collapse: collapse; font-size: .85em }
th { position: sticky; top: 0; background: #e8e8e8; text-align: left; cursor: pointer; white-space: nowrap }
th, td { padding: .2em .7em; border-bottom: 1px solid #ddd } td { font-variant-numeric: tabular-nums }
nav a { margin-right: 1em } code { white-space: nowrap }
@media print { .rows { overflow: visible; max-height: none } nav { display: none } section { break-inside: avoid } }
</style>{% endblock %}
{% block contents %}
<h1>{{ heading | e }}</h1>
<nav>{% for part in parts %}<a href="#part{{ loop.index }}">{{ part.head }}</a>{% endfor %}</nav>
{% for part in parts %}<section id="part{{ loop.index }}"><h2>{{ part.head }}</h2>
{% if part.note %}<p>{{ part.note }}</p>{% endif %}
{% if part.text %}<pre>{{ part.text | e }}</pre>{% endif %}
{% if part.plots %}{{ embed(roots[part.plots]) }}{% endif %}
{% if part.table %}<div class="rows">{{ part.table }}</div>{% endif %}
</section>{% endfor %}
<script>
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], at = head.cellIndex, down = head.dataset.down != "1"
  head.dataset.down = down ? "1" : "0"
  const value = row => { const cell = row.cells[at]; return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent }
  const order = (a, b) => typeof a == "number" && typeof b == "number" ? a - b : String(a).localeCompare(String(b))
  const rows = [...body.rows].sort((a, b) => (down ? 1 : -1) * order(value(a), value(b)))
  body.append(...rows)
})
</script>
{% endblock %}
"""


def page(runs: Runs, tables: Mapping[str, pd.DataFrame], answer: str) -> str:
    """Return the page as HTML: the short answer, then a part for each table and plot; `tables` are by name.

    If a table is missing or empty, its part has a short text instead.
    """
    from bokeh.embed import file_html
    from bokeh.models import Spacer
    from bokeh.resources import INLINE

    parts, roots = [{"head": "Answer", "text": answer, "note": resolution(runs)}], []
    for head, shown in contents(runs, tables).items():
        if shown is None:
            parts.append({"head": head, "note": ABSENT[head]})
        elif isinstance(shown, pd.DataFrame):
            rest = f" These are {ROWS} of {len(shown)} rows; the table's file has all." if len(shown) > ROWS else ""
            parts.append({"head": head, "note": NOTES.get(head, "") + rest, "table": html(shown.head(ROWS))})
        else:
            shown.name = f"plots{len(roots)}"
            roots.append(shown)
            left = f" {undrawn(runs)}" if head in BY_OPTIMIZER else ""
            parts.append({"head": head, "note": NOTES[head] + left, "plots": shown.name})
            if head == "Learning rates" and len(stability := tables.get("stability", ())):
                parts[-1]["table"] = html(stability.head(ROWS))
    heading = f"{runs.title}: {some(runs.count, 'run')}"
    given = {"heading": heading, "parts": parts}
    # Bokeh makes no page without a model.
    return file_html(roots or [Spacer(height=0)], INLINE, title=runs.title, template=PAGE, template_variables=given)


def contents(runs: Runs, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the parts by their heads: a table, a layout of plots below their widgets, or None if there is nothing to show."""
    from runner.report.page import curves, maps, profile_plots, rates

    given, nothing = {name: table for name, table in tables.items() if len(table)}, pd.DataFrame()
    return {
        "Ranking": given.get("ranking"),
        "Convergence": arranged(curves.draw(runs, given.get("ranking", nothing))),
        "Learning rates": arranged(rates.draw(runs, given.get("stability", nothing), given.get("overall", nothing))),
        "Profiles": arranged(profile_plots.draw(given)),
        "Starts": arranged(maps.draw_plane(runs), across=True),
        "Starts and learning rates": arranged(maps.draw_rates(runs)),
        "Fairness": given.get("fairness"),
        "Targets": given.get("targets"),
    }


def resolution(runs: Runs) -> str:
    """Return notes as HTML: steps between known losses if more than one, targets without a known minimum, omitted seconds."""
    from html import escape

    notes = []
    every: Any = runs.frame.groupby("problem", sort=False)["every"].max()
    if (coarse := every[every > 1]).size:
        steps = ", ".join(f"{count} ({name})" for name, count in coarse.items())
        notes.append(f"The loss of a random problem is its full loss, known every so many steps alone: {steps}.")
        notes.append("Steps and evaluations to its targets are multiples of that (tracking.full_loss_every).")
    if runs.frame["minimum"].isna().any():
        names = ", ".join(map(str, runs.frame.loc[runs.frame["minimum"].isna(), "problem"].unique()[:NAMES]))
        notes.append(f"Targets of {names} are above the lowest loss of these runs, for the minimum is not known; ")
        notes.append("those count that runs of another configuration reach, too.")
    if runs.frame["fused"].any():
        notes.append("Seconds are left out: jobs that share a program have equal shares of its seconds.")
    return escape(" ".join(notes))


def undrawn(runs: Runs) -> str:
    """Return a sentence on how many optimizers are not drawn, since a plot has SLOTS lines; empty if all are drawn."""
    left = runs.frame["optimizer"].nunique() - SLOTS
    if left <= 0:
        return ""
    return f"{some(left, runs.compared)} more: drawn are the {SLOTS} that reach most targets; {CHOICE}."


def arranged(drawn: tuple[list[Any], Any] | None, across: bool = False) -> Any:
    """Return plots below their widgets."""
    # The functions of bokeh.layouts would stretch a map as well.
    from bokeh.models import Column, Row

    if drawn is None:
        return None
    widgets, plots = drawn
    plots = plots if isinstance(plots, list) else [plots]
    wide: Any = {"sizing_mode": "stretch_width"}
    drawings = Row(*plots, stylesheets=[WRAP], **wide) if across else Column(*plots, **wide)
    return Column(Row(*widgets, stylesheets=[WRAP], **wide), drawings, **wide)


def html(table: pd.DataFrame) -> str:
    """Return a table as HTML, with its text escaped; a cell shows a rounded number and holds the exact one for sorting."""
    from html import escape

    def cell(name: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            return f"<td>{escape('' if value is None else str(value))}</td>"
        shown = f"{value:.0%}" if name in SHARES else number(value)
        return f'<td data-v="{value if np.isfinite(value) else "Infinity"}">{shown}</td>'

    heads = "".join(f"<th>{escape(str(name).replace('_', ' '))}</th>" for name in table)
    rows = "".join(f"<tr>{''.join(map(cell, table, row))}</tr>" for row in table.itertuples(index=False, name=None))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
