"""Tracking stores that cannot be used: one line within seconds, no password in it, and nothing of theirs is changed."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import disks
import pytest
import requests
import servers
from conftest import environment

from runner.errors import UserError
from runner.tracking import store
from runner.tracking.store import preflight

# A revision of MLflow's schema of 2019: mlflow/store/db_migrations/versions/451aebb31d03_add_metric_step.py
OLD = "451aebb31d03"


def refused(uri: str, experiment: object = "runner", within: float = 5) -> str:
    """Return the one line with which a store is refused."""
    # MLflow's import may be the first.
    store.imported()
    began = time.monotonic()
    with pytest.raises(UserError) as raised:
        store.opened(uri, experiment)
    line = str(raised.value)
    assert time.monotonic() - began < within
    assert "\n" not in line and "SECRETPW" not in line
    return line


@pytest.fixture
def silent() -> Iterator[int]:
    """Give the port of a server that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[str]:
    """Give a PostgreSQL server that asks everyone for a password but `runner`."""
    folder = tmp_path_factory.mktemp("postgresql") / "server"
    with servers.postgresql(folder) as uri:
        (folder / "data/pg_hba.conf").write_text("host all runner all trust\nhost all all all scram-sha-256\n")
        psql(uri, "SELECT pg_reload_conf(); CREATE USER u PASSWORD 'other'")
        yield uri


def psql(uri: str, statements: str) -> None:
    command = ["psql", "-q", uri.replace("+psycopg", ""), *(f"-c{each}" for each in statements.split("; "))]
    subprocess.run(command, check=True, capture_output=True)


def test_a_server_that_is_not_there_is_refused(silent):
    assert "connection refused" in refused(f"http://u:SECRETPW@127.0.0.1:{servers.free_port()}")
    assert "no such host" in refused("http://nosuch.invalid")
    assert "no answer within" in refused(f"http://127.0.0.1:{silent}")


def test_a_server_that_sends_elsewhere_is_not_followed():
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def serve(self) -> None:
            asked.append(self.path)
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = serve

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        refused(f"http://127.0.0.1:{server.server_address[1]}", within=60)
        server.shutdown()
    assert asked and "/elsewhere" not in asked


def test_a_database_that_is_not_there_is_refused(silent):
    port = servers.free_port()
    assert f"connection refused by 127.0.0.1:{port}/d" in refused(f"postgresql+psycopg://u:SECRETPW@127.0.0.1:{port}/d")
    assert "no answer of" in refused(f"postgresql+psycopg://u:SECRETPW@127.0.0.1:{silent}/d")
    assert "driver psycopg2 is missing" in refused("postgresql+psycopg2://u:SECRETPW@127.0.0.1/d")


def test_a_database_that_lets_nobody_in_is_refused(database):
    place = database.rpartition("@")[2]
    line = refused(f"postgresql+psycopg://u:SECRETPW@{place}")
    assert f'login failed for user u at {place}: password authentication failed for user "u"' in line and "u:***@" in line
    line = refused(f"{database.rpartition('/')[0]}/nosuch")
    assert "login failed for user runner at" in line and 'database "nosuch" does not exist' in line


def test_a_missing_driver_names_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    line = refused("postgresql+psycopg://u:SECRETPW@127.0.0.1/d")
    assert line.endswith("pip install 'tf-runner[postgresql]'")


@pytest.mark.parametrize("uri", ["foo://x", "", "mlruns", "file:///tmp/x", "sqlite:///", "sqlite://", "ftp://u:SECRETPW@h"])
def test_what_is_no_store_is_refused_with_what_is_allowed(uri):
    assert preflight.ALLOWED in refused(uri)


@pytest.mark.parametrize(
    "uri", ["http://u:SECRETPW@h:x", "http://[::1", "postgresql+psycopg://u:SECRETPW@h:x/d", "postgresql+foo://u:SECRETPW@h/d"]
)
def test_an_address_that_cannot_be_read_is_refused(uri):
    assert refused(uri).startswith("tracking.uri ")


def made(file: Path, *statements: str) -> str:
    """Make an SQLite file, and return its URI."""
    with closing(sqlite3.connect(file)) as connection:
        for each in statements:
            connection.execute(each)
        connection.commit()
    return f"sqlite:///{file}"


def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(tmp_path, migrated):
    damaged = tmp_path / "damaged.db"
    data = bytearray(migrated.read_bytes())
    data[:100] = bytes(range(100, 200))
    damaged.write_bytes(data)
    revision = ["CREATE TABLE alembic_version (version_num)", f"INSERT INTO alembic_version VALUES ('{OLD}')"]
    tables = ["CREATE TABLE experiments (a)", "CREATE TABLE runs (a)"]
    uris = {
        f"sqlite:///{damaged}": "damaged, or no database",
        made(tmp_path / "other.db", "CREATE TABLE mine (a)"): "the database of another program",
        # Optuna's, for one.
        made(tmp_path / "alembic.db", *revision): "the database of another program",
        made(tmp_path / "old.db", *revision, *tables): f"({OLD}); back it up and run: mlflow db upgrade sqlite:///",
        made(tmp_path / "new.db", *revision, *tables, "UPDATE alembic_version SET version_num='f0'"): "install the MLflow",
    }
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for uri, reason in uris.items():
        assert reason in refused(uri)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert "is a directory" in refused(f"sqlite:///{tmp_path}")
    assert "is not a directory" in refused(f"sqlite:///{damaged}/mlflow.db")


