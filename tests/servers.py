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
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert binaries, "the tests need PostgreSQL: apt-get install postgresql"
    data, port = folder / "data", free_port()
    # It refuses to run as root.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    folder.mkdir()
    if user:
        shutil.chown(folder, "postgres", "postgres")
        open_to_all(folder.parent)
    quiet = {"check": True, "capture_output": True}
    subprocess.run([*user, binaries[-1] / "initdb", "-D", data, "-A", "trust", "-U", "runner"], **quiet)
    control = [*user, binaries[-1] / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-o", f"-h 127.0.0.1 -p {port} -k {folder}", "-l", folder / "log", "start"], **quiet)
    try:
        yield f"postgresql+psycopg://runner@127.0.0.1:{port}/postgres"
    finally:
        if user:
            # Another pytest that starts meanwhile closes the folder above all of theirs again.
            open_to_all(folder.parent)
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


def open_to_all(folder: Path) -> None:
    """Let another user pass through a folder and those above it that are this user's own."""
    while folder != folder.parent and folder.owner() == pwd.getpwuid(os.geteuid()).pw_name and folder != Path("/tmp"):
        folder.chmod(folder.stat().st_mode | 0o011)
        folder = folder.parent


@contextmanager
def mlflow(uri: str, folder: Path, workers: int | None = 1) -> Iterator[str]:
    """Start an MLflow server on a store, and give its address; None: with as many workers as it has by default."""
    port = free_port()
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
        os.killpg(server.pid, signal.SIGTERM)
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
