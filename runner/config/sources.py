"""Digests of the user's own source files, on which a run's result depends as much as on its configuration."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner.security import targets

# Folders of installed packages, whose version stands for their source.
INSTALLED = ("site-packages", "dist-packages")
STDLIB = Path(sysconfig.get_path("stdlib"))
# This package: its release, which is in each config digest, stands for its source.
OURS = __name__.partition(".")[0]


def of(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return digests, by name, of the files behind a configuration's own targets; empty if it has no such target.

    Own targets are those that `--allow-target` allows. Their files are the target's module, the modules that it imports from
    the same folder, and each file that an argument of the target names. Nothing is imported. A module is read once per process,
    as Python imports it once.
    """
    found: dict[str, str] = {}
    for node in own_nodes(plain):
        found |= modules(node["_target_"], root_of(node["_target_"]))
        found |= {text: file_digest(Path(text)) for text in texts(node) if is_file(text)}
    return found


def own_nodes(plain: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the nodes in plain data whose target the user's command allows."""
    values = plain.values() if isinstance(plain, Mapping) else plain if isinstance(plain, list) else ()
    if isinstance(plain, Mapping) and isinstance(name := plain.get("_target_"), str) and targets.let_in(name):
        yield plain
    for each in values:
        yield from own_nodes(each)


def texts(plain: Any) -> Iterator[str]:
    """Yield all strings in plain data."""
    values = plain.values() if isinstance(plain, Mapping) else plain if isinstance(plain, list) else ()
    if isinstance(plain, str):
        yield plain
    for each in values:
        yield from texts(each)


def is_file(text: str) -> bool:
    """Return whether a text is the path of a file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def file_digest(path: Path) -> str:
    """Return the digest of a file's content, or an empty string if it cannot be read."""
    try:
        status = path.stat()
        return content_digest(path.absolute(), status.st_mtime_ns, status.st_size)
    except OSError:
        return ""


@cache
def content_digest(path: Path, changed: int, size: int) -> str:
    """Return the digest of a file's content; its last change (ns since 1970) and its size (bytes) belong to the cache's key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def root_of(name: str) -> Path | None:
    """Return the folder in which Python finds the top module of a dotted name; None if there is no such module or no file."""
    try:
        spec = find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return None
    places = spec and (spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else []))
    return Path(next(iter(places))).parent if places else None


@cache
def modules(name: str, root: Path | None) -> dict[str, str]:
    """Return digests, by name, of a target's module and of the modules that it imports from the same folder."""
    if root is None:
        return {}
    if root.name in INSTALLED or root.is_relative_to(STDLIB):
        return installed(name, root)
    found: dict[str, str] = {}
    left = [name]
    while left:
        for spec in specs(left.pop(), root):
            if spec.name in found or not spec.origin or not spec.has_location:
                continue
            found[spec.name] = file_digest(Path(spec.origin))
            if spec.origin.endswith(".py"):
                source = Path(spec.origin).read_bytes()
                package = spec.name if spec.submodule_search_locations is not None else spec.name.rpartition(".")[0]
                left += [each for each in imports(source, package) if each.partition(".")[0] != OURS]
    return found


def installed(name: str, root: Path) -> dict[str, str]:
    """Return the digest of an installed module's file, and the version of the distribution with its name, if there is one."""
    found = {spec.name: file_digest(Path(spec.origin)) for spec in specs(name, root) if spec.origin and spec.has_location}
    top = name.partition(".")[0]
    try:
        return found | {f"{top}==": version(top)}
    except PackageNotFoundError:
        return found


def specs(name: str, root: Path) -> Iterator[ModuleSpec]:
    """Yield the modules along a dotted name, as Python finds them in this folder; the last parts may be attributes."""
    path, module = [str(root)], ""
    for part in name.split("."):
        module = f"{module}.{part}" if module else part
        spec = PathFinder.find_spec(module, path)
        if spec is None:
            return
        yield spec
        if spec.submodule_search_locations is None:
            return
        path = [*spec.submodule_search_locations]


def imports(source: bytes, package: str) -> Iterator[str]:
    """Yield the dotted names that a module of this package imports anywhere in its code; the last part may be an attribute."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        # Python reports the error when it imports the module.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
