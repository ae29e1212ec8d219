"""No row is lost: the spool as a file, and what comes of it in a store that fails, in whichever order it is sent."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import processes
import proxy
import pyarrow.parquet as pq
import pytest
import servers
from commands import Command, Ended
from conftest import environment, store
from mlflow import MlflowClient
from mlflow.entities import ViewType

from runner import sync
from runner.errors import UserError
from runner.system import processes as processes_of
from runner.trace import Trace
from runner.tracking import delivery, journal, outbox
from runner.tracking.store import heartbeat, retry

LONG = ("execution=eager", "max_iterations=1000000", "report=none")


def rows(start: int, count: int) -> Trace:
    """Return rows of two coordinates, no two of which are alike."""
    steps = np.arange(start, start + count, dtype=np.float32)
    x = np.stack([steps, -steps], axis=1)
    return Trace(start, x, steps**2, 2 * x, named={"rate": steps / 2}, measured={"error": np.full(count, np.nan)})


def written(folder: Path, *counts: int) -> list[int]:
    """Write a spool with messages of so many rows each, and return where each ends."""
    made, ends, start = journal.Spool(folder), [], 0
    for count in counts:
        made.say("record", *journal.row_fields(rows(start, count)))
        start += count
        ends.append(made.end)
    made.close()
    return ends


def read(folder: Path) -> list[Trace]:
    return list(journal.rows(folder))


def test_rows_come_back_as_they_were(tmp_path):
    written(tmp_path, 1, 5)
    for found, wanted in zip(read(tmp_path), (rows(0, 1), rows(1, 5)), strict=True):
        assert found.start == wanted.start
        for part in ("x", "loss", "gradient"):
            np.testing.assert_array_equal(getattr(found, part), getattr(wanted, part), strict=True)
        np.testing.assert_array_equal(found.named["rate"], wanted.named["rate"], strict=True)
        np.testing.assert_array_equal(found.measured["error"], wanted.measured["error"], strict=True)
    assert journal.recorded(tmp_path) == journal.Spool(tmp_path).recorded == 6


def test_a_spool_cut_at_any_byte_of_its_last_message_keeps_those_before_and_can_be_gone_on_with(tmp_path):
    first, whole = written(tmp_path, 2, 1)
    data = (tmp_path / journal.FILE).read_bytes()
    for size in range(first, whole):
        (tmp_path / journal.FILE).write_bytes(data[:size])
        assert [len(each) for each in read(tmp_path)] == [2] and journal.tail(tmp_path / journal.FILE) == (first, size)
        again = journal.Spool(tmp_path)
        again.say("record", *journal.row_fields(rows(2, 3)))
        again.close()
        assert [len(each) for each in read(tmp_path)] == [2, 3]


def test_a_changed_byte_anywhere_in_a_message_ends_what_is_read(tmp_path):
    first, whole = written(tmp_path, 2, 1)
    data = bytearray((tmp_path / journal.FILE).read_bytes())
    # But for the time, 8 bytes after length and checksum.
    for at in (*range(first, first + 12), *range(first + 20, whole)):
        data[at] ^= 1 << at % 8
        (tmp_path / journal.FILE).write_bytes(data)
        assert [len(each) for each in read(tmp_path)] == [2], at
        data[at] ^= 1 << at % 8


def test_times_never_decrease_where_the_clock_jumps_back(tmp_path, monkeypatch):
    made, hours = journal.Spool(tmp_path), iter([3, 4, 1, 2, 5])
    monkeypatch.setattr(time, "time_ns", lambda: next(hours) * 3600 * 10**9)
    for start in range(5):
        made.say("record", *journal.row_fields(rows(start, 1)))
    with (tmp_path / journal.FILE).open("rb") as file:
        times = [frame.at for frame in journal.frames(file)]
    assert times == [hour * 3_600_000 for hour in (3, 4, 4, 4, 5)]


def test_a_full_disk_is_told_in_one_line_and_leaves_the_spool_whole(tmp_path, monkeypatch):
    written(tmp_path, 2)
    made, write, room = journal.Spool(tmp_path), os.write, [10]

    def full(file: int, data: memoryview) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"spool cannot be written: No space left on device \(\d+ bytes are free\); make room"):
        made.say("record", *journal.row_fields(rows(2, 1)))
    monkeypatch.undo()
    made.say("record", *journal.row_fields(rows(2, 3)))
    assert [len(each) for each in read(tmp_path)] == [2, 3]


def test_a_lock_names_its_holder_and_goes_with_its_process(tmp_path):
    code = f"from runner.tracking.journal import Lock, Path; lock = Lock(Path({str(tmp_path)!r}), 'continued'); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), **pipes) as holder:
        assert processes.wait(lambda: (tmp_path / journal.LOCK).exists() and (tmp_path / journal.LOCK).read_text(), 20)
        with pytest.raises(journal.Held) as held:
            journal.Lock(tmp_path, "run")
        assert held.value.holder["pid"] == holder.pid and held.value.holder["role"] == "continued"
        holder.kill()
        holder.wait()
        journal.Lock(tmp_path, "run").release()


def test_a_holder_that_has_not_said_yet_who_it_is_is_waited_for(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    holder = journal.Lock(tmp_path, "run")
    # As its last holder has left it.
    holder.path.write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname(), "role": "run"}))
    said = threading.Timer(0.3, holder.become, ["continued"])
    said.start()
    with pytest.raises(journal.Held) as held:
        journal.Lock(tmp_path, "continued")
    assert (held.value.holder["pid"], held.value.holder["role"]) == (os.getpid(), "continued")
    holder.release()


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_again(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def removed(file: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / journal.LOCK).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed)
    lock = journal.Lock(tmp_path, "run")
    assert len(calls) == 2 and os.path.samestat(os.fstat(lock.file), (tmp_path / journal.LOCK).stat())
    lock.release()


HALF = [("finish", {"tags": {"ending": "interrupted"}}), ("end", {})]
WHOLE = [("finish", {"tags": {"ending": "converged"}}), ("end", {})]
ENDS = {
    "killed": [],
    "interrupted": HALF,
    "given up": [("fail", {"status": "KILLED", "tags": {}}), ("end", {})],
    "killed again": [*HALF, ("begin", {})],
    "failed": [("fail", {"status": "FAILED", "tags": {}}), ("end", {})],
    "whole": WHOLE,
    "whole at last": [*HALF, ("begin", {}), *WHOLE],
}


def test_of_runs_that_are_only_spooled_those_that_were_interrupted_are_found_the_newest_first(tmp_path, monkeypatch):
    hours, keys = iter(range(1, 1000)), {}
    monkeypatch.setattr(time, "time_ns", lambda: next(hours) * 3600 * 10**9)
    for name, end in ENDS.items():
        for identity in ("mine", "other"):
            key = uuid.uuid4().hex
            keys[key] = f"{name} {identity}"
            made = journal.Spool(tmp_path / keys[key])
            for word, fields in [("begin", {"about": {"tags": {"identity": identity}}}), *end]:
                made.say(word, fields)
            made.close()
            journal.Pointer(tmp_path / "pending", key).write(made.path.parent)
    # Beside them, one that has been sent, and a folder.
    journal.Pointer(tmp_path / "pending", uuid.uuid4().hex).write(tmp_path / "sent")
    (tmp_path / "pending/folder").mkdir()
    found = outbox.interrupted(tmp_path / "pending", "mine")
    names = [keys[run["run_key"]] for run in found]
    assert names == [f"{name} mine" for name in ("killed again", "given up", "interrupted", "killed")]
    assert all(run["folder"] == str(tmp_path / keys[run["run_key"]]) for run in found)
    assert outbox.interrupted(tmp_path / "nothing", "mine") == []


class Code(Exception):
    """As MLflow's exceptions, with a code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.error_code = code


