"""Processes of this machine: the name of a process, and whether the named process still exists.

The number of a process is reused later, but not with the same start time. A host name is reused by other containers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


def name() -> dict[str, Any]:
    """Return the name of this process, as plain data."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": start_of(os.getpid()), "machine": machine()}


def there(named: Mapping[str, Any]) -> bool:
    """Return whether the named process of this host exists; without its start time, whether its number exists."""
    pid, start = int(named.get("pid", 0)), named.get("start")
    if start:
        return start_of(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def start_of(pid: int) -> str:
    """Return a process's start time, in ticks since the machine's start; an empty string if there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


@cache
def machine() -> str:
    """Return a name of the machine since its start and of its namespace of process numbers; an empty string if there is none.

    Containers of one machine share the machine's start and its file locks, but not the process numbers nor the host name.
    """
    try:
        return f"{boot()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def boot() -> str:
    """Return an id of this start of the machine; raises OSError if there is none."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def same_machine(named: Mapping[str, Any]) -> bool:
    """Return whether the named process ran on this machine since its start, in any container."""
    try:
        return str(named.get("machine", "")).partition("/")[0] == boot()
    except OSError:
        return False
