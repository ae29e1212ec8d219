"""The servers that tests start: for this machine alone, and to no page of another's."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import servers


@pytest.fixture(scope="module")
def server(tmp_path_factory, migrated) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with servers.mlflow(f"sqlite:///{shutil.copy(migrated, folder)}", folder) as uri:
        yield uri


def listening(port: int) -> dict[str, str]:
    """Return the addresses at which this port is listened to, as the kernel writes them, with their sockets' inodes."""
    found = {}
    for file in ("tcp", "tcp6"):
        for line in Path("/proc/net", file).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, of = fields[1].partition(":")
            # TCP_LISTEN
            if fields[3] == "0A" and int(of, 16) == port:
                found[address] = fields[9]
    return found


def holders(inode: str) -> set[int]:
    """Return the processes that have a socket open."""
    pids = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == f"socket:[{inode}]":
                pids.add(int(link.parts[2]))
        except OSError:
            continue
    return pids


def ask(uri: str, method: str, path: str, headers: dict[str, str]) -> int:
    """Return the status that a server answers with."""
    connection = http.client.HTTPConnection(urlsplit(uri).netloc, timeout=20)
    try:
        body = json.dumps({"name": "forged"}) if method == "POST" else None
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def test_mlflow_listens_here_alone_and_starts_no_jobs(server):
    # 127.0.0.1, its bytes in the order of a little-endian machine.
    ((address, inode),) = listening(urlsplit(server).port or 0).items()
    assert address == "0100007F"
    pids = holders(inode)
    assert pids
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in environment
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"--allowed-hosts" not in words and b"--disable-security-middleware" not in words


def test_mlflow_answers_no_page_of_anothers(server):
    name = urlsplit(server).netloc
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    create = "/api/2.0/mlflow/experiments/create"
    assert ask(server, "GET", search, {"Host": name}) == 200
    assert ask(server, "GET", search, {"Host": "evil.example.com"}) == 403
    assert ask(server, "POST", create, {"Host": name, "Origin": "http://evil.example.com"}) == 403
    assert ask(server, "POST", create, {"Host": name}) == 200


def test_postgresql_listens_here_alone(tmp_path):
    with servers.postgresql(tmp_path / "server") as uri:
        assert list(listening(urlsplit(uri).port or 0)) == ["0100007F"]
