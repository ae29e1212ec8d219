"""How often, and for how long, a request is repeated to a tracking store that cannot be reached at the moment."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from runner.errors import first_line

T = TypeVar("T")
# Seconds before the second attempt, which double each time, and their maximum.
FIRST, MOST = 0.2, 5.0
# MLflow's codes of temporary errors.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
# Texts by which a database without a free connection is recognised, and the least seconds to wait for a connection.
CROWDED, ROOM = ("too many clients", "connection slots are reserved", "too many connections", "is starting up"), 60.0


class Retry(Protocol):
    """A function that calls another one, perhaps several times, and returns its result."""

    def __call__(self, call: Callable[[], T]) -> T:
        """Return the result of `call`; raises its error, or GaveUp."""
        ...


class GaveUp(Exception):
    """Raised if a store did not accept something in time. The text says why in one line."""


def passes(error: Exception) -> bool:
    """Return whether another attempt may succeed."""
    # MLflow's and SQLAlchemy's exceptions are recognised by name, so that neither library is imported.
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in PASSING
    return isinstance(error, OSError) or type(error).__name__ in ("OperationalError", "InterfaceError")


def crowded(error: BaseException) -> bool:
    """Return whether a database has no free connection, which passes as other processes end."""
    return any(words in str(error) for words in CROWDED)


def room(call: Callable[[], T]) -> T:
    """Return the result of the call, which is repeated while a database has no free connection, ROOM seconds long."""
    until = time.monotonic() + ROOM
    while True:
        try:
            return call()
        except Exception as error:
            if not crowded(error) or time.monotonic() > until:
                raise
        time.sleep(random.uniform(FIRST, 1.0))


class Policy:
    """Retries while a run goes on, and after its end until `timeout` seconds have passed without success."""

    def __init__(self, timeout: float, ended: Callable[[], float | None], sleep: Callable[[float], Any] = time.sleep) -> None:
        """`ended` returns the time of the run's end by the monotonic clock, or None; `sleep` waits so long, or less."""
        self.timeout, self.ended, self.sleep = timeout, ended, sleep
        self.succeeded, self.warned = time.monotonic(), False

    def __call__(self, call: Callable[[], T]) -> T:
        """Return the result of the call; raises GaveUp, or the call's error if no other attempt may succeed."""
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
        """Log once that the store does not answer, if that has lasted MOST seconds."""
        if not self.warned and time.monotonic() - self.succeeded > MOST:
            self.warned = True
            text = "the tracking store does not take rows, which are kept in the run's folder meanwhile: %s"
            logging.getLogger(__name__).warning(text, first_line(error)[:300])


def once(call: Callable[[], T]) -> T:
    """Return the result of the call, without a retry."""
    return call()
