"""The spool: what a run says of itself, in a file of its folder, from where it is played to the tracking store.

The file holds frames: length, CRC-32, time in ms since 1970, and a packed message. A frame that is cut or changed ends what can
be read, and what is appended takes its place.
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
# Seconds that a run waits for what sends an interrupted one.
PATIENCE = 30.0
# The form of a run's key, and so of a file's name among what is pending.
KEY = re.compile(r"[0-9a-f]{32}")
# What a lock's file begins with.
HOLDER = re.compile(rb'\{"(pid|host)": ')
# Seconds that the holder of a lock has to say who it is.
UNKNOWN = 1.0
# Rows of so many ms share a time, which lets a store take them together.
TICK = 500


class Frame(NamedTuple):
    """A message, when it was said, and where the next one begins."""

    message: messages.Message
    at: int
    end: int


class Spool:
    """The spool of a folder, open to be appended to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = secrets.opened(self.path, os.O_APPEND)
        except OSError as error:
            raise UserError(unwritable(self.path, error)) from error
        self.end, self.at = 0, 0
        self.rows_at = 0  # of the rows that were appended last
        self.recorded = 0  # the step after the last one that was there
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
        """Append a message of now, or of another time; raises UserError, the file being as before, where there is no room."""
        # Times never decrease, whatever the clock does.
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
        """Bring the file to the disk, unless it has been removed."""
        if os.fstat(self.file).st_nlink:
            os.fdatasync(self.file)
        os.close(self.file)


def unwritable(path: Path, error: OSError) -> str:
    """Return in one line why a file cannot be written."""
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        room = f" ({shutil.disk_usage(path.parent).free} bytes are free)"
    return f"{path} cannot be written: {error.strerror}{room}; make room there, or set hydra.run.dir=another folder"


def frames(file: BinaryIO, start: int = 0) -> Iterator[Frame]:
    """Yield the frames of an open file from this position on, up to the first that is not whole."""
    size = os.fstat(file.fileno()).st_size
    file.seek(start)
    while len(head := file.read(HEAD.size)) == HEAD.size:
        length, check, at = HEAD.unpack(head)
        start += HEAD.size + length
        if start > size:
            # What is told of its length may be wrong, and there may be more of the file by now.
            size = os.fstat(file.fileno()).st_size
            if start > size:
                return
        data = file.read(length)
        if zlib.crc32(data) != check:
            return
        yield Frame(messages.unpacked(data), at, start)


def first(path: Path) -> Mapping[str, Any] | None:
    """Return what a spool says of its run; None where it cannot be read from its beginning on."""
    try:
        with path.open("rb") as file:
            frame = next(frames(file), None)
            return frame.message.fields if frame and frame.message.word == "begin" else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def foreign(path: Path) -> bool:
    """Tell whether a file is no spool: it is not empty, and neither its first message nor the folder's mark says so."""
    with path.open("rb") as file:
        return next(frames(file), None) is None and path.stat().st_size > 0 and not folders.ours(path.parent)


def tail(path: Path) -> tuple[int, int]:
    """Return how many bytes of a spool can be read, and how many there are."""
    end = 0
    with path.open("rb") as file:
        for frame in frames(file):
            end = frame.end
    return end, path.stat().st_size


def row_fields(rows: Trace) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return rows as a message's fields and arrays."""
    return {"start": rows.start}, rows.arrays


def rows_of(message: messages.Message) -> Trace:
    """Return the rows of a message."""
    arrays, measured = message.arrays, message.fields.get("measured")
    if measured is not None:
        # Of an earlier version, which lists the measured names; all others that are not the rows' own are named.
        others = {name: "measured" if name in measured else "named" for name in arrays.keys() - {"x", "loss", "gradient"}}
        arrays = {f"{others[name]}/{name}" if name in others else name: values for name, values in arrays.items()}
    return Trace.from_arrays(message.fields["start"], arrays)


def rows(folder: Path) -> Iterator[Trace]:
    """Yield the rows in a folder's spool, if it has one."""
    if not (folder / FILE).exists():
        return
    with (folder / FILE).open("rb") as file:
        yield from (rows_of(frame.message) for frame in frames(file) if frame.message.word == "record")


