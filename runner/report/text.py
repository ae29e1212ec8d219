"""Numbers and counts as text for people."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

# Numbers from this size on are shown without decimals.
WHOLE = 1000
# A number with more digits than a reader needs.
LONG = re.compile(r"\d+\.\d{6,}(e[+-]?\d+)?")


def number(value: Any) -> str:
    """Return a number as text with four digits, or with all digits before the point if there are more; a dash for NaN."""
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "∞" if value > 0 else "-∞"
    if (value == round(value) and abs(value) < 1e15) or WHOLE <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def some(count: Any, word: str) -> str:
    """Return a count with its noun, in the plural unless the count is 1."""
    return f"{number(count)} {word}" if count == 1 else f"{number(count)} {word}s"


def rounded(words: str) -> str:
    """Return the text with long numbers rounded to four digits; the tables keep the exact numbers."""
    return LONG.sub(lambda found: number(float(found[0])), words)
