"""What lies in a run's folder in the place of a file: it leads nowhere, neither what is written nor what is logged."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from conftest import store

from runner import sync
from runner.checkpoints import put
from runner.errors import UserError
from runner.system import folders
from runner.tracking import journal
from runner.tracking.store import artifacts

SECRET = b"of another\n"
# What a run writes there, each over whatever it finds.
WRITTEN = ("trajectory.parquet", "report.png", "report.html", ".hydra/config.yaml", ".hydra/overrides.yaml", "runner.log")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Give a file that is no run's."""
    path = tmp_path / "other"
    path.write_bytes(SECRET)
    return path


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_run_writes_its_files_in_the_place_of_links_and_logs_its_own(drawn, runs, tmp_path, other, link):
    folder = tmp_path / "run"
    folders.claim(folder, "")
    for name in (*WRITTEN, "config.yaml", "secret.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        link(folder / name, other)
    assert drawn("loss=rosenbrock", "max_iterations=20", f"hydra.run.dir={folder}").code == 0
    assert other.read_bytes() == SECRET
    (run,) = runs()
    kept = artifacts.local(run.info.artifact_uri)
    assert kept is not None
    assert {path.name for path in kept.iterdir()} == {"config.yaml", "trajectory.parquet", "report.png", "report.html"}
    for path in kept.iterdir():
        assert not path.is_symlink() and path.read_bytes() != SECRET, path
    for name in WRITTEN:
        assert not (folder / name).is_symlink() and (folder / name).read_bytes() != SECRET, name


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_run_that_finds_a_link_for_its_lock_is_refused(cli, runs, tmp_path, other, link):
    folders.claim(tmp_path / "run", "")
    link(tmp_path / "run" / journal.LOCK, other)
    ended = cli("max_iterations=2", "report=none", f"hydra.run.dir={tmp_path}/run")
    assert ended.code == 1 and ended.err.count("\n") == 1 and f"{tmp_path}/run/lock cannot be written" in ended.err
    assert other.read_bytes() == SECRET and runs() == []


def test_a_spool_is_no_link(tmp_path, other):
    for link in (Path.symlink_to, Path.hardlink_to):
        link(tmp_path / journal.FILE, other)
        with pytest.raises(UserError, match="spool cannot be written"):
            journal.Spool(tmp_path)
        (tmp_path / journal.FILE).unlink()
    assert other.read_bytes() == SECRET


def test_checkpoints_are_in_no_folder_of_anothers(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "checkpoint").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="must be a folder that is yours"):
        put(tmp_path / "checkpoint", 1, {}, lambda new: None)
    assert not list((tmp_path / "other").iterdir())


def test_only_files_are_logged(tmp_path, other, runs, cli):
    assert cli("max_iterations=1", "report=none").code == 0
    client, run_id, link = store(tmp_path), runs()[0].info.run_id, tmp_path / "link.png"
    link.symlink_to(other)
    for path in (link, tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="is no file"):
            artifacts.log_file(client, run_id, path)
    assert {each.path for each in client.list_artifacts(run_id)} == {"config.yaml", "trajectory.parquet"}


def test_a_spool_that_was_sent_here_removes_nothing_but_its_own(cli, tmp_path, other):
    assert cli("max_iterations=5", "tracking.offline=true", "report=none").code == 0
    (path,) = tmp_path.glob("outputs/runs/*/*/spool")
    with path.open("rb") as file:
        said = [frame.message for frame in journal.frames(file)]
    path.unlink()
    forged = journal.Spool(path.parent)
    for word, fields, arrays in said:
        forged.say(word, {**fields, "run_key": "../../other"} if word == "begin" else fields, arrays)
    forged.close()
    assert sync.main([str(path.parent)]) == 0 and other.read_bytes() == SECRET
    # The same, where another run begins in its folder.
    forged = journal.Spool(path.parent)
    forged.say("begin", {"run_key": "x/../../../../../../other"})
    forged.close()
    (path.parent / "spool-x").mkdir()
    before = set(tmp_path.iterdir())
    journal.set_aside(path.parent, tmp_path / "outputs/pending")
    assert not path.exists() and set(tmp_path.iterdir()) == before and other.read_bytes() == SECRET


def test_a_run_in_the_folder_of_one_before_leaves_what_that_has_logged(drawn, runs, tmp_path):
    words = ("loss=rosenbrock", "max_iterations=5", f"hydra.run.dir={tmp_path}/run")
    assert drawn(*words).code == 0
    (first,) = runs()
    kept = artifacts.local(first.info.artifact_uri)
    assert kept is not None
    before = contents(kept)
    assert len(before) == 4 and os.path.samefile(kept / "report.png", tmp_path / "run/report.png")
    assert drawn(*words, "optimizer=adam").code == 0
    assert contents(kept) == before and len(runs()) == 2
