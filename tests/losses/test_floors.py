"""The versions that close known holes: what is installed has them, and the project asks for no older ones."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from itertools import chain

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

# Package, the first version without it, and the hole that is closed there.
FLOORS = [
    ("hydra-core", "1.3.4", "CVE-2026-68508: instantiate runs code of a configuration"),
    ("hydra-core", "1.3.6", "CVE-2026-106441: a logging configuration resolves any callable"),
    ("hydra-core", "1.3.7", "CVE-2026-106439: a configuration changes the policy"),
    ("hydra-core", "1.3.8", "targets in yaml load objects"),
    ("mlflow", "3.5.0", "CVE-2025-14279: DNS rebinding"),
    ("mlflow", "3.8.0", "CVE-2026-2033: traversal in artifacts"),
    ("mlflow", "3.10.0", "CVE-2026-2614: files read without a login"),
    ("mlflow", "3.11.0", "CVE-2026-4137: temporary folders that everyone can write"),
    ("mlflow", "3.17.2", "CVE-2026-53995: traversal in traces"),
    ("keras", "3.13.2", "CVE-2026-1462: safe_mode bypassed"),
    ("keras", "3.15.1", "CVE-2026-12479: traversal by a layer's name, up to 3.14.0"),
    ("ray", "2.55", "CVE-2026-27482: the dashboard without a login"),
    ("requests", "2.32.4", "CVE-2024-47081: a .netrc's password for another host"),
    # MLflow's server is built on it.
    ("starlette", "1.3.1", "CVE-2026-48710: the check of Host bypassed"),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [Requirement(each) for each in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())]


@pytest.mark.parametrize("package, floor, hole", FLOORS, ids=[f"{package}-{floor}" for package, floor, _ in FLOORS])
def test_no_version_with_a_known_hole_is_installed_or_asked_for(package, floor, hole):
    assert Version(version(package)) >= Version(floor), hole
    for requirement in ASKED:
        if requirement.name == package:
            lowest = [Version(each.version) for each in requirement.specifier if each.operator in (">=", "==", "~=")]
            assert lowest and max(lowest) >= Version(floor), f"{requirement}: {hole}"
