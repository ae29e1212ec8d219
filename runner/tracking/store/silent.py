"""Time limits for a PostgreSQL server that falls silent within a statement: its driver would wait for ever."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
from sqlalchemy import event

# Seconds that a server may be silent within a statement, and that it has to accept a connection.
STATEMENT, CONNECTION = 30.0, 10


class Connection(psycopg.Connection):
    """A connection that is closed if its server is silent for STATEMENT seconds; raises OperationalError then."""

    def wait(self, gen: Any, *words: Any, **keys: Any) -> Any:
        """Return the result of psycopg's generator. The generator is also resumed, several times a second, if no data came."""
        return super().wait(self.heard(gen), *words, **keys)

    def heard(self, gen: Any) -> Generator[Any, Any, Any]:
        """Yield the generator's values, and close the connection after STATEMENT seconds without data."""
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
    """Have the later connections of an engine closed if their server is silent."""
    event.listen(engine, "do_connect", connect)
    engine.dispose()


def connect(dialect: Any, record: Any, words: Any, keys: Any) -> Connection:
    """Return a connection with these time limits."""
    return Connection.connect(*words, **{"connect_timeout": CONNECTION, **keys})
