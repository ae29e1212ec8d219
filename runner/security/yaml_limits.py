"""Check configuration files before they are read: a few bytes of YAML can expand to more than any memory holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import yaml

from runner.errors import UserError, first_line

# Bounds of a file: bytes of text, values with aliases expanded, and levels of nesting.
BYTES, VALUES, LEVELS = 2**20, 10_000, 100
# Parsing a few thousand interpolations takes a second.
INTERPOLATIONS = 1000


def checked(path: Path) -> str:
    """Return the text of a file; raises UserError if it is too large, expands to too many values, or is not YAML."""
    if (size := path.stat().st_size) > BYTES:
        raise UserError(f"{path} must be 1 MiB or less, got {size} bytes; keep data in a file of its own")
    try:
        count(path, text := path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {first_line(error)}") from error
    return text


def count(path: object, text: str) -> int:
    """Return the number of values in a text, with each alias expanded; raises UserError beyond a bound."""
    sizes: dict[str, int] = {}
    interpolations = 0
    # Each open node: its anchor, and the number of values in it so far.
    stack: list[list[Any]] = [[None, 0]]
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append([event.anchor, 1])
            if len(stack) > LEVELS:
                raise UserError(f"{path} must be nested {LEVELS} levels or less")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, size = stack.pop()
            sizes |= {anchor: size} if anchor else {}
            stack[-1][1] += size
        elif isinstance(event, yaml.AliasEvent):
            stack[-1][1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes |= {event.anchor: 1} if event.anchor else {}
            stack[-1][1] += 1
            interpolations += event.value.count("${")
        if interpolations > INTERPOLATIONS:
            raise UserError(f"{path} must hold {INTERPOLATIONS} interpolations or less")
        if stack[-1][1] > VALUES:
            raise UserError(f"{path} must stand for {VALUES} values or less, with every alias written out")
    return stack[0][1]


def guard() -> None:
    """Patch Hydra so that it checks every file before it reads it.

    Hydra's source classes cannot be patched: its scan for plugins creates them again.
    """
    from hydra._internal.config_repository import ConfigRepository

    if not hasattr(ConfigRepository.load_config, "__wrapped__"):
        setattr(ConfigRepository, "load_config", reading(ConfigRepository.load_config))


def reading(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks a file of a search path and then reads it."""

    @wraps(load)
    def load_config(self: Any, config_path: str) -> Any:
        for source in self.get_sources():
            if source.scheme() == "file" and source.is_config(config_path):
                checked(Path(source.path, source._normalize_file_name(config_path)))
                break
        return load(self, config_path)

    return load_config
