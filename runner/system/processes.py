"""Processes of this machine: how one is named, and whether the process of a name is still there.

The number of a process is given to another one day, the number of its start is not; a host name is given to another container.
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
    """Tell whether the process of a name, which is of this host, is there; without its start, whether its number is."""
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
    """Return when a process was started, in ticks since this machine was, or an empty text for one that is not there."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


@cache
def machine() -> str:
    """Return a name of this machine since its start, and of its processes' numbers; an empty text where it has none.

    Containers of one machine share its start and the locks of its files, but not their processes' numbers, nor a host name.
    """
    try:
        return f"{boot()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def boot() -> str:
    """Return a name of this machine since its start; raises OSError where it has none."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def same_machine(named: Mapping[str, Any]) -> bool:
    """Tell whether the process of a name was on this machine, in whichever container, since its start."""
    try:
        return str(named.get("machine", "")).partition("/")[0] == boot()
    except OSError:
        return False
