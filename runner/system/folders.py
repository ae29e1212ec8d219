"""The folders that this package writes into, each with a mark, and the files that may be removed from them.

The user's own folders are never written into: a run's files would replace files with the same names there.
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
# Number of bytes that are read to find out whether this package wrote a file.
ENOUGH = 2**16
# Releases without a mark: the names in a run's, a sweep's and a report's folder, and a file that is always there.
RUN = r"\.hydra|[\w.-]+\.log|console\.txt|checkpoint|report\.(html|png)|trajectory\.parquet|spool(-\w+)?|lock"
BEFORE = (
    (RUN, ".hydra/hydra.yaml"),
    (r"multirun\.yaml|optimization_results\.yaml|[^.]*|\.submitit", "multirun.yaml"),
    (r"report\.html|(ranking|stability)\.png|tables", "tables/fairness.csv"),
)
# The content by which that file is recognised.
EVIDENCE = re.compile(rb"app_name: runner|\A[a-z_]+(,[a-z_]+)*\n")
# A checkpoint is a folder named after its step. A killed TensorFlow leaves temporary files in it.
STEP = re.compile(r"\d+(\.tmp)?")
OF_STEP = re.compile(r"(variables_temp/)?(variables|part-)[\w.-]*|variables_temp|rows\.npz|state\.json|sums\.json")


def claim(folder: Path, remedy: str) -> None:
    """Create a folder, or take an empty one or one of this package's, and mark it; raises UserError for any other folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not ours(folder):
            raise UserError(f"{folder.absolute()} holds files that are not a run's, and is left as it is; {remedy}")
        mark(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; {remedy}") from error


@contextmanager
def unshared() -> Iterator[None]:
    """Create files and folders for their user alone in this block."""
    mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(mask)


def mark(folder: Path) -> None:
    """Mark a folder; another process may mark it at the same time."""
    file = os.open(folder / MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.write(file, TEXT)
    finally:
        os.close(file)


def ours(folder: Path) -> bool:
    """Return whether a folder is this package's: by its mark, or by its content if it is of a release without marks."""
    if head(folder / MARK, 20) == TEXT[:20]:
        return True
    there = os.listdir(folder)
    return any(
        EVIDENCE.search(head(folder / evidence)) and all(re.fullmatch(names, each) for each in there)
        for names, evidence in BEFORE
    )


def head(path: Path, size: int = ENOUGH) -> bytes:
    """Return the first bytes of a regular file; empty for a link, for any other kind of file, and for a missing file."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(file, size) if stat.S_ISREG(os.fstat(file).st_mode) else b""
    finally:
        os.close(file)


def steps(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints in a folder, incomplete ones included."""
    with suppress(OSError):
        for each in sorted(folder.iterdir()):
            if STEP.fullmatch(each.name) and each.is_dir() and not each.is_symlink():
                yield each


def remove_step(folder: Path) -> None:
    """Remove the files of a checkpoint, and its folder if nothing else is in it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if OF_STEP.fullmatch(path.relative_to(folder).as_posix()):
            drop(path)
    drop(folder)


def remove_steps(folder: Path) -> None:
    """Remove all checkpoints in a folder, and the folder if nothing else is in it; a link is not followed."""
    if folder.is_symlink():
        return
    for each in steps(folder):
        remove_step(each)
    drop(folder)


def drop(path: Path) -> None:
    """Remove a file or an empty folder, if it exists; a folder that is not empty stays."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