def test_a_store_is_asked_again_while_the_run_goes_on_and_given_up_after_its_end():
    calls, waits = [], []

    def call() -> str:
        calls.append(1)
        if len(calls) < 9:
            raise Code("TEMPORARILY_UNAVAILABLE")
        return "there"

    assert retry.Policy(0, lambda: None, waits.append)(call) == "there"
    # Each wait is between a half and the whole of 0.2 s, 0.4 s …, 5 s.
    for i, wait in enumerate(waits):
        assert 0.5 * min(0.2 * 2**i, 5) <= wait <= min(0.2 * 2**i, 5)
    calls.clear()
    with pytest.raises(retry.GaveUp, match="TEMPORARILY_UNAVAILABLE"):
        retry.Policy(0, lambda: 0.0, waits.append)(call)
    calls.clear()

    def refused() -> None:
        calls.append(1)
        raise Code("RESOURCE_DOES_NOT_EXIST")

    with pytest.raises(Code):
        retry.Policy(60, lambda: None, waits.append)(refused)
    assert len(calls) == 1


def contents(client: MlflowClient, run) -> dict:
    """Return what a store has of a run, without what differs from one run to the next."""
    run_id = run.info.run_id
    metrics = {}
    for key in run.data.metrics:
        history = [(row.step, row.value) for row in client.get_metric_history(run_id, key)]
        assert len({step for step, _ in history}) == len(history), key
        metrics[key] = sorted(history) if "seconds" not in key else None
    own = ("run_key", "folder", "overrides", "mlflow.runName", "heartbeat", "heartbeat_every", "pid")
    tags = {key: value for key, value in run.data.tags.items() if key not in own}
    params = {key: value for key, value in run.data.params.items() if not key.startswith("tracking.")}
    files = sorted(each.path for each in client.list_artifacts(run_id))
    return {"metrics": metrics, "tags": tags, "params": params, "files": files, "status": run.info.status}


