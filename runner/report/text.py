"""Numbers as people read them, and counts of things."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

# From here on a number has no use for decimals.
WHOLE = 1000
# More digits than anybody reads.
LONG = re.compile(r"\d+\.\d{6,}(e[+-]?\d+)?")


def number(value: Any) -> str:
    """Return a number to four digits, all of those before its point, and nothing of what is not known."""
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "∞" if value > 0 else "-∞"
    if (value == round(value) and abs(value) < 1e15) or WHOLE <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def some(count: Any, word: str) -> str:
    """Return a count of things."""
    return f"{number(count)} {word}" if count == 1 else f"{number(count)} {word}s"


def rounded(words: str) -> str:
    """Return words whose long numbers have four digits; those of the tables are exact."""
    return LONG.sub(lambda found: number(float(found[0])), words)
