"""The real servers that tests talk to, PostgreSQL and MLflow, on 127.0.0.1 and ended by their process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
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
