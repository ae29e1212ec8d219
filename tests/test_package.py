"""The wheel in an empty folder, and what the project's files promise of it."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from itertools import chain
from pathlib import Path

import pytest
import readme
from conftest import ROOT, store

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted(ROOT.glob("requirements*.lock"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Build the wheel and install it into a folder of its own, beside the packages of this environment."""
    folder, quiet = tmp_path_factory.mktemp("wheel"), {"check": True, "capture_output": True}
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, cwd=folder, **quiet)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder / "site", wheel], **quiet)
    return folder / "site"


# One command after another, in a process that imports once, and what each of them printed.
SEVERAL = """
import contextlib, importlib, io, json, sys
from runner.system import startup
ENTRIES = {"runner": "runner.cli.entry", "runner.check": "runner.check.command", "runner.report": "runner.report.command"}
told = []
for _, name, *words in json.loads(sys.argv[1]):
    sys.argv = [name, *words]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert importlib.import_module(ENTRIES.get(name, name)).main() == 0
    told.append(out.getvalue())
print(json.dumps(told))
startup.leave(0)
"""


def run(installed: Path, folder: Path, commands: list[str]) -> list[str]:
    """Return what Python commands print, which must say nothing else, in a folder where the wheel is installed."""
    words = [sys.executable, "-c", SEVERAL, json.dumps([shlex.split(command) for command in commands])]
    env = os.environ | {"PYTHONPATH": str(installed)}
    ended = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def test_what_a_user_adds_in_an_empty_folder_is_checked_run_and_swept_by_the_wheel(installed, tmp_path):
    readme.write_own(tmp_path)
    single, checked, signs, directions, swept = run(installed, tmp_path, readme.own_commands())
    assert "iteration_limit at step 100" in single and "nothing failed" in checked
    # |x - 1| is 2 and x/1 is 3: at 0.05 a step both lie within what a loss of 2.5 allows, 0.84 for x/1, after 44 steps.
    assert "converged (below) at step 44" in signs and "converged (below)" in directions
    assert "10 jobs: 10 new" in swept and swept.count("5 jobs as one program: 5 iteration_limit") == 2
    client = store(tmp_path)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    jobs = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 3 + 1 + 10 and len(jobs) == 10 and {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["optimizer"] for run in jobs} == {"sgd", "sign_descent"}


def test_the_installed_script_finds_a_users_files_too(installed, tmp_path):
    readme.write_own(tmp_path)
    words = [sys.executable, installed / "bin/tf-runner", *shlex.split(readme.own_commands()[0])[2:], "tracking=none"]
    env = os.environ | {"PYTHONPATH": str(installed)}
    ended = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "") and "iteration_limit" in ended.stdout


def test_the_wheel_is_what_runs_in_another_folder(installed, tmp_path):
    where = "import runner, runner.cli.entry as main; print(runner.__file__, main.CONF)"
    command, env = [sys.executable, "-P", "-c", where], os.environ | {"PYTHONPATH": str(installed)}
    out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(installed / "runner/__init__.py"), str(installed / "runner/conf")]


def test_the_wheel_holds_every_choice_and_nothing_else_at_the_top(installed):
    names = {path.name for path in installed.iterdir()} - {"bin"}
    assert {name.partition("-")[0] for name in names} == {"runner", "hydra_plugins", "tf_runner"}
    ours = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.relative_to(installed / "runner/conf") for path in (installed / "runner/conf").rglob("*.yaml")} == ours


def test_every_package_that_is_imported_is_a_dependency():
    extras = {name: each for name, each in PROJECT["optional-dependencies"].items() if name not in ("benchmark", "test")}
    declared = {re.split(r"[<>=\[]", each)[0].lower() for each in chain(PROJECT["dependencies"], *extras.values())}
    owners = packages_distributions()
    for path in (ROOT / "runner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {each.split(".")[0] for each in names} - sys.stdlib_module_names - {"runner"}:
                assert declared & {owner.lower() for owner in owners[name]}, f"{path.name} imports {name}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_versions_and_hashes_alone(lock):
    text = lock.read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", text)
    pinned = dict(re.findall(r"^([\w.-]+)==([^ ;]+)", text, re.MULTILINE))
    for name in PROJECT["dependencies"]:
        assert re.split(r"[<>=\[]", name)[0] in pinned
    assert text.count("--hash=sha256:") >= len(pinned)


def test_what_is_installed_is_what_is_locked():
    pinned = dict(re.findall(r"^([\w.-]+)==([^ ;]+)", LOCKS[0].read_text(), re.MULTILINE))
    for name in ("tensorflow", "keras", "mlflow", "hydra-core", "omegaconf"):
        assert distribution(name).version == pinned[name]
