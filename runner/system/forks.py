"""Detach processes that a loss forks from the run: from its rows, signals and other shared resources."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

_leaves: list[Callable[[], object]] = []
# The signal mask of the thread that forks.
_held = threading.local()


def leaving(leave: Callable[[], object]) -> Callable[[], None]:
    """Make each process that this one forks begin with `leave()`; return a function that cancels this."""
    registered()
    _leaves.append(leave)

    def stay() -> None:
        if leave in _leaves:
            _leaves.remove(leave)

    return stay


@cache
def registered() -> None:
    """Register the handlers of forks with Python, once."""
    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=left)


def hold() -> None:
    """Block signals before a fork: a signal to the child must not reach the parent's handlers."""
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def release() -> None:
    """Restore the signal mask after a fork."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def left() -> None:
    """Release the parent's resources in a forked process, by the registered `leave` functions, and restore the signal mask."""
    while _leaves:
        _leaves.pop()()
    release()


def ended(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that ends each process that it forks and that returns from it: only the parent continues the run."""

    @wraps(function)
    def call(*words: Any, **keys: Any) -> Any:
        process = os.getpid()
        try:
            return function(*words, **keys)
        finally:
            if os.getpid() != process:
                os._exit(code(sys.exception()))

    return call


def code(error: BaseException | None) -> int:
    """Return the exit code of a process that ends with this exception, or with none."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return int(error is not None)
