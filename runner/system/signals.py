"""SIGINT and SIGTERM end a run after the chunk under way; the process ends at once with a second one, or where one waits.

A batch system's request to make room ends runs too, but in their own time: what they were at goes on elsewhere.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from runner.system import forks

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How long a chunk may go on after a signal: seconds. What follows it has one more.
GRACE = 4.0
HEARD = b"\0"
# What raises KeyboardInterrupt.
RAISES = signal.default_int_handler
# What returns the name of the signal that came in the block of `caught` that this process is in.
_names: list[Callable[[], str | None]] = []
# The signal by which this process was asked to make room, if it was.
_asked: list[str] = []


@contextmanager
def making_room(number: int) -> Iterator[Callable[[], str | None]]:
    """Let a signal end the run under way in this block, and those after it; gives what returns its name, or None.

    SIGTERM ends the process at once where it comes between runs, unless the process is about to end for the other.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        _asked.append(signal.Signals(number).name)

    def leave(number: int, frame: FrameType | None) -> None:
        if not _asked:
            os._exit(128 + number)

    before = {each: signal.signal(each, handler) for each, handler in ((signal.SIGTERM, leave), (number, ask))}
    try:
        yield lambda: next(iter(_asked), None)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _asked.clear()


@contextmanager
def blocked() -> Iterator[None]:
    """Keep from processes that are started in this block what a batch system sends to every process of a job to make room."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def put_off() -> Iterator[None]:
    """Let Ctrl-C, where it raises KeyboardInterrupt, do so after this block, which is short; nothing else in it is put off."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not RAISES:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, RAISES)
    if came:
        raise KeyboardInterrupt


@contextmanager
def caught() -> Iterator[Callable[[], str | None]]:
    """Give a function that returns the name of the signal that came in this block, or None.

    It is to be asked soon: the process ends by itself, with the signal's exit code, where a signal is not heard of in time.
    """
    # Python lets only the main thread set handlers; elsewhere the process's own stay.
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []
    heard = False

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    def name() -> str | None:
        nonlocal heard
        if came and not heard:
            heard = True
            os.write(theirs, HEARD)
        # Both come at once where room is made in a hurry.
        return next(iter([*_asked, *(signal.Signals(each).name for each in came)]), None)

    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    # Python calls a handler between two of its own instructions, and a chunk is one; the pipe it writes to at once.
    wakeup = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    before = {each: signal.signal(each, note) for each in SIGNALS}
    watch = threading.Thread(target=watched, args=(ours,), daemon=True)
    watch.start()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(theirs)

    def leave() -> None:
        restore()
        os.close(ours)

    stay = forks.leaving(leave)
    _names.append(name)
    try:
        yield name
    finally:
        _names.pop()
        stay()
        restore()
        watch.join()
        os.close(ours)


@contextmanager
def after() -> Iterator[None]:
    """Let a signal do after this block what it does before it: TensorFlow loses a KeyboardInterrupt that comes while it traces.

    The process ends by itself where the block goes on for too long.
    """
    name: str | None = None
    try:
        with caught() as heard:
            try:
                yield
            finally:
                name = heard()
    finally:
        if name in {each.name for each in SIGNALS}:
            signal.raise_signal(signal.Signals[name])


def came() -> bool:
    """Tell whether a signal asks the run under way to end; it is then heard of."""
    return any(name() for name in _names)


def interrupt() -> bool:
    """End the run under way as SIGTERM does, and tell whether it can be ended so."""
    if not _names or threading.current_thread() is not threading.main_thread():
        return False
    signal.raise_signal(signal.SIGTERM)
    return True


def watched(pipe: int) -> None:
    """End the process where one signal follows another, or is not heard of in time; return when none can come."""
    first, heard = None, False
    while select.select([pipe], [], [], GRACE if first and not heard else None)[0]:
        said = os.read(pipe, 1)
        if not said:
            return
        heard = heard or said == HEARD
        if said[0] in SIGNALS:
            if first:
                os._exit(128 + said[0])
            first = said[0]
    text = f"the step under way takes more than {GRACE:g} s: it was given up, and its run is as it was saved last"
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(128 + (first or 0))
