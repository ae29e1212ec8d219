"""The folders that this package writes into, each marked as its own, and what may be removed from them.

A folder of the user's is never written into: what lies there under the name of one of a run's files would be replaced.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.errors import UserError

MARK = ".runner"
TEXT = b"This folder is tf-runner's: a run or a report that is made here again replaces the files of the one before.\n"
# Bytes of a file that are read to tell whose it is.
ENOUGH = 2**16
# Of releases that had no mark: the names in the folder of a run, a sweep and a report, and a file that is always there.
RUN = r"\.hydra|[\w.-]+\.log|console\.txt|checkpoint|report\.(html|png)|trajectory\.parquet|spool(-\w+)?|lock"
BEFORE = (
    (RUN, ".hydra/hydra.yaml"),
    (r"multirun\.yaml|optimization_results\.yaml|[^.]*|\.submitit", "multirun.yaml"),
    (r"report\.html|(ranking|stability)\.png|tables", "tables/fairness.csv"),
)
# How that file is known.
EVIDENCE = re.compile(rb"app_name: runner|\A[a-z_]+(,[a-z_]+)*\n")
# The files of a checkpoint, which is a folder named after its step; those that TensorFlow leaves where it is killed among them.
STEP = re.compile(r"\d+(\.tmp)?")
OF_STEP = re.compile(r"(variables_temp/)?(variables|part-)[\w.-]*|variables_temp|rows\.npz|state\.json|sums\.json")


def claim(folder: Path, remedy: str) -> None:
    """Make a folder, or take one that is empty or already this package's, and mark it; raises UserError for any other one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not ours(folder):
            raise UserError(f"{folder.absolute()} holds files that are not a run's, and is left as it is; {remedy}")
        mark(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; {remedy}") from error


@contextmanager
def unshared() -> Iterator[None]:
    """Make files and folders for their user alone in this block."""
    mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(mask)


def mark(folder: Path) -> None:
    """Mark a folder; another process may be doing the same."""
    file = os.open(folder / MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.write(file, TEXT)
    finally:
        os.close(file)


def ours(folder: Path) -> bool:
    """Tell whether a folder is this package's: by its mark, or as one of a release that had none."""
    if head(folder / MARK, 20) == TEXT[:20]:
        return True
    there = os.listdir(folder)
    return any(
        EVIDENCE.search(head(folder / evidence)) and all(re.fullmatch(names, each) for each in there)
        for names, evidence in BEFORE
    )


def head(path: Path, size: int = ENOUGH) -> bytes:
    """Return the first bytes of a file; none of a link, of what is no file, and of what is not there."""
    try:
        # What is a pipe would be waited for.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(file, size) if stat.S_ISREG(os.fstat(file).st_mode) else b""
    finally:
        os.close(file)


def steps(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints in a folder, those that were not completed among them."""
    with suppress(OSError):
        for each in sorted(folder.iterdir()):
            if STEP.fullmatch(each.name) and each.is_dir() and not each.is_symlink():
                yield each


def remove_step(folder: Path) -> None:
    """Remove a checkpoint: the files that one has, and the folder if nothing else is in it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if OF_STEP.fullmatch(path.relative_to(folder).as_posix()):
            drop(path)
    drop(folder)


def remove_steps(folder: Path) -> None:
    """Remove all checkpoints in a folder, and the folder if nothing else is in it; not where a link leads."""
    if folder.is_symlink():
        return
    for each in steps(folder):
        remove_step(each)
    drop(folder)


def drop(path: Path) -> None:
    """Remove a file or an empty folder, if it is there; a folder with something in it stays."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
