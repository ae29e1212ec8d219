"""Measure every part beside its peer, in about ten minutes, and write README.md's table and the charts in outputs/gallery."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import readme

from benchmarks import charts, kills, limits, loop, recording, report, wall, workers
from benchmarks.charts import Panel
from benchmarks.measure import Row

PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "loop": loop.compiled,
    "eager": loop.eager,
    "sqlite": recording.sqlite,
    "postgresql": recording.postgresql,
    "http": recording.http,
    "process": wall.process,
    "second_job": wall.second_job,
    "long": wall.long,
    "sweep": wall.sweep,
}
CHARTS: dict[str, Callable[[bool], list[Panel]]] = {"speed_loop": loop.curves, "speed_recording": recording.curves}
# Lines of Markdown, which README.md has under the same name.
NOTES: dict[str, Callable[[bool], Iterator[str]]] = {"limits": limits.lines}
# The same, but measured only where they are asked for: they take longer than all the others.
APART: dict[str, Callable[[bool], Iterator[str]]] = {"workers": workers.lines, "kills": kills.lines}
GALLERY = readme.ROOT / "outputs" / "gallery"


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is asked for and print it; the table goes into README.md where that is everything."""
    chosen, quick = arguments(words)
    print(report.setting(), report.HEAD, sep="\n\n", flush=True)
    rows = []
    for name in (name for name in PARTS if name in chosen):
        for row in PARTS[name](quick):
            print(report.line(row), flush=True)
            rows.append(row)
    notes = dict.fromkeys((name for name in NOTES | APART if name in chosen), "")
    for name in notes:
        for line in (NOTES | APART)[name](quick):
            print(line, flush=True)
            notes[name] += f"{line}\n"
    with tempfile.TemporaryDirectory() as scratch:
        for name in (name for name in CHARTS if name in chosen):
            path = (Path(scratch) if quick else GALLERY) / f"{name}.png"
            charts.draw(CHARTS[name](quick), path)
            print(f"drawn: {path.name}", flush=True)
    if quick:
        return
    if chosen == {*PARTS, *NOTES, *CHARTS}:
        readme.replace("benchmarks", report.text(rows))
    for name, text in notes.items():
        readme.replace(name, text)


def arguments(words: Sequence[str] | None) -> tuple[set[str], bool]:
    """Return the names of what is to be measured, and whether quickly."""
    names = [*PARTS, *NOTES, *CHARTS]
    apart = f"; or {', '.join(APART)}, which is no part of the whole"
    parser = argparse.ArgumentParser("tests/benchmarks", description=__doc__)
    parser.add_argument(
        "--only", metavar="NAME,…", help=f"these alone, README.md's table stays as it is: {', '.join(names)}{apart}"
    )
    parser.add_argument("--quick", action="store_true", help="next to no work: shows that it runs, and writes nothing")
    args = parser.parse_args(words)
    chosen = set(args.only.split(",") if args.only else names)
    if unknown := chosen - {*names, *APART}:
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return chosen, args.quick
