"""A folder full of what must not be touched, a command that runs in it, watched, and what it did that it should not have."""

from __future__ import annotations

import http.server
import os
import resource
import runpy
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from commands import WARM
from configurations import TOUCH, Case, further, merged
from conftest import ROOT, environment
from watched import watch

SECRET = "SECRETPW"
# Of processor time and of wall-clock time, in seconds; nothing here has more than one step to take.
PROCESSOR, WALL = 60, 240
MEMORY = 3_000_000  # KiB
EVIL = TOUCH + "def touch(*args, **keys):\n    return 0.1\nx = 1\n"
# What a command may write by itself, below the sandbox: its outputs, and what libraries cache.
ALLOWED = ("work/outputs", "tmp", "home/.cache", "home/.config", "home/.keras", "out", "err", "watched.log")
PICKLE = b"cposix\nsystem\n(S'touch %s/canary'\ntR."
# The program of a cluster: it runs a script as a node would, but for the task's own step, which srun starts; then it fails.
SBATCH = """#!/bin/sh
for file; do :; done
srun() { :; }
( . "$file" ) >/dev/null 2>&1
echo 'the cluster takes no tasks' >&2
exit 1
"""
PLANTED = {
    "work/README.md": "mine\n",
    "work/source.py": "mine = 1\n",
    "work/checkpoint/keep.txt": "mine\n",
    "work/report.html": "<p>mine</p>\n",
    "work/report.png": "mine\n",
    "work/trajectory.parquet": "mine\n",
    "work/.hydra/config.yaml": "mine: 1\n",
    "work/.hydra/overrides.yaml": "- mine\n",
    "work/config.yaml": "mine: 1\n",
    "work/keys/id_rsa": "-----BEGIN KEY-----\nmine\n",
    "work/keys/0123456789abcdef0123456789abcdef": "mine\n",
    "work/evil.py": EVIL,
    "work/library.so": "not a library\n",
    "work/beside/loss/quadratic.yaml": "_target_: evil.touch\n",
    "work/beside/__init__.py": TOUCH,
    "work/bin/sbatch": SBATCH,
    "work/bin/squeue": "#!/bin/sh\n",
    "work/bin/sacct": "#!/bin/sh\necho 'JobID|State'\necho '1_0|COMPLETED'\n",
    "victim/config.yaml": "mine: 1\n",
    "victim/overrides.yaml": "- mine\n",
    "victim/runner.log": "mine\n",
    "home/.ssh/id_rsa": "-----BEGIN KEY-----\nmine\n",
    "home/.ssh/config": "Host *\n",
    "secret.txt": "word\n",
}
SITE = """
import os, sys
if "WATCHED" in os.environ:
    from watched import watch
    sandbox = os.environ["WATCHED"]
    log = os.open(sandbox + "/watched.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    watch(sandbox, [os.path.join(sandbox, each) for each in os.environ["WATCHED_ALLOWED"].split(":")], log)
"""


class Servers:
    """A store of a stranger's, by HTTP and as PostgreSQL, that keeps each secret that it is sent."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        heard = self.heard

        class Store(http.server.BaseHTTPRequestHandler):
            """Says that it is there, and takes nothing."""

            def do_GET(self) -> None:
                """Answer."""
                if given := self.headers.get("Authorization"):
                    heard.append(f"HTTP {given.split()[0]}")
                fine = self.path in ("/health", "/version")
                self.send_response(200 if fine else 403)
                self.end_headers()
                self.wfile.write(b"OK")

            do_POST = do_GET

            def log_message(self, *args: Any) -> None:
                """Print nothing."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
        self.postgres = socket.create_server(("127.0.0.1", 0))
        for work in (self.http.serve_forever, self.ask):
            threading.Thread(target=work, daemon=True).start()

    def ask(self) -> None:
        """Ask whoever connects for a password in clear text."""
        while True:
            try:
                peer, _ = self.postgres.accept()
                peer.settimeout(5)
                size = int.from_bytes(peer.recv(4), "big")
                if size == 8:  # It asks for TLS.
                    peer.recv(4)
                    peer.sendall(b"N")
                    size = int.from_bytes(peer.recv(4), "big")
                peer.recv(size - 4)
                peer.sendall(b"R\0\0\0\x08\0\0\0\x03")
                if SECRET.encode() in peer.recv(1000):
                    self.heard.append("PostgreSQL password")
                peer.close()
            except OSError:
                continue

    @property
    def ports(self) -> dict[str, str]:
        """The placeholders of their ports."""
        return {"@P@": str(self.http.server_port), "@Q@": str(self.postgres.getsockname()[1])}


def written(text: str, places: Mapping[str, str]) -> str:
    """Return a text with its placeholders filled in."""
    for name, value in places.items():
        text = text.replace(name, value)
    return text


