"""`python -m runner.diff A B`: where two recorded runs part, by what, and what they differ in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner import records
from runner.config import parameters
from runner.errors import UserError
from runner.records import DIFFERENT, SAME, Parser, Recorded, compare
from runner.records.compare import QUANTITIES, Comparison
from runner.security import secrets, streams
from runner.security.names import present

# Characters of a value that a line has room for.
WIDTH = 60
FOLDER = Path("outputs/diffs")
TOLERANCE = (
    "how far apart the same may be, relative to the largest that a quantity has been so far in either run; 0: not a bit; "
    f"by default {compare.ROUNDINGS} roundings of the coarser dtype"
)


def parser() -> Parser:
    """Return the command's options."""
    about = "Say where two runs part, and draw it. Exit code 0: they are the same, 1: they differ, 2: it cannot be told."
    made = Parser("diff", about, TOLERANCE)
    made.add_argument("runs", nargs=2, metavar="RUN", help="a run's id, or the beginning of it")
    made.add_argument("--picture", type=Path, metavar="FILE", help=f"where the picture goes; {FOLDER}/A-B.png")
    return made


def report(words: Sequence[str] | None = None) -> int:
    """Print in what two runs differ and where they part; returns the exit code."""
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


def draw(path: Path | None, found: Comparison, a: Recorded, b: Recorded) -> None:
    """Draw two runs' losses and how far apart they come, and say where the picture is."""
    from runner.records import picture

    path = path or FOLDER / f"{a.run_id[:8]}-{b.run_id[:8]}.png"
    picture.parting(path, found, (a, b))
    secrets.tell(f"picture: {path}")


def compared(a: Recorded, b: Recorded, tolerance: float | None) -> Comparison:
    """Compare two runs' rows; raises UserError where they have nothing to compare."""
    if tolerance is None:
        tolerance = compare.default_tolerance(a.rows, b.rows)
    try:
        return compare.compare(a.rows, b.rows, tolerance)
    except ValueError as error:
        raise UserError(f"the runs cannot be compared: {error}") from error


def differences(a: Recorded, b: Recorded) -> str:
    """Return a table of the parameters, the versions and the ending in which two runs differ."""
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
    """Return a value at the length that a line has room for."""
    return value if len(value) <= WIDTH else f"{value[: WIDTH - 1]}…"


def told(found: Comparison) -> str:
    """Say where two runs part and how far apart they come."""
    import pandas as pd

    rows = []
    for name, each in found.quantities.items():
        at, far = each.parts_at, each.farthest
        size = each.relative[far]
        rows.append((name, "-" if at is None else at, f"{each.apart[far]:.3g}", far, f"{size:.3g}"))
    columns = ["quantity", "parts at step", "largest difference", "at step", "of its size"]
    table = pd.DataFrame(rows, columns=columns).to_string(index=False)
    return f"{sentence(found)}\n\n{table}\n"


def sentence(found: Comparison) -> str:
    """Say in a line where two runs part."""
    shorter, longer = sorted(found.rows)
    of = (
        ""
        if shorter == longer
        else f"; {'A' if found.rows[0] == longer else 'B'} goes on from step {shorter - 1} to {longer - 1}"
    )
    within = f"within {found.tolerance:.3g}" if found.tolerance else "bit for bit"
    if found.parting is None:
        return f"the same {within}, in all {shorter} rows{' that both have' if of else ''}{of}"
    row, name = found.parting
    each = found.quantities[name]
    with_it = [other for other in QUANTITIES if other != name and found.quantities[other].parts_at == row]
    also = f", and so do {', '.join(with_it)}" if len(with_it) > 1 else f", and so does {with_it[0]}" if with_it else ""
    what = f"the update that led there, x[{row}] - x[{row - 1}]," if name == "update" else name
    far = f"is {each.apart[row]:.3g} apart, {each.relative[row]:.3g} of its size"
    return f"they part at step {row}: {what} {far}{also} (not {within}){of}"


def main() -> int:
    """Return the exit code: 0 where two runs are the same, 1 where they differ, 2 where it cannot be told."""
    return records.answered(report)


if __name__ == "__main__":
    streams.command(main)
