"""The wheel in an empty folder, and what the project's files promise of it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from conftest import ROOT

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


def run(installed: Path, folder: Path, *words: str) -> str:
    env = os.environ | {"PYTHONPATH": f"{installed}:{folder}"}
    command = [sys.executable, "-P", "-m", "runner", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout


def test_the_wheel_runs_in_an_empty_folder_with_a_users_own_configuration(installed, tmp_path):
    (tmp_path / "mine.py").write_text("def loss(x):\n    return (x - 1) ** 2\n")
    (tmp_path / "my_conf/loss").mkdir(parents=True)
    (tmp_path / "my_conf/loss/mine.yaml").write_text("_target_: mine.loss\n")
    out = run(installed, tmp_path, "--config-dir", "my_conf", "loss=mine", "guess=point", "guess.x=2", "max_iterations=3")
    assert "iteration_limit at step 3" in out and (tmp_path / "outputs/mlflow.db").is_file()
    where = "import runner, runner.__main__ as main; print(runner.__file__, main.CONF)"
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
