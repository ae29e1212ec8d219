"""Errors that a configuration alone shows and that Hydra's composition does not check, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.config import bounds
from runner.config.labels import declared
from runner.config.schema import Config
from runner.errors import Incompatible, UserError, nearest
from runner.security import secrets, targets

# Other kinds of values that are accepted in place of a kind.
WIDER = {"a number": ("a whole number",)}


# Floats count exactly up to this number; times and rows are computed in floats.
ITERATIONS = 2**53


def check(cfg: DictConfig, choices: Mapping[str, Any], sources: tuple[Path, ...]) -> None:
    """Raise one UserError with all errors that the configuration alone shows.

    A group's file is its schema: an override must have the type of the value that it replaces. Raises Incompatible if the only
    errors are choices that contradict each other.
    """
    known = [field.name for field in fields(Config)]
    given = OmegaConf.to_container(cfg)
    assert isinstance(given, dict)
    faults = [f"{key} is no key of the configuration; {nearest(key, known)}" for key in given if key not in known]
    faults += [*missing("", given), *ranges(given), *huge("", given)]
    plain: dict[str, Any] = {}
    for group, value in given.items():
        if isinstance(value, dict):
            faults += mistyped(str(group), declared(sources, str(group), choices.get(str(group), "")), value)
        if targets.interpolated(value):
            value = OmegaConf.to_container(cfg[group], resolve=True) if OmegaConf.is_config(cfg[group]) else cfg[group]
        if isinstance(value, dict):
            plain[str(group)] = value
        secrets.learn({group: value})
        faults += targets.faults(str(group), value)
    faults += [*bounds.faults(plain, cfg.dtype.name), *bounds.names(plain.get("tracking", {}))]
    unlike = list(contradictions(given, choices, sources))
    if faults or unlike:
        # Choices that are each valid but contradict each other give an empty cell of a sweep, not a failed job.
        raise (UserError if faults else Incompatible)("; ".join([*faults, *unlike]))


def contradictions(given: Mapping[Any, Any], choices: Mapping[str, Any], sources: tuple[Path, ...]) -> Iterator[str]:
    """Yield an error for each chosen file whose node a plain value has replaced, as a number replaces a schedule.

    A stopping rule whose file holds a plain value, as the time limit's does, may be overridden by a plain value.
    """
    rules = [name for name in str(choices.get("stopping", "limit")).split(",") if name != "limit"]
    several = [(f"stopping/{name}", name) for name in rules if isinstance(declared(sources, "stopping", name).get(name), dict)]
    for group, name in [
        *((group, name) for group, name in choices.items() if group not in ("stopping", "experiment")),
        *several,
    ]:
        value: Any = given
        for key in group.split("/"):
            value = value.get(key, {}) if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            chosen = f"{group}={name}" if group != f"stopping/{name}" else f"stopping={name}"
            nested = "/" in group and group != f"stopping/{name}"
            remedy = f"leave one of them out, or set {group}=null" if nested else "leave one of them out"
            yield f"{chosen} and {group.replace('/', '.')}={value!r} contradict each other; {remedy}"


def missing(path: str, given: Any) -> Iterator[str]:
    """Yield an error for each value that is missing (`???`)."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from missing(f"{path}.{key}" if path else str(key), value)
    elif given == "???":
        yield f"{path} must be given; set it with {path}=…"


def ranges(given: Mapping[Any, Any]) -> Iterator[str]:
    """Yield an error for each top-level number that no run can use."""
    limit, seed = given["max_iterations"], given["seed"]
    if isinstance(limit, int) and not 1 <= limit <= ITERATIONS:
        yield f"max_iterations must be 1 or more, and {ITERATIONS} or less, got {limit}; set it with max_iterations=100"
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        yield f"seed must be in 0 … {2**32 - 1}, got {seed}; set it with seed=0"
    if isinstance(seconds := given["checkpoint"]["every_seconds"], int | float) and not seconds >= 0:
        yield f"checkpoint.every_seconds must be 0 or more, got {seconds}; set it with checkpoint.every_seconds=60"


def huge(path: str, given: Any) -> Iterator[str]:
    """Yield an error for each integer of a group that does not fit into 64 bits."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from huge(f"{path}.{key}" if path else str(key), value)
    elif isinstance(given, list):
        for i, value in enumerate(given):
            yield from huge(f"{path}.{i}", value)
    elif isinstance(given, int) and "." in path and not -(2**63) <= given < 2**63:
        yield f"{path} must be in -2^63 … 2^63 - 1, got {given}"


def mistyped(path: str, declared: Any, given: Any) -> Iterator[str]:
    """Yield an error for each value of another type than the value it overrides; a mapping (schedule) may replace a number."""
    if isinstance(declared, dict) and isinstance(given, dict):
        for key in declared.keys() & given.keys():
            yield from mistyped(f"{path}.{key}", declared[key], given[key])
    elif (word := kind(declared)) and not isinstance(given, dict) and kind(given) not in (None, word, *WIDER.get(word, ())):
        yield f"{path} must be {word}, got {given!r}; set it with {path}={declared}"


def kind(value: Any) -> str | None:
    """Return the word for a value's type; None if the type is unknown, as for an interpolation or a missing value."""
    if isinstance(value, str) and ("${" in value or value == "???"):
        return None
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", list: "a list"}
    return words.get(type(value))
