"""Checkpoints: an interrupted run resumes from its variables, saved by TensorFlow, and from the loop's state beside them.

A checkpoint is a folder named after its step; it gets this name when it is complete. The checkpoint before it is retained.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from runner.errors import UserError, first_line
from runner.executions.cache import Program
from runner.loop import State
from runner.optimizers import NoOptimizer
from runner.system import folders
from runner.trace import Trace

T = TypeVar("T")
KEPT = 2
VARIABLES, ROWS, STATE, SUMS = "variables", "rows.npz", "state.json", "sums.json"
FILES = {f"{VARIABLES}.index", f"{VARIABLES}.data-00000-of-00001", ROWS, STATE}
# The attributes of the loop's state that hold rows.
TRACES = ("best", "before", "earlier")


class Damaged(Exception):
    """A checkpoint's files differ from the saved ones; the message names the file."""


class Checkpoints:
    """The checkpoints of one run, in a separate folder.

    The variables of `program` are saved every `every_seconds` seconds (None: only on a signal).
    """

    def __init__(self, folder: Path, program: Program, every_seconds: float | None) -> None:
        self.folder, self.program, self.every = folder, program, every_seconds
        self.parts = parts(program)
        self.saved, self.step = time.monotonic(), 0

    def save(self, state: State, now: bool) -> None:
        """Save the state of a run if a checkpoint is due, or if `now`.

        Nothing is saved if this step is saved already, or if the program has state outside variables. Raises UserError if the
        checkpoint cannot be written.
        """
        due = now or (self.every is not None and time.monotonic() - self.saved >= self.every)
        if self.parts is None or not due or state.step == self.step:
            return
        try:
            put(self.folder, state.step, self.parts, lambda new: write(state, new))
        except (OSError, tf.errors.OpError) as error:
            free = shutil.disk_usage(next(each for each in self.folder.parents if each.exists())).free
            raise UserError(
                f"checkpoint: {self.folder} cannot be written: {first_line(error)} ({free} bytes are free); make room there, "
                "or set hydra.run.dir=another folder"
            ) from error
        self.saved, self.step = time.monotonic(), state.step

    def restore(self, recorded: int) -> State | None:
        """Restore the program from the newest whole checkpoint within the `recorded` rows, and return the loop's state.

        None if there is no checkpoint, so the run takes its steps again. Raises UserError if all checkpoints are damaged, or if
        another user may have written them.
        """
        if self.parts is None or not self.folder.is_dir():
            return None
        own(self.folder)
        forget(self.folder, recorded)
        if (found := newest(self.folder, read)) is None:
            return None
        folder, state = found
        self.program.execution.restart(state.step)
        fill(self.parts, folder)
        self.step = state.step
        return state

    def remove(self) -> None:
        """Remove all checkpoints: the run has its result."""
        folders.remove_steps(self.folder)

    def failed(self, error: type[BaseException] | None, *_: Any) -> None:
        """Remove all checkpoints of a run that ended with an error, because it is not resumed; called like `__exit__`."""
        if error is not None and issubclass(error, Exception):
            self.remove()


def put(folder: Path, step: int, saved: Mapping[str, Any], finish: Callable[[Path], None]) -> None:
    """Save variables, and the files that `finish` writes beside them, as the checkpoint of a step; retain the one before."""
    new = folder / f"{step}.tmp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own(folder)
    folders.remove_step(new)
    new.mkdir(mode=0o700)
    tf.train.Checkpoint(**saved).write(str(new / VARIABLES))
    finish(new)
    (new / SUMS).write_text(json.dumps({name: digest(new / name) for name in sorted(FILES)}), encoding="utf-8")
    for path in (*new.iterdir(), new):
        flush(path)
    new.rename(folder / str(step))
    flush(folder)
    for each in steps(folder)[KEPT:]:
        folders.remove_step(folder / str(each))


