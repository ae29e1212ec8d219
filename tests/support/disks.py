"""Small disks, which a test fills or makes read-only; to mount one takes root, or sudo as .ci/setup does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUDO = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]


@contextmanager
def small(path: Path, size: str) -> Iterator[Path]:
    """Mount a disk of this size at a new folder."""
    path.mkdir()
    mine = f"size={size},uid={os.geteuid()},gid={os.getegid()}"
    subprocess.run([*SUDO, "mount", "-t", "tmpfs", "-o", mine, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run([*SUDO, "umount", path], check=True)


def remount(path: Path, how: str) -> None:
    """Make a mounted disk `ro`, or of another `size=…`."""
    subprocess.run([*SUDO, "mount", "-o", f"remount,{how}", path], check=True)
