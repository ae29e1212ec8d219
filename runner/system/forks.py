"""Processes that a loss forks: they have no part in the run, neither in its rows nor in what holds it together."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

_leaves: list[Callable[[], object]] = []
# Of the thread that forks, its signal mask.
_held = threading.local()


def leaving(leave: Callable[[], object]) -> Callable[[], None]:
    """Have each process that this one forks begin with `leave()`; returns what takes that back."""
    registered()
    _leaves.append(leave)

    def stay() -> None:
        if leave in _leaves:
            _leaves.remove(leave)

    return stay


@cache
def registered() -> None:
    """Have Python tell of forks, once."""
    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=left)


def hold() -> None:
    """Let signals wait: the parent's handlers may not hear of those that come to the child."""
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def release() -> None:
    """Let signals come again."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def left() -> None:
    """Leave, in a process that was forked, all that is its parent's."""
    while _leaves:
        _leaves.pop()()
    release()


def ended(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that ends each process which it has forked and which comes back from it: the run is its parent's."""

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
    """Return the exit code of a process that ends so."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return int(error is not None)
