"""What an interrupted run is continued from: its variables, saved by TensorFlow, and the loop's own state beside them.

A checkpoint is a folder named after its step, which gets that name when all in it is written; the one before is kept.
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
# The rows that a state holds.
TRACES = ("best", "before", "earlier")


class Damaged(Exception):
    """A checkpoint that is not what was saved; the message names the file."""


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    What `program` holds is saved each time that so many seconds have passed (None: only when told).
    """

    def __init__(self, folder: Path, program: Program, every_seconds: float | None) -> None:
        self.folder, self.program, self.every = folder, program, every_seconds
        self.parts = parts(program)
        self.saved, self.step = time.monotonic(), 0

    def save(self, state: State, now: bool) -> None:
        """Save where a run is, if that is due, or `now`; nothing that has been saved already, nor what cannot be.

        Raises UserError where there is no room for it.
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
        """Give the program the newest state that is whole, no later than the rows recorded, and return the loop's part.

        None where there is none to be had, and the run is to take its steps again. Raises UserError where there were
        checkpoints and none is whole, or where another user may have written them.
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
        """Remove all: the run has its result."""
        folders.remove_steps(self.folder)

    def failed(self, error: type[BaseException] | None, *_: Any) -> None:
        """Remove all where a run has ended by an error, after which it is not continued; called as a block's exit is."""
        if error is not None and issubclass(error, Exception):
            self.remove()


def put(folder: Path, step: int, saved: Mapping[str, Any], finish: Callable[[Path], None]) -> None:
    """Save variables, and what `finish` writes beside them, as the checkpoint of a step; the one before is kept."""
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
    """Return the newest checkpoint that is whole with what is read of it, or None where there is none.

    What is later, or was not completed, is removed. Raises UserError where there are some and none is whole.
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
    """Give variables the values of a checkpoint."""
    tf.train.Checkpoint(**saved).read(str(folder / VARIABLES)).assert_existing_objects_matched()


def forget(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps than this one."""
    for each in steps(folder):
        if each > step:
            folders.remove_step(folder / str(each))


def steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, the latest first."""
    return sorted((int(path.name) for path in folders.steps(folder) if not path.suffix), reverse=True)


def parts(program: Program) -> dict[str, Any] | None:
    """Return what of a program is saved, or None where it has state that no variable holds."""
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
    """Raise Damaged unless a checkpoint's files are those that were written, byte for byte, and no others."""
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
    """Raise UserError for a folder in which another user may have written."""
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
    """Have a file, or a folder's list of names, on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
