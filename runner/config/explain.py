"""Turn errors of Hydra and OmegaConf into one line that names the key and the remedy."""

from __future__ import annotations

import re
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from runner.errors import first_line, nearest
from runner.security import secrets


def explain(error: Exception) -> str:
    """Return a one-line message for a configuration that Hydra could not compose."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        # For a list, Hydra reports only the folders that it has searched.
        folders = re.findall("path=file://(.*)", str(error))
        options = error.options or [file.stem for each in folders for file in Path(each, group).glob("*.yaml")]
        return f"{group} must be one of its files, got {name!r}; {nearest(name, options)}"
    if isinstance(error, OverrideParseException):
        shown = secrets.override(str(error.override))
        why = f" ({one_line(error)})" if shown == error.override else ""
        return f"the override {shown!r} cannot be read; write key=value{why}"
    if isinstance(cause, ConfigKeyError) or type(cause).__name__ == "ConfigAttributeError":
        known = [key for key in cause.parent_node or () if key != "hydra"]
        key = cause.full_key or cause.key
        return f"{key} is no key of the configuration; {nearest(str(cause.key), known)}"
    if isinstance(error, ModuleNotFoundError):
        return first_line(error)
    if isinstance(cause, ValidationError):
        return f"{cause.full_key}: {one_line(cause)}"
    return one_line(error)


def one_line(error: BaseException) -> str:
    """Return an exception's text, or its cause's, without OmegaConf's trailer, on one line."""
    key = re.search(r"full_key: (\S+)", str(error))
    text = " ".join(re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", str(error)).split())
    text = f"{key[1]}: {text}" if key and key[1] not in text else text
    return text or (one_line(error.__cause__) if error.__cause__ else type(error).__name__)