def rows_in(path: Path) -> int:
    """Return how many metrics there are in an SQLite store, doubled ones too."""
    with sqlite3.connect(path) as database:
        return database.execute("SELECT count(*) FROM metrics").fetchone()[0]


def test_a_run_sent_later_is_as_one_sent_at_once_however_often_it_is_sent(drawn, runs, tmp_path):
    words = ("max_iterations=20", "loss=rosenbrock")
    assert drawn(*words).code == 0
    alone = rows_in(tmp_path / "outputs/mlflow.db")
    ended = drawn(*words, "tracking.offline=true")
    (path,) = tmp_path.glob("outputs/runs/*/*/spool")
    folder = path.parent
    assert ended.code == 0 and ended.err == "" and f"python -m runner.sync {folder}" in ended.out
    assert len(runs()) == 1 and [each.read_text().strip() for each in tmp_path.glob("outputs/pending/*")] == [str(folder)]
    shutil.copy(path, tmp_path / "kept")
    for last in (False, False, True):
        assert sync.main([str(folder)]) == 0
        assert not path.exists() and not (tmp_path / "outputs/pending").exists()
        if last:
            break
        # As one that could not be sent as a whole, and then fell silent.
        (later,) = [run for run in runs() if run.data.tags["folder"] == str(folder)]
        for key, value in {"recording": "incomplete", **heartbeat.STALE}.items():
            store(tmp_path).set_tag(later.info.run_id, key, value)
        shutil.copy(tmp_path / "kept", path)
    online, later = runs()
    assert contents(store(tmp_path), later) == contents(store(tmp_path), online)
    assert rows_in(tmp_path / "outputs/mlflow.db") == 2 * alone


def test_a_damaged_folder_does_not_keep_the_others_from_being_sent(cli, runs, tmp_path, capfd):
    for seed in (1, 2, 3, 4):
        assert cli("max_iterations=5", "tracking.offline=true", "report=none", f"seed={seed}").code == 0
    cut, damaged, whole, done = sorted(tmp_path.glob("outputs/runs/*/*/spool"))
    with cut.open("rb") as file:
        finish, end = [frame for frame in journal.frames(file)][-2:]
    assert (finish.message.word, end.message.word) == ("finish", "end")
    # Without what the run came to, and without the word alone that nothing follows.
    for path, size in ((cut, finish.end), (done, done.stat().st_size)):
        path.write_bytes(path.read_bytes()[: size - 3])
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
    assert sync.main([str(each.parent) for each in (whole, damaged, cut, done)]) == 1
    first, *others = capfd.readouterr().err.splitlines()
    assert first.startswith(f"error: {damaged.parent}: ") and "cannot be read" in first and len(others) == 2
    for path, line in zip((cut, done), others, strict=True):
        assert str(path) in line and "what follows is dropped" in line
    ended = sorted((run.data.params["seed"], run.info.status) for run in runs())
    assert ended == [("1", "KILLED"), ("3", "FINISHED"), ("4", "FINISHED")]


