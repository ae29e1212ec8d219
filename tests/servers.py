"""The real servers that tests talk to, PostgreSQL, MLflow and Ray, on 127.0.0.1 and ended by their process id."""

from __future__ import annotations

import os
import pwd
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
def postgresql(folder: Path) -> Iterator[str]:
    """Start a PostgreSQL server whose data lie in this new folder, and give its SQLAlchemy URI."""
    data, port = folder / "data", free_port()
    folder.mkdir()
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    of_postgresql(folder, "initdb", "-D", data, "-A", "trust", "-U", "runner")
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{folder}'\n")
    pg_ctl(folder, "start")
    try:
        yield f"postgresql+psycopg://runner@127.0.0.1:{port}/postgres"
    finally:
        pg_ctl(folder, "-m", "immediate", "stop")


def pg_ctl(folder: Path, *words: str) -> None:
    """Start or stop the PostgreSQL server of a folder."""
    of_postgresql(folder, "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", *words)


def of_postgresql(folder: Path, program: str, *words: str | Path) -> None:
    """Run one of PostgreSQL's programs on its folder; they refuse to run as root."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert binaries, "the tests need PostgreSQL: apt-get install postgresql"
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        # Another pytest that starts meanwhile closes the folder above all of theirs again.
        open_to_all(folder.parent)
    subprocess.run([*user, binaries[-1] / program, *words], check=True, capture_output=True)


def open_to_all(folder: Path) -> None:
    """Let another user pass through a folder and those above it that are this user's own."""
    while folder != folder.parent and folder.owner() == pwd.getpwuid(os.geteuid()).pw_name and folder != Path("/tmp"):
        folder.chmod(folder.stat().st_mode | 0o011)
        folder = folder.parent


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
        for _ in range(120):
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
