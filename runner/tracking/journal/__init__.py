"""The write-ahead journal of a run: a file `spool` in its folder, whose messages are replayed to the tracking store.

The file holds frames: length, CRC-32, time in ms since 1970, and a packed message. Reading ends at the first frame that is cut
or damaged. The next message overwrites that frame.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from runner.errors import UserError
from runner.security import secrets
from runner.system import folders, processes
from runner.trace import Trace
from runner.tracking.journal import messages

FILE, LOCK = "spool", "lock"
HEAD = struct.Struct("<QIq")
# Seconds that a run waits for a process that sends the journal of its folder.
PATIENCE = 30.0
# The form of a run's key, which is also the file name of its outbox entry.
KEY = re.compile(r"[0-9a-f]{32}")
# The start of a lock file.
HOLDER = re.compile(rb'\{"(pid|host)": ')
# Seconds that a new holder of a lock has to write its entry.
UNKNOWN = 1.0
# Rows within so many ms get the same time, so that a store takes them together.
TICK = 500


class Frame(NamedTuple):
    """A message, its time in ms since 1970, and the offset of the next frame."""

    message: messages.Message
    at: int
    end: int


class Spool:
    """The journal of a folder, open for appending."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = secrets.opened(self.path, os.O_APPEND)
        except OSError as error:
            raise UserError(unwritable(self.path, error)) from error
        self.end, self.at = 0, 0
        self.rows_at = 0  # time of the rows that were appended last
        self.recorded = 0  # the step after the last row that the file held when it was opened
        if foreign(self.path):
            os.close(self.file)
            raise UserError(f"{self.path} is not a run's, and is left as it is; remove it, or set hydra.run.dir=another folder")
        with self.path.open("rb") as file:
            for frame in frames(file):
                self.end, self.at = frame.end, frame.at
                if frame.message.word == "record":
                    self.recorded = max(self.recorded, frame.message.fields["start"] + len(frame.message.arrays["loss"]))
        os.ftruncate(self.file, self.end)

    def say(
        self, word: str, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, at: int | None = None
    ) -> None:
        """Append a message with the current time, or with time `at`.

        If it cannot be written, the file stays as before; raises UserError.
        """
        # Times never decrease, even if the clock is set back.
        self.at = max(self.at, time.time_ns() // 1_000_000 if at is None else at)
        if word != "record" or self.at > self.rows_at + TICK:
            self.rows_at = self.at
        message = messages.packed(word, fields, arrays or {})
        rest = memoryview(HEAD.pack(len(message), zlib.crc32(message), self.rows_at) + message)
        try:
            while rest:
                rest = rest[os.write(self.file, rest) :]
        except BaseException as error:
            os.ftruncate(self.file, self.end)
            raise UserError(unwritable(self.path, error)) if isinstance(error, OSError) else error from error
        self.end += HEAD.size + len(message)

    def close(self) -> None:
        """Flush the file to the disk, unless it has been removed, and close it."""
        if os.fstat(self.file).st_nlink:
            os.fdatasync(self.file)
        os.close(self.file)


def unwritable(path: Path, error: OSError) -> str:
    """Return one line that says why a file cannot be written."""
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        room = f" ({shutil.disk_usage(path.parent).free} bytes are free)"
    return f"{path} cannot be written: {error.strerror}{room}; make room there, or set hydra.run.dir=another folder"


def frames(file: BinaryIO, start: int = 0) -> Iterator[Frame]:
    """Yield the frames of an open file from offset `start` on, up to the first that is cut or damaged."""
    size = os.fstat(file.fileno()).st_size
    file.seek(start)
    while len(head := file.read(HEAD.size)) == HEAD.size:
        length, check, at = HEAD.unpack(head)
        start += HEAD.size + length
        if start > size:
            # The length may be damaged, or the file may have grown since its size was read.
            size = os.fstat(file.fileno()).st_size
            if start > size:
                return
        data = file.read(length)
        if zlib.crc32(data) != check:
            return
        yield Frame(messages.unpacked(data), at, start)


def first(path: Path) -> Mapping[str, Any] | None:
    """Return the fields of a journal's `begin` message; None if the journal cannot be read from its start."""
    try:
        with path.open("rb") as file:
            frame = next(frames(file), None)
            return frame.message.fields if frame and frame.message.word == "begin" else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def foreign(path: Path) -> bool:
    """Return whether a file is no journal: not empty, its first frame is unreadable, and its folder is not the runner's."""
    with path.open("rb") as file:
        return next(frames(file), None) is None and path.stat().st_size > 0 and not folders.ours(path.parent)


def tail(path: Path) -> tuple[int, int]:
    """Return how many bytes of a journal are readable, and how many it has."""
    end = 0
    with path.open("rb") as file:
        for frame in frames(file):
            end = frame.end
    return end, path.stat().st_size


def row_fields(rows: Trace) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return rows as the fields and arrays of a message."""
    return {"start": rows.start}, rows.arrays


def rows_of(message: messages.Message) -> Trace:
    """Return the rows in a message."""
    arrays, measured = message.arrays, message.fields.get("measured")
    if measured is not None:
        # An earlier version lists the measured names. All other names but x, loss and gradient are `named`.
        others = {name: "measured" if name in measured else "named" for name in arrays.keys() - {"x", "loss", "gradient"}}
        arrays = {f"{others[name]}/{name}" if name in others else name: values for name, values in arrays.items()}
    return Trace.from_arrays(message.fields["start"], arrays)


def rows(folder: Path) -> Iterator[Trace]:
    """Yield the rows in a folder's journal; none if there is no journal."""
    if not (folder / FILE).exists():
        return
    with (folder / FILE).open("rb") as file:
        yield from (rows_of(frame.message) for frame in frames(file) if frame.message.word == "record")


def recorded(folder: Path) -> int:
    """Return the step after the last row in a folder's journal."""
    return max((each.start + len(each) for each in rows(folder)), default=0)


class Held(Exception):
    """Raised for a lock that another process holds. `holder` is that process's entry in the lock file."""

    def __init__(self, holder: Mapping[str, Any]) -> None:
        super().__init__(holder)
        self.holder = holder


class Elsewhere(Held):
    """Raised for a lock that is free here, but whose last holder still runs on another machine."""


class Lock:
    """The lock of a folder, held until it is released or this process ends."""

    def __init__(
        self, folder: Path, role: str, patience: float = 0, gone: Callable[[Mapping[str, Any]], bool] = lambda holder: True
    ) -> None:
        """Take the lock in the role `run`, `continued` or `sending`; raises Held.

        A holder in the role `sending` is waited for, `patience` seconds long. Machines may not share locks, so a lock that is
        free here may be held on another machine: `gone(last holder)` returns whether that process has ended.
        """
        self.path, began = folder / LOCK, time.monotonic()
        while (holder := self.taken()) is not None:
            os.close(self.file)
            # If the process in the entry is gone, the lock has a new holder that has not written its entry yet.
            there = holder and (holder["host"] != socket.gethostname() or processes.there(holder))
            wait = UNKNOWN if not there else patience if holder["role"] == "sending" else 0.0
            if time.monotonic() - began > wait:
                raise Held(holder)
            time.sleep(0.05)
        try:
            # The file names the last holder until that process is known to be gone.
            if not gone(last := said(self.file)):
                raise Elsewhere(last)
            self.become(role)
        except BaseException:
            os.close(self.file)
            raise

    def become(self, role: str) -> None:
        """Write this process and its role into the lock file."""
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps({**processes.name(), "role": role}).encode(), 0)

    def taken(self) -> dict[str, Any] | None:
        """Take the lock and return None, or return the holder's entry; it is empty if the holder is not known yet."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.file = secrets.opened(self.path, 0)
        except OSError as error:
            raise UserError(unwritable(self.path, error)) from error
        text = os.pread(self.file, 4096, 0)
        if text and not HOLDER.match(text):
            os.close(self.file)
            raise UserError(f"{self.path} is not a run's, and is left as it is; remove it, or set hydra.run.dir=another folder")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return said(self.file)
        # The holder may have removed the file in between, and another process may have made a new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self.file), self.path.stat()):
                return None
        return {}

    def release(self, *, remove: bool = False) -> None:
        """Release the lock; with `remove`, delete its file, which nobody needs any more."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self.file)


