"""Workers of a sweep end with the process that launched it: neither joblib's nor submitit's do so by themselves."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from runner.system import processes

# How often a worker looks, in seconds.
INTERVAL = 0.5
# Seconds that a job has to end by itself.
GRACE = 5.0
_watched: set[int] = set()
_orphaned = threading.Event()


def end_with(launcher: Mapping[str, Any]) -> None:
    """End this process once the launcher, if it is of this host, is gone; a job under way then ends as interrupted."""
    pid = launcher["pid"]
    if launcher["host"] != socket.gethostname() or pid == os.getpid() or pid in _watched:
        return
    _watched.add(pid)

    def watch() -> None:
        while processes.there(launcher):
            time.sleep(INTERVAL)
        _orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        # Between jobs submitit ignores it; and the recorder ends the run of a process that dies.
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=f"ends with {pid}", daemon=True).start()


def leave() -> None:
    """End this process at once, for it is at no run, if the one that launched it is gone: what remains is of use to nobody."""
    if _orphaned.is_set():
        os._exit(128 + signal.SIGTERM)
