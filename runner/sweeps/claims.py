"""Claims on jobs: two equal sweeps that run at the same time on this machine run each job only once."""

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

# In the outbox folder (`pending`): one claims file for each sweep, locked while the sweep lives, and the guard file, which is
# locked to read or write claims.
FOLDER, GUARD = "claims", ".guard"
NAME = re.compile(r"[0-9a-f]{32}\.json")
INTERVAL = 0.5


class Claims:
    """The config digests of the jobs that one sweep claims, among the claims of other sweeps with the same `pending` folder.

    A sweep waits only while it has no claim, so two sweeps never wait for each other. A claim ends when its process ends, also
    if the process is killed.
    """

    def __init__(self, pending: Path, store: str) -> None:
        """Open the claims file of this sweep, without claims.

        `store` names the store where the jobs are recorded: the same job for another store is another job.
        """
        self.folder, self.store = pending.absolute() / FOLDER, hashlib.sha256(store.encode()).hexdigest()
        self.path = self.folder / f"{uuid.uuid4().hex}.json"
        with self.guarded() as guard:
            self.file = secrets.opened(self.path, 0)
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.write(())
            self.ends = ends(guard)
        # A process that a job forks may outlive this one, and must not keep the lock.
        self.stay = forks.leaving(lambda: os.close(self.file))

    def take(self, digests: Collection[str]) -> tuple[set[str], bool]:
        """Claim these jobs in place of the earlier claims, except jobs that another sweep has claimed.

        Return the jobs that another sweep has claimed, and whether a claim of another sweep has ended since the last call: the
        store may then have new runs.
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
        """Release all claims, and wait until no other sweep claims any of these jobs."""
        with self.guarded() as guard:
            self.let_go(guard)
        while True:
            with self.guarded() as guard:
                if not {*digests} & self.others(guard):
                    return
            time.sleep(INTERVAL)

    def release(self) -> None:
        """Release all claims, and remove the claims file and the folders that are empty then."""
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
        """Release all claims, and record that a claim has ended."""
        self.write(())
        end(guard)

    def write(self, digests: Collection[str]) -> None:
        """Write the claimed jobs to the claims file."""
        self.jobs = digests
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps({"store": self.store, "jobs": sorted(digests)}).encode(), 0)

    def others(self, guard: int) -> set[str]:
        """Return the jobs that other sweeps claim, and remove the claims files of killed sweeps."""
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
        """Lock the guard file in this block, so that no other sweep reads or writes claims; gives its file descriptor."""
        path = self.folder / GUARD
        while True:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                guard = secrets.opened(path, 0)
                fcntl.flock(guard, fcntl.LOCK_EX)
                # The last sweep to end may have removed the guard file meanwhile.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(guard), path.stat()):
                        break
                os.close(guard)
        try:
            yield guard
        finally:
            os.close(guard)


def ends(guard: int) -> bytes:
    """Return the token in the guard file, which changes each time a claim ends."""
    return os.pread(guard, 64, 0)


def end(guard: int) -> None:
    """Write a new token to the guard file: a claim has ended."""
    os.pwrite(guard, uuid.uuid4().hex.encode(), 0)


def free(path: Path) -> bool:
    """Return whether no process holds the lock of a file."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(file)
