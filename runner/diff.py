"""`python -m runner.diff A B`: the step and the quantity in which two recorded runs part, and their differing settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner import records
from runner.config import parameters
from runner.records import DIFFERENT, SAME, Parser, Recorded
from runner.records.parting import FOLDER, TOLERANCE, compared, draw, told
from runner.security import secrets, streams
from runner.security.names import present

# Characters of a value that are shown in a line.
WIDTH = 60


def parser() -> Parser:
    """Return the command's options."""
    about = "Say where two runs part, and draw it. Exit code 0: they are the same, 1: they differ, 2: it cannot be told."
    made = Parser("diff", about, TOLERANCE)
    made.add_argument("runs", nargs=2, metavar="RUN", help="a run's id, or the beginning of it")
    made.add_argument("--picture", type=Path, metavar="FILE", help=f"where the picture goes; {FOLDER}/A-B.png")
    return made


def report(words: Sequence[str] | None = None) -> int:
    """Print how two runs differ and where they part; return the exit code."""
    chosen = parser().parse_args(words)
    client = records.client(chosen.tracking_uri)
    a, b = (records.read(client, each) for each in chosen.runs)
    for letter, run in (("A", a), ("B", b)):
        secrets.tell(f"{letter}  {run.run_id}  {run.name}")
    secrets.tell_lines(f"\n{differences(a, b)}")
    found = compared(a, b, chosen.tolerance)
    secrets.tell_lines(told(found))
    draw(chosen.picture, found, a, b)
    return SAME if found.equal else DIFFERENT


def differences(a: Recorded, b: Recorded) -> str:
    """Return a table of the parameters, versions and endings in which two runs differ."""
    import pandas as pd

    ended = ("ending", "stopped_by")
    said = [
        {key: value for key, value in present(run.params).items() if parameters.is_param(key)}
        | run.versions
        | {key: run.tags[key] for key in ended if key in run.tags}
        for run in (a, b)
    ]
    table = pd.DataFrame(dict(zip("AB", said, strict=True)), dtype=object).fillna("-")
    table = table[table["A"] != table["B"]].map(short)
    if table.empty:
        return "configuration, versions and ending are the same\n"
    return table.to_string() + "\n"


def short(value: str) -> str:
    """Return a value, shortened to WIDTH characters."""
    return value if len(value) <= WIDTH else f"{value[: WIDTH - 1]}…"


def main() -> int:
    """Return the exit code: 0 if two runs are the same, 1 if they differ, 2 if they cannot be compared."""
    return records.answered(report)


if __name__ == "__main__":
    streams.command(main)
