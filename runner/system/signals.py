"""SIGINT and SIGTERM end a run after the chunk under way. A second signal, or a first that waits too long, ends the process.

A batch system's preemption signal ends runs too, but without a time limit: they are resumed elsewhere.
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
# Seconds that a chunk may take after a signal. The work after the chunk has one second more.
GRACE = 4.0
HEARD = b"\0"
# The handler that raises KeyboardInterrupt.
RAISES = signal.default_int_handler
# For each open block of `caught`, the function that returns its signal's name.
_names: list[Callable[[], str | None]] = []
# The name of the preemption signal that this process has received, if any.
_asked: list[str] = []


@contextmanager
def making_room(number: int) -> Iterator[Callable[[], str | None]]:
    """Make a preemption signal end the run under way and all later runs in this block; yield a function that returns its name.

    The function returns None before the signal. SIGTERM between runs ends the process at once, unless the process is about to
    end because of the preemption signal.
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
    """Block SIGUSR1 and SIGUSR2, a batch system's preemption signals to all processes of a job, in processes started here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def put_off() -> Iterator[None]:
    """Delay the KeyboardInterrupt of Ctrl-C until the end of this block, which is short; nothing else is delayed."""
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
    """Yield a function that returns the name of the signal received in this block, or None.

    The function must be called soon: the process ends, with the signal's exit code, if a signal is not noticed in time.
    """
    # Python lets only the main thread set handlers; in other threads the process's handlers stay.
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
        # An urgent preemption sends both signals at once.
        return next(iter([*_asked, *(signal.Signals(each).name for each in came)]), None)

    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    # Python calls a handler only between two of its instructions, and a chunk is one. It writes to the pipe at once.
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
    """Delay a signal's effect until the end of this block: TensorFlow loses a KeyboardInterrupt raised while it traces.

    The process ends if the block takes too long after a signal.
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
    """Return whether a signal asks the run under way to end; the signal then counts as noticed."""
    return any(name() for name in _names)


def interrupt() -> bool:
    """End the run under way as SIGTERM does; return whether this is possible."""
    if not _names or threading.current_thread() is not threading.main_thread():
        return False
    signal.raise_signal(signal.SIGTERM)
    return True


def watched(pipe: int) -> None:
    """End the process if a second signal comes or the first is not noticed in time; return when the pipe is closed."""
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
