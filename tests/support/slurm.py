"""A real Slurm on this machine: controller, node and, where asked for, its accounting; on 127.0.0.1, ended by process id."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from servers import free_port

PACKAGES = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core"
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={controller}
SlurmdPort={node}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={processors} RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
"""
DBD = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


@contextmanager
def slurm(accounting: bool) -> Iterator[dict[str, str]]:
    """Start a cluster of this machine's processors, and give the environment in which its commands reach it."""
    missing = [each for each in ("slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd") if not shutil.which(each)]
    assert not missing and os.geteuid() == 0, f"the tests need, as root: apt-get install {PACKAGES}"
    host = socket.gethostname().partition(".")[0]
    # A socket's path may have 107 characters, and a test's folder has many.
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp", ignore_cleanup_errors=True) as place, ExitStack() as stack:
        folder, env = Path(place), os.environ | {"SLURM_CONF": f"{place}/slurm.conf"}
        folder.chmod(0o755)

        def start(*command: str | Path, ready: Callable[[], bool]) -> None:
            stack.enter_context(running(folder, [*map(str, command)], env, ready))

        def reached(*command: str) -> bool:
            return subprocess.run(command, env=env, capture_output=True, check=False, timeout=30).returncode == 0

        key, socket_file = folder / "munge.key", folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        start("munged", "--force", "--foreground", f"--socket={socket_file}", *munge, ready=socket_file.exists)
        names = {"folder": folder, "user": getpass.getuser(), "host": host, "processors": os.cpu_count()}
        text = CONF.format(**names, controller=free_port(), node=free_port())
        if accounting:
            port = free_port()
            text += ACCOUNTING.format(**names, port=port)
            settings = DBD.format(**names, port=port, database=database(folder, start))
        (folder / "slurm.conf").write_text(text)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        if accounting:
            (folder / "slurmdbd.conf").write_text(settings)
            (folder / "slurmdbd.conf").chmod(0o600)
            start("slurmdbd", "-D", ready=lambda: reached("sacctmgr", "-n", "list", "cluster"))
            subprocess.run(["sacctmgr", "-i", "add", "cluster", "test"], env=env, check=True, capture_output=True)
        conf = env["SLURM_CONF"]
        start("slurmctld", "-D", "-f", conf, ready=lambda: reached("squeue"))
        stack.callback(subprocess.run, ["scancel", f"--user={getpass.getuser()}"], env=env, check=False, capture_output=True)
        start("slurmd", "-D", "-f", conf, ready=lambda: reached("srun", "--immediate=2", "true"))
        stack.callback(emptied, env)
        yield env


def database(folder: Path, start: Callable[..., None]) -> int:
    """Start MariaDB for the accounting, and return its port."""
    port, data, place = free_port(), folder / "mariadb", folder / "mariadb.socket"
    user = getpass.getuser()
    made = [
        "mariadb-install-db",
        "--no-defaults",
        f"--user={user}",
        f"--datadir={data}",
        "--auth-root-authentication-method=normal",
    ]
    subprocess.run(made, check=True, capture_output=True)
    client = ["mariadb", "--no-defaults", "-u", "root", f"--socket={place}", "-e"]

    def ready() -> bool:
        return subprocess.run([*client, "select 1"], check=False, capture_output=True).returncode == 0

    where = [f"--datadir={data}", f"--socket={place}", f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
    start("mariadbd", "--no-defaults", f"--user={user}", *where, "--innodb-buffer-pool-size=64M", ready=ready)
    for line in ("create database slurm", "create user slurm@'%' identified by 'slurm'", "grant all on slurm.* to slurm@'%'"):
        subprocess.run([*client, line], check=True, capture_output=True)
    return port


@contextmanager
def running(folder: Path, command: list[str], env: dict[str, str], ready: Callable[[], bool]) -> Iterator[None]:
    """Run a server in this block, and wait until it is ready."""
    log = folder / f"{command[0]}.out"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True, cwd="/")
    try:
        until = time.monotonic() + 60
        while not ready():
            assert server.poll() is None and time.monotonic() < until, f"{command}: {log.read_text()}"
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def emptied(env: dict[str, str]) -> None:
    """Cancel all tasks, and wait until none runs."""
    subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=env, check=False, capture_output=True)
    for _ in range(60):
        if not subprocess.run(["squeue", "--noheader"], env=env, check=False, capture_output=True, text=True).stdout.strip():
            return
        time.sleep(1)