def newest(folder: Path, read: Callable[[Path], T]) -> tuple[Path, T] | None:
    """Return the newest whole checkpoint and the state that `read` returns for it, or None if there is no checkpoint.

    Later and incomplete checkpoints are removed. Raises UserError if all checkpoints are damaged.
    """
    for unfinished in folders.steps(folder):
        if unfinished.suffix:
            folders.remove_step(unfinished)
    found = steps(folder)
    for step in found:
        try:
            verify(folder / str(step))
            state = read(folder / str(step))
        except Damaged as damage:
            logging.getLogger(__name__).warning("checkpoint: %s; the one before is looked for", damage)
            continue
        forget(folder, step)
        return folder / str(step), state
    if found:
        raise UserError(f"checkpoint: none of the interrupted run's in {folder} is whole; set resume=false, which starts anew")
    return None


def fill(saved: Mapping[str, Any], folder: Path) -> None:
    """Set variables to the values of a checkpoint."""
    tf.train.Checkpoint(**saved).read(str(folder / VARIABLES)).assert_existing_objects_matched()


def forget(folder: Path, step: int) -> None:
    """Remove the checkpoints of steps later than this one."""
    for each in steps(folder):
        if each > step:
            folders.remove_step(folder / str(each))


def steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, the latest first."""
    return sorted((int(path.name) for path in folders.steps(folder) if not path.suffix), reverse=True)


def parts(program: Program) -> dict[str, Any] | None:
    """Return the variables of a program to save, or None if the program has state outside variables."""
    optimizer, own = program.optimizer, program.execution.variables
    if own is None:
        return None
    found = {"x": program.x, "strategy": list(own)}
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return found | {"optimizer": [variable.value for variable in optimizer.variables]}
    if isinstance(optimizer, NoOptimizer):
        return found | {"optimizer": optimizer.variables}
    if isinstance(optimizer, tf.__internal__.tracking.Trackable):
        return found | {"optimizer": optimizer, "iterations": optimizer.iterations}
    return None


def write(state: State, folder: Path) -> None:
    """Write the loop's part of a checkpoint."""
    rows = {name: trace for name in TRACES if (trace := getattr(state, name)) is not None}
    with (folder / ROWS).open("wb") as file:
        parts = {f"{name}/{key}": part for name, trace in rows.items() for key, part in trace.arrays.items()}
        np.savez(file, allow_pickle=False, **parts)
    starts = {name: trace.start for name, trace in rows.items()}
    fields = {"step": state.step, "clock": state.clock, "pace": state.pace, "starts": starts}
    (folder / STATE).write_text(json.dumps(fields), encoding="utf-8")


def read(folder: Path) -> State:
    """Return the loop's part of a checkpoint."""
    fields = json.loads((folder / STATE).read_text(encoding="utf-8"))
    with np.load(folder / ROWS, allow_pickle=False) as file:
        parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in fields["starts"]}
        for key in file.files:
            name, _, part = key.partition("/")
            parts[name][part] = file[key]
    rows = {name: Trace.from_arrays(start, parts[name]) for name, start in fields["starts"].items()}
    pace = [(step, seconds) for step, seconds in fields["pace"]]
    return State(fields["step"], **rows, clock=fields["clock"], pace=pace)


def verify(folder: Path) -> None:
    """Raise Damaged unless a checkpoint has exactly the files that were written, byte for byte."""
    try:
        own(folder)
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        names = {path.name for path in folder.iterdir()}
        if unlike := sorted(names ^ (FILES | {SUMS})):
            raise Damaged(f"{folder / unlike[0]} is {'missing' if unlike[0] not in names else 'no file of a checkpoint'}")
        for name in sorted(FILES):
            if not stat.S_ISREG((folder / name).lstat().st_mode) or digest(folder / name) != sums.get(name):
                raise Damaged(f"{folder / name} is not what was written")
    except (OSError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder / SUMS} cannot be read ({first_line(error)[:100]})") from error


def own(folder: Path) -> None:
    """Raise UserError for a folder to which another user may have written."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
        raise UserError(
            f"checkpoint: {folder} must be a folder that is yours and that not everyone may write to; set resume=false"
        )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
