"""The real servers that tests talk to, PostgreSQL, MLflow and Ray, on 127.0.0.1 and ended by their process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def postgresql(folder: Path, settings: str = "") -> Iterator[str]:
    """Start a PostgreSQL server whose data lie in this new folder, with further settings, and give its SQLAlchemy URI."""
    port = free_port()
    # As another user it would not get through the folders of pytest, which each pytest that starts closes to others again.
    with tempfile.TemporaryDirectory(prefix="postgresql", dir="/tmp", ignore_cleanup_errors=True) as place:
        folder.symlink_to(place)
        if os.geteuid() == 0:
            shutil.chown(place, "postgres", "postgres")
        data = Path(place, "data")
        of_postgresql("initdb", "-D", data, "-A", "trust", "-U", "runner")
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{place}'\n{settings}")
        pg_ctl(folder, "start")
        try:
            yield f"postgresql+psycopg://runner@127.0.0.1:{port}/postgres"
        finally:
            pg_ctl(folder, "-m", "immediate", "stop")


def pg_ctl(folder: Path, *words: str) -> None:
    """Start or stop the PostgreSQL server of a folder."""
    place = folder.resolve()
    of_postgresql("pg_ctl", "-D", place / "data", "-w", "-l", place / "log", *words)


def of_postgresql(program: str, *words: str | Path) -> None:
    """Run one of PostgreSQL's programs; they refuse to run as root."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert binaries, "the tests need PostgreSQL: apt-get install postgresql"
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    subprocess.run([*user, binaries[-1] / program, *words], check=True, capture_output=True, cwd="/")


@contextmanager
def mlflow(
    uri: str, folder: Path, workers: int | None = 1, port: int | None = None, by: signal.Signals = signal.SIGTERM
) -> Iterator[str]:
    """Start an MLflow server on a store, give its address, and end it by a signal; None: as many workers as by default."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += [] if workers is None else ["--workers", str(workers)]
    command += ["--backend-store-uri", uri, "--artifacts-destination", str(folder / "artifacts")]
    # Without it the server starts fifteen processes.
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(400):  # a busy machine takes minutes to fill an empty database
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.5)
        else:
            raise TimeoutError((folder / "server.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        # Its own session: the process and the workers that it started.
        os.killpg(server.pid, by)
        server.wait()


@contextmanager
def ray(env: dict[str, str], processors: int = 2) -> Iterator[str]:
    """Start a Ray cluster of so many processors, and give its address; it listens on all interfaces of its network."""
    port = free_port()
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--num-cpus={processors}"]
    command += ["--object-store-memory=200000000", "--disable-usage-stats"]
    # A socket's path may have 107 characters, and a test's folder has many.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        with log.open("w") as out:
            start = subprocess.Popen(
                [*command, f"--temp-dir={folder}"], env=env, stdout=out, stderr=out, start_new_session=True
            )
        try:
            assert start.wait(timeout=120) == 0, log.read_text()
            yield f"127.0.0.1:{port}"
        finally:
            # What it has started stays in its process group; not all of it heeds SIGTERM.
            with suppress(ProcessLookupError):
                os.killpg(start.pid, signal.SIGKILL)
