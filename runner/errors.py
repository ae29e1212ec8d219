"""User errors in one line: the place, the given value, the allowed values and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from sysconfig import get_path

# Optional packages, each with the extra that installs it.
EXTRAS = {"tf_keras": "tf-keras", "psycopg": "postgresql", "optuna": "optuna", "cmaes": "optuna"}
EXTRAS |= {"joblib": "joblib", "hydra_plugins.hydra_joblib_launcher": "joblib"}
EXTRAS |= {"ray": "ray", "hydra_plugins.hydra_ray_launcher": "ray"}
EXTRAS |= {"submitit": "slurm", "hydra_plugins.hydra_submitit_launcher": "slurm"}
# Folders without code of the user's: this package and Python's library; and the names of folders of installed packages.
OTHERS = (Path(__file__).parent, Path(get_path("stdlib")))
INSTALLED = {"site-packages", "dist-packages"}


class UserError(Exception):
    """An error that the user can fix; its message is the one line that the user sees."""


class Incompatible(UserError):
    """Choices that are each valid but do not fit together; in a sweep such a job is skipped, not failed."""


def nearest(word: object, known: Iterable[object]) -> str:
    """Return the known words as a clause, after the one that was probably meant."""
    words = sorted(str(each) for each in known)
    close = get_close_matches(str(word), words, 1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + (", ".join(words) or "none")


def place(error: BaseException) -> str | None:
    """Return the last line of the user's code in an exception's traceback (file, line, function); None if there is none."""
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
    """Return an exception's text on one line.

    The line also holds the exception's type, the line of the user's code that raised it, and the extra that installs a missing
    module. A UserError's text needs none of these.
    """
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    extra = EXTRAS.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
    remedy = f"; install it with: pip install 'tf-runner[{extra}]'" if extra else ""
    where = f" ({at})" if (at := place(error)) else ""
    return f"{type(error).__name__}: {text}{where}{remedy}"
