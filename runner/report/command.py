"""`python -m runner.report [SWEEP]`: compare optimizers and learning rates, with confidence, as a page, tables and text."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import records
from runner.errors import UserError, first_line, nearest
from runner.records import SAME, Parser
from runner.security import secrets
from runner.system import folders
from runner.tracking.store import artifacts

if TYPE_CHECKING:
    import pandas as pd

    from runner.report.tables.reading import Runs

FOLDER = Path("outputs/reports")
PAGE = "report.html"
# First characters by which a spreadsheet takes a text for a formula (OWASP, CSV injection).
FORMULA = re.compile(r"^(?=[=+\-@\t\r])")


def parser() -> Parser:
    """Return the parser of the command's options."""
    about = (
        "Report a sweep, finished or not, or any other set of runs: a page, tables, two pictures, and the answer in a few "
        "lines; a sweep's own run gets them all."
    )
    made = Parser("report", about)
    what = "a sweep's id, or the beginning of it, or an experiment's name; by default the latest sweep"
    made.add_argument("runs", nargs="?", metavar="SWEEP", help=what)
    made.add_argument("--filter", metavar="CONDITION", help="of MLflow's: \"tags.loss = 'booth' and params.dtype = 'float64'\"")
    made.add_argument("--out", type=Path, metavar="DIR", help=f"where the files go; {FOLDER}/SWEEP")
    by = "compare the values of this key (strategy, optimizer.momentum, …) instead of methods"
    made.add_argument("--by", metavar="KEY", help=by)
    return made


def report(words: Sequence[str] | None = None) -> int:
    """Report runs, and return the exit code."""
    chosen = parser().parse_args(words)
    client = records.client(chosen.tracking_uri)
    from runner.report.tables import selection

    selected = selection.select(client, chosen.runs, chosen.filter)
    whole = selected.parent is not None and chosen.filter is None and chosen.by is None
    lines = made(client, selected, chosen.out, by=chosen.by, log=whole)
    secrets.tell_lines("\n".join(lines))
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
    """Write a report's files, and return the answer in lines, with the page's path.

    If `log` is true, the files are logged to the sweep's run too. `known` are the facts of the losses, if the caller has them.
    """
    from runner.report import page
    from runner.report.tables import answer, facts, losses, reading, selection

    began = time.monotonic()
    found = selection.records(client, selected)
    known = facts.of(losses.configs(client, found)) if known is None else known
    runs = reading.read(client, found, known, selected)
    runs = runs if by is None else compared_by(runs, by)
    tables = computed(runs)
    text = answer.text(runs, tables)
    folder = out or FOLDER / (selected.parent or re.sub(r"[^\w.-]+", "-", runs.title))
    folders.claim(folder, "name a new or empty one with --out DIR")
    (folder / PAGE).write_text(page.page(runs, tables, text), encoding="utf-8")
    paths = [folder / PAGE, *pictures(folder, tables), *written(folder / "tables", tables | {"runs": listed(runs)})]
    if log:
        for path in paths:
            below = path.parent.relative_to(folder).as_posix()
            artifacts.log(client, selected.parent, path, None if below == "." else below)
    took = f"made in {time.monotonic() - began:.1f} s"
    return [*text.splitlines(), f"report: {folder / PAGE} (tables in {folder / 'tables'}; {took})"]


def compared_by(runs: Runs, key: str) -> Runs:
    """Return the runs grouped by the values of a key instead of by methods; raise UserError if the runs do not differ in it.

    The column `choice` still holds the optimizers of the runs.
    """
    column = key if key in runs.frame else f"p.{key}"
    if column not in runs.frame:
        known = [name.removeprefix("p.") for name in runs.frame if name.startswith("p.")]
        raise UserError(f"--by must name what differs among the runs, got {key!r}; {nearest(key, known)}")
    labels = runs.frame[column].map(lambda value: f"{key}={value}")
    return replace(runs, frame=runs.frame.assign(optimizer=labels), compared="group")


def computed(runs: Runs) -> dict[str, pd.DataFrame]:
    """Return all tables of a report, by name."""
    from runner.report.tables import fairness, profiles, ranking, stability

    tables = ranking.tables(runs)
    tables |= profiles.tables(runs, tables["overall"])
    tables["stability"] = stability.table(runs)
    return tables | {"fairness": fairness.table(runs, tables["stability"])}


def listed(runs: Runs) -> pd.DataFrame:
    """Return the runs with their steps to each target."""
    steps = {f"steps_to_{target:.0e}": runs.to_target["steps"][:, i] for i, target in enumerate(runs.targets)}
    return runs.frame.assign(**steps).reset_index()


def pictures(out: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Draw the two pictures, and return the files; a picture without data is left out."""
    from runner.report.page import figures

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
    """Return the table with its texts quoted, so that no spreadsheet takes them for formulas; numbers stay unchanged."""
    words = table.select_dtypes(exclude=["number", "bool"])
    quoted = {
        name: table[name].map(lambda value: FORMULA.sub("'", value) if isinstance(value, str) else value) for name in words
    }
    return table.assign(**quoted)


def configurations(uri: str, run_id: str) -> dict[str, str]:
    """Return the configuration of one run of each loss in a sweep, as YAML."""
    from runner.report.tables import losses, selection

    client, selected = sweep(uri, run_id)
    return losses.configs(client, selection.records(client, selected))


def of_sweep(uri: str, run_id: str, fields: Mapping[str, Any] | None) -> list[str]:
    """Report a sweep that has ended, and return lines; on failure, return one line with the error and the command to retry."""
    try:
        from runner.report.tables import facts

        known = None if fields is None else {key: facts.Fact.read(each) for key, each in fields.items()}
        return made(*sweep(uri, run_id), known=known, log=True)
    except Exception as error:
        return [f"the report cannot be made: {first_line(error)}; again: {command(uri, run_id)}"]


@lru_cache(maxsize=1)
def sweep(uri: str, run_id: str) -> tuple[Any, Any]:
    """Return a client and the runs of a sweep that has ended; cached, because the launcher asks for them twice."""
    from runner.report.tables import selection

    client = records.client(uri)
    selected = selection.sweep(client, client.get_run(run_id))
    found = selection.records(client, selected)
    return client, selected._replace(found={each.run_id: each for each in found})


def command(uri: str, run_id: str) -> str:
    """Return the command that reports a sweep."""
    where = [] if uri == records.where() else ["--tracking-uri", uri]
    return shlex.join(["python", "-m", "runner.report", run_id, *where])


def main() -> int:
    """Run the command, and return the exit code: 0, or 2 if there is nothing to report."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return records.answered(report)