def recorded(folder: Path) -> int:
    """Return the step after the last one in a folder's spool."""
    return max((each.start + len(each) for each in rows(folder)), default=0)


class Held(Exception):
    """A lock that another process holds; `holder` is what it says of itself."""

    def __init__(self, holder: Mapping[str, Any]) -> None:
        super().__init__(holder)
        self.holder = holder


class Elsewhere(Held):
    """A lock that is free here, and whose last holder goes on on another machine."""


class Lock:
    """A folder's lock, held until this process releases it or ends."""

    def __init__(
        self, folder: Path, role: str, patience: float = 0, gone: Callable[[Mapping[str, Any]], bool] = lambda holder: True
    ) -> None:
        """Take the lock to be a `run`, a `continued` one, or one `sending`, which is waited for so long; raises Held.

        A lock that is free here may be held on a machine that shares none: `gone` tells of its last holder whether it is not.
        """
        self.path, began = folder / LOCK, time.monotonic()
        while (holder := self.taken()) is not None:
            os.close(self.file)
            # A holder that is not there has left the lock to one that has not said yet who it is.
            there = holder and (holder["host"] != socket.gethostname() or processes.there(holder))
            wait = UNKNOWN if not there else patience if holder["role"] == "sending" else 0.0
            if time.monotonic() - began > wait:
                raise Held(holder)
            time.sleep(0.05)
        try:
            # Until it is known to be gone, the file names the last holder.
            if not gone(last := said(self.file)):
                raise Elsewhere(last)
            self.become(role)
        except BaseException:
            os.close(self.file)
            raise

    def become(self, role: str) -> None:
        """Hold it in this role."""
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps({**processes.name(), "role": role}).encode(), 0)

    def taken(self) -> dict[str, Any] | None:
        """Take the lock and return None, or return what its holder says of itself."""
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
        # Its holder may have removed it in between, and another have made one of its own.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self.file), self.path.stat()):
                return None
        return {}

    def release(self, *, remove: bool = False) -> None:
        """Let others have it, or remove it where nobody will need it."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self.file)


def said(file: int) -> dict[str, Any]:
    """Return what a lock's holder says of itself; nothing where it has not done so yet."""
    text = os.pread(file, 4096, 0)
    return json.loads(text) if text.endswith(b"}") else {}


class Pointer:
    """A file that names a folder, for as long as its spool has something to be sent."""

    def __init__(self, pending: Path, run_key: str) -> None:
        self.path = pending / run_key
        # A spool that was sent here may call itself anything.
        self.valid = KEY.fullmatch(run_key) is not None

    def read(self) -> Path | None:
        """Return the folder that is named; None where there is no such file, or it is not one of these."""
        found = re.fullmatch(rb"(/[^\0\n]*)\n", folders.head(self.path)) if self.valid else None
        return Path(os.fsdecode(found[1])) if found else None

    def write(self, folder: Path) -> None:
        """Name the folder; raises OSError, for a file of another too."""
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
        """Name nothing any longer, where this or nothing more was to be sent, and leave no empty folder."""
        named = self.read()
        if named is None or (named != sent and os.path.exists(named / FILE)):
            return
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def pointers(pending: Path) -> Iterator[tuple[str, Path]]:
    """Yield the runs that are listed, by key, with their folders; whatever else lies there is passed over."""
    for path in sorted(pending.glob("*")):
        if (folder := Pointer(pending, path.name).read()) is not None:
            yield path.name, folder


def away(folder: Path) -> bool:
    """Tell whether a run's folder is not to be had: removed, moved, or not mounted, which may leave it empty."""
    try:
        return not any(folder.iterdir())
    except OSError:
        return True


def run_key(folder: Path) -> str | None:
    """Return the key of the run whose spool is in a folder; None where there is no spool, or no run can be read of it."""
    message = first(folder / FILE)
    return message.get("run_key") if message else None


def set_aside(folder: Path, pending: Path) -> None:
    """Move the spool that an earlier run has left in a folder into one of its own, from where it can be sent yet."""
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
