"""A mistake of the user's, told in one line: where, what came, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """What the user can mend; its message is the one line that they see."""


def nearest(word: object, known: Iterable[object]) -> str:
    """Return the legal words as a clause, led by the one that was probably meant."""
    words = sorted(str(each) for each in known)
    close = get_close_matches(str(word), words, 1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + (", ".join(words) or "none")


def first_line(error: BaseException) -> str:
    """Return an exception's text on one line, its type before it where the text alone would not tell."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