class Sandbox:
    """Runs cases one after another below a folder; `harms(case)` returns what each did outside the list."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.servers, self.records = folder, Servers(), dict[str, Path]()
        self.site = folder / "site"
        self.site.mkdir(parents=True)
        (self.site / "sitecustomize.py").write_text(SITE)
        shutil.copy(Path(__file__).with_name("watched.py"), self.site)

    def harms(self, case: Case) -> list[str]:
        """Run a case and return a line for each thing that it did and should not have."""
        box = self.folder / "box"
        shutil.rmtree(box, ignore_errors=True)
        places = {"@S@": str(box), **self.servers.ports}
        words = [written(each, places) for each in case.words]
        for name, text in {
            **PLANTED,
            **{f"work/{name}": text for name, text in case.files.items() if name != "chosen"},
        }.items():
            (box / name).parent.mkdir(parents=True, exist_ok=True)
            (box / name).write_text(written(text, places))
        (box / "work/evil.pkl").write_bytes(PICKLE % str(box).encode())
        for each in (box / "work/bin").iterdir():
            each.chmod(0o755)
        (box / "tmp").mkdir()
        if case.recorded is not None:
            words = self.record(case, box / "work", places)
        if case.name.startswith("outputs/link"):
            (box / "work/outputs").mkdir()
            (box / "work/outputs/link").symlink_to(box / "victim")
        secret = box / "secret.txt"
        os.utime(secret, (1, time.time()))
        before = self.contents(box)
        heard = len(self.servers.heard)
        found = self.run(case, box, words)
        found += [f"sent a secret: {each}" for each in self.servers.heard[heard:]]
        after = self.contents(box)
        found += [f"changed {name}" for name in before if after.get(name) != before[name]]
        found += [f"left {name}" for name in after.keys() - before.keys() if not name.startswith((*ALLOWED, *case.own))]
        if secret.stat().st_atime > 1:
            found.append("read secret.txt")
        told = (box / "out").read_text(errors="replace") + (box / "err").read_text(errors="replace")
        # A command that printed nothing has read nothing, unless it was ended.
        assert found or (told and "usage:" not in told), f"{case}: {told}"
        found += [f"printed {each!r}" for each in ("Traceback", "\x1b[2J", SECRET) if each in told]
        found += [f"wrote the secret to {name}" for name, content in after.items() if SECRET.encode() in content]
        return sorted({*found})

    def contents(self, box: Path) -> dict[str, bytes]:
        """Return all files of a sandbox."""
        paths = {str(path.relative_to(box)): path for path in box.rglob("*")}
        return {name: path.read_bytes() for name, path in paths.items() if path.is_file() and name != "secret.txt"}

    def run(self, case: Case, box: Path, words: list[str]) -> list[str]:
        """Run the command in a process of its own and return what the audit hooks and the limits say of it."""
        variables = {key: value for key, value in environment(self.site).items() if not key.startswith("RUNNER_")}
        variables["PYTHONPATH"] = os.pathsep.join([str(self.site), str(ROOT)])
        variables |= {
            "WATCHED": str(box),
            "WATCHED_ALLOWED": ":".join((*ALLOWED, *case.own)),
            "HOME": str(box / "home"),
            **case.variables,
        }
        variables |= {"TMPDIR": str(box / "tmp"), "PATH": f"{box}/work/bin:{os.environ['PATH']}", "PGPASSWORD": SECRET}
        variables |= {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": SECRET, "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = box / "watched.log"
        log.touch()
        process = WARM.Process(target=become, args=(case.module, words, box, variables))
        process.start()
        process.join(WALL)
        found = []
        if process.is_alive():
            found.append(f"took more than {WALL} s")
        assert process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
            found.append(f"took more than {PROCESSOR} s of processor time")
        return [*found, *log.read_text(errors="replace").splitlines()]

    def record(self, case: Case, work: Path, places: Mapping[str, str]) -> list[str]:
        """Lay a store beside the command whose run's record holds a case's configuration; returns the words that read it."""
        chosen = case.files.get("chosen", "")
        if chosen not in self.records:
            self.records[chosen] = made = self.folder / f"record{len(self.records)}"
            made.mkdir()
            choices = [each for each in chosen.split() if "custom" not in each]
            command = [sys.executable, "-m", "runner", "-m", "seed=1,2", "max_iterations=2", "report=none", *choices]
            ended = subprocess.run(command, cwd=made, env=environment(), capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
        made = self.records[chosen]
        shutil.copytree(made / "outputs", work / "outputs")
        with sqlite3.connect(work / "outputs/mlflow.db") as store:
            store.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", (str(made), str(work)))
            store.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", (str(made), str(work)))
            files = sorted((work / "outputs/artifacts").rglob("config.yaml"))
            ids = [file.parents[1].name for file in files]
            for run, file in zip(ids, files, strict=True):
                laid = further(chosen, merged(yaml.safe_load(file.read_text()), case.recorded or {}))
                file.write_text(written(yaml.safe_dump(laid, sort_keys=False, width=10_000), places))
                self.restate(store, run, yaml.safe_load(file.read_text()))
        store.close()
        return {"runner.verify": ids[:1], "runner.diff": ids, "runner.report": []}[case.module]

    def restate(self, store: sqlite3.Connection, run: str, plain: dict[str, Any]) -> None:
        """Have a run's parameters say what its configuration does, as whoever owns the store can."""
        from runner.config.parameters import flat

        store.execute("DELETE FROM params WHERE run_uuid = ?", (run,))
        rows = [(run, key, value) for key, value in flat(plain).items()]
        store.executemany("INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)", rows)


def become(module: str, words: list[str], box: Path, variables: dict[str, str]) -> None:
    """Become a command of this package, watched."""
    os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(box / "work")
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(box / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    # As `python -m` has it: what lies beside the command is found.
    sys.path.insert(0, str(box / "work"))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR + 5))
    log = os.open(box / "watched.log", os.O_WRONLY | os.O_APPEND)
    ends(log)
    watch(str(box), [str(box / each) for each in variables["WATCHED_ALLOWED"].split(":")], log)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def ends(log: int) -> None:
    """Have the process say at its end on which ports it listens, and how much memory it took."""
    from runner.system import startup

    def say() -> None:
        inodes = {os.readlink(each.path) for each in os.scandir("/proc/self/fd") if os.path.islink(each.path)}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                    os.write(log, f"listens on {fields[1]}\n".encode())
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MEMORY:
            os.write(log, b"took more than 3 GB\n")

    startup.at_end.append(say)
