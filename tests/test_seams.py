"""Effects stay at the edge."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

MODULES = sorted((ROOT / "runner").rglob("*.py"))

# By which text becomes code, and the one module that may: all that a configuration names passes this door.
DOOR = "targets"
TEXT_TO_CODE = {"instantiate", "get_class", "get_method", "get_object", "locate", "_locate", "resolve_name", "import_module"}
TEXT_TO_CODE |= {"__import__", "exec_module", "load_module", "run_path", "run_module", "eval", "exec"}


def test_text_becomes_code_in_one_module_alone():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", getattr(node, "name", None))
            text_to_code = name in TEXT_TO_CODE and not isinstance(node, ast.FunctionDef)
            assert path.stem == DOOR or not text_to_code, f"{path.name}:{getattr(node, 'lineno', '')} has {name}"


@pytest.mark.parametrize(
    "module",
    [
        "trace",
        "stopping",
        "loop",
        "guesses",
        "tracking",
        "tracking.contract",
        "tracking.server",
        "tracking.store",
        "tracking.store.artifacts",
        "tracking.store.heartbeat",
        "tracking.store.preflight",
        "sync",
        "config.schema",
        "cli.job",
        "sweeps.sweep",
        "check.command",
        "report.command",
        "records",
        "diff",
        "verify",
        "cli.entry",
        "_recorder",
    ],
)
def test_importing_it_imports_nothing_heavy(module):
    code = f"import sys, runner.{module}; print({{'tensorflow', 'keras', 'mlflow', 'pandas', 'pyarrow'}} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_files_and_functions_are_small():
    for path in MODULES:
        source = path.read_text()
        assert len(source.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


def test_all_is_printed_by_one_door():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print" or path.stem == "secrets", f"{path.name}:{node.lineno}"


def test_every_text_file_is_in_an_encoding_of_its_own_whatever_the_locale():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            text = name in ("read_text", "write_text") or (name == "open" and any(set(mode) <= set("rwax+t") for mode in modes))
            assert not text or "encoding" in {each.arg for each in node.keywords}, f"{path.name}:{node.lineno}"
