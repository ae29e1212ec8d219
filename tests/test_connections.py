"""A database that is short of connections: a run holds two at most, and waits for them, for others end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import processes
import psycopg
import pytest
import servers

from runner import reach, retry, store

QUICK = ("max_iterations=50", "report=none", "optimizer.learning_rate=0.01")
MOST = 6


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[str]:
    """Give the URI of a server of few connections."""
    settings = f"max_connections = {MOST}\nsuperuser_reserved_connections = 0\n"
    with servers.postgresql(tmp_path_factory.mktemp("crowded") / "server", settings) as uri:
        yield uri


def test_who_waits_for_the_lock_of_a_new_database_holds_no_connection(database):
    with store.alone(database):
        began = threading.Event()

        def wait() -> None:
            began.set()
            with store.alone(database):
                pass

        several = [threading.Thread(target=wait) for _ in range(MOST)]
        for each in several:
            each.start()
        began.wait()
        # All but the one that holds the lock are to be had, at one moment or the next.
        held = processes.wait(lambda: all_but(database, MOST - 1), 20)
        assert held
        held.close()
    for each in several:
        each.join(30)
        assert not each.is_alive()


def all_but(uri: str, count: int) -> ExitStack | None:
    """Take so many connections at once, or none."""
    held = ExitStack()
    try:
        for _ in range(count):
            held.enter_context(psycopg.connect(uri.replace("+psycopg", "")))
        return held
    except psycopg.OperationalError:
        held.close()
        return None


def taken(uri: str, count: int) -> ExitStack:
    """Take so many connections, until the stack is closed."""
    held = ExitStack()
    for _ in range(count):
        held.enter_context(psycopg.connect(uri.replace("+psycopg", "")))
    return held


def statuses(uri: str) -> list[str]:
    with psycopg.connect(uri.replace("+psycopg", "")) as connection:
        return sorted(status for (status,) in connection.execute("SELECT status FROM runs"))


def test_other_stores_of_the_process_and_its_servers_have_their_connections(database, migrated):
    store.get_ready(database)
    assert not {*store.CONNECTIONS} & {*os.environ}
    sizes = [store.client_of(uri)._tracking_client.store.engine.pool.size() for uri in (database, f"sqlite:///{migrated}")]
    assert sizes[0] == 1 < sizes[1]


def test_a_run_and_a_sweep_hold_two_connections_at_most_and_wait_for_them(cli, database):
    where = f"tracking.uri={database}"
    # MLflow takes a third one to make its tables; and this process keeps one.
    store.get_ready(database)
    with taken(database, MOST - 3):
        assert cli(where, *QUICK)[::2] == (0, "")
        assert cli("-m", where, *QUICK, "seed=1,2", "hydra/launcher=basic").code == 0
    assert statuses(database) == ["FINISHED"] * 4
    # The recorder of the runs before keeps one too.
    held = taken(database, MOST - 2)
    with pytest.raises(psycopg.OperationalError) as full:
        psycopg.connect(database.replace("+psycopg", ""))
    assert retry.crowded(full.value)
    assert "raise its max_connections: a run holds two" in str(reach.postgresql(database, full.value))
    # Longer than a store has at a run's beginning that does not answer.
    timer = threading.Timer(7, held.close)
    timer.start()
    assert cli(where, *QUICK, "seed=3")[::2] == (0, "")
    timer.join()
    assert statuses(database) == ["FINISHED"] * 5
