"""The console ends no run: its reader goes, a stream is closed, its encoding lacks a sign; and nothing forges what it shows."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from conftest import environment, store, with_store

from runner import __version__
from runner.security import secrets, streams

RUNNER = f"{sys.executable} -m runner"


def shell(folder, line: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell in a folder."""
    env = environment() | more
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", timeout=500, check=False
    )


def ended(folder) -> list[tuple[str, str | None]]:
    """Return the status of each run of a folder's store and how it ended; the runs of sweeps come last."""
    client = store(folder)
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return sorted(((run.info.status, run.data.tags.get("ending")) for run in found), key=str, reverse=True)


# The first of these is in an encoding that lacks what the report's page is written with.
@pytest.mark.parametrize(
    ("words", "line", "wanted"),
    [
        ("execution=eager max_iterations=20", "RUN 2>&- | head -1", [("FINISHED", "iteration_limit")]),
        ("-m seed=1,2,3 report=none", "RUN 2>&1 | head -1", [*[("FINISHED", "iteration_limit")] * 3, ("FINISHED", None)][::-1]),
    ],
    ids=["run", "sweep"],
)
def test_a_reader_that_goes_ends_no_run(tmp_path, migrated, words, line, wanted):
    folder = with_store(tmp_path, migrated)
    done = shell(folder, line.replace("RUN", f"{RUNNER} {words}"), LC_ALL="C", PYTHONUTF8="0")
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""
    assert sorted(ended(folder), key=str) == sorted(wanted, key=str)
    if "report=none" not in words:
        assert len([*folder.rglob("artifacts/report.html")]) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full 2> /dev/full"])
def test_a_stream_that_takes_nothing_is_no_error(tmp_path, closed):
    # Whatever opens a file next would get the number of the one that is closed.
    file = tmp_path / "opened"
    code = f"from runner.security import streams; streams.hold(); open({str(file)!r}, 'w'); import sys\n"
    code += "print('x' * 100_000); print('y', file=sys.stderr); sys.stdout.flush()"
    done = shell(tmp_path, f'{sys.executable} -c "{code}" {closed}')
    assert done.returncode == 0 and done.stderr in ("", "y\n") and file.read_text() == ""


def test_a_run_needs_no_console(tmp_path, migrated):
    folder = with_store(tmp_path, migrated)
    assert shell(folder, f"{RUNNER} max_iterations=2 report=none >&- 2>&-").returncode == 0
    assert ended(folder) == [("FINISHED", "iteration_limit")]


@pytest.mark.parametrize("module", ["runner", "runner.sync"])
def test_a_working_folder_that_is_gone_is_told_in_one_line(tmp_path, module):
    done = shell(tmp_path, f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m {module}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {streams.GONE}\n")


def test_what_an_encoding_lacks_is_shown_in_other_signs(tmp_path):
    code = "from runner.security import secrets, streams; streams.hold(); secrets.tell('\\u03b2 \\u2026 \\x1b')"
    done = shell(tmp_path, f'{sys.executable} -c "{code}"', LC_ALL="C", PYTHONUTF8="0")
    assert done.stdout == "\\u03b2 \\u2026 \\x1b\n"


def test_the_version_is_the_packages_own(cli):
    told = cli("--version").out
    assert told.startswith(f"runner {__version__} (tensorflow {version('tensorflow')}, keras {version('keras')}")


@pytest.mark.parametrize("words", [("-m",), ("--multirun",), ()])
def test_help_takes_the_words_of_a_sweep(cli, words):
    told = cli(*words, "strategy=minimize,tape", "optimizer.learning_rate=logspace(-2,0,3)", "optimizer=adam", "--help")
    assert told.code == 0 and "amsgrad: false" in told.out and told.err == ""


def test_names_of_files_and_overrides_move_no_cursor(cli, tmp_path):
    (tmp_path / "conf/loss").mkdir(parents=True)
    (tmp_path / "conf/loss/a\x1b[2Jb.yaml").write_text("_target_: runner.losses.quadratic\n")
    told = [cli("--config-dir", "conf", "--help"), cli("--config-dir", "conf", "loss=lost")]
    told += [cli("--config-dir", "conf", "loss=a\x1b[2Jb", "max_iterations=1", *mode) for mode in ([], ["-m"])]
    told += [cli("tracking.experiment='a\x1b[2Jb'"), cli("-m", "+loss.x='\x1b[2J\x07'", "seed=1,2")]
    for each in told:
        assert "\x1b" not in each.out + each.err and "\x07" not in each.out + each.err
    assert "\\x1b[2J" in told[0].out and "\\x1b[2J" in told[1].err


def test_lines_are_escaped_and_masked_one_by_one(capsys):
    secrets.tell("one\ntwo\x1b password=abc")
    secrets.tell_lines("one\ntwo\r password=abc")
    assert capsys.readouterr().out == "one\\ntwo\\x1b password='***'\none\ntwo\\r password='***'\n"


def test_what_is_written_after_a_failure_is_dropped():
    ours, theirs = os.pipe()
    os.close(ours)
    stream = io.TextIOWrapper(io.BufferedWriter(streams.Lossy(theirs, "w")), "ascii", "backslashreplace")
    for _ in range(3):
        stream.write("β" * 100_000)
        stream.flush()
    stream.close()
