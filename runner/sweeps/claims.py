"""Which jobs the sweeps of this machine are at, so that two equal sweeps at once run each job once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.security import secrets
from runner.system import forks

# Beside what is pending: a file for each sweep, locked while it lives, and one that is locked to read and write them.
FOLDER, GUARD = "claims", ".guard"
NAME = re.compile(r"[0-9a-f]{32}\.json")
INTERVAL = 0.5


class Claims:
    """The jobs of one sweep that it is about to run, by digest, among those of the other sweeps with the same `pending`.

    A sweep waits only while it has no claim, so no two wait for each other. A claim ends with its process, however that ends.
    """

    def __init__(self, pending: Path, store: str) -> None:
        """`store` names where the jobs are recorded: the same job for another store is another one."""
        self.folder, self.store = pending.absolute() / FOLDER, hashlib.sha256(store.encode()).hexdigest()
        self.path = self.folder / f"{uuid.uuid4().hex}.json"
        with self.guarded() as guard:
            self.file = secrets.opened(self.path, 0)
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.write(())
            self.ends = ends(guard)
        # What a job forks may outlive this process.
        self.stay = forks.leaving(lambda: os.close(self.file))

    def take(self, digests: Collection[str]) -> tuple[set[str], bool]:
        """Claim these jobs, in the place of all before, but for those that another sweep is at.

        Returns the latter, and whether a claim of another sweep has ended since this was asked last: there may be new runs.
        """
        with self.guarded() as guard:
            elsewhere = {*digests} & self.others(guard)
            new = ends(guard) != self.ends
            if self.jobs:
                end(guard)
            self.ends = ends(guard)
            self.write({*digests} - elsewhere)
            return elsewhere, new

    def wait(self, digests: Collection[str]) -> None:
        """Claim nothing any longer, and wait until no other sweep is at any of these jobs."""
        with self.guarded() as guard:
            self.let_go(guard)
        while True:
            with self.guarded() as guard:
                if not {*digests} & self.others(guard):
                    return
            time.sleep(INTERVAL)

    def release(self) -> None:
        """Let others have the jobs."""
        self.stay()
        with self.guarded() as guard:
            self.let_go(guard)
            self.path.unlink(missing_ok=True)
            os.close(self.file)
            if not any(each.name != GUARD for each in self.folder.iterdir()):
                (self.folder / GUARD).unlink(missing_ok=True)
        for folder in (self.folder, self.folder.parent):
            with suppress(OSError):
                folder.rmdir()

    def let_go(self, guard: int) -> None:
        """Claim nothing, and note that jobs may have ended."""
        self.write(())
        end(guard)

    def write(self, digests: Collection[str]) -> None:
        """Write down what is claimed."""
        self.jobs = digests
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps({"store": self.store, "jobs": sorted(digests)}).encode(), 0)

    def others(self, guard: int) -> set[str]:
        """Return the jobs that other sweeps are at, and remove the claims of those that were killed."""
        found: set[str] = set()
        for path in self.folder.iterdir():
            if not NAME.fullmatch(path.name) or path == self.path:
                continue
            if free(path):
                path.unlink()
                end(guard)
            elif (said := json.loads(path.read_text(encoding="utf-8")))["store"] == self.store:
                found |= {*said["jobs"]}
        return found

    @contextmanager
    def guarded(self) -> Iterator[int]:
        """Keep other sweeps from reading and writing claims in this block; gives the file that is locked for it."""
        path = self.folder / GUARD
        while True:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                guard = secrets.opened(path, 0)
                fcntl.flock(guard, fcntl.LOCK_EX)
                # The last sweep to end may have removed it meanwhile.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(guard), path.stat()):
                        break
                os.close(guard)
        try:
            yield guard
        finally:
            os.close(guard)


def ends(guard: int) -> bytes:
    """Return what is another text each time that a claim has ended."""
    return os.pread(guard, 64, 0)


def end(guard: int) -> None:
    """Note that a claim has ended."""
    os.pwrite(guard, uuid.uuid4().hex.encode(), 0)


def free(path: Path) -> bool:
    """Tell whether nobody holds the lock of a file."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(file)
