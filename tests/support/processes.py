"""The processes of this machine as tests see them: which belong to whom, and whether they are still there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def below(pid: int) -> dict[int, str]:
    """Return the processes that a process has started, and those that these have, with when they were started."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append((int(file.parent.name), fields[19]))
    found: dict[int, str] = {}
    for child, began in parents.get(pid, []):
        found |= {child: began} | below(child)
    return found


def left(processes: dict[int, str]) -> list[str]:
    """Return the command lines of those that are still there; a zombie is not."""
    lines = []
    for pid, began in processes.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if fields[19] == began and fields[0] != "Z":
            lines.append(line)
    return lines


def wait(what: Callable[[], Any], seconds: float) -> Any:
    """Return what comes to be true within so many seconds, or what it is then."""
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.2)
    return found
