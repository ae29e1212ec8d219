"""`python -m runner.report [SWEEP]`: which optimizer, at which rate, from where, and how sure; as a page, tables and words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import quick, recorded
from runner.errors import UserError, first_line, nearest
from runner.recorded import SAME, Parser

if TYPE_CHECKING:
    import pandas as pd

    from runner.reports.reading import Runs

FOLDER = Path("outputs/reports")
PAGE = "report.html"
# Runs of a sweep that are reported without being asked for: it takes seconds.
RUNS = 2_000
# What makes a spreadsheet compute what is meant as a name (OWASP, CSV injection).
FORMULA = re.compile(r"^(?=[=+\-@\t\r])")


def parser() -> Parser:
    """Return the command's options."""
    about = (
        "Report a sweep, finished or not, or any other set of runs: a page, tables, two pictures, and the answer in a few "
        "lines; a sweep's own run gets them all."
    )
    made = Parser("report", about)
    what = "a sweep's id, or the beginning of it, or an experiment's name; by default the latest sweep"
    made.add_argument("runs", nargs="?", metavar="SWEEP", help=what)
    made.add_argument("--filter", metavar="CONDITION", help="of MLflow's: \"tags.loss = 'booth' and params.dtype = 'float64'\"")
    made.add_argument("--out", type=Path, metavar="DIR", help=f"where the files go; {FOLDER}/SWEEP")
    by = "compare the values of this key (strategy, optimizer.momentum, …) instead of optimizers"
    made.add_argument("--by", metavar="KEY", help=by)
    return made


def report(words: Sequence[str] | None = None) -> int:
    """Report runs; returns the exit code."""
    chosen = parser().parse_args(words)
    client = recorded.client(chosen.tracking_uri)
    from runner.reports import selection

    selected = selection.select(client, chosen.runs, chosen.filter)
    whole = selected.parent is not None and chosen.filter is None and chosen.by is None
    lines = made(client, selected, chosen.out, by=chosen.by, log=whole)
    print("\n".join(lines))
    return SAME


def made(
    client: Any,
    selected: Any,
    out: Path | None = None,
    *,
    known: Mapping[str, Any] | None = None,
    by: str | None = None,
    log: bool,
) -> list[str]:
    """Write a report's files, log them to the sweep's run where `log`, and return the answer in lines, with the page's path.

    `known` are facts of the losses, where somebody has them at hand.
    """
    from runner.reports import answer, facts, page, reading, selection

    found, files = selection.records(client, selected.ids), reading.Files(client)
    known = facts.of(reading.configs(found, files)) if known is None else known
    runs = reading.read(found, files, known, selected)
    runs = runs if by is None else compared_by(runs, by)
    tables = computed(runs)
    text = answer.text(runs, tables)
    out = out or FOLDER / (selected.parent or re.sub(r"[^\w.-]+", "-", runs.title))
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(page.page(runs, tables, text))
    paths = [out / PAGE, *pictures(out, tables), *written(out / "tables", tables | {"runs": listed(runs)})]
    if log:
        for path in paths:
            folder = path.parent.relative_to(out).as_posix()
            client.log_artifact(selected.parent, str(path), None if folder == "." else folder)
    return [*text.splitlines(), f"report: {out / PAGE} (tables in {out / 'tables'})"]


def compared_by(runs: Runs, key: str) -> Runs:
    """Return runs whose groups are the values of a key in place of optimizers; raises UserError where they do not differ."""
    column = key if key in runs.frame else f"p.{key}"
    if column not in runs.frame:
        known = [name.removeprefix("p.") for name in runs.frame if name.startswith("p.")]
        raise UserError(f"--by must name what differs among the runs, got {key!r}; {nearest(key, known)}")
    labels = runs.frame[column].map(lambda value: f"{key}={value}")
    return replace(runs, frame=runs.frame.assign(optimizer=labels))


def computed(runs: Runs) -> dict[str, pd.DataFrame]:
    """Return all tables of a report, by name."""
    from runner.reports import fairness, profiles, ranking, stability

    tables = ranking.tables(runs)
    tables |= profiles.tables(runs, tables["overall"])
    tables["stability"] = stability.table(runs)
    return tables | {"fairness": fairness.table(runs, tables["stability"])}


def listed(runs: Runs) -> pd.DataFrame:
    """Return the runs with their steps to each target."""
    steps = {f"steps_to_{target:.0e}": runs.to_target["steps"][:, i] for i, target in enumerate(runs.targets)}
    return runs.frame.assign(**steps).reset_index()


def pictures(out: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Draw what there is to draw, and return the files."""
    from runner.reports import figures

    drawn = {"ranking": figures.ranking, "stability": figures.stability}
    return [path for name, draw in drawn.items() if draw(path := out / f"{name}.png", tables[name])]


def written(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write tables as CSV and as Parquet, and return the files."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, table in tables.items():
        paths += [folder / f"{name}.csv", folder / f"{name}.parquet"]
        safe(table).to_csv(paths[-2], index=False)
        table.to_parquet(paths[-1], index=False)
    return paths


def safe(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose words no spreadsheet takes for formulas; numbers stay."""
    words = table.select_dtypes(exclude=["number", "bool"])
    quoted = {
        name: table[name].map(lambda value: FORMULA.sub("'", value) if isinstance(value, str) else value) for name in words
    }
    return table.assign(**quoted)


def losses(uri: str, run_id: str) -> dict[str, str]:
    """Return the configurations that name the losses of a sweep's runs, of one that `of_sweep` reports."""
    from runner.reports import reading, selection

    client = recorded.client(uri)
    selected = selection.sweep(client, client.get_run(run_id))
    if not at_hand(client, selected):
        return {}
    return reading.configs(selection.records(client, selected.ids), reading.Files(client))


def of_sweep(uri: str, run_id: str, fields: Mapping[str, Any] | None) -> list[str]:
    """Report a sweep that has ended, in lines; of one that takes long, or goes wrong, the line says by which command."""
    again = f"python -m runner.report {run_id}"
    try:
        from runner.reports import facts, selection

        client = recorded.client(uri)
        selected = selection.sweep(client, client.get_run(run_id))
        if not at_hand(client, selected):
            return [f"report: {again}"]
        known = None if fields is None else {key: facts.Fact.read(each) for key, each in fields.items()}
        return made(client, selected, known=known, log=True)
    except Exception as error:
        return [f"the report cannot be made: {first_line(error)}; again: {again}"]


def at_hand(client: Any, selected: Any) -> bool:
    """Tell whether runs are quickly read: of a server each would be fetched."""
    return hasattr(client._tracking_client.store, "engine") and len(selected.ids) <= RUNS


def main() -> int:
    """Return the exit code: 0, or 2 where there is nothing to report."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return recorded.answered(report)


if __name__ == "__main__":
    quick.leave(main())
