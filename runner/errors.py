"""A mistake of the user's, told in one line: where, what came, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from sysconfig import get_path

# The extra that brings a package which not everyone needs.
EXTRAS = {"tf_keras": "tf-keras", "psycopg": "postgresql", "optuna": "optuna", "cmaes": "optuna"}
EXTRAS |= {"joblib": "joblib", "hydra_plugins.hydra_joblib_launcher": "joblib"}
EXTRAS |= {"ray": "ray", "hydra_plugins.hydra_ray_launcher": "ray"}
EXTRAS |= {"submitit": "slurm", "hydra_plugins.hydra_submitit_launcher": "slurm"}
# Folders of what is not the user's: this package and Python's library; and names of those that hold what is installed.
OTHERS = (Path(__file__).parent, Path(get_path("stdlib")))
INSTALLED = {"site-packages", "dist-packages"}


class UserError(Exception):
    """What the user can mend; its message is the one line that they see."""


class Incompatible(UserError):
    """Choices that are each right and cannot go together; in a sweep such a job is skipped, and none that failed."""


def nearest(word: object, known: Iterable[object]) -> str:
    """Return the legal words as a clause, led by the one that was probably meant."""
    words = sorted(str(each) for each in known)
    close = get_close_matches(str(word), words, 1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + (", ".join(words) or "none")


def place(error: BaseException) -> str | None:
    """Return the last line of the user's own code on an exception's way: file, line and function; None where it has none."""
    found, at = None, error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        file = Path(code.co_filename)
        if file.is_absolute() and not any(file.is_relative_to(each) for each in OTHERS) and not INSTALLED & {*file.parts}:
            shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
            found = f"{shown}, line {at.tb_lineno}, in {code.co_name}"
        at = at.tb_next
    return found


def first_line(error: BaseException) -> str:
    """Return an exception's text on one line, with its type, the line of the user's own code that it came from, and the extra
    that a missing module needs.
    """
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    extra = EXTRAS.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
    remedy = f"; install it with: pip install 'tf-runner[{extra}]'" if extra else ""
    where = f" ({at})" if (at := place(error)) else ""
    return f"{type(error).__name__}: {text}{where}{remedy}"
