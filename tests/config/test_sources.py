"""The source of the user's own functions is part of what a run's result depends on, and only where there are such."""

from __future__ import annotations

import sys

import pytest
from conftest import own_loss
from test_sweeps import children

from runner.config import parameters, sources

HELPED = """
import tensorflow as tf
from mine.parts import helper
from . import parts as again
import json, runner

def loss(x, *, way, file=None):
    return tf.square(x - way - helper.SHIFT)
"""


def edited(path, old: str, new: str) -> None:
    """Edit a module as a user does between two commands, which are two processes."""
    path.write_text(path.read_text().replace(old, new))
    forgotten()


@pytest.fixture(autouse=True)
def new_process():
    """Leave no module of the user's to another test."""
    forgotten()
    yield
    forgotten()


def forgotten() -> None:
    """Import and look at the source anew, as another process does."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    sources.modules.cache_clear()
    sys.path_importer_cache.clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Give a folder with a package of the user's, whose loss takes a number from a helper of a helper."""
    files = {
        "__init__.py": "",
        "losses.py": HELPED,
        "parts/__init__.py": "",
        "parts/helper.py": "import beside\nfrom .. import more as _\nSHIFT = beside.SHIFT",
        "more.py": "",
        "apart.py": "x = 1",
    }
    for name, text in files.items():
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "beside.py").write_text("SHIFT = 1.0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(**keys):
    return {"loss": {"_target_": "mine.losses.loss", "way": 0, **keys}, "seed": 0}


def test_the_digest_is_of_the_module_and_of_what_it_imports_from_beside_it(package):
    first = parameters.digest(plain())
    assert {*sources.of(plain())} == {"mine", "mine.losses", "mine.parts", "mine.parts.helper", "mine.more", "beside"}
    assert not any(name.partition(".")[0] in ("mine", "beside") for name in sys.modules), "nothing is imported"
    edited(package / "mine/apart.py", "1", "2")
    assert parameters.digest(plain()) == first
    for name in ("mine/losses.py", "mine/parts/helper.py", "beside.py", "mine/more.py"):
        before = parameters.digest(plain())
        (package / name).write_text((package / name).read_text() + "\n# changed")
        forgotten()
        assert parameters.digest(plain()) != before, name
    # Python has imported it by now, and runs what it has.
    before = parameters.digest(plain())
    (package / "mine/losses.py").write_text("")
    assert parameters.digest(plain()) == before


def test_files_that_an_own_function_is_told_to_read_belong_to_it(package):
    before, named = parameters.digest(plain()), parameters.digest(plain(file="rows.csv"))
    (package / "rows.csv").write_text("1,2")
    there = parameters.digest(plain(file="rows.csv"))
    assert len({before, named, there}) == 3
    (package / "rows.csv").write_text("1,3")
    assert parameters.digest(plain(file="rows.csv")) != there
    assert parameters.digest(plain(data={"_target_": "numpy.array", "object": ["rows.csv"]})) != parameters.digest(
        plain(data=1)
    )


def test_without_own_functions_the_digest_is_what_it_was(package, monkeypatch):
    monkeypatch.setattr(parameters, "__version__", "0.2.0")
    (package / "quadratic").write_text("a file that only bears a value's name")
    ours = {"loss": {"_target_": "runner.losses.quadratic"}, "guess": {"kind": "quadratic"}, "seed": 0, "resume": True}
    assert parameters.digest(ours) == parameters.digest({**ours, "resume": False, "tracking": {"_target_": "mine.losses.loss"}})
    monkeypatch.setattr(sources, "of", lambda plain: {})
    without = parameters.digest(ours)
    monkeypatch.undo()
    monkeypatch.setattr(parameters, "__version__", "0.2.0")
    assert parameters.digest(ours) == without and sources.of(ours) == {}


def test_of_what_is_installed_the_file_and_the_version_count(monkeypatch):
    monkeypatch.setenv("RUNNER_ALLOW_TARGETS", "optuna.distributions:json")
    found = sources.of({"loss": {"_target_": "optuna.distributions.FloatDistribution"}, "guess": {"_target_": "json.loads"}})
    assert {*found} == {"optuna", "optuna.distributions", "optuna==", "json"}
    for name in ("there_is_none.f", "sys.exit"):
        monkeypatch.setenv("RUNNER_ALLOW_TARGETS", name)
        assert sources.of({"loss": {"_target_": name}}) == {}


@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_a_sweep_runs_anew_what_was_edited(cli, tmp_path, monkeypatch, launcher):
    own_loss(tmp_path, "mine", "import tensorflow as tf\ndef loss(x, *, way):\n    return tf.square(x - way)\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["-m", "--config-dir", "conf", "loss=mine", "guess=point", "guess.x=3", "max_iterations=3"]
    words += ["optimizer.learning_rate=0.1,0.2", f"hydra/launcher={launcher}"]
    assert "2 jobs: 2 new" in cli(*words).out and "2 jobs: 2 reused" in cli(*words).out
    edited(tmp_path / "mine.py", "square(x - way)", "square(x - way) + 100.0")
    again = cli(*words)
    assert "2 jobs: 2 new" in again.out, again
    assert [run.data.metrics["system/last_loss"] > 100 for run in children(tmp_path)] == [False, False, True, True]


def test_an_interrupted_run_is_not_continued_by_other_code(cli, tmp_path, monkeypatch, runs):
    stop = "if x < 2 and not SENT: SENT.append(os.kill(os.getpid(), signal.SIGTERM))"
    code = f"import os, signal\nimport tensorflow as tf\nSENT = []\ndef loss(x, *, way):\n    {stop}\n"
    own_loss(tmp_path, "mine", f"{code}    return tf.square(x - way)\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--config-dir", "conf", "loss=mine", "guess=point", "guess.x=3", "max_iterations=9", "execution=eager"]
    assert cli(*words).code == 143
    edited(tmp_path / "mine.py", stop, "pass")
    assert "continues" not in cli(*words).out
    first, second = runs()
    assert first.data.tags["ending"] == "interrupted" and second.data.tags["ending"] == "iteration_limit"
    assert "resumed" not in second.data.tags