def test_what_dead_processes_have_left_of_some_jobs_is_sent(cli, runs, tmp_path, monkeypatch):
    for seed in (1, 2):
        assert cli("max_iterations=5", "tracking.offline=true", "report=none", f"seed={seed}").code == 0
    mine, other = sorted(tmp_path.glob("outputs/runs/*/*/spool"))
    with mine.open("rb") as file:
        identity = next(journal.frames(file)).message.fields["about"]["tags"]["identity"]

    def busy() -> bool:
        return delivery.left_by({identity}, tmp_path / "outputs/pending", 0)

    lock = journal.Lock(mine.parent, "run")
    assert not busy(), "a run that goes on is another command's"
    lock.become("sending")
    assert busy()
    lock.become("run")
    with monkeypatch.context() as patched:
        patched.setattr(processes_of, "there", lambda _: False)
        assert busy(), "the recorder of a process that is gone holds its lock"
    assert not runs()
    lock.release()
    assert not busy() and other.exists() and not mine.exists()
    assert [(run.data.params["seed"], run.info.status) for run in runs()] == [("1", "FINISHED")]


def test_a_run_of_a_machine_that_shares_no_locks_is_sent_when_its_heart_has_stopped(cli, runs, tmp_path, capfd):
    assert cli("max_iterations=5", "tracking.offline=true", "report=none").code == 0
    (path,) = tmp_path.glob("outputs/runs/*/*/spool")
    with path.open("rb") as file:
        said, *_, end = journal.frames(file)
    with path.open("ab") as file:
        file.truncate(end.end - 40)
    assert sync.main([]) == 0 and capfd.readouterr().err.count("what follows is dropped") == 1
    (run,) = runs()
    client, run_id, pending = store(tmp_path), run.info.run_id, tmp_path / "outputs/pending"
    assert run.info.status == "KILLED" and path.exists()
    journal.Pointer(pending, said.message.fields["run_key"]).write(path.parent)
    holder = {"host": "another", "pid": 1, "start": "1", "machine": "another/pid", "role": "run"}
    (path.parent / "lock").write_text(json.dumps(holder))
    client.update_run(run_id, "RUNNING")
    client.set_tag(run_id, heartbeat.EVERY, "0.5")
    with heartbeat.Heart(client, run_id, 0.1):
        assert processes.wait(lambda: client.get_run(run_id).data.tags[heartbeat.BEAT] != run.data.tags[heartbeat.BEAT], 20)
        delivery.quietly(pending, tmp_path)
        assert not delivery.left_by({run.data.tags["identity"]}, pending, 0)
        assert sync.main([]) == 0 and "its run is still going on" in capfd.readouterr().out
        assert client.get_run(run_id).info.status == "RUNNING"
    assert json.loads((path.parent / "lock").read_text()) == holder
    # That it is silent is for others to find out: a run that starts has no time to.
    delivery.quietly(pending, tmp_path)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert sync.main([]) == 0 and "it is watched for 2 s" in capfd.readouterr().out
    assert client.get_run(run_id).info.status == "KILLED" and not pending.exists()


def test_the_next_run_sends_what_is_pending(cli, runs, tmp_path):
    assert cli("max_iterations=5", "tracking.offline=true", "report=none", "seed=1").code == 0
    assert cli("max_iterations=5", "report=none").code == 0
    assert processes.wait(lambda: not (tmp_path / "outputs/pending").exists(), 20)
    assert [run.info.status for run in runs()] == ["FINISHED"] * 2


