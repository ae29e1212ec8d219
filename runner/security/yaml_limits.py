"""Files of configurations are looked at before they are read: a few bytes of YAML can stand for more than any memory holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import yaml

from runner.errors import UserError, first_line

# Of a file's text, of the values that it stands for, and of how deep they are nested.
BYTES, VALUES, LEVELS = 2**20, 10_000, 100
# Some thousand take a second to be parsed.
INTERPOLATIONS = 1000


def checked(path: Path) -> str:
    """Return the text of a file; raises UserError for one that is too large, stands for too many values, or is no YAML."""
    if (size := path.stat().st_size) > BYTES:
        raise UserError(f"{path} must be 1 MiB or less, got {size} bytes; keep data in a file of its own")
    try:
        count(path, text := path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {first_line(error)}") from error
    return text


def count(path: object, text: str) -> int:
    """Return how many values a text stands for, with each alias at its full size; raises UserError beyond a bound."""
    sizes: dict[str, int] = {}
    interpolations = 0
    # Of what is open: its anchor, and how many values came in it.
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
    """Have every file that Hydra reads looked at before.

    Hydra's own sources are no place for that: its scan for plugins makes their classes anew.
    """
    from hydra._internal.config_repository import ConfigRepository

    if not hasattr(ConfigRepository.load_config, "__wrapped__"):
        setattr(ConfigRepository, "load_config", reading(ConfigRepository.load_config))


def reading(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return what reads a file of a search path once it is looked at."""

    @wraps(load)
    def load_config(self: Any, config_path: str) -> Any:
        for source in self.get_sources():
            if source.scheme() == "file" and source.is_config(config_path):
                checked(Path(source.path, source._normalize_file_name(config_path)))
                break
        return load(self, config_path)

    return load_config
