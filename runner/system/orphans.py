"""End a sweep's workers with the process that launched them: joblib's and submitit's do not end by themselves."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from runner.system import processes

# Seconds between two checks by a worker.
INTERVAL = 0.5
# Seconds that a job has to end by itself.
GRACE = 5.0
_watched: set[int] = set()
_orphaned = threading.Event()


def end_with(launcher: Mapping[str, Any]) -> None:
    """End this process once its launcher on this host is gone; a job under way then ends as interrupted."""
    pid = launcher["pid"]
    if launcher["host"] != socket.gethostname() or pid == os.getpid() or pid in _watched:
        return
    _watched.add(pid)

    def watch() -> None:
        while processes.there(launcher):
            time.sleep(INTERVAL)
        _orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        # Between jobs submitit ignores SIGTERM. The recorder ends the run of a process that dies.
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=f"ends with {pid}", daemon=True).start()


def leave() -> None:
    """End this process at once, between runs, if its launcher is gone: nobody uses further results."""
    if _orphaned.is_set():
        os._exit(128 + signal.SIGTERM)
