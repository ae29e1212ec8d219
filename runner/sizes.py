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


def checked(path: Path) -> None:
    """Raise UserError for a file that is too large, stands for too many values, or is no YAML."""
    if (size := path.stat().st_size) > BYTES:
        raise UserError(f"{path} must be 1 MiB or less, got {size} bytes; keep data in a file of its own")
    try:
        count(path, path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {first_line(error)}") from error


def count(path: object, text: str) -> int:
    """Return how many values a text stands for, with each alias at its full size; raises UserError beyond a bound."""
    sizes: dict[str, int] = {}
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
        if stack[-1][1] > VALUES:
            raise UserError(f"{path} must stand for {VALUES} values or less, with every alias written out")
    return stack[0][1]


def guard() -> None:
    """Have every file that Hydra reads looked at before."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    original = FileConfigSource.load_config
    if not hasattr(original, "__wrapped__"):
        setattr(FileConfigSource, "load_config", guarded(original))


def guarded(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return what reads a file of a source of configurations once it is looked at."""

    @wraps(load)
    def load_config(self: Any, config_path: str) -> Any:
        path = Path(self.path, self._normalize_file_name(config_path))
        if path.is_file():
            checked(path)
        return load(self, config_path)

    return load_config