def test_an_old_database_is_refused_and_left_as_it_is(database):
    psql(database, "CREATE DATABASE old")
    uri = f"{database.rpartition('/')[0]}/old"
    psql(uri, "CREATE TABLE alembic_version (v int); CREATE TABLE runs (a int); CREATE TABLE experiments (a int)")
    psql(uri, f"ALTER TABLE alembic_version ADD version_num text; INSERT INTO alembic_version VALUES (1, '{OLD}')")
    assert f"({OLD}); back it up and run: mlflow db upgrade postgresql" in refused(uri)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    # Nothing else stops root.
    with disks.small(tmp_path / "folder", "8m") as folder:
        disks.remount(folder, "ro")
        assert "is read-only" in refused(f"sqlite:///{folder}/mlflow.db")
        assert "is read-only" in refused(f"sqlite:///{folder}/below/mlflow.db")


def test_a_full_disk_is_refused_with_the_bytes_that_are_free(tmp_path):
    with disks.small(tmp_path / "full", "64k") as full:
        assert f"the disk of {full} is full: 65,536 bytes are free" in refused(f"sqlite:///{full}/mlflow.db")
        assert not list(full.iterdir())


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[31m", "a\0b", "x" * 251, None])
def test_a_name_that_no_store_takes_is_refused(tmp_path, migrated, name):
    shutil.copy(migrated, tmp_path)
    line = refused(f"sqlite:///{tmp_path}/mlflow.db", name)
    assert line.startswith("tracking.experiment must be a name of 1 to 250 characters") and line.isprintable()


def test_a_deleted_experiment_is_refused(tmp_path, migrated):
    uri = f"sqlite:///{shutil.copy(migrated, tmp_path)}"
    client, experiment_id = store.opened(uri, "gone")
    client.delete_experiment(experiment_id)
    assert "'gone' was deleted; restore it or set tracking.experiment=another" in refused(uri, "gone")


def test_a_name_may_look_like_a_number(tmp_path, migrated, database):
    for uri in (f"sqlite:///{shutil.copy(migrated, tmp_path)}", database):
        client, experiment_id = store.opened(uri, 2024)
        assert client.get_experiment(experiment_id).name == "2024"
        assert store.opened(uri, "2024")[1] == experiment_id


@pytest.mark.parametrize(
    "uri, credentials, warnings",
    [
        ("http://127.0.0.1:5000", True, []),
        ("http://localhost", True, []),
        ("http://[::1]:5000", True, []),
        ("https://tracking.example", True, []),
        ("http://tracking.example", False, []),
        ("http://tracking.example", True, ["in the clear"]),
        ("http://u:SECRETPW@tracking.example", False, ["MLFLOW_TRACKING_PASSWORD instead", "in the clear"]),
        ("postgresql+psycopg://u:SECRET@PW@h/d", False, ["PGPASSWORD instead"]),
        ("postgresql+psycopg://u@h/d?password=SECRETPW", False, ["PGPASSWORD instead"]),
        ("sqlite:////tmp/a:b@c.db", False, []),
    ],
)
def test_a_password_where_others_may_read_it_is_warned_of_once(monkeypatch, caplog, uri, credentials, warnings):
    preflight.warn.cache_clear()
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "x" if credentials else "")
    preflight.warn(uri)
    preflight.warn(uri)
    assert len(caplog.messages) == len(warnings)
    assert all(words in line for words, line in zip(warnings, caplog.messages, strict=True))
    assert "SECRET" not in caplog.text and "PW@" not in caplog.text


@pytest.mark.parametrize(
    ("given", "verify"),
    [
        ({}, True),
        ({"MLFLOW_TRACKING_INSECURE_TLS": "false"}, True),
        ({"MLFLOW_TRACKING_INSECURE_TLS": "true"}, False),
        ({"MLFLOW_TRACKING_SERVER_CERT_PATH": "own.pem"}, "own.pem"),
    ],
)
def test_certificates_are_checked_unless_the_user_says_otherwise(monkeypatch, given, verify):
    for name in ("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    asked: list[dict] = []

    def get(uri: str, **keys: object) -> None:
        asked.append(keys)
        raise requests.ConnectionError("connection refused")

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(UserError):
        preflight.check("https://127.0.0.1:1")
    assert [(keys["verify"], keys["allow_redirects"]) for keys in asked] == [(verify, False)]


def test_a_run_ends_before_its_first_step_where_the_store_is_not_there(tmp_path, silent):
    command = [sys.executable, "-m", "runner", f"tracking.uri=http://u:SECRETPW@127.0.0.1:{silent}"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and "no answer within" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and "SECRETPW" not in ended.stderr + ended.stdout
