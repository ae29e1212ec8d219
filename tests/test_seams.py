"""Effects stay at the edge: which module may import what, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MODULES = sorted((ROOT / "runner").rglob("*.py"))
# Sweeps are Hydra's, and their jobs its configurations; the plugins that it loads are shells in an __init__.
SWEEPS = {"job", "clusters", "compose", "grammar", "launching", "packs", "spaces", "sweeps", "studies", "__init__"}
CONFIG = {"config", "allow_hydra", "expansion", "named", "origins"}
# Who alone may import these, wherever in the file.
ONLY = {
    "hydra": {"__main__", "check", *CONFIG, "private", "sizes", *SWEEPS},
    "omegaconf": {"__main__", "check", "verify", *CONFIG, "build", "facts", "allow", "private", *SWEEPS},
    "mlflow": {
        "tracking",
        "store",
        "bulk",
        "batches",
        "artifacts",
        "many",
        "sweep_store",
        "report",
        "reach",
        "alive",
        "naming",
        "selection",
    },
    "rich": {"__main__", "job", "console", "experiment"},
}
# Rows, and what looks at them, are NumPy and plain Python.
PLAIN = {"compare", "trace", "stopping", "loop", "guesses", "errors", "signals"}


# By which text becomes code, and the one module that may: all that a configuration names passes this door.
DOOR = "allow"
TEXT_TO_CODE = {"instantiate", "get_class", "get_method", "get_object", "locate", "_locate", "resolve_name", "import_module"}
TEXT_TO_CODE |= {"__import__", "exec_module", "load_module", "run_path", "run_module", "eval", "exec"}


def imports(path: Path) -> set[str]:
    """Return the top-level packages that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_what_its_seam_allows(path):
    found = imports(path)
    for package, allowed in ONLY.items():
        assert package not in found or path.stem in allowed, f"{path.name} imports {package}"
    if path.stem in PLAIN:
        assert found <= {"numpy", "runner"} | sys.stdlib_module_names, f"{path.name} imports {found}"


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
        "artifacts",
        "recorder",
        "recording",
        "store",
        "sync",
        "reach",
        "alive",
        "config",
        "job",
        "sweeps",
        "check",
        "diff",
        "verify",
        "__main__",
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
                assert node.func.id != "print" or path.stem == "private", f"{path.name}:{node.lineno}"


def test_every_text_file_is_in_an_encoding_of_its_own_whatever_the_locale():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            text = name in ("read_text", "write_text") or (name == "open" and any(set(mode) <= set("rwax+t") for mode in modes))
            assert not text or "encoding" in {each.arg for each in node.keywords}, f"{path.name}:{node.lineno}"