def test_an_interrupted_run_is_continued_in_its_folder_with_each_step_once(prepared):
    words = ("execution=eager", "max_iterations=1500", "report=none")
    first = Command(prepared, *words)
    first.reach(201)
    first.kill()
    assert Command(prepared, *words).ended() == Ended(0, "")
    client = store(prepared)
    (run,) = client.search_runs([client.get_experiment_by_name("runner").experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["resumed"] == "1" and "stopped_by" not in run.data.tags
    steps = [row.step for row in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(steps) == list(range(1501))
    (table,) = prepared.glob("outputs/runs/*/*/trajectory.parquet")
    assert pq.read_table(table)["step"].to_pylist() == list(range(1501))
    assert not list(prepared.glob("outputs/runs/*/*/spool"))


@pytest.fixture(scope="module")
def server(tmp_path_factory, migrated):
    """Give an MLflow server's address and the file of its store."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated, folder)
    with servers.mlflow(f"sqlite:///{folder}/mlflow.db", folder) as uri:
        yield uri, folder / "mlflow.db"


def first_two(word: str) -> proxy.Fault:
    """Spoil the first two requests of each path that change something."""
    return lambda method, path, before: word if method != "GET" and before < 2 and "experiments" not in path else None


LATER = [pytest.param(word, marks=pytest.mark.long) for word in (proxy.AFTER, proxy.BUSY, proxy.SLOW)]


@pytest.mark.parametrize("word", [proxy.DROP, *LATER])
def test_a_server_behind_faults_gets_one_run_and_no_row_twice(server, tmp_path, word):
    uri, path = server
    client = MlflowClient(tracking_uri=uri)
    with proxy.faulty(uri, first_two(word)) as address:
        keys = (f"tracking.uri={address}", f"tracking.experiment={word}", "report=none")
        assert Command(tmp_path, "max_iterations=1500", *keys).ended() == Ended(0, "")
    (run,) = client.search_runs([client.get_experiment_by_name(word).experiment_id])
    assert run.info.status == "FINISHED" and not (tmp_path / "outputs/pending").exists()
    with sqlite3.connect(path) as database:
        counts = database.execute(
            "SELECT key, count(*), count(DISTINCT step) FROM metrics WHERE run_uuid = ? GROUP BY key", [run.info.run_id]
        )
        assert {key: (rows, steps) for key, rows, steps in counts if "/" not in key} == dict.fromkeys(
            ("loss", "x", "gradient"), (1501, 1501)
        )


@pytest.mark.long
def test_a_run_that_a_server_creates_late_and_again_is_deleted(server, tmp_path):
    uri, _ = server
    client = MlflowClient(tracking_uri=uri)

    def late(method: str, path: str, before: int) -> str | None:
        return proxy.BEFORE if path.endswith("runs/create") and before == 0 else None

    with proxy.faulty(uri, late) as address:
        keys = (f"tracking.uri={address}", "tracking.experiment=late", "report=none")
        assert Command(tmp_path, "execution=eager", "max_iterations=5000", *keys).ended() == Ended(0, "")
    experiments = [client.get_experiment_by_name("late").experiment_id]
    (run,) = client.search_runs(experiments)
    (ghost,) = client.search_runs(experiments, run_view_type=ViewType.DELETED_ONLY)
    assert run.info.status == "FINISHED" and len(client.get_metric_history(run.info.run_id, "loss")) == 5001
    assert ghost.data.tags["run_key"] == run.data.tags["run_key"] and not ghost.data.metrics


@pytest.mark.long
@pytest.mark.parametrize("way", ["busy", "silent"])
def test_a_server_that_goes_away_costs_the_run_nothing_and_gets_all_of_it_later(server, tmp_path, way):
    uri, _ = server
    gone, back = threading.Event(), threading.Event()

    def away(method: str, path: str, before: int) -> str | None:
        if gone.is_set() and way == "silent":
            # As one that has stopped: it takes the request, and answers when nobody waits any longer.
            back.wait(120)
        return proxy.BUSY if gone.is_set() and way == "busy" else None

    with proxy.faulty(uri, away) as address:
        keys = (f"tracking.uri={address}", f"tracking.experiment={way}", "tracking.flush_timeout=1", "report=none")
        command = Command(tmp_path, "execution=eager", "max_iterations=400", *keys)
        command.reach(51)
        gone.set()
        try:
            # Silence is taken for 10 s each time.
            code, err = command.ended(60)
        finally:
            back.set()
        (path,) = tmp_path.glob("outputs/runs/*/*/spool")
        assert code == 0 and err.count("could not be sent as a whole") == 1 and "Traceback" not in err
        assert len(command.rows()) == 401 and err.endswith(f"send it with: python -m runner.sync {path.parent}\n")
        gone.clear()
        again = subprocess.run(
            [sys.executable, "-m", "runner.sync"], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
    assert again.returncode == 0 and again.stderr == "" and not path.exists()
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(way).experiment_id])
    assert run.info.status == "FINISHED"
    assert sorted(row.step for row in client.get_metric_history(run.info.run_id, "loss")) == list(range(401))
