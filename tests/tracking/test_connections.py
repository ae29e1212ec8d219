"""A database that is short of connections: a run holds two at most, and waits for them, for others end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import processes
import psycopg
import pytest
import servers
from commands import Command
from sqlalchemy.exc import OperationalError

from runner import sync
from runner.tracking import store
from runner.tracking.store import preflight, retry, silent

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
    # MLflow takes a third one to make its tables.
    store.get_ready(database)
    with taken(database, MOST - 2):
        assert cli(where, *QUICK)[::2] == (0, "")
        assert cli("-m", where, *QUICK, "seed=1,2", "hydra/launcher=basic").code == 0
    assert statuses(database) == ["FINISHED"] * 4
    # The recorder of the runs before keeps one.
    held = taken(database, MOST - 1)
    with pytest.raises(psycopg.OperationalError) as full:
        psycopg.connect(database.replace("+psycopg", ""))
    assert retry.crowded(full.value)
    assert "raise its max_connections: a run holds two" in str(preflight.postgresql(database, full.value))
    # Longer than a store has at a run's beginning that does not answer.
    timer = threading.Timer(7, held.close)
    timer.start()
    assert cli(where, *QUICK, "seed=3")[::2] == (0, "")
    timer.join()
    assert statuses(database) == ["FINISHED"] * 5


@contextmanager
def stopped(folder: Path) -> Iterator[None]:
    """Stop a PostgreSQL server and all of its processes in this block, as a machine does that hangs."""
    first = int((folder / "data/postmaster.pid").read_text().splitlines()[0])
    pids = [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_database_that_falls_silent_in_a_statement_is_waited_for_no_longer_than_so(tmp_path, monkeypatch):
    monkeypatch.setattr(silent, "STATEMENT", 1.0)
    monkeypatch.setattr(silent, "CONNECTION", 2)
    with servers.postgresql(tmp_path / "server") as uri:
        engine = store.opened(uri, "runner")[0]._tracking_client.store.engine
        with engine.connect() as connection:
            # Of one that works there is something to be heard, or it takes less than that.
            assert connection.exec_driver_sql("SELECT pg_sleep(0.5)").rowcount == 1
            with stopped(tmp_path / "server"):
                began = time.monotonic()
                with pytest.raises(OperationalError, match="no answer of the server within 1 s") as failed:
                    connection.exec_driver_sql("SELECT 1")
                assert failed.value.connection_invalidated and retry.passes(failed.value)
                with pytest.raises(OperationalError, match="timeout"), engine.connect():
                    pass
                assert time.monotonic() - began < 20
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        engine.dispose()


@pytest.mark.long
def test_a_run_whose_database_is_stopped_ends_and_is_sent_later_with_each_row_once(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    with servers.postgresql(tmp_path / "server") as uri:
        words = ("execution=eager", "max_iterations=400", f"tracking.uri={uri}", "tracking.flush_timeout=1", "report=none")
        command = Command(folder, *words)
        command.reach(51)
        with stopped(tmp_path / "server"):
            code, err = command.ended(150)
        (path,) = folder.glob("outputs/runs/*/*/spool")
        assert code == 0 and err.count("could not be sent as a whole") == 1 and "Traceback" not in err, err
        assert err.endswith(f"send it with: python -m runner.sync {path.parent}\n") and len(command.rows()) == 401
        assert sync.main([str(path.parent)]) == 0 and not path.exists()
        assert statuses(uri) == ["FINISHED"]
        with psycopg.connect(uri.replace("+psycopg", "")) as connection:
            counts = connection.execute("SELECT count(*), count(DISTINCT step) FROM metrics WHERE key = 'loss'").fetchone()
        assert counts == (401, 401)
