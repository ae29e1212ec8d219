"""The only way from a configuration's names to code: listed names, and further names that the user's command allows.

A shared YAML or a sweep file is data, and data must not choose which code runs. This is no sandbox: allowed code simply runs.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pkgutil import resolve_name
from typing import Any

from omegaconf import OmegaConf

from runner.errors import UserError, first_line
from runner.security.names import NAMES, RENAMED, current

OPTION, VARIABLE, ENVIRONMENT = "--allow-target", "RUNNER_ALLOW_TARGETS", "RUNNER_ALLOW_ENV"

# Keys of a node that are not arguments of its target.
SPECIAL = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}

# The names in the `--allow-target` options of this process's command.
NAMED: list[str] = []


@contextmanager
def named(words: list[str]) -> Iterator[None]:
    """Remove `--allow-target NAME` from a command's words; allow NAME in this block and in processes started in it.

    Raises UserError for a missing or wrong NAME, and for Hydra's ways to bypass its own guard or to read a pickle.
    """
    if os.environ.get("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE"):
        raise UserError(f"HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE is set, which has no use here; unset it and use {OPTION}")
    before, given = os.environ.get(VARIABLE), NAMED
    given.clear()
    rest = list(words)
    words.clear()
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option == OPTION:
            if not equals and (not rest or rest[0].startswith("-")):
                raise UserError(f"{OPTION} needs a module or a name in it: {OPTION} my_loss")
            given.append(value if equals else rest.pop(0))
        elif option.startswith("--e") and "--experimental-rerun".startswith(option):
            raise UserError(f"{option} would read a pickle, which runs as code; give the overrides again instead")
        else:
            words.append(word)
    if unlike := [each for each in given if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", each)]:
        raise UserError(f"{OPTION} must be a module or a name in it, got {unlike[0]!r}: {OPTION} my_loss")
    if given:
        os.environ[VARIABLE] = ":".join([*filter(None, [before]), *given])
    try:
        yield
    finally:
        if given:
            os.environ.pop(VARIABLE)
            os.environ.update({} if before is None else {VARIABLE: before})


def listed(variable: str) -> list[str]:
    """Return the names that an environment variable lists."""
    return [each for each in re.split(r"[:,\s]+", os.environ.get(variable, "")) if each]


def let_in(name: str) -> str | None:
    """Return the entry of `--allow-target` that allows this name, or None."""
    return next((each for each in listed(VARIABLE) if name == each or name.startswith(f"{each}.")), None)


def by_name(name: str) -> bool:
    """Return whether this name is allowed, by the list or by the user's command."""
    return bool(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name)) and (current(name) in NAMES or let_in(name) is not None)


def refusal(path: str, name: Any) -> str:
    """Return the error line for a target that is not allowed."""
    if not isinstance(name, str):
        return f"{path} must be the name of a function or a class, got {name!r}"
    module = name.rpartition(".")[0].partition(":")[0] or name
    return f"{path} {name!r} is not allowed; if you trust it, add {OPTION} {module}"


def target(path: str, name: Any) -> Any:
    """Return the object that a `_target_` names; raises UserError unless both the name and the object are allowed."""
    if not isinstance(name, str) or not by_name(name):
        raise UserError(refusal(path, name))
    if name in RENAMED:
        moved(path, name)
        name = current(name)
    try:
        found = resolve_name(name)
    except Exception as error:
        raise UserError(f"{path} names {name!r}, which cannot be had: {first_line(error)}") from error
    if name in NAMES or let_in(name) == name or not callable(found):
        return found
    # An allowed module allows the objects that it defines, but not the objects that it imports.
    module, qualified = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    real = f"{module}.{qualified}" if module and qualified else f"a {type(found).__module__}.{type(found).__name__}"
    if let_in(real) is None:
        raise UserError(f"{path} {name!r} is {real}, which is not allowed; if you trust it, add {OPTION} {name}")
    return found


@cache
def moved(path: str, name: str) -> None:
    """Warn of a part's old name, once per process."""
    logging.getLogger(__name__).warning("%s %s is now %s", path, name, current(name))


def targets(path: str, plain: Any) -> Iterator[tuple[str, Any]]:
    """Yield every `_target_` in plain data with its path."""
    pairs = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, each in pairs:
        below = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            yield below, each
        yield from targets(below, each)


def faults(path: str, plain: Any) -> Iterator[str]:
    """Yield the errors of plain data: names that are not allowed, and data that must not be read again. Nothing is imported."""
    for where, name in targets(path, plain):
        # A missing value is reported as missing.
        if name != "???" and not (isinstance(name, str) and by_name(name)):
            yield refusal(where, name)
    yield from unread(path, plain)


def unread(path: str, plain: Any) -> Iterator[str]:
    """Yield an error for plain data that must not be read again: unresolved text, and objects as Keras serialises them."""
    if isinstance(plain, str) and "${" in plain:
        yield f"{path} must hold no interpolation once it is resolved, got {plain!r}; write out what it stands for"
    if isinstance(plain, dict) and "class_name" in plain:
        yield f"{path}.class_name is how Keras stores an object, which is not read from a configuration; use _target_"
    for key, each in plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ():
        yield from unread(f"{path}.{key}" if path else str(key), each)


def plain(path: str, node: Any) -> Any:
    """Return a node as plain data, resolved once; raises UserError for data that would be resolved or read again."""
    found = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if faults := list(unread(path, found)):
        raise UserError("; ".join(faults))
    return found


def made(path: str, node: Any) -> Any:
    """Return a node with each `_target_` called with the keys beside it; with `_partial_` the keys are bound, without a call.

    Raises UserError if a target is not allowed, before any target is called.
    """
    found = plain(path, node)
    for where, name in targets(path, found):
        target(where, name)
    return called(path, found)


def called(path: str, plain: Any) -> Any:
    """Return the objects that allowed plain data name."""
    if isinstance(plain, list):
        return [called(f"{path}.{index}", each) for index, each in enumerate(plain)]
    if not isinstance(plain, dict):
        return plain
    inner = (lambda _, each: each) if plain.get("_recursive_") is False else called
    keys = {key: inner(f"{path}.{key}", each) for key, each in plain.items() if key not in SPECIAL}
    if "_target_" not in plain:
        return keys
    function = target(f"{path}._target_", plain["_target_"])
    args = inner(f"{path}._args_", plain.get("_args_", []))
    return partial(function, *args, **keys) if plain.get("_partial_") else function(*args, **keys)


def interpolated(plain: Mapping[str, Any] | Any) -> bool:
    """Return whether plain data hold an unresolved interpolation."""
    if isinstance(plain, str):
        return "${" in plain
    values = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ()
    return any(interpolated(each) for each in values)
