"""Files of the user's stay as they are, whatever folder a command, a configuration or a file that was sent here names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path

import pytest
from conftest import store

from runner import records, sync
from runner.errors import UserError
from runner.fused import manifest
from runner.system import folders
from runner.tracking import delivery, journal, outbox

# What a run or a report writes, and what else a folder of the user's may hold: keys, sources, and what looks like a listing.
OURS = ("report.html", "report.png", "trajectory.parquet", "spool", "lock", "config.yaml", "console.txt", "runner.log")
OURS += (".hydra/config.yaml", ".hydra/hydra.yaml", "checkpoint/5/model.bin", "checkpoint/5.tmp/notes", "0/report.png")
OURS += ("multirun.yaml", "outcomes/0.json", "packs/0/jobs.json", "tables/runs.csv", "ranking.png")
OURS += ("sweeps/a.json", "groups/a/lock", "groups/a/data")
STORE = ["--tracking-uri", "sqlite:///outputs/mlflow.db"]
THEIRS = ("id_rsa", "README.md", "data.bin", "known_hosts", "0123456789abcdef0123456789abcdef", ".git/config")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Give a folder that is full of a user's files, among them some with names of ours."""
    for name in (*OURS, *THEIRS):
        path = tmp_path / "victim" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"/home/me/x\xff" if name == "data.bin" else f"/mine {name}\nmore\n".encode())
    return tmp_path / "victim"


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, and nothing for each empty folder."""
    found = {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
    return {str(path.relative_to(folder)): hashlib.sha256(data).hexdigest() for path, data in found.items()}


def kept(before: dict[str, str], folder: Path) -> bool:
    """Tell whether all that was in a folder is there as it was; more may be."""
    now = digests(folder)
    return {name: now.get(name) for name in before} == before


FOLDERS = [
    ("hydra.run.dir=victim",),
    ("-m", "seed=1,2", "hydra.sweep.dir=victim"),
    ("-m", "seed=1,2", "hydra.sweep.dir=victim", "hydra/launcher=fused"),
    ("-m", "seed=1,2", "hydra.sweep.dir=new", "hydra.sweep.subdir=../victim"),
    ("-m", "seed=1,2", "hydra.sweep.dir=victim", "tracking.offline=true", "hydra/launcher=fused"),
]


@pytest.mark.parametrize("words", FOLDERS, ids=lambda words: " ".join(words))
def test_a_folder_with_files_of_others_is_refused_and_left_as_it_is(drawn, runs, victim, words):
    before = digests(victim)
    ended = drawn(*words, "max_iterations=2")
    assert ended.code == 1 and f"{victim} holds files that are not a run's" in ended.out + ended.err
    assert "Traceback" not in ended.err and digests(victim) == before and runs() == []


def test_the_commands_own_folder_is_refused_too(drawn, victim, monkeypatch):
    monkeypatch.chdir(victim)
    before = digests(victim)
    ended = drawn("max_iterations=2", "hydra.run.dir=.", f"tracking.uri=sqlite:///{victim.parent}/outputs/mlflow.db")
    assert ended.code == 1 and ended.err.count("\n") == 1 and "holds files that are not a run's" in ended.err
    assert digests(victim) == before


def test_runs_that_are_listed_among_files_of_others_leave_those(cli, runs, victim, tmp_path, capfd):
    before = digests(victim)
    fused = ("-m", "seed=3,4", "hydra/launcher=fused", "resume=false")
    for words in ((), ("tracking.offline=true",), ("-m", "seed=1,2"), fused):
        assert cli(*words, "max_iterations=3", "report=none", "tracking.pending=victim").code == 0
        assert kept(before, victim)
    assert sync.main(["--pending", str(victim)]) == 0
    assert digests(victim) == before and len(runs()) == 6
    manifest.forget(victim, {"one"})
    assert manifest.folders(victim) == [] and digests(victim) == before


@pytest.mark.parametrize("name", ["0123456789abcdef0123456789abcdef", "other"])
def test_a_listing_is_known_by_its_name_and_its_words(tmp_path, name):
    for words in (b"", b"/a", b"a\n", b"\xff\n", b"-----BEGIN KEY-----\n"):
        (tmp_path / name).write_bytes(words)
        assert list(journal.pointers(tmp_path)) == [] == list(delivery.pointed(tmp_path)) == list(outbox.of(tmp_path))
        journal.Pointer(tmp_path, name).remove(tmp_path)
        assert (tmp_path / name).read_bytes() == words
        with pytest.raises(OSError, match="is not a run's"):
            journal.Pointer(tmp_path, name).write(tmp_path)


def test_a_spool_that_was_sent_here_names_no_file_that_is_removed(cli, runs, victim, tmp_path):
    assert cli("max_iterations=5", "tracking.offline=true", "report=none").code == 0
    (path,) = tmp_path.glob("outputs/runs/*/*/spool")
    with path.open("rb") as file:
        said = [frame.message for frame in journal.frames(file)]
    sent = tmp_path / "sent"
    before = digests(victim)
    for key in ("id_rsa", "../victim/id_rsa", THEIRS[4], str(victim / "id_rsa"), ".."):
        shutil.rmtree(sent, ignore_errors=True)
        forged = journal.Spool(sent)
        for word, fields, arrays in said:
            keys = {**fields.get("keys", {}), "pending": str(victim)}
            about = {**fields.get("about", {}), "folder": str(victim)}
            forged.say(word, {**fields, "run_key": key, "keys": keys, "about": about} if word == "begin" else fields, arrays)
        forged.close()
        for name in ("trajectory.parquet", "report.html"):
            (sent / name).write_text("mine")
        assert sync.main([str(sent)]) == 0 and not (sent / "spool").exists()
        assert digests(victim) == before and (sent / "trajectory.parquet").read_text() == "mine"


@pytest.mark.parametrize("name", ["spool", "lock"])
def test_a_folder_of_others_that_is_to_be_sent_is_left_as_it_is(victim, tmp_path, capfd, name):
    before = digests(victim)
    assert sync.main([str(victim)]) == 1 and sync.main([str(tmp_path / "nowhere")]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 2 and "left as it is" in err and not (tmp_path / "nowhere").exists()
    with pytest.raises(UserError, match="left as it is"):
        journal.Lock(victim, "run") if name == "lock" else journal.Spool(victim)
    assert digests(victim) == before


def test_of_a_checkpoint_its_own_files_are_removed_and_no_others(tmp_path):
    for name in ("5/rows.npz", "5/variables.index", "6.tmp/variables_temp/part-00000", "7/model.bin", "7/sums.json", "mine"):
        (tmp_path / "checkpoint" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoint" / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint")
    folders.remove_steps(tmp_path / "link")
    assert len(digests(tmp_path / "checkpoint")) == 10
    (tmp_path / "checkpoint/8").symlink_to(tmp_path)
    folders.remove_steps(tmp_path / "checkpoint")
    assert sorted(path.name for path in (tmp_path / "checkpoint").rglob("*")) == ["7", "8", "mine", "model.bin"]


def test_a_group_is_its_own_folder_and_nothing_else(tmp_path):
    mine = tmp_path / "groups/notes"
    own = manifest.place(tmp_path)
    for folder in (mine, own):
        manifest.make(folder)
        (folder / "5").mkdir()
        for name in ("lock", "5/rows.npz"):
            (folder / name).write_text("")
    (own / "letter").write_text("mine")
    manifest.forget(tmp_path, set())
    assert [path.name for path in own.iterdir()] == ["letter"] and (mine / "5/rows.npz").exists()


def test_a_run_whose_folder_is_away_stays_listed_until_it_is_back(cli, runs, tmp_path, capfd):
    assert cli("max_iterations=5", "tracking.offline=true", "report=none", "hydra.run.dir=disk/run").code == 0
    (tmp_path / "disk/run").rename(tmp_path / "elsewhere")
    # As nothing, as an empty folder, and where its file system is mounted.
    for again in (lambda: None, (tmp_path / "disk/run").mkdir):
        again()
        delivery.quietly(tmp_path / "outputs/pending", tmp_path)
        assert cli("max_iterations=2", "report=none").code == 0
        assert sync.main([]) == 1 and "the folder is away" in capfd.readouterr().err
    assert len(list(journal.pointers(tmp_path / "outputs/pending"))) == 1
    (tmp_path / "disk/run").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "disk/run")
    assert sync.main([]) == 0 and capfd.readouterr().err == ""
    assert sync.main([]) == 0 and "nothing is pending" in capfd.readouterr().out
    assert sorted(run.data.params["max_iterations"] for run in runs()) == ["2", "2", "5"]


def test_a_run_that_was_moved_is_sent_from_where_it_is_and_no_longer_listed(cli, runs, tmp_path):
    assert cli("max_iterations=5", "tracking.offline=true", "report=none", "hydra.run.dir=disk/run").code == 0
    (tmp_path / "disk").rename(tmp_path / "moved")
    assert sync.main(["moved/run"]) == 0 and len(runs()) == 1
    assert not (tmp_path / "outputs/pending").exists() and not (tmp_path / "disk").exists()


def unmarked(tmp_path: Path) -> None:
    """Leave folders as the releases did that had no mark."""
    for mark in tmp_path.rglob(folders.MARK):
        mark.unlink()


def test_what_releases_without_a_mark_have_left_goes_on(cli, runs, tmp_path):
    words = ("max_iterations=5", "report=none", "hydra.run.dir=run")
    assert cli(*words).code == 0 and cli("-m", "seed=1,2", "report=none", "hydra.sweep.dir=sweep").code == 0
    assert cli(*words, "seed=3", "tracking.offline=true").code == 0
    assert cli("-m", "seed=4,5", "hydra/launcher=fused", "tracking.offline=true", "hydra.sweep.dir=sweep").code == 0
    unmarked(tmp_path)
    assert sync.main([]) == 0 and len(runs()) == 6
    unmarked(tmp_path)
    assert cli(*words, "seed=6").code == 0 and cli("-m", "seed=7,8", "report=none", "hydra.sweep.dir=sweep").code == 0
    assert len(runs()) == 9


def test_a_store_names_no_folder_that_a_run_goes_on_in(cli, runs, victim, tmp_path):
    """The folder of an interrupted run is what its own spool says, not what a store does."""
    assert cli("max_iterations=5", "report=none").code == 0
    (run,) = runs()
    client = store(tmp_path)
    client.set_tag(run.info.run_id, "folder", str(victim))
    client.update_run(run.info.run_id, "KILLED")
    before = digests(victim)
    assert cli("max_iterations=5", "report=none").code == 0 and len(runs()) == 2
    assert digests(victim) == before


def test_how_a_sweep_ended_is_told_to_no_store_by_a_file_of_another_form(victim, tmp_path):
    said = {"keys": {}, "run_id": "other", "status": "KILLED", "tags": {}, "metrics": {}, "table": {}}
    file = victim / f"sweeps/{uuid.uuid4().hex}.json"
    file.write_text(json.dumps(said))
    before = digests(victim)
    from runner.tracking.store import parent_runs

    ((_, left),) = parent_runs.end_pending(victim, 0)
    assert left is not None and "is not a sweep's" in left and digests(victim) == before


def test_what_sync_and_report_write_is_for_the_user_alone(cli, tmp_path, victim):
    from runner.report import command

    assert cli("-m", "seed=1,2", "max_iterations=5", "report=none").code == 0
    assert cli("max_iterations=5", "tracking.offline=true", "report=none").code == 0
    before = {path for path in tmp_path.rglob("*")}
    mask = os.umask(0o022)
    try:
        assert records.answered(command.report, STORE) == 0 == sync.main([])
        assert os.umask(0o022) == 0o022, "a command left its mask behind"
    finally:
        os.umask(mask)
    new = [path for path in tmp_path.rglob("*") if path not in before]
    assert {"report.html", "trajectory.parquet", "runs.csv"} <= {path.name for path in new}
    assert {oct(path.stat().st_mode & 0o077) for path in new} == {"0o0"}
    files = digests(victim)
    assert records.answered(command.report, [*STORE, "--out", "victim"]) == 2
    assert digests(victim) == files
