"""How often, and for how long, a tracking store is asked again that cannot be reached at the moment."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from runner.errors import first_line

T = TypeVar("T")
# Seconds before the second attempt, each time twice as long, and at the most.
FIRST, MOST = 0.2, 5.0
# MLflow's codes of what may be otherwise in a while.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
# What a database says that has no connection to spare at the moment, and the seconds that one is waited for at least.
CROWDED, ROOM = ("too many clients", "connection slots are reserved", "too many connections", "is starting up"), 60.0


class Retry(Protocol):
    """Calls a function, perhaps several times, and returns what it returns."""

    def __call__(self, call: Callable[[], T]) -> T:
        """Call it; raises what it raises, or GaveUp."""
        ...


class GaveUp(Exception):
    """A store that did not take something in time; its text says why in one line."""


def passes(error: Exception) -> bool:
    """Tell whether another attempt may succeed."""
    # MLflow's exceptions and SQLAlchemy's are told by name, so that neither need be imported.
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in PASSING
    return isinstance(error, OSError) or type(error).__name__ in ("OperationalError", "InterfaceError")


def crowded(error: BaseException) -> bool:
    """Tell whether a database has no connection to spare, which passes as others end."""
    return any(words in str(error) for words in CROWDED)


def room(call: Callable[[], T]) -> T:
    """Return what the call returns, which is made again while a database has no connection to spare."""
    until = time.monotonic() + ROOM
    while True:
        try:
            return call()
        except Exception as error:
            if not crowded(error) or time.monotonic() > until:
                raise
        time.sleep(random.uniform(FIRST, 1.0))


class Policy:
    """Asks again while a run goes on, and then for so many seconds without success."""

    def __init__(self, timeout: float, ended: Callable[[], float | None], sleep: Callable[[float], Any] = time.sleep) -> None:
        """`ended` returns when the run ended, by the monotonic clock, or None; `sleep` waits so long, or less."""
        self.timeout, self.ended, self.sleep = timeout, ended, sleep
        self.succeeded, self.warned = time.monotonic(), False

    def __call__(self, call: Callable[[], T]) -> T:
        """Return what the call returns; raises GaveUp, or the call's exception where no other attempt may succeed."""
        wait = FIRST
        while True:
            try:
                result = call()
                self.succeeded = time.monotonic()
                return result
            except Exception as error:
                if not passes(error):
                    raise
                since = self.ended()
                self.warn(error)
                timeout = max(self.timeout, ROOM) if crowded(error) else self.timeout
                if since is not None and time.monotonic() - max(since, self.succeeded) >= timeout:
                    raise GaveUp(first_line(error)) from error
            self.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, MOST)

    def warn(self, error: Exception) -> None:
        """Say once that the store does not answer, where that has lasted."""
        if not self.warned and time.monotonic() - self.succeeded > MOST:
            self.warned = True
            text = "the tracking store does not take rows, which are kept in the run's folder meanwhile: %s"
            logging.getLogger(__name__).warning(text, first_line(error)[:300])


def once(call: Callable[[], T]) -> T:
    """Return what the call returns, and do not ask again."""
    return call()
