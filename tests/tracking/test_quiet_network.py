"""A run, its recorder and what they import call nobody but this machine."""

from __future__ import annotations

import subprocess
import sys

from conftest import environment, store

# Python runs it at the start of each process that finds it.
GUARD = """
import os, socket

def guarded(call):
    def checked(self, address, *rest):
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "::1") and not host.startswith("127."):
            with open(os.environ["CALLED"], "a") as file:
                print(os.getpid(), host, file=file)
            raise OSError(f"guarded: {host}")
        return call(self, address, *rest)
    return checked

def looked_up(host, *rest, **more):
    if host not in (None, "localhost", "::1", socket.gethostname()) and not str(host).startswith("127."):
        with open(os.environ["CALLED"], "a") as file:
            print(os.getpid(), host, file=file)
        raise socket.gaierror(f"guarded: {host}")
    return own(host, *rest, **more)

own, socket.getaddrinfo = socket.getaddrinfo, looked_up
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
with open(os.environ["CALLED"] + ".guarded", "a") as file:
    print(os.getpid(), file=file)
"""


def test_a_run_calls_nobody(tmp_path):
    guard, called = tmp_path / "guard", tmp_path / "called"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    asked = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST")
    env = {key: value for key, value in environment(guard).items() if key not in asked} | {"CALLED": str(called)}
    # MLflow says nothing from a test or from CI: the guard has to see that the environment would have let it.
    words = [sys.executable, "-m", "runner", "max_iterations=5"]
    ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    # The run and its recorder, at least, were watched.
    assert len((tmp_path / "called.guarded").read_text().split()) >= 2
    assert not called.exists(), called.read_text()
    client = store(tmp_path)
    assert len(client.search_runs(["1"])) == 1


def test_the_guard_sees_who_calls(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    env = environment(tmp_path) | {"CALLED": str(tmp_path / "called")}
    code = "import socket, urllib.request as u\ntry: u.urlopen('http://example.invalid')\nexcept OSError: pass\n"
    code += "try: socket.socket().connect(('192.0.2.1', 9))\nexcept OSError: pass\n"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert [line.split()[1] for line in (tmp_path / "called").read_text().splitlines()] == ["example.invalid", "192.0.2.1"]