def said(file: int) -> dict[str, Any]:
    """Return the holder's entry in a lock file; it is empty if the holder has not written it yet."""
    text = os.pread(file, 4096, 0)
    return json.loads(text) if text.endswith(b"}") else {}


class Pointer:
    """An entry of the outbox: a file that names a folder as long as the folder's journal is not fully sent."""

    def __init__(self, pending: Path, run_key: str) -> None:
        self.path = pending / run_key
        # A journal from elsewhere may hold any text as its key.
        self.valid = KEY.fullmatch(run_key) is not None

    def read(self) -> Path | None:
        """Return the folder that the entry names; None if there is no file, or the file is no such entry."""
        found = re.fullmatch(rb"(/[^\0\n]*)\n", folders.head(self.path)) if self.valid else None
        return Path(os.fsdecode(found[1])) if found else None

    def write(self, folder: Path) -> None:
        """Write the entry for a folder; raises OSError, also if the file exists and is no such entry."""
        if not self.valid or (self.read() is None and os.path.lexists(self.path)):
            raise FileExistsError(errno.EEXIST, f"{self.path.name} there is not a run's", str(self.path))
        if "\n" in str(folder):
            raise OSError(errno.EINVAL, "a folder with a line break in its name cannot be listed")
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        for _ in range(3):
            # Another run that ends may remove the empty folder in between.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.write_bytes(os.fsencode(f"{folder}\n"))
                new.replace(self.path)
                return
            except FileNotFoundError:
                continue

    def remove(self, sent: Path) -> None:
        """Remove the entry if it names `sent` or a folder without a journal. Remove the outbox folder if it is empty then."""
        named = self.read()
        if named is None or (named != sent and os.path.exists(named / FILE)):
            return
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def pointers(pending: Path) -> Iterator[tuple[str, Path]]:
    """Yield the key and the folder of each run in the outbox; other files there are skipped."""
    for path in sorted(pending.glob("*")):
        if (folder := Pointer(pending, path.name).read()) is not None:
            yield path.name, folder


def away(folder: Path) -> bool:
    """Return whether a run's folder is unavailable: removed, moved, or not mounted, in which case it may be empty."""
    try:
        return not any(folder.iterdir())
    except OSError:
        return True


def run_key(folder: Path) -> str | None:
    """Return the key of the run whose journal is in a folder; None if no journal can be read there."""
    message = first(folder / FILE)
    return message.get("run_key") if message else None


def set_aside(folder: Path, pending: Path) -> None:
    """Move the journal of an earlier run in this folder to a subfolder, from where it can still be sent.

    Raises UserError if the file is no journal.
    """
    path = folder / FILE
    if not path.exists():
        return
    if foreign(path):
        raise UserError(f"{path} is not a run's, and is left as it is; remove it, or set hydra.run.dir=another folder")
    run_key = str((first(path) or {}).get("run_key"))
    aside = folder / f"{FILE}-{run_key if KEY.fullmatch(run_key) else 'unreadable'}"
    folders.claim(aside, "remove it")
    path.replace(aside / FILE)
    pointer = Pointer(pending, run_key)
    if pointer.read() == folder:
        pointer.write(aside)
