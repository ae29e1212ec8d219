"""A PostgreSQL server that falls silent in the midst of a statement, stopped or cut off: its driver would wait for ever."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
from sqlalchemy import event

# Seconds that a server may be silent within a statement, and that it has to take a connection.
STATEMENT, CONNECTION = 30.0, 10


class Connection(psycopg.Connection):
    """A connection that is closed where its server is silent for so long; raises OperationalError then."""

    def wait(self, gen: Any, *words: Any, **keys: Any) -> Any:
        """Return what psycopg's generator returns; it is told of each part of a second that nothing came in."""
        return super().wait(self.heard(gen), *words, **keys)

    def heard(self, gen: Any) -> Generator[Any, Any, Any]:
        """Yield what a generator waits for, as long as something comes."""
        last = time.monotonic()
        try:
            awaited = next(gen)
            while True:
                ready = yield awaited
                if ready:
                    last = time.monotonic()
                elif time.monotonic() - last > STATEMENT:
                    self.close()
                    raise psycopg.OperationalError(
                        f"no answer of the server within {STATEMENT:g} s in the midst of a statement"
                    )
                awaited = gen.send(ready)
        except StopIteration as end:
            return end.value


def heed(engine: Any) -> None:
    """Have the connections that an engine makes from now on be closed where their server is silent."""
    event.listen(engine, "do_connect", connect)
    engine.dispose()


def connect(dialect: Any, record: Any, words: Any, keys: Any) -> Connection:
    """Return a connection to a server."""
    return Connection.connect(*words, **{"connect_timeout": CONNECTION, **keys})
