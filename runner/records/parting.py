"""Where two runs part, as text and as a picture."""

from __future__ import annotations

from pathlib import Path

from runner.errors import UserError
from runner.records import Recorded, compare
from runner.records.compare import QUANTITIES, Comparison
from runner.security import secrets

FOLDER = Path("outputs/diffs")


TOLERANCE = (
    "how far apart the same may be, relative to the largest that a quantity has been so far in either run; 0: not a bit; "
    f"by default {compare.ROUNDINGS} roundings of the coarser dtype"
)


def draw(path: Path | None, found: Comparison, a: Recorded, b: Recorded) -> None:
    """Draw the losses of two runs and their differences, and print the picture's path."""
    from runner.records import picture

    path = path or FOLDER / f"{a.run_id[:8]}-{b.run_id[:8]}.png"
    picture.parting(path, found, (a, b))
    secrets.tell(f"picture: {path}")


def compared(a: Recorded, b: Recorded, tolerance: float | None) -> Comparison:
    """Return the comparison of two runs' rows; raises UserError if they cannot be compared."""
    if tolerance is None:
        tolerance = compare.default_tolerance(a.rows, b.rows)
    try:
        return compare.compare(a.rows, b.rows, tolerance)
    except ValueError as error:
        raise UserError(f"the runs cannot be compared: {error}") from error


def told(found: Comparison) -> str:
    """Return a text about where two runs part and how far apart they are."""
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
    """Return one line about where two runs part."""
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
